"""How the launcher comes to the power to build, and what it builds on: the host's root, or, without root, what a user may lay over it."""

from __future__ import annotations

import os
import sys

from pytest_sandbox import folders
from pytest_sandbox.channel import Channel
from pytest_sandbox.errors import UnsupportedError
from pytest_sandbox.linux import host_root, private_directory, process, userns

__all__ = ["find", "gain_power", "unlimited"]


def gain_power(client: int) -> None:
    """Return where this process may make namespaces; else start its program anew in a user namespace, or tell the client why not, and end."""
    if userns.has_power():
        return
    try:
        userns.become_builder()
    except OSError as error:
        Channel.of(client).send({"op": "error", "step": "make a user namespace", "reason": str(error.strerror), "errno": error.errno})
        sys.exit(1)


def find(folder: str) -> host_root.HostRoot:
    """Look at the host's mounts, and return what containers stand on from now on; ``folder`` is the session's own."""
    if userns.is_initial():
        return host_root.for_root()
    number = len(os.listdir(folder))  # containers that live stand on the older ones
    works = [process.working_folder(os.getppid()), sys.prefix, os.environ.get("TMPDIR", "/tmp"), folders.images(), os.path.expanduser("~")]
    return host_root.for_user(f"{folder}/skeleton-{number}", works, _layers())


def unlimited(root: host_root.HostRoot, disk: int) -> UnsupportedError:
    """Return the error for a size that a user asks for of a layer that is not in memory: what could hold it, a loop device, root alone may mount."""
    what = "Without root, only a layer in memory can be limited"
    if root.layers is None:
        return UnsupportedError(f'disk={disk} with storage="disk"', f"{what}: leave storage= out.")
    release = os.uname().release
    return UnsupportedError(
        f"disk={disk}",
        f"{what}, and that takes Linux 6.6 or newer (this is {release}): use such a kernel, run as root, or leave disk= out.",
    )


def _layers() -> str | None:
    """Return a folder for writable layers where tmpfs holds none; raises OSError where nothing does."""
    if host_root.tmpfs_takes_attributes():
        return None
    refused: list[str] = []
    for base in (os.path.join(folders.images(), "writable"), os.path.join("/var/tmp", f"pytest-sandbox-{os.geteuid()}")):
        try:
            if host_root.takes_attributes(private_directory.make_private(base)):
                return base
            refused.append(f"{base}: its file system has no user attributes")
        except OSError as error:
            refused.append(f"{base}: {error.strerror}")
    reasons = "; ".join(refused)
    raise OSError(
        95, f"no directory for writable layers, which tmpfs cannot hold before Linux 6.6 ({reasons}). Set PYTEST_SANDBOX_HOME to one"
    )
