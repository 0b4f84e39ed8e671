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
    needless = {
        "pytest_sandbox.settings",
        "pytest_sandbox.settings.parsers",
        "pytest_sandbox.container",
        "pytest_sandbox.linux",
        "ctypes",
    }
    run(
        f"import sys\ndef test(): assert not {needless} & sys.modules.keys()", sandbox=False
    ).assert_outcomes(passed=1)


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
    """The fixture, also through another fixture, keeps the body outside, with a container as the
    mark says.
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


def test_the_factory_alone_leaves_a_test_outside_unless_it_is_marked(run):
    """A test whose fixtures use only ``container_factory`` follows its mark, and stays outside
    under the bare option.
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
def test_the_nearest_mark_wins_key_by_key(run, pytester):
    """Function over class over module over the ini file; a key that the nearer one does not name
    comes from the farther one.
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
    assert (
        "test_a_wrong_mark_is_a_usage_error_at_collection.py::test_wrong: " in result.stderr.str()
    )
    assert said in result.stderr.str()
    assert "passed" not in result.stdout.str()


def test_a_user_is_looked_up_in_the_image(run, pytester):
    """A name that the image's own /etc/passwd has is right; one of the host's alone is not."""
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


def test_cpus_that_are_not_there_may_be_a_skip(run):
    """With ``sandbox_unsupported = skip`` a test for more CPUs than this host has is collected, and
    skipped.
    """
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
    """``container`` and ``no_sandbox`` contradict each other on a function, a class or a module,
    which is named.
    """
    pytester.makepyfile(test_it=f"import pytest\n{source}")
    result = run("", "test_it.py", sandbox=False)
    assert pytest.ExitCode.USAGE_ERROR == result.ret
    assert (
        f"ERROR: {node}: @pytest.mark.container and @pytest.mark.no_sandbox contradict each other"
        in result.stderr.str()
    )


def test_the_nearer_mark_may_say_the_opposite(run):
    """A function's mark stands over its class's, a class's over its base's, a parameter's over its
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


@pytest.mark.parametrize("where", ["option", "ini"])
def test_a_wrong_setting_is_a_usage_error_that_names_its_place(run, pytester, where):
    """An unreadable value on the command line or in the ini file names the option or the file's
    setting.
    """
    if where == "ini":
        pytester.makeini("[pytest]\nsandbox_memory = lots")
    result = run("def test(): pass", *(["--sandbox-memory=lots"] if where == "option" else []))
    assert pytest.ExitCode.USAGE_ERROR == result.ret
    assert (
        "--sandbox-memory: memory='lots'" if where == "option" else "sandbox_memory: memory='lots'"
    ) in result.stderr.str()


def test_a_wrong_override_names_the_option(run):
    """An unreadable value that came by ``-o`` says so, where there is no ini file."""
    result = run("def test(): pass", "-o", "sandbox_memory=lots")
    assert "ERROR: -o sandbox_memory: memory='lots'" in result.stderr.str()
    assert (
        "ERROR: -o sandbox_unsupported='perhaps'"
        in run("def test(): pass", "-o", "sandbox_unsupported=perhaps").stderr.str()
    )


def test_the_path_after_stats_is_a_path(run, pytester):
    """``--sandbox-stats PATH`` runs what is there, with its conftest files; a number belongs to the
    option.
    """
    directory = pytester.mkdir("below")
    (directory / "conftest.py").write_text(
        "def pytest_addoption(parser): parser.addoption('--of-below')"
    )
    (directory / "test_below.py").write_text(
        "def test_below(request): assert 'x' == request.config.getoption('of_below')"
    )
    (directory / "test_other.py").write_text("def test_other(): pass")
    paths = ["below/test_below.py", "below/test_other.py"]
    for words in (
        ["--sandbox-stats", *paths],
        [paths[0], "--sandbox-stats", paths[1]],
        ["--sandbox-stats", "3", *paths],
    ):
        result = run("def test_here(): pass", *words, "--of-below=x", "-v")
        result.assert_outcomes(passed=2)
        result.stdout.fnmatch_lines(["*test_below PASSED*", "*test_other PASSED*"])


def test_a_number_of_tests_that_is_none_is_a_usage_error(run):
    """``--sandbox-stats=many`` names the option and its form."""
    result = run("def test(): pass", "--sandbox-stats=many")
    assert pytest.ExitCode.USAGE_ERROR == result.ret
    assert (
        "--sandbox-stats=many: not a number of tests, such as --sandbox-stats=10"
        in result.stderr.str()
    )


def test_a_limit_that_cannot_be_held_is_an_error_or_a_skip(run, pytester):
    """An unsupported limit fails the test with the remedy, and skips it where the suite says so; it
    is never dropped.
    """
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
    for key in (
        "image",
        "memory",
        "cpus",
        "disk",
        "storage",
        "timeout",
        "network",
        "keep",
        "stats",
    ):
        assert f"--sandbox-{key}" in text
    for key in ("pids_limit", "volumes", "security_opt", "privileged", "unsupported"):
        assert f"sandbox_{key}" in text


def test_native_values_in_a_toml_file_are_understood(run, pytester):
    """``[tool.pytest]`` (pytest 9) may hold numbers, lists and tables; below it, and in ini files,
    text.
    """
    native = int(pytest.__version__.split(".")[0]) >= 9
    table = "tool.pytest" if native else "tool.pytest.ini_options"
    cpus, limit = ("1.5", "64") if native else ('"1.5"', '"64"')
    pytester.makepyprojecttoml(
        f"[{table}]\nsandbox_cpus = {cpus}\nsandbox_pids_limit = {limit}\nsandbox_cap_drop = "
        '["NET_RAW", "CHOWN"]'
    )
    source = """
    def test(container):
        settings = container.settings
        assert (1.5, 64, ("CAP_NET_RAW", "CAP_CHOWN")) == (settings.cpus, settings.pids_limit, settings.cap_drop)
    """
    run(source).assert_outcomes(passed=1)


def test_the_fixture_asked_for_from_inside_says_what_to_do(run):
    """``getfixturevalue("container")`` in a body that is inside fails with the remedy, and breaks
    nothing.
    """
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
