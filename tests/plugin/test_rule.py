from __future__ import annotations

import pytest

pytestmark = pytest.mark.needs("containers")

WHERE = """
    import os, pytest

    def inside():
        return os.getppid() == 0
"""


def test_without_being_asked_nothing_is_inside(run):
    """The plugin alone changes nothing: the body runs in pytest's own process tree."""
    run(f"{WHERE}\n    def test(): assert not inside()", sandbox=False).assert_outcomes(passed=1)


def test_without_being_asked_nothing_is_loaded(run):
    """What reads settings and makes containers is no part of a session that asks for none."""
    needless = {"pytest_sandbox.settings", "pytest_sandbox.forms", "pytest_sandbox.container", "pytest_sandbox.linux", "ctypes"}
    run(f"import sys\ndef test(): assert not {needless} & sys.modules.keys()", sandbox=False).assert_outcomes(passed=1)


@pytest.mark.vm
def test_a_marked_test_is_inside(run):
    """The mark without the fixture puts the body inside; its neighbour stays outside."""
    source = f"""{WHERE}
    @pytest.mark.container
    def test_marked(): assert inside()

    def test_plain(): assert not inside()
    """
    run(source, sandbox=False).assert_outcomes(passed=2)


def test_the_option_puts_all_inside_but_those_kept_out(run):
    """``--sandbox`` puts every test inside; ``no_sandbox`` keeps one out."""
    source = f"""{WHERE}
    def test_inside(): assert inside()

    @pytest.mark.no_sandbox
    def test_outside(): assert not inside()
    """
    run(source).assert_outcomes(passed=2)


@pytest.mark.parametrize("ini", ["[pytest]\nsandbox = true", None])
def test_the_setting_does_what_the_option_does(run, pytester, ini):
    """``sandbox = true`` in an ini or a TOML file is ``--sandbox``."""
    if ini:
        pytester.makeini(ini)
    else:
        pytester.makepyprojecttoml("[tool.pytest.ini_options]\nsandbox = true")
    run(f"{WHERE}\n    def test(): assert inside()", sandbox=False).assert_outcomes(passed=1)


@pytest.mark.vm
def test_who_asks_for_the_container_holds_it(run):
    """The fixture, also through another fixture, keeps the body outside, with a container as the mark says."""
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


def test_the_factory_alone_leaves_a_test_outside_unless_it_is_marked(run):
    """A test whose fixtures use only ``container_factory`` follows its mark, and stays outside under the bare option."""
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
def test_the_nearest_mark_wins_key_by_key(run, pytester):
    """Function over class over module over the ini file; a key that the nearer one does not name comes from the farther one."""
    pytester.makeini("[pytest]\nsandbox_hostname = ini\nsandbox_env = A=ini\nsandbox_workdir = /usr\nsandbox_cpus = 1.5")
    source = """
    import pytest

    pytestmark = pytest.mark.container(hostname="module", env={"A": "module"}, workdir="/tmp")

    @pytest.mark.container(hostname="class", env={"A": "class"})
    class TestThem:
        @pytest.mark.container(hostname="function")
        def test_function(self, container):
            s = container.settings
            assert ("function", {"A": "class"}, "/tmp", 1.5) == (s.hostname, dict(s.env), s.workdir, s.cpus)

    def test_module(container):
        assert ("module", "/tmp") == (container.settings.hostname, container.settings.workdir)
    """
    run(source).assert_outcomes(passed=2)


