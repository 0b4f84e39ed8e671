"""The attributes that plugins and hooks add to a report: each keeps its type.

The test process encodes them (:func:`encode_attributes`), and report_schema.py decodes them with
:func:`typed`. The types are those of :mod:`pytest_sandbox.container.values`, among them all that
execnet can send, as under pytest-xdist.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_sandbox.container import values
from pytest_sandbox.plugin import schema
from pytest_sandbox.plugin.schema import InvalidError

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = ["LEFT_OUT", "encode_attributes", "typed"]

#: How attributes begin that the parent does not accept: special names of Python, and what
#: Hypothesis adds, such as failing examples, which it writes to a file in the parent.
LEFT_OUT = ("__", "_hypothesis_")


def encode_attributes(data: dict[str, Any], known: Collection[str]) -> str:
    """Encode the attributes of a serialised report that are not ``known``, and its user properties.

    An attribute that is not data is removed. Returns what is wrong with the last one, or "". There
    is no error for a private one: the parent has that of its own hooks (results.py). Of a user
    property that is not data, which a report file contains as text, the repr() is sent.
    """
    problem = ""
    for name in [name for name in data if name not in known]:
        value = data.pop(name)
        if name.startswith(LEFT_OUT):
            continue
        try:
            data[name] = values.encode(value)
        except Exception as error:  # noqa: BLE001 - a cycle, or an object of the suite's
            if not name.startswith("_"):
                problem = (
                    f"the attribute {name!r} of the test's report cannot be sent to pytest's own "
                    f"process: {error}"
                )
    data["user_properties"] = [
        list(map(values.encode_or_repr, _parts(one))) for one in data["user_properties"]
    ]
    return problem


def _parts(user_property: Any) -> Any:
    """Return the name and the values of a user property, which may be anything."""
    return user_property if isinstance(user_property, tuple | list) else (user_property,)


def typed(value: Any) -> Any:
    """Accept a value that :func:`values.encode` has encoded; return it with its type."""
    checked = schema.any_json(value)
    try:
        return values.decode(checked)
    except RecursionError:
        raise
    except Exception as error:  # noqa: BLE001 - a forged value may fail in any way
        raise InvalidError(f"is not data ({type(error).__name__})") from None
