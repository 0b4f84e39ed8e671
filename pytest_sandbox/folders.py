"""Where this user's files are: what running sessions need, and images. Nothing here makes or opens a folder."""

from __future__ import annotations

import os

__all__ = ["images", "state"]


def state() -> str:
    """Return the folder of the sessions' locks and doors: below /run for root, else below ``$XDG_RUNTIME_DIR`` or /tmp."""
    uid = os.geteuid()
    if uid == 0:
        return "/run/pytest-sandbox"
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    return os.path.join(runtime, "pytest-sandbox") if os.path.isabs(runtime) else f"/tmp/pytest-sandbox-{uid}"


def images() -> str:
    """Return the folder of the image store: ``$PYTEST_SANDBOX_HOME``, or a folder of the XDG cache home."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.environ.get("PYTEST_SANDBOX_HOME") or os.path.join(cache, "pytest-sandbox")
