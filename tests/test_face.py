"""The library's face: what `import pytest_sandbox` shows, and what it does not load."""

from __future__ import annotations

import ast
import inspect
import itertools
import pickle
import re
import subprocess
import sys
import textwrap

import pytest

import pytest_sandbox
from pytest_sandbox import errors
from pytest_sandbox.settings import KEYS

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
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.mark.vm
@pytest.mark.parametrize(
    "module",
    [
        "pytest",
        "_pytest",
        "pyroute2",
        "rich",
        "coverage",
        "urllib3",
        "filelock",
        "asyncio",
        "ctypes",
    ],
)
def test_the_import_loads_nothing_that_is_not_needed(module):
    """`import pytest_sandbox` leaves third parties and the expensive parts of the standard library
    unloaded.
    """
    assert "False" == fresh(f"import pytest_sandbox, sys; print({module!r} in sys.modules)")


@pytest.mark.vm
def test_every_public_name_can_be_had_from_the_face():
    """Each name of __all__ is there, although it is loaded only when it is asked for."""
    names = fresh(
        "import pytest_sandbox as p; print([name for name in p.__all__ if not hasattr(p, name)])"
    )
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
    """Each public class or function has a docstring of its own, and so has each of its public
    methods and attributes, those of its bases too.
    """
    value = getattr(pytest_sandbox, name)
    if not callable(value):
        return
    assert inspect.getdoc(value)
    assert [] == [f"{name}.{key}" for kind in ours(value) for key in undocumented(kind)]


def ours(value: object) -> list[type]:
    """The classes that make up a class and are this project's."""
    kinds = value.__mro__ if inspect.isclass(value) else ()
    return [kind for kind in kinds if kind.__module__.startswith("pytest_sandbox")]


def undocumented(kind: type) -> list[str]:
    """The public methods and attributes of a class that have no docstring: neither their own, nor
    in the class's, nor in a base's.
    """
    tree = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    found = {**attributes(tree), **methods(tree)}
    mentioned = [
        name
        for base in kind.__mro__
        for name in re.findall(r"``(?:\w+\.)?(\w+)``", base.__doc__ or "")
    ]
    above = {name for base in ours(kind)[1:] for name in vars(base).get("__annotations__", {})}
    return [
        name
        for name, documented in found.items()
        if not name.startswith("_") and not documented and name not in {*mentioned, *above, *KEYS}
    ]


def methods(tree: ast.ClassDef) -> dict[str, bool]:
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    return {
        node.name: bool(ast.get_docstring(node))
        for node in functions
        if not any("overload" in ast.unparse(one) for one in node.decorator_list)
    }


def attributes(tree: ast.ClassDef) -> dict[str, bool]:
    """The attributes that the class's body or its __init__ sets, and whether a string that
    documents them follows.
    """
    makers = [
        node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "__init__"
    ]
    found = {}
    for body in [tree.body, *(maker.body for maker in makers)]:
        for node, after in itertools.pairwise([*body, ast.Pass()]):
            targets = (
                node.targets
                if isinstance(node, ast.Assign)
                else [node.target]
                if isinstance(node, ast.AnnAssign)
                else []
            )
            documented = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            for target in targets:
                names = target.elts if isinstance(target, ast.Tuple) else [target]
                wanted = ast.Name if body is tree.body else ast.Attribute
                found |= {
                    ast.unparse(one).removeprefix("self."): documented
                    for one in names
                    if isinstance(one, wanted)
                }
    return found


def test_the_examples_name_every_error():
    """The table above holds each class of the error tree."""
    assert set(ERRORS) == {
        value
        for value in vars(errors).values()
        if inspect.isclass(value) and issubclass(value, Exception)
    }


@pytest.mark.vm
@pytest.mark.parametrize(
    ("kind", "arguments"), ERRORS.items(), ids=lambda value: getattr(value, "__name__", "")
)
def test_an_error_survives_pickling(kind, arguments):
    """Errors cross processes (xdist, call) with their type, text and attributes."""
    error = kind(*arguments)
    copy = pickle.loads(pickle.dumps(error))
    assert (type(error), str(error), vars(error)) == (type(copy), str(copy), vars(copy))


@pytest.mark.parametrize(
    "kind",
    [kind for kind in ERRORS if kind is not errors.OutOfMemory],
    ids=lambda kind: kind.__name__,
)
def test_errors_of_ours_have_one_base(kind):
    """`except SandboxError` catches whatever the library raises; a process's end is subprocess's
    matter.
    """
    assert issubclass(kind, errors.SandboxError)


def test_a_wrong_setting_is_a_value_error_too():
    """Callers who know nothing of us still catch a wrong value."""
    assert issubclass(errors.SettingsError, ValueError)


@pytest.mark.parametrize(
    ("kind", "arguments"), ERRORS.items(), ids=lambda value: getattr(value, "__name__", "")
)
def test_an_errors_text_holds_what_was_asked(kind, arguments):
    """The arguments of an error can be read in its text."""
    text = str(kind(*arguments))
    shown = arguments if kind is not errors.OutOfMemory else ("hog",)
    assert [] == [argument for argument in shown if str(argument) not in text]
