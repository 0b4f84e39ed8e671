"""The files of the machine, unpacked from packages of the distribution into a cache. Nothing is
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

LAYOUT = "2"  # version of the cache; increase it when fill() changes
SHIM = "xstate.so"  # see xstate.c
# The kernel with its modules; the guest's PID 1 and tools; newuidmap(1), which few hosts have.
PACKAGES = ("user-mode-linux", "busybox-static", "uidmap", "libsubid4")


class VMError(Exception):
    """The machine could not be created or did not start; the text says what to do."""


def cache_directory() -> Path:
    """Return ``$THROWAWAY_VM_CACHE``, or a directory below the XDG cache home."""
    base = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return Path(os.environ.get("THROWAWAY_VM_CACHE", Path(base) / "pytest-sandbox-vm"))


def call(*argv: str | Path, cwd: Path | None = None) -> None:
    """Run a program. Raises :class:`VMError` if it fails."""
    done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise VMError(f"{' '.join(map(str, argv))} failed: {done.stderr.strip()[-500:]}")


def download(directory: Path) -> list[Path]:
    """Download the packages, and return their files.

    If that fails, the package lists, which a new machine lacks, are updated first.
    """
    directory.mkdir()
    try:
        call("apt-get", "download", *PACKAGES, cwd=directory)
    except VMError:
        call("apt-get", "update")
        call("apt-get", "download", *PACKAGES, cwd=directory)
    return sorted(directory.glob("*.deb"))


def fill(cache: Path) -> None:
    """Create ``linux`` (the kernel), ``busybox``, ``overlay.ko`` and ``guest/`` (a layer above the
    host's root) in the cache.
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
    if compiler := shutil.which("cc"):  # needed only on processors with AMX
        source = Path(__file__).with_name("xstate.c")
        call(compiler, "-O2", "-shared", "-fPIC", "-o", cache / SHIM, source)
    copy_modules(unpacked / "usr/lib/uml/modules", guest, cache)
    for directory in ("usr/bin", "usr/lib"):
        for path in (unpacked / directory).glob("**/*"):
            if path.name.startswith(("newuidmap", "newgidmap", "getsubids", "libsubid")):
                target = guest / path.relative_to(unpacked)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, target, follow_symlinks=False)
    shutil.rmtree(unpacked)
    shutil.rmtree(cache / "packages")


def copy_modules(source: Path, guest: Path, cache: Path) -> None:
    """Copy the kernel modules to the guest's layer, and overlay.ko to the cache."""
    version = next(source.iterdir())
    target = guest / "usr/lib/modules" / version.name
    shutil.copytree(version, target, symlinks=True)
    (guest / "lib").symlink_to("usr/lib")  # depmod reads /lib/modules
    call(cache / "busybox", "depmod", "-b", guest, version.name)
    (guest / "lib").unlink()
    shutil.copy2(next(target.rglob("overlay.ko")), cache / "overlay.ko")


@contextmanager
def filled_cache() -> Iterator[Path]:
    """Yield the cache directory, which is filled once, by one process at a time."""
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
