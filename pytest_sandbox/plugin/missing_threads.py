"""The hint for a test that has waited in vain, perhaps for a thread: a fork has only the thread
that called fork(2), so a thread of the pytest process does not exist in the test's process.
"""

from __future__ import annotations

import threading

from pytest_sandbox.linux import process
from pytest_sandbox.printable import printable

__all__ = ["describe"]

_MOST_SHOWN = 10
#: Threads of tools, by the first module of their function or class: no test waits for them.
_OF_TOOLS = (
    "execnet",
    "xdist",
    "pytest_rerunfailures",
    "pytest_retry",
    "pytest_timeout",
    "coverage",
    "pytest_sandbox",
)


def describe() -> list[str]:
    """Return the hint if the pytest process has threads, of Python or of a native library."""
    ours = [one for one in threading.enumerate() if one is not threading.main_thread()]
    native = process.thread_names()
    for one in threading.enumerate():
        native.pop(one.native_id or -1, None)
    names = [f"{one.name!r}" for one in ours if not _is_of_tool(one)]
    names += [f"{name!r} of a native library" for name in native.values()]
    if not names:
        return []
    shown = ", ".join(map(printable, names[:_MOST_SHOWN]))
    more = f" and {len(names) - _MOST_SHOWN} more" if len(names) > _MOST_SHOWN else ""
    hint = (
        f"The pytest process has threads that do not exist in the test's process, a fork of it: "
        f"{shown}{more}. A test that waits for one waits for ever. Start it in a function-scoped "
        'fixture, which runs inside; or set scope= ("module", ...), with which fixtures of that '
        "scope run inside too; or fresh=True, a new interpreter inside, if it starts at an import."
    )
    return [hint]


def _is_of_tool(thread: threading.Thread) -> bool:
    function = getattr(thread, "_target", None)
    modules = (type(thread).__module__, getattr(function, "__module__", None) or "")
    return any(module.partition(".")[0] in _OF_TOOLS for module in modules)
