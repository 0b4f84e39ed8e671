"""Encode values that leave a container as JSON: data only, never code.

Types that JSON lacks are lists that start with a tag. An object is decoded to an instance of a
class that *this* process has loaded: named tuples, dataclasses, enums and exceptions, created
without running code of the class.
"""

from __future__ import annotations

import base64
import dataclasses
import datetime as dt
import decimal
import enum
import fractions
import math
import pathlib
import re
import sys
import traceback
import types
from collections import Counter
from typing import Any
from weakref import WeakValueDictionary

from pytest_sandbox.errors import SandboxError

__all__ = [
    "RemoteTraceback",
    "decode",
    "decode_exception",
    "encode",
    "encode_exception",
    "encode_or_repr",
]

_PLAIN = (bool, int, str, type(None))
# A short text may be a huge number: 10^30000000 takes half a minute to compute. The limits are
# CPython's for the text of an integer (sys.int_info.default_max_str_digits), and the exponent of
# decimal's default context.
_MAX_DIGITS = sys.int_info.default_max_str_digits
_MAX_EXPONENT = 999_999
_FRACTION = re.compile(f"-?[0-9]{{1,{_MAX_DIGITS}}}(/[0-9]{{1,{_MAX_DIGITS}}})?")


def _fraction(text: str) -> fractions.Fraction:
    if not _FRACTION.fullmatch(text):
        raise SandboxError(f"the container sent a fraction of more than {_MAX_DIGITS} digits")
    return fractions.Fraction(text)


def _decimal(text: str) -> decimal.Decimal:
    if len(text) > _MAX_DIGITS:
        raise SandboxError(f"the container sent a decimal of more than {_MAX_DIGITS} digits")
    made = decimal.Decimal(text)
    if made.is_finite() and abs(made.adjusted()) > _MAX_EXPONENT:
        raise SandboxError(f"the container sent a decimal with an exponent over {_MAX_EXPONENT}")
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
#: The most keys with the same hash in a dict or a set.
_MAX_SAME_HASH = 100
_SEQUENCES: dict[str, Any] = {"tuple": tuple, "set": set, "frozenset": frozenset}
_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: a class that a class statement has created


class RemoteTraceback(Exception):
    """The traceback of an exception inside, as text: the cause of the exception raised outside."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text}"""'


def encode(value: Any) -> Any:
    """Return a value in a form for JSON. Raises :class:`TypeError` for one that is not data."""
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is float:
        return value if math.isfinite(value) else ["float", repr(value)]
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
        "data (numbers, text, bytes, lists, dicts, sets, tuples, dates, paths, enums, "
        "dataclasses, exceptions), or write it to a file in a volume"
    )


def _name(kind: type) -> list[str]:
    return [kind.__module__, kind.__qualname__]


