"""Text from containers and registries, made safe to print on a terminal."""

from __future__ import annotations

__all__ = ["printable"]


def printable(text: object, *, keep: str = "") -> str:
    """Return ``text`` with every character that a terminal could obey written as an escape.

    Escaped are control characters (C0, C1, newline and tab), formatting characters such as
    U+202E (which reverses what follows) and lone surrogates: all that :meth:`str.isprintable`
    excludes, unless it stands in ``keep``.
    """
    found = str(text)
    if found.isprintable():
        return found
    return "".join(one if one.isprintable() or one in keep else _escaped(one) for one in found)


def _escaped(character: str) -> str:
    """Return the escape that a Python or JSON reader would turn back into ``character``."""
    code = ord(character)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
