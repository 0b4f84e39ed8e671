"""The attributes of items that sandboxed_test.py replaces while a test runs, and their memory."""

from __future__ import annotations

import pytest

__all__ = ["REPLACED", "reserve"]

#: The functions of an item for its phases.
REPLACED = ("setup", "runtest", "teardown", "repr_failure")


def reserve() -> None:
    """Make the attributes known to the classes of items; called before items are created.

    The dictionaries of a class's instances share their keys (PEP 412), which are those of its first
    instance. A dictionary that gets other keys later becomes one of its own: with pytest 9.2 and
    Python 3.11, each item would take 832 bytes instead of 216, and keep them after its test.
    """
    classes: list[type[pytest.Item]] = [pytest.Function, *pytest.Function.__subclasses__()]
    for one in classes:
        first = object.__new__(one)
        for name in REPLACED:
            setattr(first, name, None)
