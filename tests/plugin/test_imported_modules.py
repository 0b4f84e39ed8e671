"""Modules of the standard library that a test imports are there for later tests, as in plain
pytest; others are not.
"""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest

from pytest_sandbox.plugin import imported_modules


@pytest.mark.needs("root")
@pytest.mark.parametrize("options", [(), ("--sandbox-scope=class",)])
def test_later_tests_have_what_one_has_imported(run, options):
    """The parent imports modules, submodules, and those that were imported for a codec."""
    run(
        """
    import sys
    class TestFirst:
        def test_import(self):
            import colorsys, xml.sax.saxutils
            "text".encode("idna")
    class TestSecond:
        def test_modules(self):
            assert {"colorsys", "xml.sax.saxutils", "encodings.idna"} <= sys.modules.keys()
    """,
        *options,
    ).assert_outcomes(passed=2)


@pytest.mark.needs("root")
def test_modules_of_the_suite_are_imported_by_each_test(run, pytester):
    """The parent does not import a module of the suite, not even one with the name of a module of
    the standard library, nor an installed one, nor one that does something when it is imported.
    """
    text = "import os; open('imported', 'a').write(f'{__name__} {os.getpid()}\\n')"
    pytester.makepyfile(own_module=text, colorsys=text)
    run(
        """
    import os, sys
    def test_import():
        import colorsys, own_module, this
        assert colorsys.__file__.startswith(os.getcwd())
    def test_modules():
        assert not {"colorsys", "own_module", "this"} & sys.modules.keys()
    """,
    ).assert_outcomes(passed=2)
    assert not (pytester.path / "imported").exists()


@pytest.mark.needs("root")
def test_an_import_that_fails_in_the_parent_is_that_of_the_next_test(run):
    """The parent ignores any error: its module fixture has replaced what imports need."""
    run(
        """
    import builtins, importlib, pytest
    @pytest.fixture(scope="module", autouse=True)
    def broken():
        patch = pytest.MonkeyPatch()
        def fail(*args, **kwargs): raise RuntimeError("replaced")
        patch.setattr(importlib, "import_module", fail)
        yield
        patch.undo()
    def test_import():
        import colorsys
    def test_again():
        import colorsys
    """,
    ).assert_outcomes(passed=2)


def test_forged_names_are_not_imported():
    """Names are a test process's data: what is not a module of the standard library is ignored."""
    program = """
import sys
from types import SimpleNamespace
from pytest_sandbox.plugin import imported_modules
before = set(sys.modules)
names = ["", ".", "os.", "os..path", "../colorsys", "pip", "this", "antigravity", "test.support",
         "xml.__main__", "unittest.test", "no_such", "colorsys.x", "encodings.no_such", "x" * 999]
imported_modules.import_in_parent(SimpleNamespace(of_kind=lambda _kind: [(names, {})]))
new = set(sys.modules) - before
print(sorted(name for name in new if name != "encodings"))
"""
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert "['colorsys']\n" == found.stdout


def test_only_new_modules_are_sent(monkeypatch):
    """Nothing is sent without an import; of other packages, the number of modules is sent if it is
    large.
    """
    sent = []
    channel = SimpleNamespace(send=lambda *message: sent.append(message))
    sender = imported_modules.ImportSender()
    sender.send(channel)
    assert [] == sent
    monkeypatch.setitem(sys.modules, "xml.new", object())
    monkeypatch.setitem(sys.modules, "small.new", object())
    for number in range(10):
        monkeypatch.setitem(sys.modules, f"large.{number}", object())
    monkeypatch.setitem(sys.modules, 5, object())
    sender.send(channel)
    assert [("imported", [["xml.new"], {"large": 10}])] == sent


PACKAGE = """
import sys, types
for number in range(400):
    sys.modules[f"large.module{number}"] = types.ModuleType("large")
"""


@pytest.mark.needs("root")
@pytest.mark.parametrize(
    ("options", "shown"),
    [((), True), (("-n2",), True), (("--sandbox-scope=module",), False)],
)
def test_a_package_that_many_tests_import_is_named(run, pytester, options, shown):
    """The end of the session names it, and what to do; not if the tests share a process."""
    pytester.makepyfile(large=PACKAGE)
    result = run(
        """
    import pytest
    @pytest.mark.parametrize("n", range(4))
    def test(n): import large
    """,
        *options,
        plugins=("xdist",),
    )
    result.assert_outcomes(passed=4)
    lines = [
        "*= repeated imports =*",
        "4 tests imported large, each in its own process: 1,604 modules altogether",
        '"import large" in conftest.py imports it once, before the tests.',
    ]
    if shown:
        result.stdout.fnmatch_lines(lines)
    else:
        result.stdout.no_fnmatch_line("*repeated imports*")
