"""What this host can do, found by trying it, with a remedy for each thing it cannot do.

:func:`capabilities` tries everything once, in forks of a small process of its own, and remembers
the answers. ``pytest-sandbox doctor`` prints them, errors take their remedies from here, and
:func:`headline` is the one line that a test session shows.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from functools import cache

from pytest_sandbox.errors import UnsupportedError
from pytest_sandbox.linux import cgroup

__all__ = ["Capability", "capabilities", "find", "headline", "require", "try_here"]

_START = "import sys; sys.path.insert(0, {path!r}); from pytest_sandbox.host import main; main()"
_PATIENCE = 120


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


@cache
def capabilities() -> tuple[Capability, ...]:
    """Try everything, in a small process of its own, and return the rows in the order of the
    report; tried once in a process.
    """
    package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    command = [sys.executable, "-I", "-S", "-c", _START.format(path=package)]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=True, timeout=_PATIENCE
    )
    from pytest_sandbox.host import packages

    return (*(Capability(**row) for row in json.loads(done.stdout)), *packages.rows())


def try_here() -> tuple[Capability, ...]:
    """Try everything but the installed packages, in forks of the calling process, with its
    rights.
    """
    from pytest_sandbox.host import probes

    return probes.rows()


def main() -> None:
    """Print the rows of this process as JSON: what :func:`capabilities` starts."""
    sys.stdout.write(json.dumps([row.to_json() for row in try_here()]))


def find(name: str) -> Capability:
    """Return the row of that name. Raises :class:`KeyError`."""
    for row in capabilities():
        if row.name == name:
            return row
    raise KeyError(name)


def require(name: str, feature: str = "") -> Capability:
    """Return the row of that name, or raise :class:`UnsupportedError` with its remedy; ``feature``
    is what was asked for.
    """
    row = find(name)
    if not row.found:
        raise UnsupportedError(feature or row.name, f"{row.why}. {row.remedy}")
    return row


def headline() -> str:
    """Return what can be said at once, without trying: who we are, and which limits hold."""
    hierarchy = cgroup.find_hierarchy()
    who = "root" if os.geteuid() == 0 else f"user {os.geteuid()}"
    limits = " ".join(sorted(hierarchy.controllers)) or "none"
    groups = f"cgroup v{hierarchy.version}" if hierarchy.version else "no cgroups"
    return f"{who}, {groups}, limits: {limits}"
