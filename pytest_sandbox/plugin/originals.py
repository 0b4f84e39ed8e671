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

from pytest_sandbox.linux import native_code

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
_Replaced = list[tuple[dict[str, Any], str, Any]]


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
        self._tags = [one.tag for one in (*self._sample, *self._others)]
        #: The versions of these namespaces in which no name was replaced.
        self._same_versions: list[int] = []
        self._replaced: _Replaced = []
        self._replacements: _Replaced = []

    def compare(self) -> None:
        """Find what is replaced now."""
        versions = [tag.value for tag in self._tags if tag is not None]
        if versions and versions == self._same_versions:
            return
        self._replaced = [*_replaced(self._others)]
        # No bool(): it may be replaced, too.
        everywhere = _replaced(self._sample)
        if everywhere:
            self._replaced += _replaced(self._own)
        self._same_versions = [] if self._replaced or everywhere else versions

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


def _watched(
    modules: Iterable[ModuleType], is_wanted: Callable[[object], bool]
) -> list[_Namespace]:
    found = []
    for namespace in map(vars, modules):
        names = tuple(name for name, value in namespace.items() if is_wanted(value))
        if len(names) > 1:  # with one name, itemgetter() does not return a tuple
            found.append(_Namespace(namespace, names))
    return found


class _Namespace:
    """The globals of a module, and the originals of the names that are compared.

    To read a name changes its value's reference count. That copies its page in each test process
    and in the parent: 320 pages for each test (getrusage(2), CPython 3.11). So names are read only
    if the dictionary has changed since the last time.
    """

    def __init__(self, namespace: dict[str, Any], names: tuple[str, ...]) -> None:
        self.namespace = namespace
        self.names = names
        self._read = itemgetter(*names)
        self.originals: tuple[Any, ...] = self._read(namespace)
        self.tag = native_code.version_tag(namespace)
        #: The version in which no name was replaced; None if there are no versions.
        self._same_version = self._version()

    def _version(self) -> int | None:
        return None if self.tag is None else self.tag.value

    def is_same(self) -> bool:
        """Tell whether no name was replaced."""
        version = self._version()
        if version is not None and version == self._same_version:
            return True
        try:
            # Tuples compare identical members without __eq__.
            is_same = bool(self._read(self.namespace) == self.originals)
        except Exception:  # noqa: BLE001 - a name was deleted, or a replacement has an __eq__
            return False
        if is_same:
            self._same_version = version
        return is_same


def _replaced(watched: list[_Namespace]) -> _Replaced:
    """Return the namespace, name and original of each replaced name."""
    return [
        (one.namespace, name, original)
        for one in watched
        if not one.is_same()
        for name, original in _zip(one.names, one.originals, strict=True)
        if one.namespace.get(name) is not original
    ]
