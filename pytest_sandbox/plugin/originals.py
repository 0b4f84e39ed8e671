"""The functions that this package calls, as they were before a fixture replaced them.

A fixture of a higher scope may replace ``subprocess.Popen``, ``open`` or ``os.stat`` in the parent,
where this package then starts containers with them. Other tools replace names in *all* modules
(pyfakefs, freezegun) or a class for the whole session (pytest-socket). So the originals are noted
before the first test, and put back while the parent runs code of this package.
"""

from __future__ import annotations

# This module is the sample for Originals: pyfakefs replaces these four in all modules.
import io  # noqa: F401
import os  # noqa: F401
import pathlib  # noqa: F401
import shutil  # noqa: F401
import sys
from operator import itemgetter
from types import ModuleType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["Originals"]

#: The modules in which tests replace functions that this package calls.
_REPLACEABLE = [
    "builtins",
    "contextlib",
    "datetime",
    "faulthandler",
    "fcntl",
    "gc",
    "io",
    "json",
    "os",
    "pathlib",
    "random",
    "resource",
    "secrets",
    "select",
    "shutil",
    "signal",
    "socket",
    "struct",
    "subprocess",
    "tempfile",
    "threading",
    "time",
]
#: Called while it may be replaced.
_zip = zip
_DELETED = object()
_PACKAGE = __name__.partition(".")[0]
#: A namespace, the names in it that are compared, how to read them, and their original values.
_Watched = tuple[dict[str, Any], tuple[str, ...], "itemgetter[Any]", tuple[Any, ...]]


class Originals:
    """The original functions, and those that replace them at the moment.

    ``with originals:`` puts the originals back, and the replacements at the end. Only names for
    which :meth:`compare` has found a replacement are touched.
    """

    def __init__(self) -> None:
        own = [module for name, module in list(sys.modules.items()) if _is_own(name)]
        self._own = _watched(own, _is_foreign)
        # Who replaces names in all modules, replaces them in this one.
        self._sample = _watched([sys.modules[__name__]], _is_foreign)
        others = (sys.modules[name] for name in _REPLACEABLE if name in sys.modules)
        self._others = _watched(others, _is_function_or_module)
        self._replaced: list[tuple[dict[str, Any], str, Any]] = []
        self._replacements: list[tuple[dict[str, Any], str, Any]] = []

    def compare(self) -> None:
        """Find what is replaced now, in about 15 microseconds."""
        self._replaced = [*_replaced(self._others)]
        if _replaced(self._sample):
            self._replaced += _replaced(self._own)

    def __enter__(self) -> Self:
        # No function that may be replaced is called before all are back.
        for namespace, name, original in self._replaced:
            replacement = namespace.get(name, _DELETED)
            if replacement is not original:
                self._replacements += [(namespace, name, replacement)]
                namespace[name] = original
        return self

    def __exit__(self, *_exception: object) -> None:
        self.replace_again()

    def replace_again(self) -> None:
        """Put the replacements back before the end of the block, which does nothing then."""
        replacements, self._replacements = self._replacements, []
        for namespace, name, replacement in replacements:
            if replacement is _DELETED:
                del namespace[name]
            else:
                namespace[name] = replacement

    def outside(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function that waits, within the block but with the replacements, which are for
        other threads of the suite.
        """
        if not self._replacements:
            return function(*arguments)
        self.replace_again()
        try:
            return function(*arguments)
        finally:
            self.__enter__()


def _is_own(name: str) -> bool:
    return name.partition(".")[0] == _PACKAGE


def _is_function_or_module(value: object) -> bool:
    return callable(value) or isinstance(value, ModuleType)


def _is_foreign(value: object) -> bool:
    """Tell whether a global of this package's modules is a module or a function of another one; its
    own may change.
    """
    if isinstance(value, ModuleType):
        return True
    return callable(value) and not _is_own(getattr(value, "__module__", None) or _PACKAGE)


def _watched(modules: Iterable[ModuleType], is_wanted: Callable[[object], bool]) -> list[_Watched]:
    found = []
    for namespace in map(vars, modules):
        names = tuple(name for name, value in namespace.items() if is_wanted(value))
        if len(names) > 1:  # with one name, itemgetter() does not return a tuple
            read = itemgetter(*names)
            found.append((namespace, names, read, read(namespace)))
    return found


def _replaced(watched: list[_Watched]) -> list[tuple[dict[str, Any], str, Any]]:
    """Return the namespace, name and original of each replaced name."""
    return [
        (namespace, name, original)
        for namespace, names, read, originals in watched
        if not _is_same(namespace, read, originals)
        for name, original in _zip(names, originals, strict=True)
        if namespace.get(name) is not original
    ]


def _is_same(
    namespace: dict[str, Any], read: Callable[[dict[str, Any]], Any], originals: tuple[Any, ...]
) -> bool:
    """Tell whether no name was replaced. Tuples compare identical members without ``__eq__``."""
    try:
        return bool(read(namespace) == originals)
    except Exception:  # noqa: BLE001 - a name was deleted, or the __eq__ of a replacement raises
        return False
