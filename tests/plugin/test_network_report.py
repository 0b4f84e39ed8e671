"""Blocked connections: in the report of each test, in the summary, and as JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests import egress_world

pytestmark = pytest.mark.needs("root")

SUITE = """
    import socket
    import pytest

    def reach(host, port):
        with pytest.raises(OSError):
            socket.create_connection((host, port), timeout=5)

    def test_passes():
        for _ in range(3):
            reach("pypi.invalid", 443)
        reach("203.0.113.9", 5432)

    def test_fails():
        socket.create_connection(("api.invalid", "https"))

    def test_only_itself():
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname()).close()
            socket.create_connection(("localhost", server.getsockname()[1])).close()
        socket.getaddrinfo(socket.gethostname(), 80)
    """


def section(text, test):
    """Return the lines of a test's section in the output."""
    lines = text.partition(f"_ {test} _")[2].partition("blocked connections -")[2].splitlines()[1:]
    return lines[: next(i for i, line in enumerate(lines) if line[:3] in {"", "___", "---", "==="})]


@pytest.mark.parametrize("arguments", [(), ("--sandbox-jobs=2",)])
def test_reports_and_the_summary(run, pytester, arguments):
    """A test that passes has the section, too; loopback and the own name are not in it."""
    result = run(SUITE, "-rP", "--sandbox-network-report=found.json", *arguments)
    result.assert_outcomes(passed=2, failed=1)
    text = result.stdout.str()
    name = next(pytester.path.glob("test_*.py")).name
    assert section(text, "test_passes") == [
        f"pypi.invalid:443 (looked up, 3 times, at {name}:6): no network",
        f"203.0.113.9:5432 (once, at {name}:6): no network",
        'network=["203.0.113.9:5432", "pypi.invalid:443"] allows it.',
    ]
    assert section(text, "test_fails")[0].startswith("api.invalid:443 (looked up, once, at ")
    result.stdout.fnmatch_lines(
        [
            "*= blocked connections =*",
            "2 tests tried to reach 3 hosts outside of their containers.",
            'This allows them: network=["203.0.113.9:5432", "api.invalid:443", "pypi.invalid:443"]',
        ]
    )
    found = json.loads((pytester.path / "found.json").read_text())
    assert [(one["host"], one["port"], one["count"]) for one in found] == [
        ("pypi.invalid", 443, 3),
        ("203.0.113.9", 5432, 1),
        ("api.invalid", 443, 1),
    ]
    assert found[0]["test"] == f"{name}::test_passes"
    assert found[0]["line"] == f"{name}:6"


def test_workers_of_xdist_send_theirs(run, pytester):
    """The controller prints and writes all."""
    result = run(SUITE, "-n2", "--sandbox-network-report=found.json", plugins=("xdist",))
    result.stdout.fnmatch_lines(["2 tests tried to reach 3 hosts outside of their containers."])
    assert len(json.loads((pytester.path / "found.json").read_text())) == 3


def test_without_attempts_there_is_nothing(run, pytester):
    """No section, no summary, and an empty list."""
    result = run("def test(): pass", "-rP", "--sandbox-network-report=found.json")
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("*blocked*")
    assert json.loads((pytester.path / "found.json").read_text()) == []


def test_a_file_that_cannot_be_written(run):
    """It is an error before any test."""
    result = run("def test(): pass", "--sandbox-network-report=/missing/found.json")
    assert pytest.ExitCode.USAGE_ERROR == result.ret
    result.stderr.fnmatch_lines(["*--sandbox-network-report=/missing/found.json: not a file*"])


def test_a_network_of_containers(run):
    """What is on the network is not reported."""
    result = run(
        """
        import socket, pytest
        from pytest_sandbox import Network

        net = Network()

        @pytest.fixture(scope="module")
        def db(container_factory):
            with container_factory(network=net, hostname="db") as made:
                yield made

        @pytest.mark.container(network=net)
        def test(db):
            for host in ("db", "elsewhere.invalid"):
                with pytest.raises(OSError):
                    socket.create_connection((host, 9))
        """,
        "-rP",
    )
    result.assert_outcomes(passed=1)
    assert [line.split()[0] for line in section(result.stdout.str(), "test")] == [
        "elsewhere.invalid:9",
        'network=["elsewhere.invalid:9"]',
    ]


