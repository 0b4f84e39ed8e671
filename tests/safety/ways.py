"""The ways an attack is run inside: as a command, or as a function in a fork of this process."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from safety import attacks

__all__ = ["attack"]


def attack(container, how, name, *arguments, **keywords):
    """Run an attack by its name; return its result."""
    if how == "call":
        return json.loads(json.dumps(container.call(getattr(attacks, name), *arguments)))
    command = [sys.executable, str(Path(attacks.__file__)), name, json.dumps(arguments)]
    return json.loads(container.run(command, capture_output=True, check=True, **keywords).stdout)
