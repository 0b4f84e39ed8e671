"""Which tests run inside a container, and with which settings."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.needs("containers")

WHERE = """
    import os, pytest

    def inside():
        return os.getppid() == 0
"""


def test_no_test_runs_inside_by_default(run):
    """Without the option and without marks, a test runs in pytest's own process."""
    run(f"{WHERE}\n    def test(): assert not inside()", sandbox=False).assert_outcomes(passed=1)


def test_a_session_without_containers_loads_no_container_code(run):
    """A session in which no test runs inside does not import what reads settings and creates
    containers.
    """
    needless = {
        "pytest_sandbox.settings.settings",
        "pytest_sandbox.settings.parsers",
        "pytest_sandbox.container",
        "pytest_sandbox.linux",
        "ctypes",
    }
    run(
        f"import sys\ndef test(): assert not {needless} & sys.modules.keys()", sandbox=False
    ).assert_outcomes(passed=1)


@pytest.mark.vm
def test_a_marked_test_runs_inside(run):
    """A test with the mark runs inside; the test beside it does not."""
    source = f"""{WHERE}
    @pytest.mark.container
    def test_marked(): assert inside()

    def test_plain(): assert not inside()
    """
    run(source, sandbox=False).assert_outcomes(passed=2)


def test_the_option_runs_all_tests_inside(run):
    """``--sandbox`` runs every test inside, except those with the mark ``no_sandbox``."""
    source = f"""{WHERE}
    def test_inside(): assert inside()

    @pytest.mark.no_sandbox
    def test_outside(): assert not inside()
    """
    run(source).assert_outcomes(passed=2)


@pytest.mark.parametrize("ini", ["[pytest]\nsandbox = true", None])
def test_the_ini_setting_is_equivalent_to_the_option(run, pytester, ini):
    """``sandbox = true`` in an ini or a TOML file is equivalent to ``--sandbox``."""
    if ini:
        pytester.makeini(ini)
    else:
        pytester.makepyprojecttoml("[tool.pytest.ini_options]\nsandbox = true")
    run(f"{WHERE}\n    def test(): assert inside()", sandbox=False).assert_outcomes(passed=1)


@pytest.mark.vm
def test_a_test_with_the_fixture_runs_outside(run):
    """A test that uses the fixture ``container``, directly or through another, runs outside; its
    mark configures the container.
    """
    source = f"""{WHERE}
    @pytest.fixture
    def service(container):
        return container

    @pytest.mark.container(hostname="box")
    def test_holds(container):
        assert not inside()
        assert "box" == container.run(["hostname"], capture_output=True, text=True).stdout.strip()

    def test_holds_through_a_fixture(service):
        assert not inside()
        assert 0 == service.run(["true"]).returncode
    """
    run(source).assert_outcomes(passed=2)


def test_a_test_with_only_the_factory_needs_a_mark_to_run_inside(run):
    """A test that uses only ``container_factory`` follows its mark, and runs outside under
    ``--sandbox``.
    """
    source = f"""{WHERE}
    @pytest.fixture(scope="session")
    def service(container_factory):
        with container_factory(hostname="service") as made:
            yield made

    def test_unmarked(service):
        assert not inside()
        assert "service" == service.hostname

    @pytest.mark.container
    def test_marked(service): assert inside()
    """
    run(source).assert_outcomes(passed=2)


@pytest.mark.vm
@pytest.mark.needs("limits")
def test_a_nearer_mark_overrides_single_settings(run, pytester):
    """A function's mark overrides its class's, that its module's, that the ini file, each setting
    separately.
    """
    pytester.makeini(
        "[pytest]\nsandbox_hostname = ini\nsandbox_env = A=ini\nsandbox_workdir = "
        "/usr\nsandbox_cpus = 1.5"
    )
    source = """
    import pytest

    pytestmark = pytest.mark.container(hostname="module", env={"A": "module"}, workdir="/tmp")

    @pytest.mark.container(hostname="class", env={"A": "class"})
    class TestThem:
        @pytest.mark.container(hostname="function")
        def test_function(self, container):
            s = container.settings
            found = (s.hostname, dict(s.env), s.workdir, s.cpus)
            assert ("function", {"A": "class"}, "/tmp", 1.5) == found

    def test_module(container):
        assert ("module", "/tmp") == (container.settings.hostname, container.settings.workdir)
    """
    run(source).assert_outcomes(passed=2)


