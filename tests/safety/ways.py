"""How an attack gets inside: as a program that init executes, or as a function in a fork of this
process.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from safety import attacks

__all__ = ["attack"]


def attack(container, how, name, *arguments, **keywords):
    """Run an attack; returns what it says."""
    if how == "call":
        return json.loads(json.dumps(container.call(getattr(attacks, name), *arguments)))
    command = [sys.executable, str(Path(attacks.__file__)), name, json.dumps(arguments)]
    return json.loads(container.run(command, capture_output=True, check=True, **keywords).stdout)
