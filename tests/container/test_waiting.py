"""Waiting for a container: for what, for how long, and what ends it early."""

from __future__ import annotations

import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from tarballs import Made, directory, entry, layer

from pytest_sandbox import Container, Image, ServiceError, ServiceTimeout, SettingsError
from pytest_sandbox.container import probes
from pytest_sandbox.container.conditions import healthcheck
from pytest_sandbox.container.kept_log import KEPT_BYTES, KeptLog
from pytest_sandbox.services import Command, File, Http, Log, Port

pytestmark = pytest.mark.needs("containers")

#: Prints a line, listens, prints another line, and answers each connection with the text.
SERVER = """
import socket, sys
family, port, answer = sys.argv[1:]
print("starting", flush=True)
made = socket.create_server(("", int(port)), family=getattr(socket, family))
print("ready to accept", flush=True)
while True:
    connection, _address = made.accept()
    connection.recv(4096)
    connection.sendall(answer.encode())
    connection.close()
"""


def serve(container, answer="HTTP/1.0 204 No Content\r\n\r\n", *, family="AF_INET", port=8000):
    """Start the server inside, with its output kept."""
    args = [sys.executable, "-SE", "-c", SERVER, family, str(port), answer]
    return container.popen(args, log=True)


@pytest.fixture
def started():
    """A container in which a server starts."""
    with Container() as container:
        serve(container)
        yield container


@pytest.mark.parametrize(
    "keywords",
    [
        {"port": 8000},
        {"log": "ready to accept"},
        {"log": re.compile(r"^ready to \w+$", re.MULTILINE)},
        {"http": "/health", "port": 8000},
        {"http": "http://localhost:8000/health?deep=1"},
        {"http": Http("/", port=8000, status=204)},
        {
            "run": [
                sys.executable,
                "-c",
                "import socket; socket.create_connection(('127.0.0.1', 8000))",
            ]
        },
        {"run": "test -e /etc/passwd"},
        {"file": "/etc/passwd"},
    ],
)
@pytest.mark.vm
def test_each_condition_is_waited_for(started, keywords):
    """A wait ends when the server listens, has logged, or answers; when a command succeeds or a
    file exists.
    """
    started.wait_for(**keywords, timeout=30)


@pytest.mark.parametrize("keywords", [{"port": 8000}, {"http": "/", "port": 8000}])
def test_a_server_of_ipv6_is_found(keywords):
    """A server that listens on the IPv6 loopback alone is found."""
    with Container() as container:
        serve(container, family="AF_INET6")
        container.wait_for(**keywords, timeout=30)


def test_several_keywords_must_all_hold(started):
    """With several keywords, each must have held."""
    started.wait_for(port=8000, log="ready", file="/etc/passwd", timeout=30)
    with pytest.raises(ServiceTimeout, match=r"^[^;]*; /missing does not exist"):
        started.wait_for(port=8000, file="/missing", timeout=0.1)


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        (Port(8000) & Log("ready"), True),
        (Port(1) | Log("ready"), True),
        (Port(1) | File("/missing"), False),
        (Port(1) & Log("ready"), False),
        (Port(1) & Log("ready") | Command("true"), True),
    ],
)
def test_conditions_are_joined(started, condition, holds):
    """`&` takes both of two conditions, `|` one of them."""
    started.wait_for(log="ready", timeout=30)
    if holds:
        started.wait_for(condition, timeout=30)
    else:
        with pytest.raises(ServiceTimeout, match="nothing listens on port 1"):
            started.wait_for(condition, timeout=0.1)


@pytest.mark.parametrize(
    ("args", "code", "reason"),
    [
        (["sh", "-c", "echo no such table; exit 3"], 3, "it ended with exit status 3"),
        (["sh", "-c", "echo no such table; kill -9 $$"], -9, "it was killed by signal 9"),
        (["echo", "no such table"], 0, "it ended with exit status 0"),
    ],
)
def test_a_wait_ends_with_the_command(args, code, reason):
    """When the command has ended, the error has its exit status and its last lines, and is no
    timeout.
    """
    with Container() as container:
        container.popen(args, log=True)
        with pytest.raises(ServiceError) as caught:
            container.wait_for(port=8000, timeout=120)
        error = caught.value
        assert (code, "no such table") == (error.returncode, error.log)
        assert reason in error.reason
        assert "nothing listens on port 8000" in error.reason
        assert not isinstance(error, TimeoutError)


def test_a_service_in_the_background_is_waited_for():
    """A command that leaves a service running and exits with 0 does not end the wait."""
    with Container() as container:
        code = f"import os; os.fork() and os._exit(0)\n{SERVER}"
        args = [sys.executable, "-SE", "-c", code, "AF_INET", "80", ""]
        container.popen(args, log=True)
        container.wait_for(port=80, timeout=30)


