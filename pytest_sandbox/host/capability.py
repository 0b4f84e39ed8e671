"""What the host can do, as one row of a report."""

from __future__ import annotations

from dataclasses import asdict, dataclass

__all__ = ["Capability"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Capability:
    """One row: whether it was ``found``, ``why`` (what was seen, or what the kernel answered), and
    the ``remedy`` where it was not.

    ``area`` groups the rows; ``use`` is what it is good for; ``needed`` where no container can be
    made without it.
    """

    name: str
    area: str
    use: str
    needed: bool
    found: bool
    why: str
    remedy: str = ""

    def to_json(self) -> dict[str, object]:
        """Return the row as JSON can hold it."""
        return asdict(self)
