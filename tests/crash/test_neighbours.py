"""Sessions that start, clean up and are killed at the same time, in several mount namespaces."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from crash import leftovers

from pytest_sandbox import Container
from pytest_sandbox.client import cleanup, session
from pytest_sandbox.linux import cgroup, file_lock

pytestmark = pytest.mark.needs("root", "limits")

HERE = Path(__file__).parent
OWN_RUN = [
    "unshare",
    "--mount",
    "--propagation",
    "private",
    "sh",
    "-c",
    'mount -t tmpfs tmpfs /run && exec "$@"',
    "sh",
]
CLEANUP = "from pytest_sandbox.client import cleanup; print(*cleanup.remove_leftovers())"


def neighbours(count, at_once, seed, *, prefix=()):
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE.parents[1])]),
    }
    command = [
        *prefix,
        sys.executable,
        str(HERE / "neighbours.py"),
        str(count),
        str(at_once),
        str(seed),
    ]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )


def run_neighbours(count, timeout):
    """Run sessions in two mount namespaces, three at a time; return the last line of each."""
    found = [
        neighbours(count * 2 // 3, 2, 1),
        neighbours(count - count * 2 // 3, 1, 2, prefix=OWN_RUN),
    ]
    return [process.communicate(timeout=timeout)[0].splitlines()[-1:] for process in found]


def test_nine_sessions_three_at_a_time():
    """Starts, cleanups and kills of other sessions disturb none of them."""
    assert [
        ["0 of 6 sessions were disturbed"],
        ["0 of 3 sessions were disturbed"],
    ] == run_neighbours(9, 120)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_thousand_sessions_three_at_a_time():
    """A thousand sessions, of which others are killed, do not disturb each other."""
    assert [
        ["0 of 666 sessions were disturbed"],
        ["0 of 334 sessions were disturbed"],
    ] == run_neighbours(1000, 1700)


def removed_elsewhere(*prefix):
    """Run the cleanup in another process; return the names of the sessions that it removed."""
    done = subprocess.run(
        [*prefix, sys.executable, "-c", CLEANUP],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.stdout.split()


@pytest.mark.parametrize(
    "prefix",
    [(), OWN_RUN, ("unshare", "--cgroup", *OWN_RUN), ("chroot", "/")],
    ids=["same", "run", "cgroup", "chroot"],
)
def test_a_cleanup_leaves_the_cgroups_of_a_live_session(prefix):
    """A cleanup in other namespaces, or in a chroot, finds the cgroups' locks taken."""
    with Container() as first:
        name = first.handle.launcher.name
    assert name not in removed_elsewhere(*prefix)
    assert [] == [
        directory
        for directory in session.current().session.directories
        if not os.path.isdir(directory)
    ]
    with Container(memory="64m") as container:
        assert 0 == container.run(["true"]).returncode
        assert name not in removed_elsewhere(*prefix)
        assert (0, 64 << 20) == (container.run(["true"]).returncode, container.stats().memory_limit)


def test_no_other_user_can_lock_a_sessions_cgroups():
    """Only their owner can open them, so no other user can keep them locked."""
    with Container() as container:
        directories = container.handle.launcher.session.directories
        assert {0o700} == {
            os.stat(directory).st_mode & 0o777
            for directory in directories
            if os.path.isdir(directory)
        }


def test_empty_cgroups_without_an_owner_are_removed_from_anywhere():
    """Any cleanup removes the empty cgroups of a dead session of another state directory."""
    made = cgroup.find_hierarchy().session(f"unowned-{os.getpid():x}")
    made.create("one")
    made.close_locks()
    try:
        removed_elsewhere(*OWN_RUN)  # or another session's cleanup removes them before
        assert [] == [directory for directory in made.directories if os.path.exists(directory)]
    finally:
        cgroup.destroy(made.directories)


def test_cgroups_without_a_lock_file_that_have_processes_stay():
    """A cleanup kills no process of a session whose lock file it does not find."""
    made = cgroup.find_hierarchy().session(f"unowned-{os.getpid():x}")
    group = made.create("one")
    with subprocess.Popen(["sleep", "1000"]) as sleep:
        try:
            for path in group.join_paths():
                Path(path).write_text(str(sleep.pid))
            made.close_locks()  # only now: other sessions remove cgroups that are empty
            removed_elsewhere(*OWN_RUN)
            assert (None, (sleep.pid,)) == (sleep.poll(), group.pids())
        finally:
            sleep.kill()
    made.close()


