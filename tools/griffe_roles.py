"""An extension of griffe that shows the roles of docstrings (``:class:`Container```) as code."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:class|func|meth|attr|mod|data):`~?([^`]+)`")


class Roles(griffe.Extension):
    """Replace each role with its name, without the name of the package."""

    def on_object(self, *, obj: griffe.Object, **_more: Any) -> None:
        """Change the docstring of an object."""
        if obj.docstring is not None:
            obj.docstring.value = _ROLE.sub(
                lambda found: f"`{found[1].removeprefix('pytest_sandbox.')}`", obj.docstring.value
            )