def test_the_command_line_overrides_marks_and_ini_settings(run, pytester):
    """A setting of the command line overrides that of a mark, and that of the ini file."""
    pytester.makeini("[pytest]\nsandbox_timeout = 30")
    source = """
    import pytest

    @pytest.mark.container(timeout=20, memory="32m")
    def test(container):
        s = container.settings
        assert (10.0, 32 << 20, 0.5) == (s.timeout, s.memory, s.cpus)
    """
    run(source, "--sandbox-timeout=10", "--sandbox-cpus=0.5", sandbox=False).assert_outcomes(
        passed=1
    )


@pytest.mark.parametrize(
    ("mark", "said"),
    [
        ('memroy="1g"', "memroy='1g' is not valid; accepted: did you mean memory?"),
        ('memory="a lot"', "memory='a lot' is not valid; accepted: bytes, or a number"),
        ("cpus=-1", "cpus=-1 is not valid; accepted: a number of at least"),
        ('image="/no/such/root"', "image='/no/such/root'"),
        ('volumes=["/no/such/directory:/x"]', "volumes='/no/such/directory'"),
        ('"512m"', "takes settings by name"),
        (
            'user="nobody-of-that-name"',
            "user='nobody-of-that-name' is not valid; accepted: an ID, or a name",
        ),
        ('user="0:no-such-group"', "which has no 'no-such-group'"),
        ('cpuset="4000"', "cpuset='4000' is not supported here. The CPUs of this host are 0"),
        ('device_read_bps=["/dev/no-such-disk:1m"]', "device_read_bps='/dev/no-such-disk'"),
        ('device_write_iops={"/dev/null": 5}', "device_write_iops='/dev/null'"),
    ],
)
def test_an_invalid_mark_is_a_usage_error_at_collection(run, mark, said):
    """An invalid mark ends the session before any test; the message names test, setting, value and
    accepted form.
    """
    source = f"""
    import pytest

    def test_first(): open("ran", "w")

    @pytest.mark.container({mark})
    def test_wrong(): pass
    """
    result = run(source, sandbox=False)
    assert pytest.ExitCode.USAGE_ERROR == result.ret
    assert (
        "test_an_invalid_mark_is_a_usage_error_at_collection.py::test_wrong: "
        in result.stderr.str()
    )
    assert said in result.stderr.str()
    assert "passed" not in result.stdout.str()


def test_a_user_is_looked_up_in_the_image(run, pytester):
    """A user name is valid if the image's own /etc/passwd has it, not if only the host's has."""
    (pytester.mkdir("root") / "etc").mkdir()
    (pytester.path / "root" / "etc" / "passwd").write_text("worker:x:7:7::/:/bin/sh\n")
    source = """
    import pytest
    @pytest.mark.container(image="./root", user="{}")
    def test(container_factory): pass
    """
    assert (
        "::test: user='root'"
        in run(source.format("root"), "--collect-only", sandbox=False).stderr.str()
    )
    assert 0 == run(source.format("worker"), "--collect-only", sandbox=False).ret


def test_a_test_for_missing_cpus_can_be_a_skip(run):
    """With ``sandbox_unsupported = skip`` a test for a CPU that the host lacks is skipped."""
    source = """
    import pytest
    @pytest.mark.container(cpuset="4000")
    def test(): pass
    """
    run(source, "-o", "sandbox_unsupported=skip").assert_outcomes(skipped=1)


CONTRADICTIONS = {
    "test_it.py": "pytestmark = [pytest.mark.container, pytest.mark.no_sandbox]\ndef test_it(): "
    "pass",
    "test_it.py::TestIt": "@pytest.mark.no_sandbox\n@pytest.mark.container(memory='64m')\nclass "
    "TestIt:\n    def test_it(self): pass",
    "test_it.py::test_it": "@pytest.mark.container\n@pytest.mark.no_sandbox\ndef test_it(): pass",
}


@pytest.mark.parametrize(("node", "source"), CONTRADICTIONS.items())
def test_both_marks_on_one_node_are_a_usage_error(run, pytester, node, source):
    """``container`` and ``no_sandbox`` on the same function, class or module are a usage error that
    names it.
    """
    pytester.makepyfile(test_it=f"import pytest\n{source}")
    result = run("", "test_it.py", sandbox=False)
    assert pytest.ExitCode.USAGE_ERROR == result.ret
    assert (
        f"ERROR: {node}: @pytest.mark.container and @pytest.mark.no_sandbox contradict each other"
        in result.stderr.str()
    )


