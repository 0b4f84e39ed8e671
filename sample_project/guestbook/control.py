"""Stop what runs, the quick way: by its name."""

from __future__ import annotations

import os
import signal
from pathlib import Path


def running() -> list[int]:
    """The numbers of all processes on this machine that serve a guest book."""
    commands = {
        int(directory.name): command(directory)
        for directory in Path("/proc").iterdir()
        if directory.name.isdigit()
    }
    return sorted(pid for pid, words in commands.items() if words[-2:] == ["guestbook", "serve"])


def command(directory: Path) -> list[str]:
    try:
        return (directory / "cmdline").read_text().rstrip("\0").split("\0")
    except OSError:  # it has ended meanwhile
        return []


def stop() -> int:
    """Stop all of them, and say how many there were."""
    found = running()
    for pid in found:
        os.kill(pid, signal.SIGTERM)
    return len(found)
