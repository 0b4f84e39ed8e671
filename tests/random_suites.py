"""Random test suites, each from a seed: the same seed gives the same suite.

Everything that a suite prints, logs or raises has a word in front that says who: ``[module] f3`` is
a fixture of module scope. So a comparison can leave out what is documented to come elsewhere.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from textwrap import indent

__all__ = ["SCOPES", "Suite", "random_suite"]

#: From the narrowest to the widest.
SCOPES = ("function", "class", "module", "package", "session")

_HEADER = """\
import logging
import os
import sys
import unittest
import warnings

import pytest

log = logging.getLogger("suite")
"""
_NOISE = (
    'print("{tag} out")',
    'print("{tag} err", file=sys.stderr)',
    'log.warning("{tag} log")',
    'log.info("{tag} info")',
    'warnings.warn("{tag} warned")',
    'warnings.warn("{tag} old", DeprecationWarning)',
    r'os.write(1, b"{tag} written\n")',
    r'os.write(2, b"{tag} written to stderr\n")',
)
#: Not of wider scopes, whose lines a comparison leaves out.
_UNFINISHED = 'print("{tag} no newline", end="")'
_FAILURES = (
    'assert "{tag}" == "other"',
    'raise ValueError("{tag} raised")',
    'pytest.fail("{tag} fails")',
    'pytest.fail("{tag} fails", pytrace=False)',
    'raise ExceptionGroup("{tag} group", [ValueError("one"), TypeError("two")])',
    """\
try:
    raise KeyError("{tag}")
