"""Exceptions on their way out of a container."""

from __future__ import annotations

import json
import os

import pytest

from pytest_sandbox import Container
from pytest_sandbox.container.values import decode_exception, encode_exception


class OddError(Exception):
    def __init__(self) -> None:
        raise AssertionError("code of the exception's class ran")


def raised(code: str) -> BaseException:
    try:
        exec(code, {"os": os})
    except BaseException as error:  # noqa: BLE001 - SystemExit is one of the examples
        return error
    raise AssertionError("nothing was raised")


@pytest.mark.parametrize(
    "code",
    [
        "1 / 0",
        "{}['key']",
        "os.unlink('/no/such/file')",
        "os.rename('/no/such/file', '/no/such/target')",
        "raise OSError('only a text')",
        "b'\\xff'.decode()",
        "raise SystemExit(3)",
        "raise StopIteration(4)",
        "raise ExceptionGroup('several', [ValueError(1), KeyError(2)])",
        "raise OSError(1, 'two', object())",
        "raise UnicodeDecodeError('ascii', b'', 0, 1, 'why')",
    ],
)
def test_an_exception_reads_as_it_did(code):
    """Type and text, whatever the exception keeps outside of its arguments."""
    error = raised(code)
    copy = decode_exception(json.loads(json.dumps(encode_exception(error))))
    assert type(error) is type(copy)
    assert str(error).split("object at")[0] == str(copy).split("object at")[0].replace("'<", "<")


def test_an_exits_code_arrives():
    """What is kept apart from the arguments is there too."""
    assert 3 == decode_exception(encode_exception(SystemExit(3))).code


def test_no_code_of_an_exceptions_class_runs():
    """An exception is made without its own __init__."""
    error = OddError.__new__(OddError, 1, 2)
    assert (1, 2) == decode_exception(encode_exception(error)).args


@pytest.mark.needs("containers")
def test_call_raises_with_the_path():
    """A missing file is named, as it would be outside."""
    with Container() as container, pytest.raises(FileNotFoundError, match="'/no/such/file'"):
        container.call(os.unlink, "/no/such/file")