def test_a_nearer_mark_overrides_the_opposite(run):
    """A function's mark overrides its class's, a class's that of its base, a parameter's its
    function's.
    """
    source = """
    import os, pytest

    here = os.getpid()
    def is_inside(): return os.getpid() != here

    @pytest.mark.no_sandbox
    class TestBase:
        def test_base(self): assert not is_inside()
        @pytest.mark.container
        def test_function(self): assert is_inside()

    @pytest.mark.container
    class TestBelow(TestBase):
        def test_base(self): assert is_inside()

    @pytest.mark.container(hostname="function")
    @pytest.mark.parametrize("place", [
        "function",
        pytest.param("outside", marks=pytest.mark.no_sandbox),
        pytest.param("parameter", marks=pytest.mark.container(hostname="parameter")),
    ])
    def test_parameter(place):
        assert place == (os.uname().nodename if is_inside() else "outside")
    """
    run(source, sandbox=False).assert_outcomes(passed=7)


def test_requesting_the_fixture_inside_is_a_failure(run):
    """``getfixturevalue("container")`` in a test that runs inside fails with the remedy; the next
    test runs.
    """
    result = run("""
    def test_late(request): request.getfixturevalue("container")
    def test_next(): pass
    """)
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*name it as an argument*"])


def test_a_container_of_a_session_fixture_cannot_be_used_inside(run, reports):
    """A test inside that uses a session's container fails; the message names the process that holds
    it, and the remedy.
    """
    run("""
    import pytest
    @pytest.fixture(scope="session")
    def database(container_factory):
        with container_factory() as made:
            yield made
    @pytest.mark.container
    def test_inside(database):
        database.run(["true"])
    """).assert_outcomes(failed=1)
    (report,) = [one for one in reports() if one["outcome"] == "failed"]
    assert "is held outside, by process " in report["text"]
    assert "no_sandbox" in report["text"]


def test_tests_that_stay_outside_are_counted(run):
    """A fixture with container_factory keeps tests outside under --sandbox, and the session says
    how many.
    """
    result = run(
        """
    import os, pytest

    @pytest.fixture(scope="session", autouse=True)
    def service(container_factory): return container_factory

    def test_one(): assert os.getppid()
    def test_two(): assert os.getppid()
    @pytest.mark.no_sandbox
    def test_marked(): assert os.getppid()
    """
    )
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines(["sandbox: 2 tests stay outside, since they use *"])


def test_an_unsupported_container_of_the_factory_skips(run):
    """With sandbox_unsupported = skip, a fixture whose container is not supported skips its tests,
    also those that find the fixture's exception.
    """
    result = run(
        """
    import pytest
    from pytest_sandbox import UnsupportedError

    @pytest.fixture(scope="session")
    def service(container_factory): raise UnsupportedError("a limit", "Do without.")

    def test_one(service): pass
    def test_two(service): pass
    """,
        "-osandbox_unsupported=skip",
    )
    result.assert_outcomes(skipped=2)


@pytest.mark.parametrize("is_override", [False, True], ids=["file", "override"])
@pytest.mark.parametrize(
    ("name", "said"), [("memroy", "; did you mean memory?"), ("job", "; did you mean jobs?")]
)
def test_a_misspelled_ini_setting_is_a_usage_error(run, pytester, name, said, is_override):
    """No test runs without the limit that a misspelled setting was meant to be."""
    options = ["-o", f"sandbox_{name}=64m"] if is_override else []
    if not is_override:
        pytester.makeini(f"[pytest]\nsandbox_{name} = 64m")
    result = run("def test(): open('ran', 'w')", *options)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: *sandbox_{name}: there is no setting {name}{said}"])
    assert not (pytester.path / "ran").exists()


def test_an_ini_setting_of_another_plugin_is_left_to_it(run, pytester):
    """A name with our prefix that another plugin declares is no error."""
    pytester.makeconftest("def pytest_addoption(parser): parser.addini('sandbox_colour', 'x')")
    pytester.makeini("[pytest]\nsandbox_colour = red")
    run("def test(): pass").assert_outcomes(passed=1)
