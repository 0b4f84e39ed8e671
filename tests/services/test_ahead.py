"""``ahead=1``: the next service is started while one is used."""

from __future__ import annotations

import os
import threading
from types import SimpleNamespace

import pytest

from pytest_sandbox import SandboxError
from pytest_sandbox.linux import process
from pytest_sandbox.services import postgres
from pytest_sandbox.services.ahead import StartedAhead

pytestmark = pytest.mark.needs("root")

TIMEOUT = 60


class FakeService:
    """A running service that notes what is done with it."""

    def __init__(self, network):
        self.network, self.has_ended = network, False
        self.calls = []
        self.container = SimpleNamespace(close=lambda: self.calls.append("close"))

    def await_ready(self):
        self.calls.append("ready")


def test_a_service_is_ready_when_it_is_taken():
    """It is started and waited for in advance; one of another network, or one that has ended, is
    closed.
    """
    made = []
    waiting = StartedAhead(lambda network: made.append(FakeService(network)) or made[-1])
    assert waiting.take(None) is None
    waiting.begin("net")
    waiting.begin("net")
    assert ["ready"] == waiting.take("net").calls
    assert 1 == len(made)
    waiting.begin("net")
    assert waiting.take(None) is None
    waiting.begin(None)
    waiting.await_start()
    made[2].has_ended = True
    assert waiting.take(None) is None
    waiting.begin(None)
    waiting.close()
    assert [1, 0] == [one.calls.count("close") for one in (made[3], made[0])]
    assert made[1].calls[-1] == made[2].calls[-1] == "close"


def test_an_error_is_raised_where_the_service_is_needed():
    """The thread ends without output, and nothing is taken."""

    def fail(_network):
        raise SandboxError("no container")

    waiting = StartedAhead(fail)
    waiting.begin(None)
    assert waiting.take(None) is None


def test_a_fork_waits_for_the_start_and_leaves_the_service():
    """No fork finds a lock of the thread; the child closes nothing of the parent's."""
    lock, entered, go_on = threading.Lock(), threading.Event(), threading.Event()
    made = FakeService(None)

    def start(_network):
        with lock:
            entered.set()
            assert go_on.wait(TIMEOUT)
        return made

    waiting = StartedAhead(start)
    waiting.begin(None)
    assert entered.wait(TIMEOUT)
    timer = threading.Timer(0.05, go_on.set)
    timer.start()
    pid = os.fork()
    if not pid:
        is_free = lock.acquire(blocking=False)
        waiting.close()
        os._exit(0 if is_free and waiting.take(None) is None and "close" not in made.calls else 1)
    pidfd = os.pidfd_open(pid)
    assert process.ended(pidfd, TIMEOUT)
    os.close(pidfd)
    assert 0 == os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    timer.join()
    assert waiting.take(None) is made


@pytest.mark.needs("pg_ctlcluster")
def test_a_clone_that_was_started_in_advance_answers(home):
    """The second start returns the container that was started after the first."""
    psycopg = pytest.importorskip("psycopg")
    database = postgres(ahead=1)
    try:
        with database.start():
            database._next._thread.join()
            waiting = database._next._running.container.id
        with database.start() as service:
            assert waiting == service.container.id
            with psycopg.connect(service.url) as connection:
                assert (1,) == connection.execute("select 1").fetchone()
    finally:
        database.close()
