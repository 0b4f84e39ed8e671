"""Docstrings name things by roles (``:class:`Container```); the pages show them as code."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:class|func|meth|attr|mod|data):`~?([^`]+)`")


class Roles(griffe.Extension):
    """Replace each role by its name, of a full path the last part."""

    def on_object(self, *, obj: griffe.Object, **_more: Any) -> None:
        """Change the docstring of every object that is read."""
        if obj.docstring is not None:
            obj.docstring.value = _ROLE.sub(
                lambda found: f"`{found[1].removeprefix('pytest_sandbox.')}`", obj.docstring.value
            )
