"""Coverage of a body inside: measured in the fork, merged into the parent's data, since the fork's files go with its layer."""

from __future__ import annotations

import base64
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_sandbox.plugin.wire import Sender

__all__ = ["merge", "send"]


def _current() -> Any:
    module = sys.modules.get("coverage")
    return module.Coverage.current() if module is not None else None


def send(sender: Sender) -> None:
    """Send what was measured in this fork, if anything measures."""
    measuring = _current()
    if measuring is not None:
        measuring.stop()
        sender.send("coverage", base64.b64encode(measuring.get_data().dumps()).decode())


def merge(text: str) -> None:
    """Add a fork's data to this process's."""
    measuring = _current()
    if measuring is None:
        return
    from coverage import CoverageData

    data = CoverageData(no_disk=True)
    data.loads(base64.b64decode(text))
    measuring.get_data().update(data)
