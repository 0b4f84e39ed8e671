"""The generated /etc/hosts, /etc/hostname and /etc/resolv.conf of a container, as docker has them.

They are in a lower layer of their own: a test can write, rename and remove them, and they are not
reported as changes. A container on an image has all three. On the host's root, hosts(5) and
hostname(5) are the host's, if it has them, with the container's own name. resolv.conf(5) has the
name server of networks, unless the container has the host's network.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from pytest_sandbox.linux import name_link
from pytest_sandbox.linux.file_mounts import MAX_SIZE, Node, Stamp, stamp

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_sandbox.runtime.spec import Spec

__all__ = [
    "DIRECTORY",
    "LOCALHOST",
    "is_etc_directory",
    "nodes_of",
    "rename",
    "sources",
    "topmost_status",
]

DIRECTORY: Final = "/etc"
#: The start of /etc/hosts, as docker writes it.
LOCALHOST: Final = b"""\
127.0.0.1\tlocalhost
::1\tlocalhost ip6-localhost ip6-loopback
fe00::0\tip6-localnet
ff00::0\tip6-mcastprefix
ff02::1\tip6-allnodes
ff02::2\tip6-allrouters
"""
_HOSTS: Final = "/etc/hosts"
_HOSTNAME: Final = "/etc/hostname"
_RESOLV: Final = "/etc/resolv.conf"
#: The address of a container's own name, on its loopback, as in Debian's hosts(5).
_OWN_ADDRESS: Final = b"127.0.1.1\t"
_NO_SERVERS: Final = b"# No name server: the host has none.\n"
_OWN_SERVER: Final = (
    b"# It answers while the container has a Network or a list of destinations.\nnameserver %s\n"
    % name_link.ADDRESS.encode()
)


def topmost_status(lower: Sequence[str], name: str) -> os.stat_result | None:
    """Return the status of ``name`` in the topmost layer that has it; None if none has.

    No link is followed: in a layer of an image it could lead anywhere on the host.
    """
    for directory in lower:
        with suppress(FileNotFoundError):
            return os.lstat(os.path.join(directory, name))
    return None


def is_etc_directory(lower: Sequence[str]) -> bool:
    """Return whether /etc of these layers, topmost first, is a directory or missing."""
    status = topmost_status(lower, DIRECTORY[1:])
    return status is None or stat.S_ISDIR(status.st_mode)


def sources(spec: Spec) -> dict[str, Stamp]:
    """Return the files of the host whose content is copied into the generated ones."""
    of_image = () if spec.own_network else (_HOSTS, _RESOLV)
    found = {}
    for path in (_HOSTS, _HOSTNAME) if spec.is_on_host else of_image:
        with suppress(OSError):
            found[path] = stamp(path, content=True)
    return found


def nodes_of(spec: Spec, name: str, point: str, found: Mapping[str, Stamp]) -> list[Node]:
    """Return the files for a container with the host name ``name``, as the overlay at ``point`` has
    them; ``found`` are its :func:`sources`.

    Raises :class:`OSError` if a file of the host cannot be read.
    """
    is_own = _HOSTS not in found or spec.hides_hosts
    hosts = LOCALHOST if is_own else _content(found[_HOSTS])
    extra = b"".join(b"%s\t%s\n" % (ip.encode(), one.encode()) for one, ip in spec.extra_hosts)
    contents = {
        _HOSTS: b"%s%s%s%s\n" % (hosts, extra, _OWN_ADDRESS, name.encode()),
        _HOSTNAME: name.encode() + b"\n",
    }
    if spec.is_on_host:
        contents = {path: content for path, content in contents.items() if path in found}
    elif not spec.own_network:
        contents[_RESOLV] = _content(found[_RESOLV]) if _RESOLV in found else _NO_SERVERS
    if spec.own_network:
        contents[_RESOLV] = _OWN_SERVER
    # In a container on an image, an unprivileged user is root: its UID is mapped to 0.
    owner = (0, 0) if spec.is_on_host else (os.geteuid(), os.getegid())
    start = len(point) + 1
    return [
        Node(path[start:], stat.S_IFREG | 0o644, owner, content)
        for path, content in contents.items()
    ]


@lru_cache(maxsize=16)
def _content(file: Stamp) -> bytes:
    with open(file.path, "rb") as opened:
        content = opened.read(MAX_SIZE)
    return content if content.endswith(b"\n") or not content else content + b"\n"


def rename(directory: str, point: str, name: str, *, dir_fd: int) -> None:
    """Write another host name into the generated files in ``directory``, which the overlay at
    ``point`` has as a lower layer.

    Call it before anything in the container has opened them: a change of a lower layer that is in
    use has undefined results (overlayfs.rst). Raises :class:`OSError`.
    """
    for path in (_HOSTNAME, _HOSTS):
        if not path.startswith(f"{point}/"):
            continue
        name_in_layer = os.path.join(directory, os.path.relpath(path, point or "/"))
        with suppress(FileNotFoundError):
            flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
            with open(os.open(name_in_layer, flags, dir_fd=dir_fd), "r+b") as file:
                file.seek(_start_of_name(file.read()) if path == _HOSTS else 0)
                file.truncate()
                file.write(name.encode() + b"\n")


def _start_of_name(hosts: bytes) -> int:
    return hosts.rindex(_OWN_ADDRESS) + len(_OWN_ADDRESS)
