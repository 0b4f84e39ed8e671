"""Encoding and decoding of exceptions that leave a container."""

from __future__ import annotations

import gc
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
def test_type_and_text_are_preserved(code):
    """Type and text are the same, wherever the exception stores them."""
    error = raised(code)
    copy = decode_exception(json.loads(json.dumps(encode_exception(error))))
    assert type(error) is type(copy)
    assert str(error).split("object at")[0] == str(copy).split("object at")[0].replace("'<", "<")


def test_the_code_of_system_exit_is_preserved():
    """The code of SystemExit, which is not one of its arguments, is the same."""
    assert 3 == decode_exception(encode_exception(SystemExit(3))).code


def test_init_of_the_class_does_not_run():
    """An exception is decoded without calling its __init__."""
    error = OddError.__new__(OddError, 1, 2)
    assert (1, 2) == decode_exception(encode_exception(error)).args


@pytest.mark.needs("containers")
def test_call_raises_oserror_with_the_path():
    """The FileNotFoundError of a function names the file."""
    with Container() as container, pytest.raises(FileNotFoundError, match="'/no/such/file'"):
        container.call(os.unlink, "/no/such/file")


def local_class():
    class LocalError(Exception):
        pass

    return LocalError


def test_a_class_of_a_function_is_found_while_it_exists():
    """The first one, by its name among the subclasses; when it is gone, another of that name."""
    for _ in range(2):
        kind = local_class()
        data = encode_exception(kind(1))
        for _ in range(2):
            assert kind is type(decode_exception(data))
        del kind
        gc.collect()


def test_without_a_traceback_there_is_no_cause():
    """Class and arguments are there."""
    copy = decode_exception(encode_exception(raised("1 / 0"), with_traceback=False))
    assert (ZeroDivisionError, ("division by zero",), None) == (
        type(copy),
        copy.args,
        copy.__cause__,
    )
