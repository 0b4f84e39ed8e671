"""The architecture, checked in the source: layers, import cycles, and the length of lines,
functions and files.
"""

from __future__ import annotations

import ast
import statistics

import pytest
from source_files import (
    EVERYWHERE,
    PACKAGE,
    ROOT,
    Source,
    import_cycles,
    import_graph,
    imports,
    sources,
)

# The layer of each package (a directory, or a file of its own). A file imports from its own package
# and from packages of lower layers.
LAYERS: dict[str, int] = {
    "errors": 1,
    "outcome": 1,
    "printable": 1,
    "supported": 1,
    "paths": 1,
    "units": 1,
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
    "services": 9,
}
# Packages of one layer that may import each other.
SAME_PACKAGE = {
    "errors": "values",
    "outcome": "values",
    "printable": "values",
    "supported": "values",
    "paths": "values",
    "units": "values",
    "__main__": "cli",
}

# A foreign module, and the only places that may import it (a file, or a directory that ends in /).
ONLY_IN: dict[str, tuple[str, ...]] = {
    "ctypes": ("linux/syscall.py", "linux/native_code.py"),
    "rich": ("cli/",),
    "pytest": ("plugin/",),
    "_pytest": ("plugin/compat.py", "plugin/compat_fixtures.py"),
    "pluggy": ("plugin/",),
    "coverage": ("plugin/",),
    "xdist": ("plugin/",),
    "urllib3": ("image/",),
    "isal": ("image/",),
}

# Files outside of linux/ that may name a path below /proc or /sys, and why.
KERNEL_PATHS_TOO: dict[str, str] = {}

# The only places of the plugin that use private names of other projects: each adapter is about one
# other plugin, whose state has no public reader.
PRIVATE_NAMES_IN = ("plugin/compat.py", "plugin/compat_fixtures.py", "plugin/adapters/")

# Files over LONGEST_FILE lines, with the reason why each is one file.
LONG_FILES: dict[str, str] = {
    "tools/suites.py": "a table with a row for each suite that is compared",
}

# Lines of a function, without its docstring: at most, of nine in ten, and of one in two.
LONGEST_FUNCTION = 50
USUAL_FUNCTION = 25
MEDIAN_FUNCTION = 8
LONGEST_FILE = 450
LONGEST_LINE = 100


def under(path: str, place: str) -> bool:
    return path.startswith(place) if place.endswith("/") else path == place


def under_any(path: str, places: tuple[str, ...]) -> bool:
    return any(under(path, place) for place in places)


def wrong_layers(source: Source) -> list[str]:
    """Return the imports from another package of the same layer, or of a higher one."""
    if source.path == "__init__.py":  # it loads the public names of all packages on first use
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
    """Return the imports of foreign modules that ONLY_IN restricts to other files."""
    return [
        f"{source.path} imports {name}: only {', '.join(places)} may"
        for name in sorted({name.split(".")[0] for name in imports(source)})
        if (places := ONLY_IN.get(name)) and not under_any(source.path, places)
    ]


def docstrings(tree: ast.Module) -> set[int]:
    """Return the ids of the nodes that are docstrings of modules, classes, functions or names."""
    return {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }


def kernel_paths(source: Source) -> list[str]:
    """Return the literals outside of linux/ that are paths below /proc or /sys."""
    if source.package_name == "linux" or source.path in KERNEL_PATHS_TOO:
        return []
    tree = source.tree
    documentation = docstrings(tree)
    return [
        f"{source.path}:{node.lineno} names {node.value!r}: call a function of linux/"
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and id(node) not in documentation
        and (node.value.startswith(("/proc/", "/sys/")) or node.value in {"/proc", "/sys"})
    ]


def foreign_private_names(source: Source) -> list[str]:
    """Return the private attributes of foreign objects that the plugin uses, except in
    PRIVATE_NAMES_IN.

    ``os._exit`` is documented, so it is none of them.
    """
    if source.package_name != "plugin" or under_any(source.path, PRIVATE_NAMES_IN):
        return []
    return [
        f"{source.path}:{node.lineno} uses {ast.unparse(node)}: move it to plugin/compat.py"
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Attribute)
        and node.attr.startswith("_")
        and not node.attr.startswith("__")
        and not (isinstance(node.value, ast.Name) and node.value.id in {"self", "cls", "os"})
    ]


def function_lengths(source: Source) -> dict[str, int]:
    """Return the lines of each function from its ``def`` on, without its docstring."""
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


def long_functions(source: Source) -> list[str]:
    """Return the functions over the limit."""
    return [
        f"{name} has {lines} lines: split it"
        for name, lines in function_lengths(source).items()
        if lines > LONGEST_FUNCTION
    ]


def long_lines(source: Source) -> list[str]:
    """Return the lines over the limit."""
    return [
        f"{source.path}:{number} has {len(line)} columns: at most {LONGEST_LINE} are allowed"
        for number, line in enumerate(source.lines, 1)
        if len(line) > LONGEST_LINE
    ]


