"""Services: started, ready, reachable, stopped."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from tarballs import Made, directory, entry, layer

from pytest_sandbox import Container, Image, Network, SandboxError, SettingsError
from pytest_sandbox.container.lifecycle import local_handles
from pytest_sandbox.services import (
    Command,
    File,
    Http,
    Log,
    Port,
    Service,
    ServiceError,
    ServiceTimeout,
    mariadb,
    postgres,
    redis,
)
from pytest_sandbox.services.prepared import Prepared, Program

pytestmark = pytest.mark.needs("root")

TIMEOUT = 60
WEB = [sys.executable, "-u", "-m", "http.server", "8000"]
#: Writes a line when it gets SIGTERM, and ends.
STUBBORN = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (print("asked to stop", flush=True), sys.exit(0)))
print("up", flush=True)
while True:
    time.sleep(60)
"""


def test_a_service_is_ready_and_reachable():
    """Its URL answers once it has started; its log has the request; then it is gone."""
    app = Service(WEB, ready=Http("/passwd", port=8000), workdir="/etc", timeout=TIMEOUT)
    with app.start() as service:
        assert f"http://{service.host}:8000" == service.url
        with urllib.request.urlopen(f"{service.url}/passwd", timeout=TIMEOUT) as answer:
            assert b"root" in answer.read()
        assert "GET /passwd" in service.logs()
        assert 8000 == service.port
    assert "stopped" == service.container.status
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(service.url, timeout=TIMEOUT)


def test_two_services_of_one_kind_have_the_same_port():
    """Each start has an address of its own."""
    app = Service(WEB, ready=Port(8000), timeout=TIMEOUT)
    with app.start() as one, app.start() as other:
        assert one.port == other.port
        assert one.host != other.host


def test_a_service_that_dies_ends_the_wait():
    """The error has the name, the exit status and the output; the container is closed."""
    app = Service(
        ["sh", "-c", "echo no such table; exit 3"], ready=Port(1), name="app", timeout=TIMEOUT
    )
    with pytest.raises(ServiceError, match="app is not ready: it ended with exit status 3") as info:
        app.start()
    assert (3, "no such table") == (info.value.returncode, info.value.log)


def test_a_service_that_is_not_ready_in_time_is_closed():
    """After the timeout nothing of it is left."""
    app = Service(["sleep", "1000"], ready=File("/nothing"), timeout=0.2)
    running = app.begin(None)
    with pytest.raises(ServiceTimeout):
        running.await_ready()
    assert "stopped" == running.container.status


def test_a_service_is_asked_to_stop():
    """It gets SIGTERM, and can end by itself."""
    app = Service([sys.executable, "-c", STUBBORN], ready=Log("up"), timeout=TIMEOUT)
    with app.start() as service:
        service.stop()
        assert service.logs().endswith("asked to stop\n")
        assert "running" == service.container.status


def test_a_service_that_ignores_the_signal_is_killed():
    """SIGKILL follows after stop_timeout."""
    ignoring = "trap '' TERM; echo up; while true; do sleep 1; done"
    app = Service(["sh", "-c", ignoring], ready=Log("up"), stop_timeout=0.1, timeout=TIMEOUT)
    service = app.start()
    [command] = service.container.handle.commands
    service.stop()
    assert -signal.SIGKILL == command.wait(TIMEOUT)
    service.close()


def test_a_full_log_does_not_block_the_service():
    """Three megabytes of output are written, and the last one is kept."""
    script = "head -c 3000000 /dev/zero | tr '\\0' x; touch /tmp/done; sleep 1000"
    with Service(["sh", "-c", script], ready=File("/tmp/done"), timeout=TIMEOUT).start() as service:
        service.container.wait_for(run=["true"])
        assert set(service.logs()) == {"x"}


def test_a_service_on_a_network_is_reached_by_other_containers():
    """Its address there serves for containers on the network."""
    with (
        Network() as net,
        Service(WEB, ready=Port(8000), network=net, hostname="web").start() as service,
        Container(network=net) as other,
    ):
        url = f"http://{service.container.ip_address}:8000/"
        done = other.call(lambda: urllib.request.urlopen(url, timeout=TIMEOUT).status)
        assert 200 == done
        assert service.container.ip_address == other.call(lambda: service.host)


@pytest.mark.parametrize(
    ("arguments", "keywords", "key"),
    [
        ((), {}, "command"),
        (("redis-server",), {}, "command"),
        (([],), {}, "command"),
        ((["true"],), {"ready": 5432}, "ready"),
        ((["true"],), {"memory": "much"}, "memory"),
    ],
)
def test_an_invalid_service_is_refused(arguments, keywords, key):
    """The error names the key."""
    with pytest.raises(SettingsError) as info:
        Service(*arguments, **keywords)
    assert key == info.value.key


