"""Escape what a terminal would obey in text from containers, images and registries."""

from __future__ import annotations

import re

__all__ = ["LINE", "OUTPUT", "TEXT", "printable", "printable_output"]

# DEL and the C1 controls (ECMA-48), the line and paragraph separators, the bidirectional controls,
# which reorder what is displayed (Unicode UAX #9), and lone surrogates, which UTF-8 cannot encode.
_UNSAFE = "\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff"

#: For a single line. Every match that :meth:`str.isprintable` excludes is escaped.
LINE = re.compile("[^ -~]")
#: For text of several lines, which may contain tabs and line feeds.
TEXT = re.compile(f"[\x00-\x08\x0b-\x1f{_UNSAFE}]")
#: For captured output, which may also contain carriage returns and colours (SGR, ECMA-48).
OUTPUT = re.compile(f"(?!\x1b\\[[0-9;]{{0,40}}m)[\x00-\x08\x0b\x0c\x0e-\x1f{_UNSAFE}]")

_RESET = "\x1b[0m"
#: The end of text in which no colour continues: the last parameter of its last SGR is 0.
_ENDS_RESET = re.compile("\x1b\\[(?:[0-9;]*;)?0*m[^\x1b]*$")


def printable(text: object, unsafe: re.Pattern[str] = LINE) -> str:
    """Return ``str(text)`` with the unsafe characters written as Python escapes.

    ``unsafe`` is :data:`LINE`, :data:`TEXT` or :data:`OUTPUT`.
    """
    found = str(text)
    return found if found.isprintable() else unsafe.sub(_escaped, found)


def printable_output(text: str) -> str:
    """Return captured output with its unsafe characters escaped and its colours reset at the
    end.
    """
    made = printable(text, OUTPUT)
    is_coloured = "\x1b" in made and not _ENDS_RESET.search(made)
    return made + _RESET if is_coloured else made


def _escaped(match: re.Match[str]) -> str:
    if match[0].isprintable():
        return match[0]
    code = ord(match[0])
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
