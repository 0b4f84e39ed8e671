"""The library's face: what `import pytest_sandbox` shows, and what it does not load."""

from __future__ import annotations

import inspect
import pickle
import subprocess
import sys

import pytest

import pytest_sandbox
from pytest_sandbox import errors

ERRORS = {
    errors.SandboxError: ("wrong",),
    errors.SettingsError: ("memory", "512x", "a number of bytes"),
    errors.UnsupportedError: ("cpus=", "Delegate the controller."),
    errors.ImageError: ("no such image",),
    errors.SetupError: ("mount overlay", "EPERM", "Run as root."),
    errors.ContainerStopped: ("stopped",),
    errors.OutOfMemory: (-9, ["hog"], "out", "err"),
}


def fresh(code: str) -> str:
    """What a fresh interpreter prints when it runs *code*."""
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.vm
@pytest.mark.parametrize("module", ["pytest", "_pytest", "pyroute2", "rich", "coverage", "urllib3", "filelock", "asyncio", "ctypes"])
def test_the_import_loads_nothing_that_is_not_needed(module):
    """`import pytest_sandbox` leaves third parties and the expensive parts of the standard library unloaded."""
    assert "False" == fresh(f"import pytest_sandbox, sys; print({module!r} in sys.modules)")


@pytest.mark.vm
def test_every_public_name_can_be_had_from_the_face():
    """Each name of __all__ is there, although it is loaded only when it is asked for."""
    names = fresh("import pytest_sandbox as p; print([name for name in p.__all__ if not hasattr(p, name)])")
    assert "[]" == names


def test_all_is_sorted_and_dir_shows_it():
    """__all__ is in order, and dir() shows the lazy names too."""
    assert sorted(pytest_sandbox.__all__) == list(pytest_sandbox.__all__)
    assert set(pytest_sandbox.__all__) <= set(dir(pytest_sandbox))


def test_an_unknown_name_is_an_attribute_error():
    """The lazy face answers for its own names only."""
    with pytest.raises(AttributeError, match="Containr"):
        _ = pytest_sandbox.Containr


@pytest.mark.parametrize("name", pytest_sandbox.__all__)
def test_every_public_name_is_documented(name):
    """Each public class or function has a docstring of its own, and so has each of its public methods."""
    value = getattr(pytest_sandbox, name)
    if not callable(value):
        return
    parts = {name: value} | (
        {f"{name}.{key}": part for key, part in vars(value).items() if is_public(key, part)} if inspect.isclass(value) else {}
    )
    assert [] == [key for key, part in parts.items() if not inspect.getdoc(part)]


def is_public(key: str, part: object) -> bool:
    return not key.startswith("_") and (inspect.isroutine(part) or isinstance(part, property | classmethod | staticmethod))


def test_the_examples_name_every_error():
    """The table above holds each class of the error tree."""
    assert set(ERRORS) == {value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, Exception)}


@pytest.mark.vm
@pytest.mark.parametrize(("kind", "arguments"), ERRORS.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_an_error_survives_pickling(kind, arguments):
    """Errors cross processes (xdist, call) with their type, text and attributes."""
    error = kind(*arguments)
    copy = pickle.loads(pickle.dumps(error))
    assert (type(error), str(error), vars(error)) == (type(copy), str(copy), vars(copy))


@pytest.mark.parametrize("kind", [kind for kind in ERRORS if kind is not errors.OutOfMemory], ids=lambda kind: kind.__name__)
def test_errors_of_ours_have_one_base(kind):
    """`except SandboxError` catches whatever the library raises; a process's end is subprocess's matter."""
    assert issubclass(kind, errors.SandboxError)


def test_a_wrong_setting_is_a_value_error_too():
    """Callers who know nothing of us still catch a wrong value."""
    assert issubclass(errors.SettingsError, ValueError)


@pytest.mark.parametrize(("kind", "arguments"), ERRORS.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_an_errors_text_holds_what_was_asked(kind, arguments):
    """The arguments of an error can be read in its text."""
    text = str(kind(*arguments))
    shown = arguments if kind is not errors.OutOfMemory else ("hog",)
    assert [] == [argument for argument in shown if str(argument) not in text]
