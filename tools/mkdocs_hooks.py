"""What mkdocs asks of the code while it builds the pages: tables made from the table of settings, roles of docstrings as links."""

from __future__ import annotations

import re
from typing import Any

from pytest_sandbox.settings import KEYS, Key

_TABLE = "<!-- the table of settings -->"


def on_page_markdown(markdown: str, **_more: Any) -> str:
    """Put the table of settings where a page asks for it."""
    return markdown.replace(_TABLE, settings_table()) if _TABLE in markdown else markdown


def settings_table() -> str:
    """One row for each key, as the code describes it."""
    return "\n".join(["| key | option | accepts | default | meaning |", "|---|---|---|---|---|", *map(_row, KEYS.values())])


def _row(key: Key) -> str:
    return f"| `{key.name}` | {'yes' if key.option else ''} | {_cell(key.form)} | {_cell(key.default)} | {_cell(key.meaning)} |"


def _cell(text: str) -> str:
    """Escape what a table would take for its own; set quoted words as code."""
    return re.sub(r'("[^"]+")', r"`\1`", text.replace("|", "\\|").replace("<", "&lt;"))
