"""/etc/hosts, /etc/hostname and /etc/resolv.conf of a container, which docker generates, too.

They lie in a layer of their own, directly above what the container lies on: a test can write,
rename and remove them, and they are no change of the test's. On an image all three are made. On the
host's root, hosts(5) and hostname(5) are the host's with the container's own name, where the host
has them.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from pytest_sandbox.linux.file_mounts import MAX_SIZE, Node, Stamp, stamp

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_sandbox.runtime.spec import Spec

__all__ = ["DIRECTORY", "LOCALHOST", "nodes_of", "rename", "sources"]

DIRECTORY: Final = "/etc"
#: What docker writes into a container's /etc/hosts.
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
#: Where a container's own name leads to: its loopback, as in Debian's hosts(5).
_OWN_ADDRESS: Final = b"127.0.1.1\t"
_NO_SERVERS: Final = (
    b"# This container reaches no name server: it has no network, or one of containers alone.\n"
)


def sources(spec: Spec) -> dict[str, Stamp]:
    """Return the files of the host whose content goes into the generated ones."""
    of_image = () if spec.own_network else (_HOSTS, _RESOLV)
    found = {}
    for path in (_HOSTS, _HOSTNAME) if spec.is_on_host else of_image:
        with suppress(OSError):
            found[path] = stamp(path, content=True)
    return found


def nodes_of(spec: Spec, name: str, point: str, found: Mapping[str, Stamp]) -> list[Node]:
    """Return the files for a container called ``name``, as they lie in the overlay at ``point``;
    ``found`` are its :func:`sources`.

    Raises :class:`OSError` where a file of the host's cannot be read.
    """
    hosts = _content(found[_HOSTS]) if _HOSTS in found else LOCALHOST
    contents = {
        _HOSTS: b"%s%s%s\n" % (hosts, _OWN_ADDRESS, name.encode()),
        _HOSTNAME: name.encode() + b"\n",
    }
    if spec.is_on_host:
        contents = {path: content for path, content in contents.items() if path in found}
    else:
        contents[_RESOLV] = _content(found[_RESOLV]) if _RESOLV in found else _NO_SERVERS
    # In an image of an unprivileged user's, root is the user.
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
    """Write another name into the generated files in ``directory``, for the overlay at ``point``,
    before anything has opened them.

    Raises :class:`OSError`.
    """
    for path in (_HOSTNAME, _HOSTS):
        if not path.startswith(f"{point}/"):
            continue
        with suppress(FileNotFoundError):
            fd = os.open(
                os.path.join(directory, os.path.relpath(path, point or "/")),
                os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC,
                dir_fd=dir_fd,
            )
            with open(fd, "r+b") as file:
                start = _own_line(file.read()) + len(_OWN_ADDRESS) if path == _HOSTS else 0
                file.seek(start)
                file.truncate()
                file.write(name.encode() + b"\n")


def _own_line(hosts: bytes) -> int:
    return hosts.rindex(_OWN_ADDRESS)
