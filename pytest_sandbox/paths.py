"""Where this user's files are: what running sessions need, and images. Nothing here makes or opens
a directory.
"""

from __future__ import annotations

import os

__all__ = ["images", "state"]


def state() -> str:
    """Return the directory of the sessions' locks and doors: below /run for root, else below
    ``$XDG_RUNTIME_DIR`` or /tmp.
    """
    uid = os.geteuid()
    if uid == 0:
        return "/run/pytest-sandbox"
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    return (
        os.path.join(runtime, "pytest-sandbox")
        if os.path.isabs(runtime)
        else f"/tmp/pytest-sandbox-{uid}"
    )


def images() -> str:
    """Return the directory of the image store: ``$PYTEST_SANDBOX_HOME``, else ``pytest-sandbox``
    below the XDG cache home.
    """
    given = os.environ.get("PYTEST_SANDBOX_HOME")
    if given:
        return os.path.abspath(os.path.expanduser(given))
    cache = os.environ.get(
        "XDG_CACHE_HOME", ""
    )  # a relative one is invalid, and to be ignored (XDG Base Directory Specification)
    return os.path.join(
        cache if os.path.isabs(cache) else os.path.expanduser("~/.cache"), "pytest-sandbox"
    )
