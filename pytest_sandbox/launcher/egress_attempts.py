"""The connections of a container that a forwarder has not made."""

from __future__ import annotations

from typing import Any, Final

__all__ = ["Attempts"]

#: A program that tries many ports must not fill the memory.
_MOST: Final = 1000
#: After so many of a kind, the program is not looked up again.
_LOOK_UPS: Final = 8


class Attempts:
    """Counts by host, port, protocol, program and reason."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, int | None, str, str, str], int] = {}
        self._of_kind: dict[tuple[str, int | None], int] = {}
        self._program: dict[tuple[str, int | None], str] = {}
        self._names: dict[str, None] = {}
        self.left_out = 0

    def wants_program(self, host: str, port: int) -> bool:
        """Return whether the program of the next attempt is to be looked up."""
        is_full = len(self._counts) >= _MOST  # a new kind is left out
        return not is_full and self._of_kind.get((host, port), 0) < _LOOK_UPS

    def add(self, host: str, port: int | None, protocol: str, program: str, reason: str) -> None:
        """Count one attempt; an empty program stands for the last one that is known."""
        kind = host, port
        program = program or self._program.get(kind, "")
        key = (host, port, protocol, program, reason)
        if key not in self._counts and len(self._counts) >= _MOST:
            self.left_out += 1
            return
        self._program[kind] = program
        self._of_kind[kind] = self._of_kind.get(kind, 0) + 1
        self._counts[key] = self._counts.get(key, 0) + 1

    def add_name(self, name: str) -> None:
        """Note that a name was looked up that no port of is allowed."""
        if len(self._names) < _MOST:
            self._names[name] = None

    def to_json(self) -> list[dict[str, Any]]:
        """Return all of them; a name that was only looked up has no port."""
        connected = {host for host, _port in self._of_kind}
        found = [
            {
                "host": host,
                "port": port,
                "protocol": protocol,
                "program": program,
                "reason": reason,
                "count": count,
            }
            for (host, port, protocol, program, reason), count in self._counts.items()
        ]
        looked_up = [
            {"host": name, "port": None, "protocol": "dns", "program": "", "reason": "not allowed"}
            | {"count": 1}
            for name in self._names
            if name not in connected
        ]
        return found + looked_up
