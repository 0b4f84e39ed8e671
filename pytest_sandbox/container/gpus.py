"""The device nodes and the libraries of NVIDIA's driver.

The libraries belong to the version of the kernel module, so an image has none: it gets the host's,
which are found in the cache of the host's loader (ldconfig(8)).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from functools import cache
from typing import TYPE_CHECKING

from pytest_sandbox.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["add_library_path", "libraries", "nodes"]

_DEV = "/dev"
#: The nodes besides those of the GPUs; nvidia-caps has those of parts of GPUs (MIG).
_CONTROL = ("nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset")
#: Where an image has the libraries: its loader searches it because of LD_LIBRARY_PATH. NVIDIA's own
#: images have this directory in their ld.so.conf(5).
_LIBRARIES = "/usr/local/nvidia/lib64"
#: The driver's libraries, by their names in the loader's cache.
_DRIVER = re.compile(
    r"lib(?:cuda|cudadebugger|nvidia-[\w-]+|nvcuvid|nvoptix|vdpau_nvidia"
    r"|(?:GLX|EGL|GLESv1_CM|GLESv2)_nvidia)\.so(?:\.\d+)*"
)
_LINE = re.compile(r"\s*(\S+) \(libc6,(?:x86-64|AArch64)[^)]*\) => (/\S.*)")
_PROGRAMS = ("nvidia-smi", "nvidia-debugdump", "nvidia-cuda-mps-control", "nvidia-cuda-mps-server")
_SECONDS = 20.0


def nodes(wanted: str) -> list[str]:
    """Return the device nodes for ``gpus=``. Raises :class:`UnsupportedError` without a GPU."""
    names = sorted(os.listdir(_DEV))
    gpus = [name for name in names if re.fullmatch(r"nvidia\d+", name)]
    if wanted != "all":
        chosen = [f"nvidia{int(number)}" for number in wanted.removeprefix("device=").split(",")]
        missing = [name for name in chosen if name not in gpus]
        gpus = [] if missing else chosen
    if not gpus or _CONTROL[0] not in names:
        found = ", ".join(name for name in names if re.match(r"nvidia", name)) or "nothing"
        raise UnsupportedError(
            f"gpus={wanted!r}",
            f"{_DEV} has no such GPU of NVIDIA (found: {found}): load the driver, for example with "
            "`sudo nvidia-modprobe -c 0 -u`.",
        )
    found_control = [name for name in _CONTROL if name in names]
    return [f"{_DEV}/{name}" for name in (*gpus, *found_control, *_parts())]


def _parts() -> list[str]:
    try:
        return [f"nvidia-caps/{name}" for name in sorted(os.listdir(f"{_DEV}/nvidia-caps"))]
    except FileNotFoundError:
        return []


def libraries() -> list[tuple[str, str, bool]]:
    """Return the host's libraries and programs of the driver as read-only volumes.

    Raises :class:`UnsupportedError` if the host has none.
    """
    found = found_libraries()
    if not found:
        raise UnsupportedError(
            "gpus= on an image",
            "The cache of this host's loader has no libcuda.so: install the driver's libraries and "
            "run `sudo ldconfig`.",
        )
    programs = {name: path for name in _PROGRAMS if (path := shutil.which(name))}
    return [
        *((os.path.realpath(path), f"{_LIBRARIES}/{name}", True) for name, path in found.items()),
        *((os.path.realpath(path), f"/usr/bin/{name}", True) for name, path in programs.items()),
    ]


@cache
def found_libraries() -> dict[str, str]:
    """Return the driver's libraries in the loader's cache: the name, and the first path."""
    ldconfig = shutil.which("ldconfig", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if ldconfig is None:
        return {}
    done = subprocess.run(
        [ldconfig, "-p"], capture_output=True, check=False, text=True, timeout=_SECONDS
    )
    found: dict[str, str] = {}
    for line in done.stdout.splitlines():
        match = _LINE.fullmatch(line)
        if match and _DRIVER.fullmatch(match[1]) and os.path.exists(match[2]):
            found.setdefault(match[1], match[2])
    return found if any(name.startswith("libcuda.so") for name in found) else {}


def add_library_path(env: Mapping[str, str]) -> dict[str, str]:
    """Return an environment in which the loader finds the libraries."""
    before = env.get("LD_LIBRARY_PATH")
    return {**env, "LD_LIBRARY_PATH": f"{_LIBRARIES}:{before}" if before else _LIBRARIES}
