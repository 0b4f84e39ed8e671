"""What is installed beside this library, looked for without importing it."""

from __future__ import annotations

import sys
from importlib.util import find_spec

from pytest_sandbox.host.capability import Capability

__all__ = ["rows"]

_ZSTD = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
_PACKAGES = (
    ("registry client", "urllib3", "images", "pulling images"),
    ("zstd layers", _ZSTD, "images", "images whose layers are compressed by zstd"),
    ("fast gzip", "isal", "fast", "unpacking layers two to four times as fast"),
    ("rich", "rich", "cli", "tables and progress on a terminal"),
)


def rows() -> tuple[Capability, ...]:
    """Return a row for each package that some part would use."""
    return tuple(_row(*package) for package in _PACKAGES)


def _row(name: str, module: str, extra: str, use: str) -> Capability:
    found = _is_installed(module)
    return Capability(
        name=name,
        area="packages",
        use=use,
        needed=False,
        found=found,
        why=f"{module} is {'' if found else 'not '}installed",
        remedy="" if found else f"pip install 'pytest-sandbox[{extra}]'",
    )


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the package above it is not there
        return False