def long_files(files: list[Source]) -> list[str]:
    """Return the files over the limit for which LONG_FILES gives no reason."""
    return [
        f"{source.path} has {lines} lines: split it, or give the reason in LONG_FILES"
        for source in files
        if (lines := source.text.count("\n")) > LONGEST_FILE and source.path not in LONG_FILES
    ]


def test_a_file_imports_only_from_lower_layers():
    """Every import is from the file's own package or from one of a lower layer."""
    assert [] == [wrong for source in sources(PACKAGE) for wrong in wrong_layers(source)]


def test_no_files_import_each_other():
    """No file imports itself through others, counting imports in functions and for types alone."""
    cycles = import_cycles(import_graph(sources(PACKAGE)))
    assert [] == [sorted(cycle) for cycle in cycles]


def test_each_foreign_module_is_imported_in_one_place():
    """ctypes, rich, pytest and the like are each imported in one place only."""
    assert [] == [wrong for source in sources(PACKAGE) for wrong in wrong_foreigners(source)]


def test_only_linux_names_files_of_the_kernel():
    """No literal outside of linux/ is a path below /proc or /sys."""
    assert [] == [wrong for source in sources(PACKAGE) for wrong in kernel_paths(source)]


def test_private_names_of_pytest_are_used_in_one_file():
    """Only plugin/compat.py uses names that pytest does not promise to keep."""
    assert [] == [wrong for source in sources(PACKAGE) for wrong in foreign_private_names(source)]


def test_functions_are_short():
    """Half of the functions have at most 8 lines, nine of ten at most 25, and none over 50."""
    files = sources(PACKAGE, "bench", "tools", "sample_project")
    assert [] == [wrong for source in files for wrong in long_functions(source)]
    lengths = [lines for source in files for lines in function_lengths(source).values()]
    assert statistics.quantiles(lengths, n=10)[8] <= USUAL_FUNCTION
    assert statistics.median(lengths) <= MEDIAN_FUNCTION


def test_lines_are_short():
    """No line of a Python file has more than 100 columns."""
    files = [*sources(*EVERYWHERE), Source("conftest.py", (ROOT / "conftest.py").read_text())]
    assert [] == [wrong for source in files for wrong in long_lines(source)]


def test_files_are_short_or_give_a_reason():
    """A file over 450 lines has a reason in LONG_FILES, and each reason is of an existing file."""
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
        (wrong_layers, "unknown.py", ""),
        (wrong_foreigners, "linux/mounts.py", "import ctypes.util"),
        (wrong_foreigners, "host.py", "from rich import print"),
        (wrong_foreigners, "container.py", "import pytest"),
        (wrong_foreigners, "plugin/protocol.py", "from _pytest.runner import call_and_report"),
        (kernel_paths, "host.py", "open('/proc/self/mountinfo')"),
        (kernel_paths, "host.py", "f'/sys/fs/cgroup/{name}'"),
        (foreign_private_names, "plugin/protocol.py", "item._request"),
        (lambda source: long_files([source]), "host.py", "\n" * 451),
        (long_functions, "host.py", "def f():\n" + "    g()\n" * 50),
        (long_lines, "host.py", "x = 1\n" + "#" * 101),
    ],
)
def test_the_checks_find_what_is_wrong(check, path, text):
    """Each check reports a planted fault once."""
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
        (lambda source: long_files([source]), "host.py", "\n" * 450),
        (long_functions, "host.py", "def f():\n" + "    g()\n" * 49),
        (long_lines, "host.py", "#" * 100),
    ],
)
def test_the_checks_let_pass_what_is_right(check, path, text):
    """No check reports what the design allows."""
    assert [] == check(Source(path, text))


@pytest.mark.parametrize(
    "text",
    [
        "from pytest_sandbox.host import probe",
        "def f():\n    import pytest_sandbox.host",
        "if TYPE_CHECKING:\n    from ..host import Probe",
    ],
)
def test_the_check_of_cycles_finds_every_kind_of_import(text):
    """A cycle is found through imports at the top, in a function and for types alone."""
    files = [
        Source("linux/mounts.py", text),
        Source("host.py", "from pytest_sandbox import image"),
        Source("image/__init__.py", "from pytest_sandbox.linux.mounts import mount"),
        Source("errors.py", "from pytest_sandbox.linux.mounts import mount"),
    ]
    cycle = {f"{PACKAGE}.{name}" for name in ("linux.mounts", "host", "image")}
    assert [cycle] == import_cycles(import_graph(files))


def test_the_check_of_cycles_lets_pass_what_is_right():
    """Two files that import the same third one are no cycle, and neither is the package's root."""
    files = [
        Source("__init__.py", "from pytest_sandbox.host import probe"),
        Source("host.py", "import pytest_sandbox\nfrom pytest_sandbox.errors import SetupError"),
        Source("image.py", "from pytest_sandbox import errors, host"),
        Source("errors.py", ""),
    ]
    assert [] == import_cycles(import_graph(files))


def test_a_docstring_is_not_counted_as_length():
    """Documentation never makes a function long."""
    assert [2] == list(
        function_lengths(
            Source("host.py", 'def f():\n    """One.\n\n    Two.\n    """\n    return 1\n')
        ).values()
    )
