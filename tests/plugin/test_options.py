"""Options and ini settings."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.needs("containers")


def test_help_lists_options_and_ini_settings(run):
    """``--help`` lists the options and the ini settings."""
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


def test_native_values_in_a_toml_file_are_accepted(run, pytester):
    """``[tool.pytest]`` (pytest 9) may have numbers and lists; the older table and ini files have
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
        s = container.settings
        assert (1.5, 64, ("CAP_NET_RAW", "CAP_CHOWN")) == (s.cpus, s.pids_limit, s.cap_drop)
    """
    run(source).assert_outcomes(passed=1)


@pytest.mark.parametrize("where", ["option", "ini"])
def test_an_invalid_setting_is_a_usage_error(run, pytester, where):
    """An invalid value on the command line or in the ini file is an error that names the option or
    the setting.
    """
    if where == "ini":
        pytester.makeini("[pytest]\nsandbox_memory = lots")
    result = run("def test(): pass", *(["--sandbox-memory=lots"] if where == "option" else []))
    assert pytest.ExitCode.USAGE_ERROR == result.ret
    assert (
        "--sandbox-memory: memory='lots'" if where == "option" else "sandbox_memory: memory='lots'"
    ) in result.stderr.str()


def test_an_invalid_override_is_a_usage_error(run):
    """An invalid value of ``-o`` is an error that names ``-o``."""
    result = run("def test(): pass", "-o", "sandbox_memory=lots")
    assert "ERROR: -o sandbox_memory: memory='lots'" in result.stderr.str()
    assert (
        "ERROR: -o sandbox_unsupported='perhaps'"
        in run("def test(): pass", "-o", "sandbox_unsupported=perhaps").stderr.str()
    )


def test_a_path_after_sandbox_stats_is_a_path(run, pytester):
    """``--sandbox-stats PATH`` runs the tests of the path, with their conftest file; a number is
    the option's value.
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


def test_sandbox_stats_with_text_is_a_usage_error(run):
    """``--sandbox-stats=many`` is an error that names the option and its form."""
    result = run("def test(): pass", "--sandbox-stats=many")
    assert pytest.ExitCode.USAGE_ERROR == result.ret
    assert (
        "--sandbox-stats=many: not a number of tests, such as --sandbox-stats=10"
        in result.stderr.str()
    )


def test_an_unsupported_limit_is_an_error_or_a_skip(run, pytester):
    """A limit that the host cannot enforce fails the test, or skips it with ``sandbox_unsupported =
    skip``; the message has the remedy.
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