@pytest.mark.needs("unshare", "ip", "nsenter")
def test_programs_are_named_where_the_forwarder_sees_them(tmp_path):
    """With a list of destinations, other programs are in the report, and lines where known."""
    (tmp_path / "test_it.py").write_text(
        "import socket, subprocess, sys, pytest\n"
        "CODE = 'import socket; socket.create_connection((\"other.test\", 80))'\n"
        "def test():\n"
        "    socket.create_connection(('pypi.test', 443)).close()\n"
        "    subprocess.run([sys.executable, '-SEc', CODE], stderr=-3)\n"
        "    with pytest.raises(ConnectionRefusedError):\n"
        "        socket.create_connection(('evil.test', 443))\n"
    )
    program = f"""
done = subprocess.run([sys.executable, "-m", "pytest", "--sandbox", "-rP", "-pno:cacheprovider",
    "--sandbox-network=pypi.test:443", {str(tmp_path)!r}], capture_output=True, text=True,
    cwd={str(tmp_path)!r}, env=dict(os.environ, PYTHONPATH=os.getcwd()))
print(done.stdout, done.stderr)
"""
    text = egress_world.run(program)
    python = Path(sys.executable).name[:15]
    assert section(text, "test") == [
        f"other.test:80 (once, by {python}): not allowed",
        f"evil.test:443 (once, by {python}, at test_it.py:7): not allowed",
        'network=["evil.test:443", "other.test:80"] allows it.',
    ], text
    assert 'This allows them: network=["evil.test:443", "other.test:80"]' in text


def test_destinations_in_marks_and_configuration(run, pytester):
    """A mark has a list, and so has the configuration, or a text with commas; a missing port is an
    error with the name that was probably meant.
    """
    pytester.makepyprojecttoml(
        '[tool.pytest]\nsandbox_network = ["pypi.org:443", "10.0.0.5:5432"]\n'
        if int(pytest.__version__.split(".")[0]) >= 9
        else '[tool.pytest.ini_options]\nsandbox_network = "pypi.org:443, 10.0.0.5:5432"\n'
    )
    result = run(
        """
        import pytest

        def test_configured(container):
            assert container.settings.network == "pypi.org:443,10.0.0.5:5432"

        @pytest.mark.container(network=["*.example.org:443"])
        def test_marked(container):
            assert container.settings.network == "*.example.org:443"
        """
    )
    result.assert_outcomes(passed=2)
    result = run("def test(): pass", "--sandbox-network=pypi.org")
    assert pytest.ExitCode.USAGE_ERROR == result.ret
    result.stderr.fnmatch_lines(['*--sandbox-network: network=*did you mean "pypi.org:443"?*'])


def test_a_container_that_is_held(run):
    """Its forwarder is asked when the test ends; once."""
    result = run(
        """
        import pytest, sys

        @pytest.mark.container(network=["pypi.org:443"])
        def test(container):
            code = "import socket; socket.create_connection(('evil.invalid', 80))"
            assert container.run([sys.executable, "-SEc", code], stderr=-3).returncode == 1
        """,
        "-rP",
    )
    result.assert_outcomes(passed=1)
    assert section(result.stdout.str(), "test")[0].startswith("evil.invalid:80 (once, by py")
    assert result.stdout.str().count("evil.invalid:80 (once") == 1


@pytest.mark.parametrize("network", ["none", "x.invalid:443"])
def test_tests_that_share_a_container(run, network):
    """Each has its own attempts, whether the forwarder or the process tells."""
    result = run(
        f"""
        import socket, pytest

        @pytest.mark.container(scope="class", network={network!r})
        class TestShared:
            def test_a(self):
                with pytest.raises(OSError):
                    socket.create_connection(("a.invalid", 443))

            def test_b(self):
                with pytest.raises(OSError):
                    socket.create_connection(("b.invalid", 443))
        """,
        "-rP",
    )
    result.assert_outcomes(passed=2)
    for name in "ab":
        lines = section(result.stdout.str(), f"TestShared.test_{name}")
        assert lines[0].startswith(f"{name}.invalid:443 (")
        assert lines[1:] == [f'network=["{name}.invalid:443"] allows it.']
