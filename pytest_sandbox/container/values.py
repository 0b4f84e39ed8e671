"""Values on their way out of a container: data only, never code.

JSON with a tag for what JSON lacks. An object comes back as an instance of a class that *this*
process already has: plain data, named tuples, dataclasses, enums and exceptions, made without
running any code of theirs.
"""

from __future__ import annotations

import base64
import dataclasses
import datetime as dt
import decimal
import enum
import fractions
import pathlib
import re
import sys
import traceback
import types
from collections import Counter
from typing import Any

from pytest_sandbox.errors import SandboxError

__all__ = ["RemoteTraceback", "decode", "decode_exception", "encode", "encode_exception"]

_PLAIN = (bool, int, str, type(None))
# Numbers whose text is short may be huge: 10^30000000 takes half a minute to make. The limits are
# CPython's own for the text of an integer (sys.int_info.default_max_str_digits), and decimal's for
# an exponent in its default context.
_MOST_DIGITS = sys.int_info.default_max_str_digits
_MOST_EXPONENT = 999_999
_FRACTION = re.compile(f"-?[0-9]{{1,{_MOST_DIGITS}}}(/[0-9]{{1,{_MOST_DIGITS}}})?")


def _fraction(text: str) -> fractions.Fraction:
    if not _FRACTION.fullmatch(text):
        raise SandboxError(f"the container sent a fraction of more than {_MOST_DIGITS} digits")
    return fractions.Fraction(text)


def _decimal(text: str) -> decimal.Decimal:
    if len(text) > _MOST_DIGITS:
        raise SandboxError(f"the container sent a decimal of more than {_MOST_DIGITS} digits")
    made = decimal.Decimal(text)
    if made.is_finite() and abs(made.adjusted()) > _MOST_EXPONENT:
        raise SandboxError(f"the container sent a decimal of an exponent past {_MOST_EXPONENT}")
    return made


_BY_TEXT: dict[str, tuple[type, Any]] = {
    "Decimal": (decimal.Decimal, _decimal),
    "Fraction": (fractions.Fraction, _fraction),
    "PosixPath": (pathlib.PosixPath, pathlib.PosixPath),
    "PurePosixPath": (pathlib.PurePosixPath, pathlib.PurePosixPath),
    "datetime": (dt.datetime, dt.datetime.fromisoformat),
    "date": (dt.date, dt.date.fromisoformat),
    "time": (dt.time, dt.time.fromisoformat),
    "complex": (complex, complex),
}
_SEQUENCES: dict[str, Any] = {"tuple": tuple, "set": set, "frozenset": frozenset}


_MADE_BY_A_CLASS_STATEMENT = 1 << 9  # Py_TPFLAGS_HEAPTYPE


class RemoteTraceback(Exception):
    """The traceback of an exception inside, as text: the cause of the one raised outside."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text}"""'


def encode(value: Any) -> Any:
    """Turn a value into what JSON can hold. Raises :class:`TypeError` for one that is not data."""
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is float:
        # NaN
        return value if value == value and abs(value) != float("inf") else ["float", repr(value)]  # noqa: PLR0124
    if kind is list:
        return ["list", *map(encode, value)]
    if kind is dict:
        return ["dict", *([encode(key), encode(one)] for key, one in value.items())]
    if kind.__name__ in _SEQUENCES and kind is _SEQUENCES[kind.__name__]:
        return [kind.__name__, *map(encode, value)]
    if kind in {bytes, bytearray}:
        return [kind.__name__, base64.b64encode(value).decode()]
    if kind.__name__ in _BY_TEXT and kind is _BY_TEXT[kind.__name__][0]:
        return [kind.__name__, value.isoformat() if hasattr(value, "isoformat") else str(value)]
    return _encode_object(value, kind)


def _encode_object(value: Any, kind: type) -> Any:
    if kind is dt.timedelta:
        return ["timedelta", value.days, value.seconds, value.microseconds]
    if isinstance(value, enum.Enum):
        return ["enum", _name(kind), value.name]
    if isinstance(value, tuple) and hasattr(kind, "_fields"):
        return ["namedtuple", _name(kind), *map(encode, value)]
    if dataclasses.is_dataclass(value):
        return [
            "dataclass",
            _name(kind),
            {field.name: encode(getattr(value, field.name)) for field in dataclasses.fields(value)},
        ]
    if isinstance(value, BaseException):
        return ["exception", encode_exception(value)]
    raise TypeError(
        f"a value of {kind.__module__}.{kind.__qualname__} cannot leave a container: return plain "
        "data "
        "(numbers, text, bytes, lists, dicts, sets, tuples, dates, paths, enums, dataclasses, "
        "exceptions), or write it to a file in a volume"
    )


def _name(kind: type) -> list[str]:
    return [kind.__module__, kind.__qualname__]


def decode(data: Any) -> Any:
    """Undo :func:`encode`.

    Raises :class:`SandboxError`, or what the parts of a forged one raise.
    """
    if not isinstance(data, list):
        return data
    tag, *rest = data
    if tag == "list":
        return list(map(decode, rest))
    if tag == "dict" or tag in _SEQUENCES:
        return _decode_collection(tag, rest)
    if tag == "float":
        return float(rest[0])
    if tag in {"bytes", "bytearray"}:
        raw = base64.b64decode(rest[0])
        return raw if tag == "bytes" else bytearray(raw)
    if tag in _BY_TEXT:
        return _BY_TEXT[tag][1](rest[0])
    if tag == "timedelta":
        return dt.timedelta(*rest)
    if tag == "exception":
        return decode_exception(rest[0])
    return _decode_object(tag, rest)


