"""Text from containers and registries reaches no terminal as it is."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_sandbox.cli import output
from pytest_sandbox.printable import TEXT, printable


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain \u00e9\u4e2d", "plain \u00e9\u4e2d"),
        ("\x1b[2J\x07\r", "\\x1b[2J\\x07\\x0d"),
        ("a\nb\tc", "a\\x0ab\\x09c"),
        ("\x7f\x9b31m", "\\x7f\\x9b31m"),
        ("\u202egpj", "\\u202egpj"),
        ("\ud800", "\\ud800"),
        ("\U000e0001", "\\U000e0001"),
        (None, "None"),
    ],
)
def test_what_a_terminal_could_obey_is_escaped(text, expected):
    """Control and formatting characters, and halves of surrogate pairs."""
    assert expected == printable(text)


def test_layout_is_kept_where_it_is_ours():
    """Newlines of our own messages stay."""
    assert "a\nb\\x1b" == printable("a\nb\x1b", TEXT)


@given(st.text())
def test_the_result_is_always_printable(text):
    """Whatever the text, the result is printable and can be encoded."""
    assert printable(text).isprintable()
    printable(text).encode()


@given(st.dictionaries(st.text(), st.text()))
def test_json_on_a_terminal_is_escaped_and_means_the_same(value):
    """Programs read the same value; a terminal sees nothing that it could obey."""
    import contextlib
    import io

    with contextlib.redirect_stdout(io.StringIO()) as out:
        output.print_json(value)
    assert value == json.loads(out.getvalue())
    assert all(one.isprintable() or one == "\n" for one in out.getvalue())


def test_cells_of_a_table_are_escaped():
    """Columns stay aligned, and no cell makes a line of its own."""
    text = output.plain_table(("A", "B"), [("x\x1b[2J\nforged", "y")])
    assert 2 == len(text.splitlines())
    assert "\x1b" not in text
