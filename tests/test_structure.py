"""The architecture, read from the source: who may import whom, who may know the kernel's names, how
long a function may be.
"""

from __future__ import annotations

import ast
import statistics
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "pytest_sandbox"

# The layer of each package (a directory, or a file of its own). A file imports from its own package
# and from packages of lower layers.
LAYERS: dict[str, int] = {
    "errors": 1,
    "outcome": 1,
    "printable": 1,
    "supported": 1,
    "paths": 1,
    "settings": 2,
    "linux": 3,
    "host": 4,
    "image": 4,
    "runtime": 4,
    "launcher": 5,
    "client": 5,
    "container": 6,
    "doctor": 7,
    "plugin": 8,
    "cli": 8,
    "__main__": 8,
}
# Packages of one layer that may import each other.
SAME_PACKAGE = {
    "errors": "values",
    "outcome": "values",
    "printable": "values",
    "supported": "values",
    "paths": "values",
    "__main__": "cli",
}

# A foreign module, and the only places that may import it (a file, or a directory that ends in /).
ONLY_IN: dict[str, tuple[str, ...]] = {
    "ctypes": ("linux/syscall.py",),
    "pyroute2": ("linux/rtnetlink.py",),
    "rich": ("cli/",),
    "pytest": ("plugin/",),
    "_pytest": ("plugin/compat.py",),
    "pluggy": ("plugin/",),
    "coverage": ("plugin/",),
    "xdist": ("plugin/",),
    "urllib3": ("image/",),
    "isal": ("image/",),
}

# Files outside of linux/ that may name a path below /proc or /sys, and why.
KERNEL_PATHS_TOO: dict[str, str] = {}

# Files past 500 lines, and why they are one file.
LONG_FILES: dict[str, str] = {
    "container/popen.py": "is being split",
    "launcher/main.py": "is being split",
    "linux/cgroup/__init__.py": "is being split",
    "linux/cgroup/v2.py": "is being split",
    "linux/syscall.py": "is being split",
    "runtime/create.py": "is being split",
}

LONGEST_FUNCTION = 60
USUAL_FUNCTION = 30
LONGEST_FILE = 500


@dataclass(frozen=True)
class Source:
    """One file of the package: its path below the package, and its syntax tree."""

    path: str
    text: str

    @property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @property
    def package_name(self) -> str:
        return self.path.split("/")[0].removesuffix(".py")

    @property
    def package(self) -> list[str]:
        """The names of the package that a relative import starts from."""
        return [PACKAGE, *self.path.split("/")[:-1]]


def sources(*directories: str) -> list[Source]:
    found = (path for directory in directories for path in sorted((ROOT / directory).rglob("*.py")))
    return [
        Source(str(path.relative_to(ROOT)).removeprefix(f"{PACKAGE}/"), path.read_text())
        for path in found
    ]


def absolute(source: Source, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    base = source.package[: len(source.package) - node.level + 1]
    return ".".join([*base, *([node.module] if node.module else [])])


def imports(source: Source) -> set[str]:
    """The full names of the modules that a file imports, anywhere in it, also for types alone."""
    found = set()
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = absolute(source, node)
            found |= {f"{module}.{alias.name}" for alias in node.names}
    return found


def under(path: str, place: str) -> bool:
    return path.startswith(place) if place.endswith("/") else path == place


def wrong_layers(source: Source) -> list[str]:
    """What a file imports from another package of the same layer, or of a higher one."""
    if (
        source.path == "__init__.py"
    ):  # the face shows names of every package, and loads them when they are asked for
        return []
    if source.package_name not in LAYERS:
        return [
            (
                f"{source.path}: the package {source.package_name!r} has no layer; give it one in "
                "LAYERS, and in docs/design.md"
            )
        ]
    wrong = []
    for name in sorted(imports(source)):
        top, _, rest = name.partition(".")
        package = rest.split(".")[0]
        if top != PACKAGE or package not in LAYERS:
            continue
        same = SAME_PACKAGE.get(package, package) == SAME_PACKAGE.get(
            source.package_name, source.package_name
        )
        if not same and LAYERS[package] >= LAYERS[source.package_name]:
            wrong.append(
                f"{source.path} (layer {LAYERS[source.package_name]}) imports {name} (layer "
                f"{LAYERS[package]})"
            )
    return wrong


def wrong_foreigners(source: Source) -> list[str]:
    return [
        f"{source.path} imports {name}: only {', '.join(places)} may"
        for name in sorted({name.split(".")[0] for name in imports(source)})
        if (places := ONLY_IN.get(name)) and not any(under(source.path, place) for place in places)
    ]


def docstrings(tree: ast.Module) -> set[int]:
    """The ids of the constant nodes that are documentation (of a module, class, function, or of the
    name above).
    """
    return {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }


def kernel_paths(source: Source) -> list[str]:
    """Literals outside of linux/ that name a file of the kernel's."""
    if source.package_name == "linux" or source.path in KERNEL_PATHS_TOO:
        return []
    tree = source.tree
    documentation = docstrings(tree)
    return [
        f"{source.path}:{node.lineno} names {node.value!r}: ask a function of linux/"
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and id(node) not in documentation
        and (node.value.startswith(("/proc/", "/sys/")) or node.value in {"/proc", "/sys"})
    ]


def foreign_private_names(source: Source) -> list[str]:
    """Underscored attributes of objects other than self (and os._exit), in the plugin outside of
    its compatibility file.
    """
    if source.package_name != "plugin" or source.path == "plugin/compat.py":
        return []
    return [
        f"{source.path}:{node.lineno} uses {ast.unparse(node)}: put it into plugin/compat.py"
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Attribute)
        and node.attr.startswith("_")
        and not node.attr.startswith("__")
        and not (isinstance(node.value, ast.Name) and node.value.id in {"self", "cls", "os"})
    ]


