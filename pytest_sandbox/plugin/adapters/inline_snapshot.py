"""inline-snapshot changes source files at the end of the session, from values that it has seen in
the process of the tests. From tests inside it has seen none, and would take their snapshots for
unused. So it compares, and changes nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest

__all__ = ["register"]

_CHANGES = {"create", "fix", "trim", "update", "review"}


def register(config: pytest.Config) -> None:
    """Turn off changes that are defaults; raise :class:`pytest.UsageError` for requested ones."""
    requested = _CHANGES & set((config.option.inline_snapshot or "").split(","))
    if requested:
        option = f"--inline-snapshot={','.join(sorted(requested))}"
        raise pytest.UsageError(
            f"{option} changes sources from what it has seen in pytest's own process, and not from "
            "tests that run in a container. To change them, run without --sandbox and the mark "
            "container; to compare inside, leave the option out."
        )
    state: Any = import_module("inline_snapshot._global_state").state()
    state.flags -= _CHANGES
    state.update_flags = type(state.update_flags)()
