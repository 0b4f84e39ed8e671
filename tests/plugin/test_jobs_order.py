"""``--sandbox-jobs``: when a test may start before its turn, and what it must not see by that."""

from __future__ import annotations

import pytest
from plugin.test_jobs import PIPES

pytestmark = pytest.mark.needs("root")

#: The first test of a module waits for what a test of another one does.
WAITS = f"""{PIPES}
    def test_waits(): assert b"x" == receive()
"""
WRITES = """
    import os
    from {module} import WRITER
    {before}
    def test_answers(): os.write(WRITER, b"x")
"""


@pytest.mark.parametrize(
    "before",
    [
        "",
        "import pytest\n    @pytest.fixture\n    def own(): yield\n",
        "class TestOther:\n        def test_one(self): pass\n",
        "import unittest\n    class Case(unittest.TestCase):\n        def test_one(self): pass\n",
    ],
    ids=["nothing", "function-scoped fixture", "class", "unittest"],
)
def test_a_test_of_the_next_module_starts_early(run, pytester, before):
    """The border of a module without anything to set up in the parent is no barrier."""
    source = WRITES.format(module="test_first", before=before)
    pytester.makepyfile(test_first=WAITS, test_second=source)
    result = run("", "--sandbox-jobs=3", "test_first.py", "test_second.py")
    result.assert_outcomes(passed=2 + ("test_one" in before))


def test_a_test_of_the_next_package_starts_early(run, pytester):
    """Nor is that of a package without functions for its setup."""
    for name, source in (("a", WAITS), ("b", WRITES.format(module="a.test_in_a", before=""))):
        directory = pytester.mkpydir(name)
        (directory / f"test_in_{name}.py").write_text(_dedented(source))
    result = run("", "--sandbox-jobs=3", "a", "b")
    result.assert_outcomes(passed=2)


def test_a_package_with_a_setup_is_set_up_at_its_turn(run, pytester):
    """``setup_module`` of a package runs in the parent, after the tests before it."""
    for name, setup in (("a", ""), ("b", "ENDED = []\ndef setup_module(): ENDED.append(1)\n")):
        directory = pytester.mkpydir(name)
        (directory / "__init__.py").write_text(setup)
        (directory / f"test_in_{name}.py").write_text(
            "import pytest, b\n"
            "@pytest.mark.parametrize('number', range(3))\n"
            f"def test(number): assert b.ENDED == {[1] if setup else []}\n"
        )
    run("", "--sandbox-jobs=4", "a", "b").assert_outcomes(passed=6)


def test_unittest_classes_start_early(run):
    """A class without setUpClass has nothing to set up in the parent."""
    result = run(
        f"""{PIPES}
    import unittest

    class First(unittest.TestCase):
        def test_waits(self): self.assertEqual(b"x", receive())
    class Second(unittest.TestCase):
        def test_passes(self): pass
    class Third(unittest.TestCase):
        def test_answers(self): os.write(WRITER, b"x")
    """,
        "--sandbox-jobs=3",
    )
    result.assert_outcomes(passed=3)


def test_doctests_start_early(run, pytester):
    """The namespace of doctests is set up once, at the first one."""
    pytester.makepyfile(
        test_pipes=PIPES,
        first='''
    """
    >>> 1
    1
    """
    import os
    from test_pipes import WRITER, receive
    def waits():
        """
        >>> receive()
        b'x'
        """
    def writes():
        """
        >>> os.write(WRITER, b"x")
        1
        """
    ''',
    )
    result = run("", "--sandbox-jobs=3", "--doctest-modules", "first.py")
    result.assert_outcomes(passed=3)


#: Each test says which instance of a fixture it has got.
INSTANCES = """
    import itertools, pytest
    COUNT = itertools.count()

    @pytest.fixture(scope="class")
    def of_class(): return next(COUNT)

    @pytest.fixture(scope="module")
    def of_module(): return next(COUNT)

    @pytest.fixture(scope="session", params=["a", "b"])
    def of_session(request): return next(COUNT)

    @pytest.fixture
    def by_name(request): return request.getfixturevalue("of_module")

    class TestA:
        def test_1(self, of_class, record_property): record_property("got", of_class)
        def test_2(self, of_class, record_property): record_property("got", of_class)
    class TestB:
        def test_3(self, of_class, record_property): record_property("got", of_class)
    def test_4(of_class, record_property): record_property("got", of_class)
    def test_5(of_class, record_property): record_property("got", of_class)
    def test_6(of_session, record_property): record_property("got", of_session)
    def test_7(of_session, record_property): record_property("got", of_session)
    @pytest.mark.no_sandbox
    def test_8(of_session, record_property): record_property("got", of_session)
    def test_9(of_module, record_property): record_property("got", of_module)
    def test_10(request, record_property):
        record_property("got", request.getfixturevalue("of_module"))
    def test_11(by_name, record_property): record_property("got", by_name)
    """


@pytest.mark.parametrize(
    "order",
    [
        "items",
        "items[::-1]",
        "items[::2] + items[1::2]",
        "items[::3] + items[1::3] + items[2::3]",
    ],
)
def test_each_test_has_the_instance_of_one_job(run, reports, pytester, order):
    """A test that starts early gets no fixture that is torn down before its turn: outside of a
    class, where the tests of a class do not follow each other, and with another parameter.
    """
    with (pytester.path / "conftest.py").open("a") as file:
        file.write(f"\ndef pytest_collection_modifyitems(items): items[:] = {order}\n")
    found = []
    for jobs in (1, 4):
        result = run(INSTANCES, f"--sandbox-jobs={jobs}", "-osandbox_jobs_hooks=conftest.py")
        outcomes = result.parseoutcomes()
        assert 14 == outcomes["passed"]
        called = [one for one in reports() if one["when"] == "call"]
        found.append((outcomes, [(one["test"], one["properties"]["got"]) for one in called]))
        (pytester.path / "reports.jsonl").unlink()
    assert found[0] == found[1]


def _dedented(source):
    return "\n".join(line.removeprefix("    ") for line in source.splitlines())
