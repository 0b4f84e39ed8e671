"""Plugins and fixtures that replace functions of the standard library, in each of their scopes."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.needs("root")


def test_a_fake_file_system_of_a_test(run):
    """Pyfakefs' ``fs`` replaces ``os`` in all modules, also in this plugin's: a passing test passes
    and a failing one fails.
    """
    pytest.importorskip("pyfakefs")
    run(
        """
    import os, pathlib
    def test_fake(fs):
        fs.create_file("/a/b.txt", contents="x")
        assert "x" == pathlib.Path("/a/b.txt").read_text()
    def test_fake_fails(fs):
        fs.create_file("/a/b.txt")
        assert not os.path.exists("/a/b.txt")
    def test_real(): assert os.path.exists("/etc/passwd")
    """,
        plugins=("pyfakefs.pytest_plugin",),
    ).assert_outcomes(passed=2, failed=1)


@pytest.mark.parametrize("scope", ["module", "session"])
def test_a_fake_file_system_of_a_module(run, scope):
    """Containers start while pytest's own process uses a fake file system, which each test has."""
    pytest.importorskip("pyfakefs")
    run(
        f"""
    import os, pathlib
    def test_fake(fs_{scope}):
        fs_{scope}.create_file("/a/b.txt", contents="x")
        assert "x" == pathlib.Path("/a/b.txt").read_text()
        assert not os.path.exists("/etc/passwd")
    def test_fake_again(fs_{scope}):
        assert not os.path.exists("/a/b.txt")
    def test_fake_fails(fs_{scope}):
        assert os.path.exists("/etc/passwd")
    """,
        plugins=("pyfakefs.pytest_plugin",),
    ).assert_outcomes(passed=2, failed=1)


FROZEN = """
import datetime, time
import pytest
FREEZE

@pytest.fixture(scope="module", autouse=True)
def frozen():
    with freeze("2001-02-03 04:05:06"): yield

def test_time():
    assert "2001-02-03" == datetime.date.today().isoformat()
    assert 2001 == time.gmtime(time.time()).tm_year
def test_failure(): assert 2026 == datetime.datetime.now().year
@pytest.mark.container(timeout=0.2)
def test_that_hangs():
    import select
    select.select([], [], [])
"""


@pytest.mark.parametrize(
    "imports",
    [
        "from freezegun import freeze_time as freeze",
        "import time_machine; freeze = lambda text: time_machine.travel(text, tick=False)",
    ],
    ids=["freezegun", "time_machine"],
)
def test_time_that_stands_still(run, imports):
    """Tests of a module whose time stands still end as they do without a container, and a timeout
    expires.
    """
    pytest.importorskip("freezegun")
    pytest.importorskip("time_machine")
    result = run(FROZEN.replace("FREEZE", imports))
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines(["*timeout: still running after 0.2 s*"])


def test_disabled_sockets(run):
    """``--disable-socket`` of pytest-socket applies to the test, not to this plugin's sockets."""
    pytest.importorskip("pytest_socket")
    result = run(
        """
    import socket
    import pytest, pytest_socket
    def test_pass(): pass
    def test_no_socket():
        with pytest.raises(pytest_socket.SocketBlockedError): socket.socket()
    def test_failure(): socket.socket()
    """,
        "--disable-socket",
        plugins=("pytest_socket",),
    )
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["*SocketBlockedError*"])


def test_mocks_of_a_module(run):
    """Containers start while a fixture of the module replaces what starts processes, and clears the
    environment; the tests see the replacements.
    """
    run("""
    import os, subprocess
    from unittest import mock
    import pytest

    @pytest.fixture(scope="module", autouse=True)
    def patched():
        with (
            mock.patch("subprocess.Popen", side_effect=RuntimeError("no processes")),
            mock.patch("os.kill"),
            mock.patch("os.waitpid", side_effect=RuntimeError),
            mock.patch("time.sleep"),
            mock.patch("os.getpid", return_value=4242),
            mock.patch.dict(os.environ, clear=True),
        ):
            yield

    def test_replaced():
        assert 4242 == os.getpid()
        with pytest.raises(RuntimeError, match="no processes"): subprocess.run(["true"])
    def test_failure(): assert 1 == os.getpid()
    """).assert_outcomes(passed=1, failed=1)


def test_a_deleted_function_stays_deleted(run):
    """A function that a fixture of the module deletes is missing in its tests, and in the fixture
    after them.
    """
    run("""
    import os
    import pytest

    @pytest.fixture(scope="module", autouse=True)
    def without_kill():
        with pytest.MonkeyPatch.context() as patch:
            patch.delattr(os, "kill")
            yield
            assert not hasattr(os, "kill")

    def test_one(): assert not hasattr(os, "kill")
    def test_two(): assert not hasattr(os, "kill")
    """).assert_outcomes(passed=2)
