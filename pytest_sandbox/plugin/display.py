"""Text from a container, made safe to print: terminal control characters are shown escaped."""

from __future__ import annotations

import re

__all__ = ["escaped", "escaped_output"]

# C0 and C1 control characters but tab and line feed (ECMA-48), the bidirectional controls of
# Unicode (UAX #9), which reorder what is read, and lone surrogates, which no encoding can write.
_C1_AND_UNICODE = "\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff"
_CONTROLS = re.compile(f"[\x00-\x08\x0b-\x1f{_C1_AND_UNICODE}]")
# Output that was captured may also have carriage returns and colours (SGR sequences).
_COLOUR = "\x1b\\[[0-9;]{0,40}m"
_OUTPUT_CONTROLS = re.compile(f"({_COLOUR})|[\x00-\x08\x0b\x0c\x0e-\x1f{_C1_AND_UNICODE}]")
_RESET = "\x1b[0m"


def escaped(text: str) -> str:
    """Return the text with each control character but tab and line feed as Python writes it."""
    return text if text.isprintable() else _CONTROLS.sub(_as_python_writes_it, text)


def escaped_output(text: str) -> str:
    """Return captured output with its control characters escaped, but not its colours.

    What is still coloured at the end is reset there.
    """
    if text.isprintable():
        return text
    made = _OUTPUT_CONTROLS.sub(_colour_or_escaped, text)
    is_open = "\x1b" in made and not made.rstrip().endswith(("\x1b[0m", "\x1b[m"))
    return made + _RESET if is_open else made


def _colour_or_escaped(found: re.Match[str]) -> str:
    return found[1] or _as_python_writes_it(found)


def _as_python_writes_it(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape", "surrogatepass").decode("ascii")
