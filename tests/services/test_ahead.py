"""``ahead=1``: the next service is started while one is used."""

from __future__ import annotations

import os
import signal
import sys
import threading
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest

from pytest_sandbox import Container, Network, SandboxError, SettingsError
from pytest_sandbox.container.lifecycle import local_handles
from pytest_sandbox.linux import process
from pytest_sandbox.services import Port, postgres, redis
from pytest_sandbox.services.ahead import StartedAhead
from pytest_sandbox.services.prepared import Prepared, Program

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


def web(**keywords):
    """Return a prepared service that answers by HTTP."""
    return Prepared(
        Program(
            (Path(sys.executable).name,), "python3", "python:3", str(Path(sys.executable).parent)
        ),
        "true",
        f"{sys.executable} -u -m http.server 8000",
        setup=None,
        files=(),
        ahead=1,
        stop_signal=signal.SIGINT,
        ready=Port(8000),
        **{"name": "web", "workdir": "/etc", **keywords},
    )


def fetch(host):
    with urllib.request.urlopen(f"http://{host}:8000/passwd", timeout=TIMEOUT) as answer:
        return answer.status


@pytest.mark.needs("bridge")
@pytest.mark.parametrize("given", ["setting", "argument"])
def test_a_name_on_a_network_passes_to_the_service_that_was_started_in_advance(home, given):
    """Each start after the first takes the container that was started meanwhile; other containers
    reach it by its name and its alias, and the network has no other one.
    """
    with Network() as net, Container(network=net, hostname="client") as client:
        more = {"network": net} if given == "setting" else {}
        service = web(hostname=["db", "primary"], **more)
        try:
            waiting = None
            for _ in range(3):
                with service.start_on(net) as running:
                    assert waiting in {None, running.container.id}
                    assert {"client", "db"} == set(net.addresses)
                    assert running.container.ip_address == net.addresses["db"]
                    for name in ("db", "primary", running.container.id):
                        assert 200 == client.call(fetch, name, timeout=TIMEOUT)
                    assert (
                        "db"
                        == running.container.run(
                            ["hostname"], capture_output=True, text=True, check=True
                        ).stdout.strip()
                    )
                    assert 200 == fetch(running.host)
                    service._next._thread.join()
                    waiting = service._next._running.container.id
        finally:
            service.close()
        assert {"client"} == set(net.addresses)


@pytest.mark.needs("bridge")
def test_a_name_that_is_in_use_is_refused_as_without_ahead(home):
    """Two services with one name at a time are an error that names it; nothing is left, and the
    first one goes on.
    """
    before = len(local_handles())
    with Network() as net:
        service = web(hostname="db", network=net)
        try:
            with service.start() as running:
                for _ in range(2):
                    with pytest.raises(SettingsError, match=r"hostname='db'.*not used on the netw"):
                        service.start()
                assert 200 == fetch(running.host)
        finally:
            service.close()
        assert {} == net.addresses
    assert before == len(local_handles())


@pytest.mark.needs("bridge")
def test_a_network_that_was_closed_meanwhile_is_an_error(home):
    """The service that was started for it is closed."""
    before = len(local_handles())
    net = Network()
    service = web(hostname="db", network=net)
    try:
        service.start().close()
        net.close()
        with pytest.raises(SandboxError, match="closed"):
            service.start()
    finally:
        service.close()
    assert before == len(local_handles())


@pytest.mark.needs("redis-server")
def test_an_empty_server_that_was_started_in_advance_answers(home):
    """The second start returns the Redis that was started after the first, which has nothing of it;
    nothing is left.
    """
    client = pytest.importorskip("redis")
    before = len(local_handles())
    cache = redis(ahead=1)
    try:
        with cache.start() as service, client.Redis.from_url(service.url) as connection:
            connection.set("name", "value")
            cache._next._thread.join()
            waiting = cache._next._running.container.id
        with cache.start() as service, client.Redis.from_url(service.url) as connection:
            assert waiting == service.container.id
            assert connection.get("name") is None
    finally:
        cache.close()
    assert before == len(local_handles())
    with pytest.raises(SettingsError, match="ahead=2 is not valid; accepted: 0 or 1"):
        redis(ahead=2)


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