def decode(data: Any) -> Any:
    """Return the value that :func:`encode` was given.

    Raises :class:`SandboxError`; forged data may raise any exception.
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
    """Raise :class:`SandboxError` for many keys of the same hash: numbers can be chosen for that,
    and a dict of such keys takes quadratic time.
    """
    if len(found) > _MAX_SAME_HASH and max(Counter(map(hash, found)).values()) > _MAX_SAME_HASH:
        raise SandboxError(f"the container sent more than {_MAX_SAME_HASH} keys of one hash")


def _decode_object(tag: str, rest: list[Any]) -> Any:
    kind = _class(*rest[0])
    if tag == "enum" and kind is not None and issubclass(kind, enum.Enum):
        return kind[rest[1]]
    if tag == "namedtuple" and kind is not None and issubclass(kind, tuple):
        return tuple.__new__(kind, map(decode, rest[1:]))
    if tag == "dataclass" and kind is not None and dataclasses.is_dataclass(kind):
        made = object.__new__(kind)
        # Only names of fields: another could be a property, or __class__.
        for field in dataclasses.fields(kind):
            object.__setattr__(made, field.name, decode(rest[1][field.name]))
        return made
    raise SandboxError(
        "the container sent a value of a class that this process does not have: "
        f"{'.'.join(map(str, rest[0]))}"
    )


def _class(module: str, qualname: str) -> type | None:
    """Return a class of this process: by its name in a loaded module, or among the subclasses, for
    one that is defined in a function.
    """
    found: Any = sys.modules.get(module)
    for part in qualname.split("."):  # getattr could run code of the module or the class
        found = vars(found).get(part) if isinstance(found, (types.ModuleType, type)) else None
    if isinstance(found, type):
        return found
    found = _other_classes.get((module, qualname))
    return _search(module, qualname) if found is None else found


#: Classes that :func:`_search` has found, since the search takes a millisecond: pytest's own
#: exceptions say that they are in ``builtins``.
_other_classes: WeakValueDictionary[tuple[str, str], type] = WeakValueDictionary()


def _search(module: str, qualname: str) -> type | None:
    every: list[type] = [BaseException, tuple, enum.Enum]
    for kind in every:
        every.extend(type.__subclasses__(kind))
        if (kind.__module__, kind.__qualname__) == (module, qualname):
            _other_classes[module, qualname] = kind
            return kind
    return None


#: Attributes of built-in exceptions that are neither arguments nor in ``__dict__``.
_FIELDS: dict[type[BaseException], tuple[str, ...]] = {
    ImportError: ("name", "path"),
    AttributeError: ("name",),
    NameError: ("name",),
}


def encode_exception(error: BaseException, *, with_traceback: bool = True) -> Any:
    """Return an exception in a form for JSON: class, arguments, attributes, and traceback as text.

    What is not data is replaced by its repr. A traceback takes some milliseconds, since the source
    files are read.
    """
    return {
        "class": _name(type(error)),
        "args": [encode_or_repr(value) for value in _arguments(error)],
        "fields": {
            name: encode_or_repr(getattr(error, name, None)) for name in _fields(type(error))
        },
        "state": {
            name: encode_or_repr(value)
            for name, value in vars(error).items()
            if name != "__notes__"
        },
        "notes": [note for note in getattr(error, "__notes__", ()) if isinstance(note, str)],
        "traceback": "".join(_formatted(error)) if with_traceback else "",
    }


def _arguments(error: BaseException) -> tuple[Any, ...]:
    """Return the arguments; for an OSError with the file names, which it removes from ``args``."""
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
    except Exception:  # noqa: BLE001 - the __str__ of a test's exception raises
        return [f"{type(error).__qualname__} (its text is not available)\n"]


def encode_or_repr(value: Any) -> Any:
    """Return a value in a form for JSON; of one that is not data, its repr()."""
    try:
        return encode(value)
    except Exception:  # noqa: BLE001 - not data, or an object of the test whose attributes raise
        try:
            return str(repr(value))
        except Exception:  # noqa: BLE001 - the __repr__ of a test's object raises
            return f"<{type(value).__qualname__}>"


def decode_exception(data: Any) -> BaseException:
    """Return the exception, with the traceback inside as its cause; no ``__init__`` or ``__new__``
    that is written in Python runs.
    """
    kind = _class(*data["class"])
    args = [decode(value) for value in data["args"]]
    if kind is None or not issubclass(kind, BaseException):
        error: BaseException = SandboxError(f"{data['class'][1]}: {', '.join(map(str, args))}")
    else:
        error = _create(kind, args)
        for name in _fields(type(error)):
            setattr(error, name, decode(data["fields"][name]))
        for name, value in data["state"].items():
            if not hasattr(BaseException, name):  # else it would hide a method
                vars(error)[name] = decode(value)
    for note in data["notes"]:
        error.add_note(note)
    if data["traceback"]:
        error.__cause__ = RemoteTraceback(data["traceback"])
    return error


def _create(kind: type[BaseException], args: list[Any]) -> BaseException:
    """Create an exception by its nearest built-in base class only, which is written in C and sets
    its own attributes.
    """
    base = next(one for one in kind.__mro__ if not one.__flags__ & _HEAP_TYPE)
    try:
        error: BaseException = base.__new__(kind, *args)
        base.__init__(error, *args)  # type: ignore[misc]  # of the class that has just made it
    except (TypeError, ValueError):  # an argument was replaced by its repr
        return SandboxError(f"{kind.__qualname__}: {', '.join(map(str, args))}")
    return error
