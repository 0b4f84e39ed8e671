"""The table of verbs: which module defines each one, so that a verb imports only what it needs."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from pytest_sandbox import supported

if TYPE_CHECKING:
    from pytest_sandbox.cli.verb import Verb

__all__ = ["MODULES", "load"]

#: Verb -> the module of this package that defines it, in the order of the help.
MODULES: dict[str, str] = {
    "doctor": "doctor",
    "run": "run",
    "ps": "containers",
    "exec": "containers",
    "shell": "containers",
    "rm": "ended",
    "stats": "containers",
    "diff": "containers",
    "top": "top",
    "cp": "copy",
    "commit": "commit",
    "logs": "background",
    "wait": "background",
    "stop": "background",
    "kill": "background",
    "port": "background",
    "rename": "background",
    "network": "network",
    "pull": "images",
    "load": "images",
    "save": "image_export",
    "tag": "image_export",
    "images": "image_list",
    "inspect": "inspect",
    "history": "image_list",
    "rmi": "images",
    "prune": "images",
}


def load(name: str) -> Verb:
    """Import the module of one verb and return the verb. Raises :class:`KeyError` for an unknown
    name.
    """
    try:
        module = importlib.import_module(f"{__package__}.{MODULES[name]}")
    except ImportError:
        supported.require()  # it imports what other operating systems lack
        raise
    verbs: tuple[Verb, ...] = module.VERBS
    return next(one for one in verbs if one.name == name)