def function_lengths(source: Source) -> dict[str, int]:
    """The lines of each function from its ``def`` on, without its docstring."""
    lengths = {}
    for node in ast.walk(source.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0]
            documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
            docstring = (first.end_lineno or 0) - first.lineno + 1 if documented else 0
            lengths[f"{source.path}:{node.lineno} {node.name}"] = (
                (node.end_lineno or 0) - node.lineno + 1 - docstring
            )
    return lengths


def long_files(files: list[Source]) -> list[str]:
    return [
        f"{source.path} has {lines} lines: split it, or give the reason in LONG_FILES"
        for source in files
        if (lines := source.text.count("\n")) > LONGEST_FILE and source.path not in LONG_FILES
    ]


def test_a_file_imports_only_from_lower_layers():
    """Every import is from the file's own package or from one of a lower layer."""
    assert [] == [wrong for source in sources(PACKAGE) for wrong in wrong_layers(source)]


def test_foreign_modules_have_one_door():
    """ctypes, pyroute2, rich, pytest and the like are each imported in one place only."""
    assert [] == [wrong for source in sources(PACKAGE) for wrong in wrong_foreigners(source)]


def test_only_linux_names_files_of_the_kernel():
    """No literal outside of linux/ names a path below /proc or /sys."""
    assert [] == [wrong for source in sources(PACKAGE) for wrong in kernel_paths(source)]


def test_private_names_of_pytest_stand_in_one_file():
    """What pytest does not promise is used in plugin/compat.py alone."""
    assert [] == [wrong for source in sources(PACKAGE) for wrong in foreign_private_names(source)]


def test_functions_are_short():
    """Half of the functions within 10 lines, nine of ten within 30, none past 60."""
    lengths = {
        name: n
        for source in sources(PACKAGE, "bench", "tools", "sample_project")
        for name, n in function_lengths(source).items()
    }
    assert {} == {name: n for name, n in lengths.items() if n > LONGEST_FUNCTION}
    assert statistics.quantiles(lengths.values(), n=10)[8] <= USUAL_FUNCTION
    assert statistics.median(lengths.values()) <= 10


def test_files_are_short_or_give_a_reason():
    """A file past 500 lines stands in LONG_FILES with its reason, and no reason outlives its
    file.
    """
    files = sources(PACKAGE, "bench", "tools", "sample_project")
    assert [] == long_files(files)
    assert set() == set(LONG_FILES) - {source.path for source in files}


@pytest.mark.parametrize(
    ("check", "path", "text"),
    [
        (wrong_layers, "errors.py", "from .container import Container"),
        (wrong_layers, "linux/mounts.py", "from ..host import probe"),
        (wrong_layers, "host.py", "from pytest_sandbox.image import Image"),
        (wrong_layers, "container.py", "def f():\n    from . import plugin"),
        (wrong_layers, "paths.py", "from . import container"),
        (wrong_layers, "cellar.py", ""),
        (wrong_foreigners, "linux/mounts.py", "import ctypes.util"),
        (wrong_foreigners, "host.py", "from pyroute2 import NDB"),
        (wrong_foreigners, "container.py", "import pytest"),
        (wrong_foreigners, "plugin/protocol.py", "from _pytest.runner import call_and_report"),
        (kernel_paths, "host.py", "open('/proc/self/mountinfo')"),
        (kernel_paths, "host.py", "f'/sys/fs/cgroup/{name}'"),
        (foreign_private_names, "plugin/protocol.py", "item._request"),
        (lambda source: long_files([source]), "host.py", "\n" * 501),
    ],
)
def test_the_checks_find_what_is_wrong(check, path, text):
    """Each check answers with exactly one finding for one planted fault."""
    assert 1 == len(check(Source(path, text)))


@pytest.mark.parametrize(
    ("check", "path", "text"),
    [
        (wrong_layers, "settings.py", "from .errors import SettingsError"),
        (wrong_layers, "linux/mounts.py", "from . import syscall\nfrom ..errors import SetupError"),
        (wrong_layers, "container.py", "import pytest_sandbox.launcher"),
        (wrong_layers, "image/store.py", "from .reference import parse"),
        (wrong_foreigners, "plugin/compat.py", "from _pytest.runner import call_and_report"),
        (
            kernel_paths,
            "host.py",
            '"""Reads /proc and /sys/kernel through linux/."""\n"/procession"',
        ),
        (foreign_private_names, "plugin/protocol.py", "self._item"),
    ],
)
def test_the_checks_let_pass_what_is_right(check, path, text):
    """No check complains of what the design allows."""
    assert [] == check(Source(path, text))


def test_a_docstring_is_not_counted_as_length():
    """Documentation never makes a function long."""
    assert [2] == list(
        function_lengths(
            Source("host.py", 'def f():\n    """One.\n\n    Two.\n    """\n    return 1\n')
        ).values()
    )