def test_the_command_line_wins_over_marks_and_ini(run, pytester):
    """What a person types now is stronger than what is written down."""
    pytester.makeini("[pytest]\nsandbox_timeout = 30")
    source = """
    import pytest

    @pytest.mark.container(timeout=20, memory="32m")
    def test(container):
        assert (10.0, 32 << 20, 0.5) == (container.settings.timeout, container.settings.memory, container.settings.cpus)
    """
    run(source, "--sandbox-timeout=10", "--sandbox-cpus=0.5", sandbox=False).assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("mark", "said"),
    [
        ('memroy="1g"', "memroy='1g' is not valid; accepted: did you mean memory?"),
        ('memory="a lot"', "memory='a lot' is not valid; accepted: bytes, or a number"),
        ("cpus=-1", "cpus=-1 is not valid; accepted: a number of at least"),
        ('image="/no/such/root"', "image='/no/such/root'"),
        ('volumes=["/no/such/folder:/x"]', "volumes='/no/such/folder'"),
        ('"512m"', "takes settings by name"),
    ],
)
def test_a_wrong_mark_is_a_usage_error_at_collection(run, mark, said):
    """No test runs; the message names test, key, value and accepted form."""
    source = f"""
    import pytest

    def test_first(): open("ran", "w")

    @pytest.mark.container({mark})
    def test_wrong(): pass
    """
    result = run(source, sandbox=False)
    assert pytest.ExitCode.USAGE_ERROR == result.ret
    assert "test_a_wrong_mark_is_a_usage_error_at_collection.py::test_wrong: " in result.stderr.str()
    assert said in result.stderr.str()
    assert "passed" not in result.stdout.str()


@pytest.mark.parametrize("where", ["option", "ini"])
def test_a_wrong_setting_is_a_usage_error_that_names_its_place(run, pytester, where):
    """An unreadable value on the command line or in the ini file names the option or the file's setting."""
    if where == "ini":
        pytester.makeini("[pytest]\nsandbox_memory = lots")
    result = run("def test(): pass", *(["--sandbox-memory=lots"] if where == "option" else []))
    assert pytest.ExitCode.USAGE_ERROR == result.ret
    assert ("--sandbox-memory: memory='lots'" if where == "option" else "sandbox_memory: memory='lots'") in result.stderr.str()


def test_a_limit_that_cannot_be_held_is_an_error_or_a_skip(run, pytester):
    """An unsupported limit fails the test with the remedy, and skips it where the suite says so; it is never dropped."""
    pytester.makeconftest(
        """
        from pytest_sandbox import Container, UnsupportedError

        def start(self):
            raise UnsupportedError("cpus=2.0", "Ask for less.")

        Container.start = start
        """
    )
    source = """
    def test_inside(): pass
    def test_holds(container): pass
    """
    result = run(source)
    result.assert_outcomes(errors=2)
    result.stdout.fnmatch_lines(["*cpus=2.0 is not supported here. Ask for less.*"])
    skipping = run(source, "-rs", "-o", "sandbox_unsupported=skip")
    skipping.assert_outcomes(skipped=2)
    skipping.stdout.fnmatch_lines(["*cpus=2.0 is not supported here. Ask for less.*"])


def test_every_starred_key_is_an_option_and_every_key_an_ini_setting(run):
    """``--help`` shows them all, with their forms."""
    text = run("", "--help").stdout.str()
    for key in ("image", "memory", "cpus", "disk", "storage", "timeout", "network", "keep", "stats"):
        assert f"--sandbox-{key}" in text
    for key in ("pids_limit", "volumes", "security_opt", "privileged", "unsupported"):
        assert f"sandbox_{key}" in text


def test_native_values_in_a_toml_file_are_understood(run, pytester):
    """``[tool.pytest]`` (pytest 9) may hold numbers, lists and tables; below it, and in ini files, text."""
    native = int(pytest.__version__.split(".")[0]) >= 9
    table = "tool.pytest" if native else "tool.pytest.ini_options"
    cpus, limit = ("1.5", "64") if native else ('"1.5"', '"64"')
    pytester.makepyprojecttoml(f'[{table}]\nsandbox_cpus = {cpus}\nsandbox_pids_limit = {limit}\nsandbox_cap_drop = ["NET_RAW", "CHOWN"]')
    source = """
    def test(container):
        settings = container.settings
        assert (1.5, 64, ("CAP_NET_RAW", "CAP_CHOWN")) == (settings.cpus, settings.pids_limit, settings.cap_drop)
    """
    run(source).assert_outcomes(passed=1)


def test_the_fixture_asked_for_from_inside_says_what_to_do(run):
    """``getfixturevalue("container")`` in a body that is inside fails with the remedy, and breaks nothing."""
    result = run("""
    def test_late(request): request.getfixturevalue("container")
    def test_next(): pass
    """)
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*name it as an argument*"])


def test_a_container_that_is_held_outside_cannot_be_used_inside(run, reports):
    """A body inside that uses a session's container is told whose it is, and the two ways out."""
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
