"""The header, ``--sandbox-stats`` and ``--sandbox-keep``."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.needs("root", "limits")


def test_the_header_describes_the_isolation(run):
    """With ``--sandbox`` the header has a line about the isolation; without it has none."""
    from pytest_sandbox import host

    assert (
        f"sandbox: each test in a container of its own ({host.headline()})"
        in run("def test(): pass").outlines
    )
    assert not [
        line
        for line in run("def test(): pass", sandbox=False).outlines
        if line.startswith("sandbox:")
    ]


@pytest.mark.parametrize(
    ("scope", "sharing"),
    [
        ("function", "each test in a container of its own ("),
        ("class", "the tests of each class in one container ("),
        ("module", "the tests of each module in one container ("),
        ("package", "the tests of each package in one container ("),
        ("session", "all tests in one container ("),
    ],
)
def test_the_header_says_which_tests_share_a_container(run, scope, sharing):
    """The header does not promise a container for each test if they share one."""
    for argument in (f"--sandbox-scope={scope}", f"--override-ini=sandbox_scope={scope}"):
        result = run("def test(): pass", argument)
        assert [True] == [
            line.startswith(f"sandbox: {sharing}")
            for line in result.outlines
            if line.startswith("sandbox: ") and "container" in line
        ]


def test_stats_show_the_most_expensive_tests(run):
    """``--sandbox-stats=2`` shows the two tests that used most memory, inside or not."""
    result = run(
        """
    def test_small(): pass
    def test_large(): assert bytearray(64 << 20)
    def test_held(container):
        container.run(["python3", "-c", "bytearray(32 << 20)"], check=True)
    """,
        "--sandbox-stats=2",
    )
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines(
        [
            "*2 most expensive tests in containers*",
            "*memory peak*CPU*wall*test",
            "*MiB*::test_large",
            "*MiB*::test_held",
        ]
    )
    result.stdout.no_fnmatch_line("*MiB*::test_small")


def test_stats_show_ten_tests_by_default(run):
    """``--sandbox-stats`` without a number shows ten tests."""
    result = run(
        "import pytest\n@pytest.mark.parametrize('n', range(12))\ndef test(n): pass",
        "--sandbox-stats",
    )
    assert 10 == sum("MiB" in line and "::test" in line for line in result.outlines)


@pytest.fixture
def home(tmp_path_factory, monkeypatch):
    """Return the directory of the layers that this test keeps."""
    path = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("PYTEST_SANDBOX_HOME", str(path))
    return path


KEEPING = """
    import pathlib
    def test_fails():
        pathlib.Path("/opt/proof").write_text("it")
        pathlib.Path("/etc/hostname").unlink()
        assert 0
    def test_passes(): pathlib.Path("/opt/proof").write_text("other")
    def test_holds(container):
        container.write_text("/opt/proof", "held")
        assert 0
"""


@pytest.mark.parametrize(
    ("keep", "kept"), [("none", []), ("failed", ["held", "it"]), ("all", ["held", "it", "other"])]
)
def test_layers_are_kept_as_the_option_says(run, home, keep, kept):
    """The layers of failed or of all tests can be opened by the printed command, and contain what
    the test wrote.
    """
    from pytest_sandbox.container import saved_layers as layers
    from pytest_sandbox.container.container import start_saved

    result = run(KEEPING, f"--sandbox-keep={keep}")
    result.assert_outcomes(passed=1, failed=2)
    commands = [
        line.split("  #")[0] for line in result.outlines if line.startswith("pytest-sandbox shell ")
    ]
    assert sorted(f"pytest-sandbox shell {one.id}" for one in layers.list_saved()) == sorted(
        commands
    )
    opened = []
    for one in layers.list_saved():
        with start_saved(one.id) as container:
            opened.append(container.read_text("/opt/proof"))
            assert container.exists("/etc/hostname") == (opened[-1] != "it")
    assert kept == sorted(opened)


def test_kept_layers_can_be_listed_and_removed(run, home):
    """A kept layer has the ID of its test, and can be removed; the error for an unknown one names
    the option.
    """
    from pytest_sandbox.container import saved_layers as layers
    from pytest_sandbox.errors import SandboxError

    run(KEEPING, "--sandbox-keep=failed")
    assert ["test_fails", "test_holds"] == [
        one.label.rpartition("::")[2] for one in layers.list_saved()
    ]
    for one in layers.list_saved():
        one.remove()
    assert [] == layers.list_saved()
    with pytest.raises(SandboxError, match="--sandbox-keep=failed"):
        layers.find("nothing")
