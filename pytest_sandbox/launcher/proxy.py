"""The HTTP proxy of the host's environment."""

from __future__ import annotations

import base64
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Proxy"]


@dataclass(frozen=True, slots=True)
class Proxy:
    """``host`` is empty without a proxy; ``exceptions`` are the host names of NO_PROXY."""

    LONGEST_ANSWER: ClassVar[int] = 1 << 14

    host: str
    port: int
    credentials: str
    exceptions: tuple[str, ...]

    @classmethod
    def of(cls, proxy: Sequence[object] | None, exceptions: Sequence[str]) -> Self:
        """Return the proxy of a message: host, port, and "user:password" or an empty text."""
        host, port, credentials = proxy or ("", 0, "")
        return cls(str(host), int(str(port)), str(credentials), tuple(exceptions))

    def is_used_for(self, name: str) -> bool:
        """Return whether connections to a name go through the proxy.

        Names that mean the host itself do not: to a proxy they mean the proxy's machine, which may
        be this host. Neither do addresses that are written as names, as every address.
        """
        return (
            bool(self.host)
            and not _is_local(name)
            and not any(
                one == "*" or f".{name}".endswith(f".{one.lstrip('.')}") for one in self.exceptions
            )
        )

    def request(self, host: str, port: int) -> bytes:
        """Return the request for a connection."""
        lines = [f"CONNECT {host}:{port} HTTP/1.1", f"Host: {host}:{port}"]
        if self.credentials:
            token = base64.b64encode(self.credentials.encode()).decode()
            lines.append(f"Proxy-Authorization: Basic {token}")
        return "\r\n".join([*lines, "", ""]).encode("ascii")

    @staticmethod
    def accepts(answer: bytes) -> bool:
        """Return whether the answer to a request has a status from 200 to 299."""
        return answer[:5] == b"HTTP/" and answer[8:10] == b" 2" and b"\r\n\r\n" in answer


def _is_local(name: str) -> bool:
    plain = name.rstrip(".")
    if plain in {"", "localhost", socket.gethostname().lower()} or plain.endswith(".localhost"):
        return True
    try:
        socket.inet_aton(plain)
    except OSError:
        return False
    return True