@pytest.mark.parametrize(
    ("make", "package"),
    [(postgres, "postgresql"), (mariadb, "mariadb-server"), (redis, "redis-server")],
)
def test_a_missing_program_is_named_with_its_package(make, package, monkeypatch):
    """The error names Debian's package and an image."""
    monkeypatch.setattr("pytest_sandbox.services.prepared.shutil.which", lambda *_, **__: None)
    with pytest.raises(ServiceError, match=f"apt-get install {package}.*image="):
        make().start()


def test_a_missing_program_in_a_container_is_named():
    """Also if only the shell inside finds out."""
    service = redis()
    service.command, service.host_command = ("/bin/sh", "-c", "exec no-such-redis"), None
    with pytest.raises(ServiceError, match="apt-get install redis-server"):
        service.start()


@pytest.mark.parametrize(
    ("command", "keywords", "text"),
    [
        (["memcache-missing"], {}, "'memcache-missing' is not installed. Install the package"),
        (["/opt/missing/nginx"], {}, 'apt-get install nginx.*image="nginx:'),
        (["sh", "-c", "exec no-such-server"], {}, "exit status 127.*'no-such-server' is not inst"),
        (["/etc/passwd"], {}, "'/etc/passwd' cannot be executed"),
        (["true"], {"workdir": "/etc/passwd"}, "working directory '/etc/passwd' cannot be ent"),
        (["sleep", "9"], {"ready": Command(["psql-missing"])}, "check: .*'psql-missing' is not"),
    ],
)
def test_what_cannot_be_executed_is_named(command, keywords, text):
    """The error is a ServiceError with the program and what has it; the container is closed."""
    before = len(local_handles())
    with pytest.raises(ServiceError, match=text):
        Service(command, **{"ready": Port(1), "timeout": TIMEOUT, **keywords}).start()
    assert before == len(local_handles())


def test_a_setup_with_a_missing_program_is_an_error_of_the_service():
    """Here, or in the container; another error of setup is raised as it is."""

    def here(db):
        subprocess.run(["no-such-migrator"], check=True)

    def inside(db):
        db.container.run(["/no/such/migrator"], check=True)

    def other(db):
        Path("/no/such/schema.sql").read_text()

    for setup in (here, inside):
        with pytest.raises(ServiceError, match=r"its setup: the program '.*migrator' is not inst"):
            prepared(setup).start()
    with pytest.raises(FileNotFoundError, match="schema"):
        prepared(other).start()


def prepared(setup):
    """Return a service with prepared files that needs no server."""
    made = Prepared(
        Program(("sh",), "dash", "debian:12"),
        "true",
        "sh -c 'echo up; exec sleep 1000'",
        setup=setup,
        files=(),
        ahead=0,
        stop_signal=signal.SIGKILL,
        ready=Log("up"),
        name="prepared",
    )
    made.timeout = TIMEOUT
    return made


@pytest.mark.needs("redis-server")
def test_redis_answers():
    """Its real client library stores and reads a value."""
    client = pytest.importorskip("redis")
    with redis(memory="256m").start() as service, client.Redis.from_url(service.url) as connection:
        connection.set("name", "value")
        assert b"value" == connection.get("name")


@pytest.mark.needs("redis-server")
def test_a_running_service_is_not_cloned():
    """clone() is refused until stop()."""
    with redis().start() as service:
        with pytest.raises(SandboxError, match=r"Call stop\(\)"):
            service.clone()
        service.container.write_text("/tmp/file", "kept")
        service.stop()
        with service.clone() as clone:
            assert "kept" == clone.container.read_text("/tmp/file")


@pytest.mark.needs("busybox")
def test_an_image_starts_its_command(tmp_path):
    """Without a command, the image's is started on its port; HEALTHCHECK is waited for."""
    program = Path(shutil.which("busybox") or "").read_bytes()
    check = {"Test": ["CMD-SHELL", "busybox netstat -ltn | busybox grep -q 7000"]}
    made = Made(
        [
            layer(
                directory("bin"),
                *(entry(f"bin/{n}", program, mode=0o755) for n in ("sh", "busybox")),
            )
        ],
        {
            "Cmd": ["/bin/sh", "-c", "echo started; exec busybox nc -l -p 7000"],
            "ExposedPorts": {"7000/tcp": {}},
            "Healthcheck": check,
        },
    )
    with Service(image=Image.load(made.write(tmp_path)), timeout=TIMEOUT).start() as service:
        assert 7000 == service.port
        assert "started" in service.logs()


def test_a_port_that_the_host_uses_on_all_addresses_is_replaced():
    """The service gets another port of the host."""
    with socket.create_server(("0.0.0.0", 0)) as taken:
        port = taken.getsockname()[1]
        command = [*WEB[:-1], str(port)]
        with Service(command, ready=Port(port), timeout=TIMEOUT).start() as service:
            assert port != service.port
            with urllib.request.urlopen(service.url.replace("tcp", "http"), timeout=TIMEOUT) as got:
                assert 200 == got.status
