"""Fixtures of scopes above function are set up outside and once, function-scoped ones inside."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.needs("root")


def test_higher_scopes_are_set_up_once_and_outside(run, pytester):
    """Session, module and class fixtures are set up and torn down once, in the parent;
    function-scoped ones inside.
    """
    log = pytester.path / "log"
    run(f"""
    import os, pytest

    def say(*words):
        with open({str(log)!r}, "a") as file: print(*words, file=file)

    def fixture(scope):
        @pytest.fixture(scope=scope, autouse=True)
        def made():
            say("up", scope, os.getppid() != 0)
            yield scope
            say("down", scope, os.getppid() != 0)
        return made

    session, module, class_ = fixture("session"), fixture("module"), fixture("class")

    @pytest.fixture(params=["x", "y"], scope="module")
    def parameter(request):
        say("up", request.param)
        yield request.param
        say("down", request.param)

    @pytest.fixture
    def function():
        assert os.getppid() == 0
        yield
        assert os.getppid() == 0

    class TestThem:
        def test_a(self, session, function): assert "session" == session
        def test_b(self, module): assert "module" == module
        def test_c(self, parameter): assert parameter in "xy"
    """).assert_outcomes(passed=4)
    lines = log.read_text().splitlines()
    assert ["up session True", "up module True", "up class True"] == lines[:3]
    assert ["up x", "down x", "up y"] == [line for line in lines if line[-1] in "xy"][:3]
    assert sorted(line.replace("up", "down") for line in lines if line.startswith("up")) == sorted(
        line for line in lines if line.startswith("down")
    )
    assert 1 == sum(line.startswith("up session") for line in lines)


def test_an_overridden_session_fixture_is_set_up_outside(run, pytester):
    """A session fixture that function-scoped ones override and request is set up in the parent, the
    others inside.
    """
    pytester.makeconftest("""
    import os, pytest
    @pytest.fixture(scope="session")
    def server(): return [os.getppid() != 0]
    """)
    run("""
    import os, pytest

    @pytest.fixture
    def server(server): return [*server, "module", os.getppid()]

    class TestThem:
        @pytest.fixture
        def server(self, server): return [*server, "class", os.getppid()]

        def test_a(self, server): assert [True, "module", 0, "class", 0] == server
        def test_b(self, server): self.test_a(server)

    def test_c(server): assert [True, "module", 0] == server
    """).assert_outcomes(passed=3)


def test_xunit_style_functions_keep_their_scopes(run):
    """setup_module and setup_class run once, outside; setup_method and setup_function inside."""
    run("""
    import os
    outside = []
    def setup_module(): outside.append(os.getppid())
    def setup_function(): assert 0 == os.getppid()
    class TestIt:
        @classmethod
        def setup_class(cls): cls.made = os.getpid()
        def setup_method(self): assert 0 == os.getppid()
        def test_a(self): assert outside != [0] and self.made
        def test_b(self): assert 1 == len(outside)
    def test_c(): pass
    """).assert_outcomes(passed=3)


def test_a_session_fixture_that_is_set_up_inside_is_a_warning(run):
    """A session fixture that only ``getfixturevalue()`` requests is set up inside, for one test,
    with a warning.
    """
    result = run("""
    import pytest
    @pytest.fixture(scope="session")
    def expensive(): return 1
    def test(request): assert 1 == request.getfixturevalue("expensive")
    """)
    result.assert_outcomes(passed=1, warnings=1)
    result.stdout.fnmatch_lines(
        ["*session-scoped fixture 'expensive' was set up in the container of this test alone*"]
    )


def test_a_test_sees_files_of_a_module_fixture(run):
    """A file that a module fixture writes after the container was prepared is visible inside; what
    a test writes to it is discarded.
    """
    run("""
    import pytest

    @pytest.fixture(scope="module")
    def file(tmp_path_factory):
        path = tmp_path_factory.mktemp("shared") / "file"
        path.write_text("outer")
        yield path
        assert "outer" == path.read_text()

    def test_before(): pass
    def test_reads(file):
        assert "outer" == file.read_text()
        file.write_text("inner")
    def test_reads_again(file): assert "outer" == file.read_text()
    """).assert_outcomes(passed=3)


@pytest.mark.parametrize("options", [(), ("--sandbox-scope=class",), ("--sandbox-jobs=2",)])
def test_a_class_fixture_of_a_function_is_torn_down_once(run, reports, options):
    """A class-scoped fixture of a test outside of any class is torn down outside only."""
    run(
        """
    import os, pytest
    @pytest.fixture(scope="class")
    def made():
        yield
        print("inside" if os.getppid() == 0 else "outside")
        raise ValueError("of the fixture")
    def test_a(made): pass
    """,
        *options,
        "-osandbox_jobs_hooks=conftest.py",
    ).assert_outcomes(passed=1, errors=1)
    (teardown,) = [one for one in reports() if one["when"] == "teardown"]
    assert teardown["sections"][0] == ["Captured stdout teardown", "outside\n"]
    assert teardown["text"].rpartition("\n")[2].endswith(": ValueError")


@pytest.mark.parametrize("options", [(), ("--sandbox-scope=class",), ("--sandbox-jobs=2",)])
@pytest.mark.parametrize("end", ["pass", "assert 0", "pytest.skip()", "print('end')"])
def test_what_a_wider_fixture_prints_at_its_teardown_is_reported(run, reports, options, end):
    """The output of a teardown outside is in the sections of its phase, with that inside, whether
    the test's own teardown passes or not.
    """
    source = """
    import logging, pytest, sys
    def say(text):
        print(text)
        print(text, file=sys.stderr)
        logging.warning(text)
    @pytest.fixture(scope="class")
    def outer():
        yield
        say("outer")
    @pytest.fixture
    def inner():
        yield
        logging.warning("inner")
        END
    class TestIt:
        def test_a(self, outer): pass
        def test_b(self, outer, inner): say("test")
    """.replace("END", end)
    run(source, sandbox=False)
    run(source, *options, "-osandbox_jobs_hooks=conftest.py")
    found = [
        (one["outcome"], [one for one in one["sections"] if one[0].startswith("Captured ")])
        for one in reports()
    ]
    outside, inside = found[: len(found) // 2], found[len(found) // 2 :]
    assert outside == inside
    assert "outer" in inside[-1][1][-1][1]
