"""Text from containers and registries is escaped before it is printed."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from pytest_sandbox.cli import output
from pytest_sandbox.printable import LINE, OUTPUT, TEXT, printable, printable_output

#: Hypothesis limits the time of each example, which a busy machine exceeds.
untimed = hypothesis_settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


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
    """Control and formatting characters, and lone surrogates, are escaped."""
    assert expected == printable(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\n\tb\x1b[31m\r", "a\n\tb\\x1b[31m\\x0d"),
        ("\u202e\u2066\u2028\ud800\x9b", "\\u202e\\u2066\\u2028\\ud800\\x9b"),
        ("\u00a0\u200d\ue000", "\u00a0\u200d\ue000"),
    ],
)
def test_text_may_have_several_lines(text, expected):
    """Tabs, line feeds and characters that no terminal obeys are unchanged in text."""
    assert expected == printable(text, TEXT)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain\r\n", "plain\r\n"),
        ("\x1b[1;31mred", "\x1b[1;31mred\x1b[0m"),
        ("\x1b[31mred\x1b[m\n", "\x1b[31mred\x1b[m\n"),
        ("\x1b[2J\x1b]0;title\x07", "\\x1b[2J\\x1b]0;title\\x07"),
        ("\x1b[" + "1" * 50 + "m", "\\x1b[" + "1" * 50 + "m"),
    ],
)
def test_output_may_have_colours(text, expected):
    """Carriage returns and colours are unchanged in captured output; colours end with it."""
    assert expected == printable_output(text)


@untimed
@given(st.text(), st.sampled_from([LINE, TEXT, OUTPUT]))
def test_the_result_can_be_encoded(text, unsafe):
    """Any text can be encoded after escaping."""
    printable(text, unsafe).encode()


@untimed
@given(st.text())
def test_a_line_is_always_printable(text):
    """Any text is a single printable line after escaping."""
    assert printable(text).isprintable()


@untimed
@given(st.dictionaries(st.text(), st.text()))
def test_json_on_a_terminal_is_escaped_and_means_the_same(value):
    """JSON is printed with escapes that its readers turn back into the same value."""
    import contextlib
    import io

    with contextlib.redirect_stdout(io.StringIO()) as out:
        output.print_json(value)
    assert value == json.loads(out.getvalue())
    assert all(one.isprintable() or one == "\n" for one in out.getvalue())


def test_cells_of_a_table_are_escaped():
    """A cell of a table is one line, and has no control characters."""
    text = output.plain_table(("A", "B"), [("x\x1b[2J\nforged", "y")])
    assert 2 == len(text.splitlines())
    assert "\x1b" not in text