except KeyError as error:
    raise OSError(2, "{tag} chained") from error""",
    'raise type("Odd", (Exception,), {{"__str__": lambda self: "{tag} odd"}})',
)
_SKIPS = (
    'pytest.skip("{tag} skips")',
    'raise unittest.SkipTest("{tag} skips")',
    'pytest.importorskip("no_such_module")',
    'pytest.xfail("{tag} xfails")',
)
_MARKS = (
    "pytest.mark.skip",
    'pytest.mark.skip(reason="no need")',
    "pytest.mark.skip",
    "pytest.mark.xfail",
    "pytest.mark.xfail",
    'pytest.mark.xfail(reason="known")',
    "pytest.mark.xfail(strict=True)",
    'pytest.mark.xfail(strict=True, reason="is strict")',
    "pytest.mark.xfail(raises=ValueError)",
    "pytest.mark.xfail(raises=(AssertionError, OSError), strict=True)",
    'pytest.mark.xfail(run=False, reason="not run")',
    'pytest.mark.xfail(False, reason="not now")',
    'pytest.mark.filterwarnings("error")',
    'pytest.mark.filterwarnings("ignore")',
)
_CONDITIONS = (
    'pytest.mark.skipif(True, reason="true")',
    'pytest.mark.skipif("1 == 2", reason="false")',
)
_BUILT_IN = {
    "capsys": 'print("{tag} taken")\nassert "{tag} taken\\n" in capsys.readouterr().out',
    "capfd": 'os.write(1, b"{tag} taken")\nassert "{tag} taken" in capfd.readouterr().out',
    "caplog": 'caplog.set_level("INFO")\nlog.info("{tag} noted")\nassert "noted" in caplog.text',
    "monkeypatch": 'monkeypatch.setenv("NAME", "{tag}")\nprint(os.environ["NAME"])',
    "tmp_path": 'print(tmp_path.name, list(tmp_path.iterdir()))\n(tmp_path / "a").write_text("")',
    "recwarn": 'warnings.warn("{tag} noted")\nassert "{tag} noted" == str(recwarn[-1].message)',
    "record_property": 'record_property("{tag}", 1)',
    "request": 'request.node.add_report_section("call", "own", "{tag} own")',
    "request ": 'request.node.add_marker(pytest.mark.xfail(reason="{tag} late"))',
    "request  ": 'request.addfinalizer(lambda: print("{tag} finalized"))',
    "request   ": 'request.node.user_properties.append(("{tag}", [1, "a"]))',
}
#: Not "-p no:warnings": Python shows a warning once per line, so tests depend on earlier ones.
_OPTIONS: tuple[tuple[str, ...], ...] = (
    ("-x",),
    ("--maxfail=2",),
    ("-k", "not 1"),
    ("-k", "test_2 or C1 or a"),
    ("--deselect", "{nodeid}"),
    ("-p", "no:logging"),
    ("-p", "no:unraisableexception", "-p", "no:threadexception"),
    ("-p", "no:faulthandler"),
    ("-rA",),
    ("-rA", "-vv"),
    ("-v",),
    ("-q",),
    ("-l",),
    ("--tb=short",),
    ("--tb=line",),
    ("--tb=native",),
    ("--tb=long", "-rxX"),
    ("--capture=sys",),
    ("--capture=tee-sys",),
    ("-s",),
    ("-W", "error"),
    ("--runxfail",),
    ("--log-level=INFO",),
    ("-o", "xfail_strict=true"),
    ("--import-mode=importlib",),
    ("--stepwise",),
    ("--setup-show",),
    ("--durations=3",),
    ("--assert=plain",),
    ("-o", "console_output_style=times"),
)


@dataclass
class Suite:
    """The files of a suite, and the arguments of each run of it, one after the other."""

    seed: int
    files: dict[str, str] = field(default_factory=dict)
    runs: list[list[str]] = field(default_factory=list)
    #: The scopes of fixtures with parameters: pytest orders tests by those above function.
    parameter_scopes: set[str] = field(default_factory=set)

    def enters_twice(self, scope: str) -> bool:
        """Tell whether containers of a scope may end before all its tests have run: at another
        parameter of a wider fixture, or after a test that a mark may skip, for which wider fixtures
        are not set up in advance (docs/how-to/scopes.md).
        """
        wider = SCOPES[SCOPES.index(scope) + 1 :]
        may_skip = any("skipif(" in text for text in self.files.values())
        return may_skip or not self.parameter_scopes.isdisjoint(wider)

    @property
    def may_stop_early(self) -> bool:
        """Whether a test may be left out after fixtures of wider scopes were set up in advance."""
        stop = {"-x", "--maxfail=2", "--stepwise"}
        return any(not stop.isdisjoint(run) for run in self.runs)

    @property
    def source(self) -> str:
        """All that is needed to run it elsewhere."""
        parts = [f"# {name}\n{text}" for name, text in self.files.items()]
        runs = [" ".join(["pytest", *map(repr, run)]) for run in self.runs]
        return "\n".join([*parts, "# " + " && ".join(runs)])


@dataclass
class _Fixture:
    name: str
    scope: str
    #: Neither it nor a fixture that it needs has a wider scope.
    is_narrow: bool


def random_suite(seed: int, *, only_functions: bool = False) -> Suite:
    """Return the suite of a seed; with ``only_functions`` it has nothing of a wider scope."""
    return _Writer(seed, only_functions=only_functions).suite()


class _Writer:
    def __init__(self, seed: int, *, only_functions: bool) -> None:
        self._seed = seed
        self._random = random.Random(f"{seed} {only_functions}")
        self._scopes = SCOPES[:1] if only_functions else SCOPES
        self._numbers: dict[str, int] = {}
        self._nodeids: list[str] = []
        self._parameter_scopes: set[str] = set()
        # In most suites, tests of a module or class follow each other.
        self._may_reorder = self._chance(0.2)
        self._has_many_failures = self._chance(0.3)

    # -- choices

    def _chance(self, probability: float) -> bool:
        return self._random.random() < probability

    def _name(self, kind: str) -> str:
        self._numbers[kind] = self._numbers.get(kind, 0) + 1
        return f"{kind}{self._numbers[kind]}"

    def _some(self, found: list, probability: float, most: int = 2) -> list:
        chosen = [one for one in found if self._chance(probability)]
        return chosen[:most]

    # -- the parts of a body

    def _noise(self, tag: str, most: int = 2) -> str:
        choices = _NOISE if tag.startswith("[") else (*_NOISE, _UNFINISHED)
        lines = self._random.choices(choices, k=self._random.randint(0, most))
        return "\n".join(line.format(tag=tag) for line in lines)

    def _end(self, tag: str, failing: float, skipping: float = 0.0) -> str:
        """Return a statement that raises something, or nothing."""
        chosen = self._random.random() / (1.5 if self._has_many_failures else 1)
        if chosen < failing:
            return self._random.choice(_FAILURES).format(tag=tag)
        if chosen < failing + skipping:
            return self._random.choice(_SKIPS).format(tag=tag)
        return ""

    def _body(self, *parts: str) -> str:
        return indent("\n".join(filter(None, parts)) or "pass", "    ")

    def _function(self, name: str, arguments: list[str], *parts: str) -> str:
        arguments = list(dict.fromkeys(one.strip() for one in arguments))
        return f"def {name}({', '.join(arguments)}):\n{self._body(*parts)}\n"

    # -- fixtures

    def _fixtures(
        self, visible: list[_Fixture], scopes: tuple[str, ...], most: int, *, method: bool = False
    ) -> tuple[str, list[_Fixture]]:
        """Return the source of new fixtures, and all fixtures that are visible then."""
        visible, parts = list(visible), []
        for _ in range(self._random.randint(0, most)):
            scope = self._random.choice([one for one in scopes if one in self._scopes])
            text, fixture = self._fixture(scope, visible, method=method)
            parts.append(text)
            visible.append(fixture)
        return "\n".join(parts), visible

    def _fixture(
        self, scope: str, visible: list[_Fixture], *, method: bool
    ) -> tuple[str, _Fixture]:
        name = self._name("f")
        tag = f"[{scope}] {name}"
        wide_enough = SCOPES[SCOPES.index(scope) :]
        usable = [one for one in visible if one.scope in wide_enough]
        needs = [one.name for one in self._some(usable, 0.25)]
        options, value = self._fixture_options(scope, tag)
        parts = [self._noise(f"{tag} up", 1), self._late(usable, 0.15)]
        if self._chance(0.2):
            parts.append(self._finalizer(f"{tag} finalizer"))
        is_wide = scope in {"package", "session"}
        parts.append(self._end(f"{tag} setup", 0.03 if is_wide else 0.07, 0.03))
        if self._chance(0.75):
            after = [self._noise(f"{tag} down", 1), self._end(f"{tag} teardown", 0.08, 0.04)]
            parts += [f"yield {value}", *after]
        else:
            parts.append(f"return {value}")
        arguments = [*(["self"] if method else []), "request", *needs]
        source = self._function(name, arguments, *parts)
        narrow = {one.name for one in visible if one.is_narrow}
        fixture = _Fixture(name, scope, scope == "function" and narrow.issuperset(needs))
        return f"@pytest.fixture({options})\n{source}", fixture

    def _late(self, usable: list[_Fixture], probability: float) -> str:
        """Return a call of getfixturevalue().

        Not of a fixture that would be set up once in the parent if it were an argument: the plugin
        warns of those, and sets them up in the container of each test.
        """
        names = [one.name for one in usable if one.is_narrow]
        if names and self._chance(probability):
            return f'request.getfixturevalue("{self._random.choice(names)}")'
        return ""

    def _fixture_options(self, scope: str, tag: str) -> tuple[str, str]:
        options = [f'scope="{scope}"']
        if self._chance(0.15):
            options.append("autouse=True")
        may_repeat = scope in {"function", "class"} or self._may_reorder
        if may_repeat and self._chance(0.12):
            marked = 'pytest.param("y", marks=pytest.mark.xfail)' if self._chance(0.3) else '"y"'
            options.append(f'params=["x", {marked}]')
            self._parameter_scopes.add(scope)
        return ", ".join(options), f'"{tag} " + str(getattr(request, "param", ""))'

    def _finalizer(self, tag: str) -> str:
        name = self._name("finalize")
        body = self._function(name, [], self._noise(tag, 1), self._end(tag, 0.15, 0.05))
        return f"{body}request.addfinalizer({name})"

    # -- tests

    def _marks(self, probability: float) -> list[str]:
        if self._may_reorder and self._chance(probability / 3):
            return [self._random.choice(_CONDITIONS)]
        return [self._random.choice(_MARKS)] if self._chance(probability) else []

    def _decorators(self, visible: list[_Fixture]) -> tuple[str, list[str]]:
        """Return the decorators of a test, and the arguments that they imply."""
        lines = [f"@{mark}" for mark in self._marks(0.22)]
        arguments = []
        if visible and self._chance(0.1):
            used = self._random.choice(visible).name
            lines.append(f'@pytest.mark.usefixtures("{used}")')
        indirect = [one for one in visible if one.scope in {"function", "class"}]
        if self._chance(0.2):
            lines.append(self._parametrize())
            arguments.append("p")
        elif indirect and self._chance(0.15):
            used = self._random.choice(indirect).name
            lines.append(f'@pytest.mark.parametrize("{used}", ["a", "b"], indirect=True)')
            arguments.append(used)
        self._random.shuffle(lines)
        return "".join(f"{line}\n" for line in lines), arguments

    def _parametrize(self) -> str:
        marked = f'pytest.param(2, marks={self._random.choice(_MARKS)}, id="two")'
        values = ["1", self._random.choice(["2", marked]), *self._some(["(3, 4)", "'a b'"], 0.4)]
        ids = self._random.choice(["", "", ", ids=str", ", ids=lambda p: None"])
        return f'@pytest.mark.parametrize("p", [{", ".join(values)}]{ids})'

    def _test(self, visible: list[_Fixture], place: str, *, method: bool = False) -> str:
        name = self._name("test_")
        self._nodeids.append(f"{place}::{name}")
        decorators, arguments = self._decorators(visible)
        used = [one.name for one in self._some(visible, 0.22)]
        built_in = [self._random.choice(list(_BUILT_IN))] if self._chance(0.25) else []
        parts = [self._noise(name)]
        parts += [f"print({one})" for one in used if self._chance(0.3)]
        parts += [_BUILT_IN[one].format(tag=name) for one in built_in]
        if late := self._late(visible, 0.1):
            arguments.append("request")
            parts.append(late)
        if "p" in arguments and self._chance(0.5):
            parts.append("assert p != 2")
        if self._chance(0.04):
            arguments.append("subtests")
            parts.append(self._subtests("subtests.test", name))
        parts.append(self._end(name, 0.2, 0.1))
        first = ["self"] if method else []
        return decorators + self._function(name, [*first, *arguments, *used, *built_in], *parts)

    def _subtests(self, call: str, tag: str) -> str:
        body = self._body(f'print("{tag} sub", n)', "assert n != 1")
        return f"for n in range(3):\n    with {call}(n=n):\n{indent(body, '    ')}"

    def _xunit(self, names: dict[str, tuple[str, str]]) -> list[str]:
        """Return some of the functions: decorators and arguments, and the scope, by name."""
        parts = []
        for name, (before, scope) in names.items():
            if scope in self._scopes and self._chance(0.2):
                decorator, _, arguments = before.rpartition("\n")
                tag = f"[{scope}] {name}"
                own = self._function(
                    name,
                    [arguments] if arguments else [],
                    self._noise(tag),
                    self._end(tag, 0.15, 0.08),
                )
                parts.append(f"{decorator}\n{own}" if decorator else own)
        return parts

    def _class(self, visible: list[_Fixture], place: str) -> str:
        name = self._name("TestC")
        fixtures, visible = self._fixtures(visible, ("function", "class"), 2, method=True)
        parts = [
            fixtures,
            *self._xunit(
                {
                    "setup_class": ("@classmethod\ncls", "class"),
                    "teardown_class": ("@classmethod\ncls", "class"),
                    "setup_method": ("self", "function"),
                    "teardown_method": ("self", "function"),
                }
            ),
        ]
        tests = range(self._random.randint(1, 4))
        parts += [self._test(visible, f"{place}::{name}", method=True) for _ in tests]
        marks = "".join(f"@{mark}\n" for mark in self._marks(0.1))
        return f"{marks}class {name}:\n{indent(chr(10).join(filter(None, parts)), '    ')}"

    def _test_case(self, visible: list[_Fixture], place: str) -> str:
        name = self._name("TestU")
        parts = self._xunit(
            {
                "setUpClass": ("@classmethod\ncls", "class"),
                "tearDownClass": ("@classmethod\ncls", "class"),
                "setUp": ("self", "function"),
                "tearDown": ("self", "function"),
            }
        )
        tests = range(self._random.randint(1, 3))
        parts += [self._test_case_method(f"{place}::{name}") for _ in tests]
        used = (
            f'@pytest.mark.usefixtures("{self._random.choice(visible).name}")\n' if visible else ""
        )
        marks = "".join(f"@{mark}\n" for mark in self._marks(0.1))
        used = used if self._chance(0.4) else ""
        return (
            f"{used}{marks}class {name}(unittest.TestCase):\n{indent(chr(10).join(parts), '    ')}"
        )

    def _test_case_method(self, place: str) -> str:
        name = self._name("test_")
        self._nodeids.append(f"{place}::{name}")
        decorators = ["unittest.expectedFailure", 'unittest.skip("of unittest")', *self._marks(1)]
        decorator = f"@{self._random.choice(decorators)}\n" if self._chance(0.25) else ""
        parts = [self._noise(name)]
        if self._chance(0.25):
            clean = self._name("clean")
            body = self._function(
                clean, [], self._noise(f"{name} clean"), self._end(clean, 0.2, 0.1)
            )
            parts.append(f"{body}self.addCleanup({clean})")
        if self._chance(0.1):
            parts.append(self._subtests("self.subTest", name))
        elif self._chance(0.1):
            parts.append('self.skipTest("of the test case")')
        parts.append(self._end(name, 0.2, 0.1))
        return decorator + self._function(name, ["self"], *parts)

    # -- files

    def _module(self, visible: list[_Fixture], path: str) -> str:
        fixtures, visible = self._fixtures(visible, SCOPES, 4)
        parts = [_HEADER]
        if self._chance(0.08):
            parts.append(f"pytestmark = {self._random.choice(_MARKS)}\n")
        if self._chance(0.04):
            parts.append('pytest.importorskip("no_such_module")\n')
        parts.append(fixtures)
        parts += self._xunit(
            {
                "setup_module": ("", "module"),
                "teardown_module": ("", "module"),
                "setup_function": ("", "function"),
                "teardown_function": ("", "function"),
                "setUpModule": ("", "module"),
            }
        )
        for _ in range(self._random.randint(2, 5)):
            kind = self._random.choice([self._test, self._test, self._class, self._test_case])
            parts.append(kind(visible, path))
        return "\n".join(filter(None, parts))

    def _options(self) -> list[str]:
        if self._chance(0.4):
            return []
        chosen = self._random.sample(_OPTIONS, self._random.choice([1, 1, 2]))
        nodeid = self._random.choice(self._nodeids)
        return [one.format(nodeid=nodeid) for option in chosen for one in option]

    def suite(self) -> Suite:
        """Return the suite."""
        suite = Suite(self._seed)
        outer, visible = self._fixtures([], SCOPES, 4)
        suite.files["conftest.py"] = f"{_HEADER}\n{outer}"
        if self._chance(0.8):
            suite.files["test_a.py"] = self._module(visible, "test_a.py")
        if self._chance(0.6) or len(suite.files) == 1:
            inner, inside = self._fixtures(visible, SCOPES, 3)
            suite.files["pkg/__init__.py"] = ""
            suite.files["pkg/conftest.py"] = f"{_HEADER}\n{inner}"
            for name in ("pkg/test_b.py", "pkg/test_c.py")[: self._random.randint(1, 2)]:
                suite.files[name] = self._module(inside, name)
        options = self._options()
        suite.runs.append(options)
        if self._chance(0.12):
            again = self._random.choice([["--lf"], ["--ff"], ["--nf"], ["--stepwise"]])
            suite.runs.append([*options, *again])
        suite.parameter_scopes = self._parameter_scopes
        return suite
