"""Find and stop servers by their command line."""

from __future__ import annotations

import os
import signal
from pathlib import Path


def running() -> list[int]:
    """Return the PIDs of all guest book servers on this machine."""
    commands = {
        int(directory.name): command(directory)
        for directory in Path("/proc").iterdir()
        if directory.name.isdigit()
    }
    return sorted(pid for pid, args in commands.items() if args[-2:] == ["guestbook", "serve"])


def command(directory: Path) -> list[str]:
    try:
        return (directory / "cmdline").read_text().rstrip("\0").split("\0")
    except OSError:  # the process has ended
        return []


def stop() -> int:
    """Stop all servers, and return their number."""
    found = running()
    for pid in found:
        os.kill(pid, signal.SIGTERM)
    return len(found)