def test_a_cleanup_between_the_lock_files_creation_and_its_lock(monkeypatch):
    """A new, empty lock file stays."""
    code = """
import fcntl, os, subprocess, sys, threading
from pytest_sandbox import Container; from pytest_sandbox.client import cleanup
from pytest_sandbox.client import session
flock, cleanups = fcntl.flock, []
def is_lock_file(fd):
    return os.readlink(f"/proc/self/fd/{fd}").endswith(".lock")
def slow(fd, how):
    is_main = threading.current_thread() is threading.main_thread()
    if how == fcntl.LOCK_EX and is_lock_file(fd) and is_main:
        cleanups.append(cleanup.remove_leftovers())
    return flock(fd, how)
fcntl.flock = slow
with Container() as c:
    fcntl.flock = flock
    name = session.current().name
    code = "from pytest_sandbox.client import cleanup; print(*cleanup.remove_leftovers())"
    removed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    has_lock = os.path.exists(cleanup.lock_path(name))
    print(len(cleanups), name in removed.split(), has_lock, c.run(["true"]).returncode)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=60
    )
    assert ("1 False True 0\n", "") == (done.stdout, done.stderr)


def test_a_lock_whose_file_was_removed_is_no_lock(tmp_path, monkeypatch):
    """A session that locks a file which a cleanup has just removed creates another one."""
    path = str(tmp_path / "x.lock")
    flock, removed = fcntl.flock, []

    def remove_first(fd, how):
        if not removed:
            removed.append(os.unlink(path))
        return flock(fd, how)

    monkeypatch.setattr(fcntl, "flock", remove_first)
    fd = file_lock.create_locked(path)
    try:
        assert (True, None) == (
            os.path.samestat(os.fstat(fd), os.stat(path)),
            file_lock.try_lock(path),
        )
    finally:
        os.close(fd)


def test_two_cleanups_of_one_dead_session(tmp_path):
    """The second one locks a file that is gone, and does not mistake it for the session's lock."""
    path = str(tmp_path / "x.lock")
    Path(path).touch()
    first = file_lock.try_lock(path)
    assert (True, None) == (first is not None, file_lock.try_lock(path))
    os.unlink(path)
    os.close(first)
    assert None is file_lock.try_lock(path)


def test_a_cleanup_that_fails_is_logged_and_stops_no_session(caplog, monkeypatch):
    """A leftover that cannot be removed is logged, and the next session tries again."""
    name = f"{os.getpid():x}-dead01"
    with open(cleanup.lock_path(name), "w", encoding="utf-8") as lock:
        lock.write("process 1\n")

    def fail(_lock):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("pytest_sandbox.runtime.storage.remove", fail)
        assert name not in cleanup.remove_leftovers()
    assert [True] == [
        name in record.getMessage() and "Input/output error" in record.getMessage()
        for record in caplog.records
    ]
    assert name in cleanup.remove_leftovers()


def test_an_unfinished_saved_layer_is_removed(tmp_path, monkeypatch):
    """A cleanup removes the copy that a killed process left, not one in progress or finished."""
    monkeypatch.setenv("PYTEST_SANDBOX_HOME", str(tmp_path))
    for name in ("a-1.17", "b-1.18", "c-1"):
        (tmp_path / "kept" / name / "0" / "upper").mkdir(parents=True)
    lock = file_lock.lock_directory(str(tmp_path / "kept/b-1.18"))
    try:
        cleanup.remove_leftovers()
        assert ["b-1.18", "c-1"] == sorted(os.listdir(tmp_path / "kept"))
    finally:
        os.close(lock)


def test_a_session_killed_at_its_start_leaves_nothing():
    """The locks of a client that dies before its launcher starts are free."""
    code = """
import os, signal
from pytest_sandbox.client import session, start
start._spawn = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
session.current()
"""
    with subprocess.Popen([sys.executable, "-c", code]) as client:
        assert -signal.SIGKILL == client.wait(60)
    assert [] == leftovers.of(client.pid)


def test_threads_share_one_launcher():
    """Threads that start the first container at the same time get one launcher."""
    code = """
import threading
from pytest_sandbox import Container
names = []
def one():
    with Container() as c: names.append(c.handle.launcher.name)
threads = [threading.Thread(target=one) for _ in range(6)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(len(names), len(set(names)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=60
    )
    assert ("6 1\n", "") == (done.stdout, done.stderr)
