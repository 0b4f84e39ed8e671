"""The hooks ``pytest_sandbox_*`` in a conftest file."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.needs("root")


def test_hooks_are_called_with_running_containers(run, pytester):
    """``settings`` can change settings; ``started`` and ``discard`` get a running container;
    ``outcome`` gets how the test ended.
    """
    pytester.makeconftest("""
        from pytest_sandbox import Exited, Signaled

        def pytest_sandbox_settings(item, settings):
            if "changed" in item.name:
                return settings.replace(hostname="changed", env={"FROM": "hook"})

        def pytest_sandbox_started(item, container):
            container.write_text("/opt/prepared", item.name)

        def pytest_sandbox_outcome(item, outcome, stats):
            print("\\noutcome", item.name, outcome, stats.memory_peak > 0)

        def pytest_sandbox_discard(item, container):
            print("\\nlast look", item.name, container.read_text("/opt/prepared"), container.status)
    """)
    result = run(
        """
    import os, pathlib, socket
    def test_changed():
        assert ("changed", "hook") == (socket.gethostname(), os.environ["FROM"])
        assert "test_changed" == pathlib.Path("/opt/prepared").read_text()
        pathlib.Path("/opt/prepared").write_text("looked at")
    def test_crashes(): os.abort()
    def test_holds(container): assert "test_holds" == container.read_text("/opt/prepared")
    """,
        "-s",
    )
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines_random(
        [
            "outcome test_changed Exited(status=0) True",
            "last look test_changed looked at running",
            "outcome test_crashes Signaled(signal=6) True",
            "last look test_crashes test_crashes running",
            "last look test_holds test_holds running",
        ]
    )


def test_a_hook_of_a_directory_applies_to_tests_below_it(run, pytester):
    """A conftest file's hooks are called for the tests below it only."""
    pytester.mkdir("below")
    (pytester.path / "below/conftest.py").write_text(
        "def pytest_sandbox_settings(settings): return settings.replace(hostname='below')"
    )
    (pytester.path / "below/test_below.py").write_text(
        "import socket\ndef test(): assert 'below' == socket.gethostname()"
    )
    run("import socket\ndef test(): assert 'below' != socket.gethostname()", ".").assert_outcomes(
        passed=2
    )


@pytest.mark.parametrize(
    "hook", ["settings(item)", "started(item)", "outcome(item)", "discard(item)"]
)
def test_a_hook_that_raises_is_an_error_of_its_test(run, pytester, hook):
    """A hook that raises fails its test, and the next test runs; a settings hook ends the
    collection.
    """
    pytester.makeconftest(
        f"def pytest_sandbox_{hook}:\n    if item.name == 'test_a': raise RuntimeError('from the "
        "hook')"
    )
    result = run("def test_a(): pass\ndef test_b(): pass")
    assert 0 != result.ret
    assert "from the hook" in result.stdout.str()
    if not hook.startswith("settings"):
        assert result.parseoutcomes().get("errors", 0) + result.parseoutcomes().get("error", 0) == 1
        assert result.parseoutcomes()["passed"] >= 1


def test_a_hook_may_return_a_dict_of_changes(run, pytester):
    """A settings hook may return a dict of the settings to change."""
    pytester.makeconftest(
        "def pytest_sandbox_settings(item, settings): return {'hostname': 'changed', 'memory': "
        "'64m'}"
    )
    source = """
    import pytest
    @pytest.mark.container(workdir="/usr", hostname="marked")
    def test(container):
        s = container.settings
        assert ("changed", 64 << 20, "/usr") == (s.hostname, s.memory, s.workdir)
    """
    run(source).assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ("{'memroy': 1}", "memroy=1 is not valid; accepted: did you mean memory?"),
        ("{'image': '/no/such/root'}", "image='/no/such/root'"),
        ("settings.replace(user='nobody-of-that-name')", "user='nobody-of-that-name' is not valid"),
        ("'64m'", "returned '64m'; return settings.replace(...), a dict of changes, or None"),
        ("{1: 2}", "returned {1: 2}; return settings.replace(...), a dict of changes, or None"),
    ],
)
def test_an_invalid_result_of_a_settings_hook_is_a_usage_error(run, pytester, returned, said):
    """An invalid setting or a value of another type is an error that names test, hook and value."""
    pytester.makeconftest(f"def pytest_sandbox_settings(item, settings): return {returned}")
    result = run("def test(): pass")
    assert pytest.ExitCode.USAGE_ERROR == result.ret
    assert "::test: pytest_sandbox_settings" in result.stderr.str()
    assert said in result.stderr.str()