def _decode_collection(tag: str, rest: list[Any]) -> Any:
    if tag == "dict":
        pairs = [(decode(key), decode(one)) for key, one in rest]
        _check_hashes([key for key, _one in pairs])
        return dict(pairs)
    found = [decode(one) for one in rest]
    if tag != "tuple":
        _check_hashes(found)
    return _SEQUENCES[tag](found)


def _check_hashes(found: list[Any]) -> None:
    """Refuse keys that were chosen to have one hash: that of a number is no secret, and a dict of
    such keys takes quadratic time.
    """
    if (
        len(found) > _MOST_OF_ONE_HASH
        and max(Counter(map(hash, found)).values()) > _MOST_OF_ONE_HASH
    ):
        raise SandboxError(f"the container sent more than {_MOST_OF_ONE_HASH} keys of one hash")


_MOST_OF_ONE_HASH = 100


def _decode_object(tag: str, rest: list[Any]) -> Any:
    kind = _class(*rest[0])
    if tag == "enum" and kind is not None and issubclass(kind, enum.Enum):
        return kind[rest[1]]
    if tag == "namedtuple" and kind is not None and issubclass(kind, tuple):
        return tuple.__new__(kind, map(decode, rest[1:]))
    if tag == "dataclass" and kind is not None and dataclasses.is_dataclass(kind):
        made = object.__new__(kind)
        for field in dataclasses.fields(
            kind
        ):  # no other name: it could be a property, or the class itself
            object.__setattr__(made, field.name, decode(rest[1][field.name]))
        return made
    raise SandboxError(
        "the container sent a value of a class that this process does not have: "
        f"{'.'.join(map(str, rest[0]))}"
    )


def _class(module: str, qualname: str) -> type | None:
    """Find a class that this process has: by its name in its module, or among the exceptions that
    live in a function.
    """
    found: Any = sys.modules.get(module)
    for part in qualname.split("."):  # getattr could run a module's or a class's own code
        found = vars(found).get(part) if isinstance(found, (types.ModuleType, type)) else None
    if isinstance(found, type):
        return found
    every: list[type] = [BaseException, tuple, enum.Enum]
    for kind in every:
        every.extend(type.__subclasses__(kind))
        if (kind.__module__, kind.__qualname__) == (module, qualname):
            return kind
    return None


#: What built-in exceptions hold beside their arguments and their ``__dict__``.
_FIELDS: dict[type[BaseException], tuple[str, ...]] = {
    ImportError: ("name", "path"),
    AttributeError: ("name",),
    NameError: ("name",),
}


def encode_exception(error: BaseException) -> Any:
    """Turn an exception into what JSON can hold: class, arguments, attributes, traceback as text;
    what is no data becomes its repr.
    """
    return {
        "class": _name(type(error)),
        "args": [_or_repr(value) for value in _arguments(error)],
        "fields": {name: _or_repr(getattr(error, name, None)) for name in _fields(type(error))},
        "state": {
            name: _or_repr(value) for name, value in vars(error).items() if name != "__notes__"
        },
        "notes": [note for note in getattr(error, "__notes__", ()) if isinstance(note, str)],
        "traceback": "".join(_formatted(error)),
    }


def _arguments(error: BaseException) -> tuple[Any, ...]:
    """Return the arguments; of an OSError with those that it takes from them for its file names."""
    if isinstance(error, OSError) and len(error.args) == 2 and error.filename is not None:
        names = (
            (error.filename,)
            if error.filename2 is None
            else (error.filename, None, error.filename2)
        )
        return (*error.args, *names)
    return error.args


def _fields(kind: type) -> tuple[str, ...]:
    return next((names for base, names in _FIELDS.items() if issubclass(kind, base)), ())


def _formatted(error: BaseException) -> list[str]:
    try:
        return traceback.format_exception(error)
    except Exception:  # noqa: BLE001 - a test's exception whose own text raises
        return [f"{type(error).__qualname__} (its text cannot be made)\n"]


def _or_repr(value: Any) -> Any:
    try:
        return encode(value)
    except Exception:  # noqa: BLE001 - no data, or a test's object whose parts cannot be had
        try:
            return str(repr(value))
        except Exception:  # noqa: BLE001 - a test's object
            return f"<{type(value).__qualname__}>"


def decode_exception(data: Any) -> BaseException:
    """Make the exception anew, with the inner traceback as its cause; no ``__init__`` or
    ``__new__`` of a class in Python runs.
    """
    kind = _class(*data["class"])
    args = [decode(value) for value in data["args"]]
    if kind is None or not issubclass(kind, BaseException):
        error: BaseException = SandboxError(f"{data['class'][1]}: {', '.join(map(str, args))}")
    else:
        error = _made(kind, args)
        for name in _fields(type(error)):
            setattr(error, name, decode(data["fields"][name]))
        for name, value in data["state"].items():
            if not hasattr(BaseException, name):  # it would hide a method
                vars(error)[name] = decode(value)
    for note in data["notes"]:
        error.add_note(note)
    error.__cause__ = RemoteTraceback(data["traceback"])
    return error


def _made(kind: type[BaseException], args: list[Any]) -> BaseException:
    """Make an exception by its nearest built-in base alone, which is written in C and sets the
    fields that it has.
    """
    base = next(one for one in kind.__mro__ if not one.__flags__ & _MADE_BY_A_CLASS_STATEMENT)
    try:
        error: BaseException = base.__new__(kind, *args)
        base.__init__(error, *args)  # type: ignore[misc]  # of the class that has just made it
    except (TypeError, ValueError):  # an argument came as its repr
        return SandboxError(f"{kind.__qualname__}: {', '.join(map(str, args))}")
    return error
