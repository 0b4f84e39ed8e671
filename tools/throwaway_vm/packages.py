"""What the machine is made of, from the distribution's packages, unpacked into a cache; nothing is
installed.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

LAYOUT = "2"  # to be raised when fill() makes something else of the packages
SHIM = "xstate.so"  # see xstate.c
# The kernel with its modules; the guest's PID 1 and its tools; ids for user namespaces, which few
# hosts have installed.
PACKAGES = ("user-mode-linux", "busybox-static", "uidmap", "libsubid4")


class VMError(Exception):
    """The machine could not be made or did not start; the text says what to do."""


def cache_directory() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return Path(os.environ.get("THROWAWAY_VM_CACHE", Path(base) / "pytest-sandbox-vm"))


def call(*argv: str | Path, cwd: Path | None = None) -> None:
    done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise VMError(f"{' '.join(map(str, argv))} failed: {done.stderr.strip()[-500:]}")


def download(directory: Path) -> list[Path]:
    """The packages as files; the lists of packages are brought up to date where a first try fails
    (a fresh machine has none).
    """
    directory.mkdir()
    try:
        call("apt-get", "download", *PACKAGES, cwd=directory)
    except VMError:
        call("apt-get", "update")
        call("apt-get", "download", *PACKAGES, cwd=directory)
    return sorted(directory.glob("*.deb"))


def fill(cache: Path) -> None:
    """Make ``linux`` (the kernel), ``busybox``, ``overlay.ko`` and ``guest/`` (a layer over the
    host's root) in the directory *cache*.
    """
    unpacked, guest = cache / "unpacked", cache / "guest"
    for package in download(cache / "packages"):
        call("dpkg-deb", "--extract", package, unpacked)
    shutil.copy2(unpacked / "usr/bin/linux.uml", cache / "linux")
    shutil.copy2(
        next(
            path
            for path in (unpacked / "bin/busybox", unpacked / "usr/bin/busybox")
            if path.exists()
        ),
        cache / "busybox",
    )
    if compiler := shutil.which("cc"):  # without one, only processors with AMX are left out
        call(
            compiler,
            "-O2",
            "-shared",
            "-fPIC",
            "-o",
            cache / SHIM,
            Path(__file__).with_name("xstate.c"),
        )
    keep_modules(unpacked / "usr/lib/uml/modules", guest, cache)
    for directory in ("usr/bin", "usr/lib"):
        for path in (unpacked / directory).glob("**/*"):
            if path.name.startswith(("newuidmap", "newgidmap", "getsubids", "libsubid")):
                target = guest / path.relative_to(unpacked)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, target, follow_symlinks=False)
    shutil.rmtree(unpacked)
    shutil.rmtree(cache / "packages")


def keep_modules(source: Path, guest: Path, cache: Path) -> None:
    version = next(source.iterdir())
    target = guest / "usr/lib/modules" / version.name
    shutil.copytree(version, target, symlinks=True)
    (guest / "lib").symlink_to("usr/lib")  # where depmod looks
    call(cache / "busybox", "depmod", "-b", guest, version.name)
    (guest / "lib").unlink()
    shutil.copy2(next(target.rglob("overlay.ko")), cache / "overlay.ko")


@contextmanager
def filled_cache() -> Iterator[Path]:
    """The cache directory, filled once, by one process at a time."""
    cache = cache_directory()
    cache.parent.mkdir(parents=True, exist_ok=True)
    with cache.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stamp = cache / "layout"
        if not stamp.exists() or stamp.read_text() != LAYOUT:
            shutil.rmtree(cache, ignore_errors=True)
            cache.mkdir()
            fill(cache)
            stamp.write_text(LAYOUT)
    yield cache
