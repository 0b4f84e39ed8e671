"""What the result of a setup function depends on: its source, that of the functions of its module
that it calls, the values that it names, and the contents of the files that it names.
"""

from __future__ import annotations

import hashlib
import inspect
from pathlib import Path
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Any

from pytest_sandbox.errors import SettingsError

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator

__all__ = ["facts"]

__tracebackhide__ = True  # pytest shows the line of the test; --full-trace shows all

_PLAIN = (str, bytes, int, float, bool, type(None), Path)
_MAX_FILES = 10_000
_FORM = "a function that is defined in a file, such as: def migrate(db): ..."


def facts(setup: Any, files: Iterable[str | os.PathLike[str]]) -> list[str]:
    """Return everything that the result depends on, as text.

    ``files`` are further files and directories. Raises :class:`SettingsError` for a function
    without source, or one that uses a variable of an outer function which is no plain value.
    """
    found = _Facts()
    if setup is not None:
        found.add_function(setup)
    for path in files:
        found.add_path(Path(path), required=True)
    return found.lines


class _Facts:
    def __init__(self) -> None:
        self.lines: list[str] = []
        self._functions: set[int] = set()
        self._paths: set[Path] = set()
        self._directories = [Path.cwd()]

    def add_function(self, function: Any) -> None:
        function = inspect.unwrap(function)
        if not isinstance(function, FunctionType):
            raise SettingsError("setup", function, _FORM)
        if id(function.__code__) in self._functions:
            return
        self._functions.add(id(function.__code__))
        try:
            self.lines.append(inspect.getsource(function))
        except OSError:
            raise SettingsError("setup", function, _FORM) from None
        self._directories.append(Path(function.__code__.co_filename).parent)
        for value in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
            self._add_value(value)
        closed = inspect.getclosurevars(function)
        for name, value in closed.nonlocals.items():
            if not self._add_value(value, function):
                accepted = f"a function that uses no {name}={value!r} of an outer function"
                raise SettingsError("setup", function.__qualname__, accepted)
        for constant in _constants(function.__code__):
            self._add_value(constant)
        for name in sorted(_names(function.__code__)):
            self._add_value(function.__globals__.get(name), function)

    def _add_value(self, value: Any, function: FunctionType | None = None) -> bool:
        """Add a value, and the file that it names; return whether it is one that can be added."""
        if isinstance(value, FunctionType):
            if function is None or value.__module__ == function.__module__:
                self.add_function(value)
            return True
        if isinstance(value, list | tuple | set | frozenset):
            return self._add_all(value, function)
        if isinstance(value, dict):
            return self._add_all([one for pair in value.items() for one in pair], function)
        if not isinstance(value, _PLAIN):
            return False
        self.lines.append(repr(value))
        if isinstance(value, str | Path) and str(value).strip("./"):
            for directory in self._directories:
                self.add_path(directory / value)
        return True

    def _add_all(self, values: Iterable[Any], function: FunctionType | None) -> bool:
        added = [self._add_value(one, function) for one in values]
        return all(added)

    def add_path(self, path: Path, *, required: bool = False) -> None:
        """Add the contents of a file, or of all files in a directory below a known one."""
        try:
            path = path.resolve(strict=required)
            is_below = required or any(one.resolve() in path.parents for one in self._directories)
            files = [path] if path.is_file() else _files(path) if is_below else []
        except (OSError, ValueError) as error:  # too long, or with a null character
            if required:
                raise SettingsError("files", str(path), "paths that exist") from error
            return
        for file in files:
            if file not in self._paths:
                self._paths.add(file)
                digest = hashlib.sha256(file.read_bytes()).hexdigest()
                self.lines.append(f"{file} {digest}")


def _files(directory: Path) -> list[Path]:
    if not directory.is_dir():
        return []
    found = sorted(
        one for one in directory.rglob("*") if one.is_file() and "__pycache__" not in one.parts
    )
    if len(found) > _MAX_FILES:
        accepted = f"a function that names directories of at most {_MAX_FILES} files"
        raise SettingsError("setup", str(directory), accepted)
    return found


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _constants(code: CodeType) -> list[Any]:
    return [one for each in _codes(code) for one in each.co_consts if not isinstance(one, CodeType)]


def _names(code: CodeType) -> set[str]:
    return {name for each in _codes(code) for name in each.co_names}
