"""The Python files of this repository and what they import, for the tests of its structure."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = "pytest_sandbox"
#: The directories that hold Python files.
EVERYWHERE = (PACKAGE, "tests", "bench", "tools", "sample_project")


@dataclass(frozen=True)
class Source:
    """One file: its path (below the package, or below the repository) and its text."""

    path: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @property
    def package_name(self) -> str:
        """The package's subpackage, or its module, that this file belongs to."""
        return self.path.split("/")[0].removesuffix(".py")

    @property
    def package(self) -> list[str]:
        """The names of the package that a relative import starts from."""
        return [PACKAGE, *self.path.split("/")[:-1]]

    @property
    def module(self) -> str:
        """The dotted name of the module, ``pytest_sandbox.linux.mounts``."""
        names = self.path.removesuffix(".py").split("/")
        return ".".join([PACKAGE, *(names[:-1] if names[-1] == "__init__" else names)])

    @property
    def lines(self) -> list[str]:
        return self.text.splitlines()


def sources(*directories: str) -> list[Source]:
    """Return the files below these directories of the repository."""
    found = (path for directory in directories for path in sorted((ROOT / directory).rglob("*.py")))
    return [
        Source(str(path.relative_to(ROOT)).removeprefix(f"{PACKAGE}/"), path.read_text())
        for path in found
    ]


def _absolute(source: Source, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    base = source.package[: len(source.package) - node.level + 1]
    return ".".join([*base, *([node.module] if node.module else [])])


def imports(source: Source) -> set[str]:
    """Return the full names that a file imports: at its top, in functions and for types alone."""
    found = set()
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = _absolute(source, node)
            found |= {f"{module}.{alias.name}" for alias in node.names}
    return found


def import_graph(files: list[Source]) -> dict[str, set[str]]:
    """Return, for each module, the other modules among these files that it imports.

    A name imported from a module counts as an import of that module. ``pytest_sandbox`` itself is
    left out, because it loads the names of other modules only on first use.
    """
    modules = {source.module: source for source in files if source.module != PACKAGE}
    graph = {}
    for name, source in modules.items():
        found = {_module_of(one, modules) for one in imports(source)}
        graph[name] = found - {name, ""}
    return graph


def _module_of(name: str, modules: dict[str, Source]) -> str:
    """Return the longest prefix of a dotted name that is a module, or an empty string."""
    while name and name not in modules:
        name = name.rpartition(".")[0]
    return name


def import_cycles(graph: dict[str, set[str]]) -> list[set[str]]:
    """Return the groups of modules that import each other, directly or through others."""
    reachable = {name: _reachable(graph, name) for name in graph}
    cycles: list[set[str]] = []
    for name in graph:
        cycle = {other for other in reachable[name] if name in reachable[other]}
        if cycle and cycle not in cycles:
            cycles.append(cycle)
    return cycles


def _reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    found: set[str] = set()
    pending = list(graph[start])
    while pending:
        name = pending.pop()
        if name not in found:
            found.add(name)
            pending += graph[name]
    return found
