"""What is given wrongly: one error with key, value, accepted form and fix, and nothing is left."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from descriptors import open_descriptors

from pytest_sandbox import Container, Network, SettingsError
from pytest_sandbox.container.lifecycle import local_handles
from pytest_sandbox.services import (
    Http,
    Log,
    Port,
    Service,
    ServiceError,
    mariadb,
    postgres,
    rabbitmq,
    redis,
)

pytestmark = pytest.mark.needs("root", "bridge")

REPEATED = 3
taken_port: list[int] = []


@pytest.fixture(scope="module", autouse=True)
def taken():
    """Use a port of the host, and start what stays: the launcher and its helpers."""
    with socket.create_server(("127.0.0.1", 0)) as server, Network() as net:
        taken_port[:] = [server.getsockname()[1]]
        Service(["sleep", "9"], ready=Port(1), network=net, publish=["5432"]).begin(None).close()
        yield


def wait_without_condition():
    with Container() as box:
        box.wait_for()


def fault_on_unknown(**keywords):
    with Network() as net, Container(network=net, hostname="db"), net.fault("bd", **keywords):
        pass


def a_service(**keywords):
    with Service(["sleep", "9"], **keywords).start():
        pass


CASES = {
    "no condition": (
        wait_without_condition,
        SettingsError,
        ["condition=None is not valid", "wait_for(port=8000)", "HEALTHCHECK"],
    ),
    "no port": (
        lambda: a_service(network=["pypi.org"]),
        SettingsError,
        ["network=['pypi.org'] is not valid", 'did you mean "pypi.org:443"?'],
    ),
    "loss": (
        lambda: Network(faults={"db": {"loss": 2}}).start(),
        SettingsError,
        ["loss=2 is not valid", "accepted: a part"],
    ),
    "latency": (
        lambda: fault_on_unknown(latency="50 parsecs"),
        SettingsError,
        ["latency='50 parsecs' is not valid"],
    ),
    "unknown container": (
        lambda: fault_on_unknown(loss=0.5),
        SettingsError,
        ["fault='bd' is not valid", "db (172.30.0.2)"],
    ),
    "host port in use": (
        lambda: a_service(publish=[f"{taken_port[0]}:80"]),
        SettingsError,
        ["publish=", "80' is not valid", "127.0.0.1:", "is in use"],
    ),
    "host port in use, on a network": (
        lambda: redis(
            publish=[f"{taken_port[0]}:6379"], network=Network(), hostname="cache"
        ).start(),
        SettingsError,
        ["publish=", "6379' is not valid", "is in use"],
    ),
    "program": (
        lambda: Service(["nginx-missing"], ready=Port(80)).start(),
        ServiceError,
        ["'nginx-missing' is not installed", "apt-file", "image="],
    ),
    "known program": (
        lambda: Service(["/opt/missing/memcached"], ready=Port(80)).start(),
        ServiceError,
        ["memcached' is not installed", "apt-get install memcached", 'image="memcached:1.6"'],
    ),
    "Log without output": (
        lambda: a_service(ready=Log("")),
        SettingsError,
        ["log='' is not valid"],
    ),
    "Http without a path": (
        lambda: a_service(ready=Http("health", port=80)),
        SettingsError,
        ["http='health' is not valid"],
    ),
    "Port": (lambda: a_service(ready=Port(0)), SettingsError, ["port=0 is not valid"]),
    "timeout": (
        lambda: a_service(ready=Port(80), timeout=0),
        SettingsError,
        ["timeout=0 is not valid; accepted: seconds"],
    ),
}


@pytest.mark.needs("redis-server")
@pytest.mark.parametrize("name", CASES)
def test_one_error_says_everything_and_nothing_is_left(name):
    """The texts are in one error; no container, no child and no descriptor is left of several."""
    call, kind, texts = CASES[name]
    before, descriptors = (len(local_handles()), children()), open_descriptors()
    for _ in range(REPEATED):
        with pytest.raises(kind) as info:
            call()
        message = str(info.value)
        del info
        assert [] == [text for text in texts if text not in message], message
    assert before == (len(local_handles()), children())
    # A prewarmed container, which comes at any time, has some, too.
    assert open_descriptors() - descriptors < REPEATED


def children() -> set[str]:
    """Return the PIDs of the children of this process."""
    tasks = Path("/proc/self/task").glob("*/children")
    return {pid for one in tasks for pid in one.read_text().split()}


@pytest.mark.parametrize(
    ("make", "package"),
    [
        (redis, "redis-server"),
        (postgres, "postgresql"),
        (mariadb, "mariadb-server"),
        (rabbitmq, "rabbitmq-server"),
    ],
)
def test_a_recipe_without_its_program_leaves_nothing(make, package, monkeypatch):
    """It names the package and the image, also with `ahead` and on a network."""
    monkeypatch.setattr("pytest_sandbox.services.prepared.shutil.which", lambda *_, **__: None)
    more = {} if make is redis else {"ahead": 1}
    with Network() as net:
        before = len(local_handles())
        service = make(network=net, hostname="db", **more)
        with pytest.raises(ServiceError, match=rf"apt-get install {package}\).*image="):
            service.start()
        service.close()
        assert before == len(local_handles())
        assert {} == net.addresses