def test_a_wait_ends_with_the_container():
    """When init is killed, a wait ends."""
    with Container() as container:
        timer = threading.Timer(0.05, os.kill, (container.pid, signal.SIGKILL))
        timer.start()
        with pytest.raises(ServiceError, match="its container has ended"):
            container.wait_for(port=80, timeout=120)
        timer.join()


def test_a_timeout_names_what_was_found():
    """A timeout is a TimeoutError with the last answer and the last output, and can be pickled."""
    with Container() as container:
        serve(container, "HTTP/1.0 503 Starting\r\n\r\n")
        container.wait_for(log="ready", timeout=30)
        with pytest.raises(TimeoutError, match="503 Starting") as caught:
            container.wait_for(http="/health", port=8000, timeout=0.5)
        error = caught.value
        assert ("starting\nready to accept", None) == (error.log, error.returncode)
        copy = pickle.loads(pickle.dumps(error))
        assert (str(error), ServiceTimeout) == (str(copy), type(copy))


def test_the_last_failure_of_a_command_is_named(box):
    """After a timeout, the error has exit status and last line of the command that failed."""
    with pytest.raises(ServiceTimeout, match="exit status 2: no route"):
        box.wait_for(run="echo no route >&2; exit 2", timeout=0.5)


def test_a_command_that_hangs_is_killed(box):
    """A command of a wait is killed after its own timeout, and at the end of the wait."""
    with pytest.raises(ServiceTimeout, match=r"has not ended within 0\.5 s"):
        box.wait_for(Command(["sleep", "1000"], timeout=0.5), timeout=3)
    assert "sleep" not in box.run(["ps", "-A"], capture_output=True, text=True).stdout


def test_a_command_that_cannot_be_started_in_time(box, monkeypatch):
    """A command that has no time to start is like one that has not ended in time."""

    def popen(*_arguments, **_keywords):
        raise subprocess.TimeoutExpired("true", 0.5)

    monkeypatch.setattr(probes, "Popen", popen)
    with pytest.raises(ServiceTimeout, match=r"has not ended within 0\.5 s"):
        box.wait_for(Command(["true"], timeout=0.5), timeout=1)


@pytest.mark.parametrize(
    "answer",
    [
        "SSH-2.0-server\r\n",
        "HTTP/1.0 abc\r\n",
        "",
        f"HTTP/1.0 2{'0' * 5000}\r\n",  # more digits than int() takes
        "HTTP/1.0 \u0662\u0660\u0660\r\n",
    ],
)
def test_what_is_not_http_is_no_answer(answer):
    """A server that answers with something else than HTTP is not ready."""
    with Container() as container:
        serve(container, answer)
        container.wait_for(port=8000, timeout=30)
        with pytest.raises(ServiceTimeout, match="GET / on port 8000"):
            container.wait_for(http="/", port=8000, timeout=0.2)


def test_the_output_of_an_earlier_command_does_not_count():
    """A line of a command that has ended is not a line of the one that runs."""
    with Container() as container:
        container.popen(["echo", "ready"], log=True).wait()
        container.popen(["sh", "-c", "echo starting; sleep 60"], log=True)
        with pytest.raises(ServiceTimeout):
            container.wait_for(log="ready", timeout=0.1)
        assert "ready\nstarting\n" == container.logs()


def test_a_line_in_two_parts_is_found():
    """A text is found when its line is written in two parts."""
    with Container() as container:
        container.popen(["sh", "-c", "printf 'rea'; sleep 0.05; echo dy; sleep 60"], log=True)
        container.wait_for(log="ready", timeout=30)


def test_the_last_megabyte_is_kept_and_nothing_blocks():
    """A command that writes 64 MB never waits for a reader; the last megabyte is kept."""
    with Container() as container:
        code = "print('x' * 1023 + '\\n' , end='') or [print('y' * 1023) for _ in range(65536)]"
        command = container.popen([sys.executable, "-c", code], log=True)
        assert 0 == command.wait(60)
        command.kept_log.await_end()
        assert KEPT_BYTES == len(container.logs())
        assert {"y" * 1023} == set(container.logs().split())


def test_single_bytes_are_joined():
    """A command that writes single bytes takes no more memory than another one."""
    log = KeptLog()
    for position in range(40_000):
        log._append(position, bytes([position & 0xFF]))
    assert len(log._parts) < 12
    assert (39_990, bytes(range(0x36, 0x40))) == log.since(39_990)
    assert (0, bytes(range(256)) * 156 + bytes(range(64))) == log.since(0)
    log.close()


