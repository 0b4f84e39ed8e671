"""The hooks ``pytest_sandbox_carry`` and ``pytest_sandbox_carried``: state that a plugin has in the
test process, and needs in the parent.

What an implementation of the first returns is passed to the second of the same plugin. It is data
of the test process, so the parent accepts it only for a plugin of its own that has both.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pytest_sandbox.plugin.messages import MAX_MESSAGE_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

    from pytest_sandbox.plugin.report_channel import Receiver, ReportChannel

__all__ = ["CarrySender", "deliver"]

_encode = json.JSONEncoder(allow_nan=False).encode  # a test may replace json.dumps


class CarrySender:
    """The side of the test process. Created before the fork, it knows the implementations."""

    def __init__(self, item: pytest.Item) -> None:
        self._item = item
        self._implementations = _implementations(item.ihook.pytest_sandbox_carry)

    def send(self, channel: ReportChannel) -> None:
        """Call the hook, and send what it returns.

        Raises TypeError for what is not JSON, and ValueError for what is too large.
        """
        for name, function in self._implementations:
            data = function(item=self._item)
            if data is not None:
                _check(name, data)
                channel.send("carry", [name, data])


def _check(name: str, data: Any) -> None:
    try:
        size = len(_encode(data))
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(
            f"pytest_sandbox_carry of {name} returned what JSON cannot represent: {error}"
        ) from None
    if size > MAX_MESSAGE_BYTES // 2:
        raise ValueError(
            f"pytest_sandbox_carry of {name} returned {size} bytes of JSON; at most "
            f"{MAX_MESSAGE_BYTES // 2} are allowed. Write large data to a file, and copy that with "
            "the setting artifacts"
        )


def _implementations(hook: Any) -> list[tuple[str, Callable[..., Any]]]:
    """Return name and function of each plugin that implements a hook, in the order of calls."""
    return [
        (one.plugin_name, _with_named_arguments(one.function, one.argnames))
        for one in reversed(hook.get_hookimpls())
    ]


def _with_named_arguments(
    function: Callable[..., Any], names: tuple[str, ...]
) -> Callable[..., Any]:
    return lambda **arguments: function(**{name: arguments[name] for name in names})


def deliver(item: pytest.Item, receiver: Receiver) -> None:
    """Pass received data to the plugins that have sent it."""
    received = list(receiver.of_kind("carry"))
    if received:
        functions = dict(_implementations(item.ihook.pytest_sandbox_carried))
        for name, data in received:
            if name in functions:
                functions[name](item=item, data=data)
