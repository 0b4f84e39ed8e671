"""The public names of `pytest_sandbox`, their documentation, and the exceptions."""

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
from pytest_sandbox.settings.settings import KEYS

ERRORS = {
    errors.SandboxError: ("wrong",),
    errors.SettingsError: ("memory", "512x", "a number of bytes"),
    errors.UnsupportedError: ("cpus=", "Delegate the controller."),
    errors.ImageError: ("no such image",),
    errors.SetupError: ("mount overlay", "EPERM", "Run as root."),
    errors.ContainerStopped: ("stopped",),
    errors.ServiceError: ("db", "it ended with exit status 1", 1, "no such table"),
    errors.ServiceTimeout: ("db", "nothing listens on port 5432"),
    errors.OutOfMemory: (-9, ["hog"], "out", "err"),
}


def fresh(code: str) -> str:
    """Return the output of a new interpreter that runs ``code``."""
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.mark.vm
@pytest.mark.parametrize(
    "module",
    [
        "pytest",
        "_pytest",
        "rich",
        "coverage",
        "urllib3",
        "filelock",
        "asyncio",
        "ctypes",
    ],
)
def test_the_import_is_cheap(module):
    """`import pytest_sandbox` imports no third party and no slow module of the standard library."""
    assert "False" == fresh(f"import pytest_sandbox, sys; print({module!r} in sys.modules)")


@pytest.mark.vm
def test_every_public_name_can_be_imported():
    """Each name of __all__ can be imported, although that happens only on first use."""
    names = fresh(
        "import pytest_sandbox as p; print([name for name in p.__all__ if not hasattr(p, name)])"
    )
    assert "[]" == names


def test_dir_has_the_public_names():
    """__all__ is sorted, and dir() includes the names that are not yet imported."""
    assert sorted(pytest_sandbox.__all__) == list(pytest_sandbox.__all__)
    assert set(pytest_sandbox.__all__) <= set(dir(pytest_sandbox))


def test_an_unknown_name_is_an_attribute_error():
    """An unknown name is an AttributeError."""
    with pytest.raises(AttributeError, match="Containr"):
        _ = pytest_sandbox.Containr


@pytest.mark.parametrize("name", pytest_sandbox.__all__)
def test_every_public_name_is_documented(name):
    """Each public class or function has a docstring, and so has each public method and
    attribute.
    """
    value = getattr(pytest_sandbox, name)
    if not callable(value):
        return
    assert inspect.getdoc(value)
    assert [] == [f"{name}.{key}" for kind in own_bases(value) for key in undocumented(kind)]


def own_bases(value: object) -> list[type]:
    """Return a class and its base classes that this project defines."""
    kinds = value.__mro__ if inspect.isclass(value) else ()
    return [kind for kind in kinds if kind.__module__.startswith("pytest_sandbox")]


def undocumented(kind: type) -> list[str]:
    """Return the public methods and attributes of a class that neither their own docstring nor that
    of the class or a base class documents.
    """
    tree = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    found = {**attributes(tree), **methods(tree)}
    mentioned = [
        name
        for base in kind.__mro__
        for name in re.findall(r"``(?:\w+\.)?(\w+)``", base.__doc__ or "")
    ]
    above = {name for base in own_bases(kind)[1:] for name in vars(base).get("__annotations__", {})}
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
    """Return the attributes that the body of a class or its __init__ sets, and whether a docstring
    follows each.
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
    """ERRORS has each exception of the library."""
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
    """A pickled exception has the same type, text and attributes, as xdist and call() need."""
    error = kind(*arguments)
    copy = pickle.loads(pickle.dumps(error))
    assert (type(error), str(error), vars(error)) == (type(copy), str(copy), vars(copy))


@pytest.mark.parametrize(
    "kind",
    [kind for kind in ERRORS if kind is not errors.OutOfMemory],
    ids=lambda kind: kind.__name__,
)
def test_exceptions_have_one_base(kind):
    """Each exception is a SandboxError, except OutOfMemory, which is one of subprocess."""
    assert issubclass(kind, errors.SandboxError)


def test_a_wrong_setting_is_a_value_error_too():
    """SettingsError is a ValueError."""
    assert issubclass(errors.SettingsError, ValueError)


@pytest.mark.parametrize(
    ("kind", "arguments"), ERRORS.items(), ids=lambda value: getattr(value, "__name__", "")
)
def test_the_text_of_an_exception_has_its_arguments(kind, arguments):
    """The arguments of an exception are part of its text."""
    text = str(kind(*arguments))
    shown = arguments if kind is not errors.OutOfMemory else ("hog",)
    assert [] == [argument for argument in shown if str(argument) not in text]
