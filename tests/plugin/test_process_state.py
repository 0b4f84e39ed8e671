"""The test process has the state of the parent and output of its own; changes end with it."""

from __future__ import annotations

import shutil
from importlib.util import find_spec

import pytest

pytestmark = pytest.mark.needs("root")


@pytest.mark.parametrize("capture", ["fd", "sys", "no"])
def test_output_is_captured_as_without_a_sandbox(run, capture):
    """capsys, capfd, caplog and the captured sections have the output of the test and of its
    subprocesses; ``-s`` prints it.
    """
    result = run(
        """
    import logging, os, subprocess, sys, pytest

    @pytest.fixture(scope="module")
    def module(): print("from the module")

    def test_capsys(capsys):
        print("one")
        assert "one\\n" == capsys.readouterr().out
    def test_capfd(capfd):
        subprocess.run(["echo", "two"])
        assert "two\\n" == capfd.readouterr().out
    def test_caplog(caplog):
        logging.getLogger("x").warning("three")
        assert ["three"] == caplog.messages
    def test_recwarn(recwarn):
        import warnings
        warnings.warn("four")
        assert 1 == len(recwarn)
    def test_shows(module):
        print("five")
        print("six", file=sys.stderr)
        logging.warning("seven")
        os.system("echo eight")
        assert 0
    """,
        f"--capture={capture}",
    )
    result.assert_outcomes(passed=4, failed=1)
    if capture == "fd":
        result.stdout.fnmatch_lines(
            [
                "*stdout setup*",
                "from the module",
                "*stdout call*",
                "five",
                "eight",
                "*stderr call*",
                "six",
                "*log call*",
                "*seven",
            ]
        )
    assert 1 == result.stdout.str().count("from the module")
    assert 1 == sum(line == "five" for line in result.stdout.lines)


def test_the_garbage_collector_finds_objects_of_the_parent(run):
    """gc.get_referrers() and gc.get_objects() find objects that were created before the fork."""
    result = run("""
    import gc
    made = [object()]
    def test():
        assert 0 == gc.get_freeze_count()
        assert made in gc.get_referrers(made[0])
        assert any(one is made for one in gc.get_objects())
    """)
    result.assert_outcomes(passed=1)


def test_a_library_of_the_parent_is_found(run, pytester):
    """dlopen(3) finds a library that was loaded before the fork by the real path of its file, as
    threadpoolctl asks for it, and does not load it again.
    """
    pytester.mkdir("real")
    (pytester.path / "link").symlink_to("real")
    shutil.copy(find_spec("_ctypes").origin, pytester.path / "real/one.so")
    run("""
    import ctypes, os, pathlib
    here = pathlib.Path(__file__).parent
    loaded = ctypes.CDLL(str(here / "link/one.so"))

    def test_inside():
        assert 0 == os.getppid()
        mode = os.RTLD_NOLOAD | os.RTLD_LAZY
        assert loaded._handle == ctypes.CDLL(str(here / "real/one.so"), mode)._handle
        assert loaded._handle == ctypes.CDLL(str(here / "real/one.so"))._handle

    def test_outside(container):
        path = str(here / "real/one.so")
        assert loaded._handle == container.call(lambda: ctypes.CDLL(path)._handle)
    """).assert_outcomes(passed=2)


def test_random_continues_from_its_seed(run):
    """The state of ``random`` that a session fixture has seeded is that of the test."""
    run("""
    import random, pytest
    @pytest.fixture(scope="session", autouse=True)
    def seeded(): random.seed(42)
    def test(): assert random.Random(42).random() == random.random()
    """).assert_outcomes(passed=1)


def test_a_test_does_not_change_the_state_of_the_next(run):
    """Files, working directory, environment, umask, signals, builtins and modules that a test
    changes are unchanged in the next test.
    """
    run("""
    import builtins, locale, os, pathlib, signal, sys

    def test_changes(tmp_path, monkeypatch):
        (tmp_path / "x").write_text("1")
        monkeypatch.setenv("A", "1")
        os.environ["B"] = "1"
        os.chdir("/")
        os.umask(0o777)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        builtins.open = None
        sys.path.clear()
        sys.modules.pop("json", None)
        pathlib.Path("/tmp/left").touch()

    def test_finds_nothing_of_it(tmp_path):
        assert [] == list(tmp_path.iterdir())
        assert "/" != os.getcwd()
        assert not {"A", "B"} & os.environ.keys()
        assert 0o777 != os.umask(0o22)
        assert set() == signal.pthread_sigmask(signal.SIG_BLOCK, [])
        assert signal.SIG_DFL == signal.getsignal(signal.SIGUSR2)
        assert open("/proc/self/comm")
        assert sys.path and "json" in sys.modules
        assert not pathlib.Path("/tmp/left").exists()
    """).assert_outcomes(passed=2)