def test_output_cannot_control_the_terminal():
    """Escape sequences of a command are escaped in an error."""
    with Container() as container:
        container.popen(["printf", r"\033[2J\n"], log=True)
        with pytest.raises(ServiceError) as caught:
            container.wait_for(port=80, timeout=30)
        assert "\x1b" not in str(caught.value)


def test_descriptors_of_a_wait_are_closed(started):
    """A wait leaves no descriptor open, whether it has ended well or not."""
    started.wait_for(http="/", port=8000, timeout=30)
    before = os.listdir("/proc/self/fd")
    started.wait_for(Http("/", 8000) & Port(8000) & Command("true"), timeout=30)
    for condition in (Http("/missing", 8000, status=404), Command("sleep 60"), Port(1)):
        with pytest.raises(ServiceTimeout):
            started.wait_for(condition, timeout=0.05)
    assert before == os.listdir("/proc/self/fd")


def test_a_call_inside_has_no_descriptor_of_a_log(started):
    """A function inside cannot read the output of a service."""
    started.wait_for(log="ready", timeout=30)
    held = set(started.handle.logs[0].descriptors())

    def links():
        paths = [f"/proc/self/fd/{fd}" for fd in held]
        return [os.readlink(path) for path in paths if os.path.lexists(path)]

    assert [] == [link for link in started.call(links) if link.startswith(("pipe:", "anon_inode:"))]


@pytest.mark.parametrize(
    ("keywords", "key"),
    [
        ({}, "condition"),
        ({"port": 0}, "port"),
        ({"port": "5432"}, "port"),
        ({"port": True}, "port"),
        ({"log": ""}, "log"),
        ({"log": "ready"}, "log"),
        ({"http": "health", "port": 80}, "http"),
        ({"http": "https://localhost/"}, "http"),
        ({"http": "http://example.org/"}, "http"),
        ({"http": "http://localhost:80000/"}, "http"),
        ({"http": "http://localhost:80/", "port": 81}, "http"),
        ({"http": "/a b", "port": 80}, "http"),
        ({"run": []}, "run"),
        ({"port": 80, "timeout": 0}, "timeout"),
    ],
)
def test_an_invalid_condition_is_refused(box, keywords, key):
    """A wait without a condition, and each invalid value, is an error that names the key."""
    with pytest.raises(SettingsError) as caught:
        box.wait_for(**keywords)
    assert key == caught.value.key


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, None),
        ({"Healthcheck": {"Test": ["NONE"]}}, None),
        ({"Healthcheck": {"Test": ["CMD", "check", "-q"]}}, Command(["check", "-q"])),
        (
            {"Healthcheck": {"Test": ["CMD-SHELL", "check -q"], "Timeout": 2_000_000_000}},
            Command("check -q", timeout=2),
        ),
        (
            {"Healthcheck": {"Test": ["CMD-SHELL", "check"]}, "Shell": ["/bin/ash", "-ec"]},
            Command(["/bin/ash", "-ec", "check"]),
        ),
    ],
)
def test_a_healthcheck_is_a_command(config, expected):
    """Each of docker's forms of HEALTHCHECK becomes a command with its shell and its timeout."""
    assert expected == healthcheck(config)


@pytest.mark.needs("busybox")
def test_a_healthcheck_of_the_image_is_waited_for(tmp_path, monkeypatch):
    """Without a condition, a wait ends when the HEALTHCHECK of the image succeeds."""
    monkeypatch.setenv("PYTEST_SANDBOX_HOME", str(tmp_path / "home"))
    program = Path(shutil.which("busybox")).read_bytes()
    content = layer(directory("bin"), entry("bin/sh", program, mode=0o755), directory("tmp"))
    config = {"Healthcheck": {"Test": ["CMD-SHELL", "test -e /tmp/healthy"]}}
    made = Made([content], config, media="application/vnd.oci.image.layer.v1.tar+gzip")
    image = Image.load(made.write(tmp_path / "layout"), name="checked:1")
    with Container(image=image) as container:
        with pytest.raises(ServiceTimeout, match="exit status 1"):
            container.wait_for(timeout=0.3)
        container.write_text("/tmp/healthy", "")
        container.wait_for(timeout=30)


def test_only_conditions_are_joined():
    """Joining a condition with something else is an error."""
    with pytest.raises(SettingsError, match="Port, Log, Http, Command or File"):
        Port(80) | "ready"


def test_output_that_goes_elsewhere_is_not_kept(box):
    """`log=True` contradicts a destination of the output."""
    with pytest.raises(SettingsError, match="stdout"):
        box.popen(["true"], log=True, stdout=subprocess.DEVNULL)
