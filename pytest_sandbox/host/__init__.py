"""What this host can do, found by trying it, with a remedy for each thing it cannot do.

:func:`capabilities` tries everything once, in forks of a small process of its own, and remembers
the answers. Errors take their remedies from here, ``pytest-sandbox doctor`` explains with them why
a container did not start, and :func:`headline` is the one line that a test session shows.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache

from pytest_sandbox.errors import UnsupportedError
from pytest_sandbox.host.capability import Capability

__all__ = ["Capability", "capabilities", "find", "headline", "require", "try_here"]

_START = "import sys; sys.path.insert(0, {path!r}); from pytest_sandbox.host import main; main()"
_PATIENCE = 120


@cache
def capabilities() -> tuple[Capability, ...]:
    """Try everything, in a small process of its own, and return the rows in the order of the
    report; tried once in a process.
    """
    from pytest_sandbox.host import packages

    return (*_tried(), *packages.rows())


def _tried(*names: str) -> tuple[Capability, ...]:
    """Try these probes, by default all, in a process without this one's descriptors and memory."""
    package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    command = [sys.executable, "-I", "-S", "-c", _START.format(path=package), *names]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=True, timeout=_PATIENCE
    )
    return tuple(Capability(**row) for row in json.loads(done.stdout))


def try_here(*names: str) -> tuple[Capability, ...]:
    """Try these probes, by default all, in forks of the calling process, with its rights."""
    from pytest_sandbox.host import probes

    return probes.rows(*names)


def main() -> None:
    """Print the rows of this process as JSON: what :func:`capabilities` starts."""
    sys.stdout.write(json.dumps([row.to_json() for row in try_here(*sys.argv[1:])]))


@cache
def find(name: str) -> Capability:
    """Return the row of that name, which alone is tried. Raises :class:`KeyError`."""
    for row in _tried(name):
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
    from pytest_sandbox.host import limits

    hierarchy = limits.hierarchy()
    who = "root" if os.geteuid() == 0 else f"user {os.geteuid()}"
    obeying = " ".join(sorted(hierarchy.controllers)) or "none"
    groups = f"cgroup v{hierarchy.version}" if hierarchy.version else "no cgroups"
    return f"{who}, {groups}, limits: {obeying}"
