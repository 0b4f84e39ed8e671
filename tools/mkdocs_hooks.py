"""Hooks of mkdocs that generate the table of settings and the verbs of the command line."""

from __future__ import annotations

import os
import re
from typing import Any

from pytest_sandbox.cli import verbs as verb_table
from pytest_sandbox.cli.parser import PROGRAM, parser_of
from pytest_sandbox.settings.settings import KEYS, Key

_COLUMNS = "88"


def on_page_markdown(markdown: str, **_more: Any) -> str:
    """Replace the comments of a page with generated text."""
    for comment, make in {
        "<!-- the table of settings -->": settings_table,
        "<!-- the verbs -->": verbs,
    }.items():
        if comment in markdown:
            markdown = markdown.replace(comment, make())
    return markdown


def settings_table() -> str:
    """Return a table with a row for each setting."""
    return "\n".join(
        [
            "| key | option | accepts | default | meaning |",
            "|---|---|---|---|---|",
            *map(_row, KEYS.values()),
        ]
    )


def _row(key: Key) -> str:
    return (
        f"| `{key.name}` | {'yes' if key.option else ''} | {_cell(key.form)} | "
        f"{_cell(key.default)} | {_cell(key.meaning)} |"
    )


def _cell(text: str) -> str:
    """Return a cell with its special characters escaped, and quoted text as code."""
    return re.sub(r'("[^"]+")', r"`\1`", text.replace("|", "\\|").replace("<", "&lt;"))


def verbs() -> str:
    """Return a section for each verb with its summary and its help."""
    return "\n\n".join(map(_verb, verb_table.MODULES))


def _verb(name: str) -> str:
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = _COLUMNS
    try:
        verb = verb_table.load(name)
        shown = parser_of(verb).format_help()
    finally:
        os.environ.pop("COLUMNS") if before is None else os.environ.update(COLUMNS=before)
    return f"## {name}\n\n{verb.summary}.\n\n```text\n$ {PROGRAM} {name} --help\n{shown}```"
