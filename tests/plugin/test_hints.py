"""Hints: the report of a failure names the isolation that may have caused it."""

from __future__ import annotations

import errno
import os
import re
import socket
from types import SimpleNamespace

import pytest

from pytest_sandbox.plugin import hints

pytestmark = pytest.mark.needs("containers")


def hint(result):
    """Return the first line of the section "hint", or ""."""
    lines = result.outlines
    start = next((number for number, line in enumerate(lines) if line.strip("- ") == "hint"), None)
    return "" if start is None else lines[start + 1]


NEXT = "\n    def test_next(): pass\n"

CHILD = """
import subprocess, sys
def hog():
    return subprocess.run([sys.executable, "-c", "x = bytearray(200 << 20)"]).returncode
"""


@pytest.mark.needs("memory")
def test_an_oom_kill_of_a_child_is_a_hint(run, reports):
    """The report of a test that fails because a child was killed for memory names the limit and the
    peak.
    """
    run(f"{CHILD}\ndef test_child(): assert 0 == hog()", "--sandbox-memory=64m").assert_outcomes(
        failed=1
    )
    (report,) = [one for one in reports() if one["outcome"] == "failed"]
    hint = dict(report["sections"])["hint"]
    assert (
        "Out of memory: the kernel killed a process inside. The container may use 64 MiB "
        "(memory=), and its peak was 64" in hint
    )


@pytest.mark.needs("memory")
def test_a_passed_test_has_no_hint(run, reports):
    """A test that expects the kill of its child passes without a hint."""
    run(f"{CHILD}\ndef test_child(): assert -9 == hog()", "--sandbox-memory=64m").assert_outcomes(
        passed=1
    )
    assert [] == [one for one in reports() if "hint" in dict(one["sections"])]


@pytest.mark.needs("limits")
def test_a_full_disk_is_a_hint(run, failed_report):
    """The report of a test that fails with ENOSPC names the limit of the writable layer."""
    run(f"""
    import pytest
    @pytest.mark.container(disk="4m")
    def test_fill():
        with open("/tmp/fill", "wb") as file:
            file.write(bytes(8 << 20))
    {NEXT}""").assert_outcomes(passed=1, failed=1)
    assert "writable layer may hold 4 MiB (disk=)" in failed_report()["sections"]["hint"]


def test_a_full_layer_in_memory_is_a_hint(monkeypatch):
    """ENOSPC without disk= names the setting that stores a layer on disk, if it is full."""
    container = SimpleNamespace(settings=SimpleNamespace(disk=None, storage="memory", shm_size=1))
    symptom = hints.symptoms(OSError(errno.ENOSPC, "No space left on device", "/opt/x"))
    stats = SimpleNamespace(oom_kills=0)
    for free, said in ((0, 'storage="disk" stores it in a directory'), (1 << 30, "")):
        sizes = {"/": free, "/dev/shm": -1}
        monkeypatch.setattr(hints, "_free_bytes", lambda _container, path, sizes=sizes: sizes[path])
        text = hints.describe(symptom, None, container, stats)
        assert said in text
        assert bool(said) == bool(text)
    container.settings.storage = "disk"
    assert "" == hints.describe(symptom, None, container, stats)


@pytest.mark.needs("limits")
def test_too_many_processes_are_a_hint(run, failed_report):
    """The report of a test that fails because fork(2) returned EAGAIN names the limit."""
    run(f"""
    import pytest, subprocess
    @pytest.mark.container(pids_limit=10)
    def test_many():
        started = [subprocess.Popen(["sleep", "100"]) for _ in range(20)]
    {NEXT}""").assert_outcomes(passed=1, failed=1)
    assert "may have 10 processes and threads (pids_limit=)" in failed_report()["sections"]["hint"]


@pytest.mark.needs("root", "limits")
def test_a_server_of_a_session_fixture_is_a_hint(run):
    """The report of a connection refused on a port where the pytest process listens has the remedy,
    which works.
    """
    source = """
    import http.server, threading, urllib.request, pytest
    @pytest.fixture(scope="session")
    def server():
        handler = http.server.SimpleHTTPRequestHandler
        served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield served.server_address[1]
        served.shutdown()
    def test(server):
        assert urllib.request.urlopen(f"http://127.0.0.1:{server}/").status == 200
    """
    result = run(source)
    result.assert_outcomes(failed=1)
    assert (
        "The connection was refused inside, but the pytest process listens outside, on 127.0.0.1:"
        in hint(result)
    )
    assert 'network="host"' in hint(result)
    run(source, "--sandbox-network=host").assert_outcomes(passed=1)


@pytest.mark.needs("root", "limits")
def test_a_unix_socket_of_the_host_is_a_hint(run):
    """The report of a connection refused on a Unix socket of the pytest process has the remedy,
    which works.
    """
    source = """
    import socket, pytest
    @pytest.fixture(scope="module")
    def path(tmp_path_factory):
        path = {directory!r} + "/socket"
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path)
            server.listen()
            yield path
    {mark}
    def test(path):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
    """
    directory = f"/tmp/pytest-sandbox-hint-{os.getpid()}"
    os.mkdir(directory)
    try:
        result = run(source.format(directory=directory, mark=""))
        result.assert_outcomes(failed=1)
        assert f"listens outside on the Unix socket {directory}/socket" in result.stdout.str()
        os.unlink(f"{directory}/socket")
        mark = f"@pytest.mark.container(volumes=['{directory}:{directory}'])"
        run(source.format(directory=directory, mark=mark)).assert_outcomes(passed=1)
    finally:
        if os.path.exists(f"{directory}/socket"):
            os.unlink(f"{directory}/socket")
        os.rmdir(directory)


@pytest.mark.needs("root", "limits")
def test_a_file_of_an_earlier_test_is_a_hint(run):
    """The report of a missing file that an earlier test created names that test."""
    result = run("""
    import pathlib
    def test_makes(): pathlib.Path("/opt/left").touch()
    def test_expects(): assert pathlib.Path("/opt/left").read_bytes() == b""
    """)
    result.assert_outcomes(passed=1, failed=1)
    assert hint(result).startswith("/opt/left was created by ")
    assert "::test_makes" in hint(result)


@pytest.mark.needs("root", "limits")
@pytest.mark.parametrize(
    ("body", "said"),
    [
        ('socket.getaddrinfo("example.org", 80)', "No name can be looked up inside"),
        (
            'socket.create_connection(("192.0.2.1", 80), 5)',
            "The container has no network but its own loopback",
        ),
        (
            (
                "socket.socket(type=socket.SOCK_DGRAM).setsockopt(socket.IPPROTO_IP, "
                'socket.IP_ADD_MEMBERSHIP, socket.inet_aton("224.1.1.1") + bytes(4))'
            ),
            "The container has no network but its own loopback",
        ),
        (
            'socket.socket(type=socket.SOCK_DGRAM).sendto(b"x", ("224.1.1.1", 5007))',
            "The container has no network but its own loopback",
        ),
        (
            'socket.create_server(("192.0.2.1", 0))',
            "The container has no network but its own loopback",
        ),
    ],
)
def test_a_missing_network_is_a_hint(run, body, said):
    """The report of a failed name resolution or connection names the missing network; so does that
    of multicast, and of a server on an address of the host.
    """
    result = run(f"import socket\ndef test(): {body}")
    result.assert_outcomes(failed=1)
    assert said in hint(result)


@pytest.mark.needs("root", "limits")
def test_rootless_hints_are_not_given_to_root(run):
    """Errors that only rootless containers cause have no hint as root."""
    result = run(
        "import errno\ndef test(): raise OSError(errno.EXDEV, 'Invalid cross-device link')"
    )
    result.assert_outcomes(failed=1)
    assert "" == hint(result)


@pytest.mark.needs("root", "limits")
def test_an_ordinary_failure_has_no_hint(run):
    """A failure that isolation does not explain has no hint."""
    result = run("def test_a(): open('/nowhere')\ndef test_b(): assert 0")
    result.assert_outcomes(failed=2)
    assert "" == hint(result)


@pytest.mark.needs("root", "limits")
def test_listening_sockets_are_found():
    """The listening sockets of a process are found: TCP over IPv4 and IPv6, and none that is
    closed.
    """
    from pytest_sandbox.linux.sockets import Listener, listening

    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_server(("::1", 0), family=socket.AF_INET6) as six,
    ):
        found = listening(os.getpid())
        assert Listener("127.0.0.1", server.getsockname()[1]) in found
        assert Listener("::1", six.getsockname()[1]) in found
    assert Listener(
        "127.0.0.1", server.getsockname()[1] if server.fileno() >= 0 else 0
    ) not in listening(os.getpid())


def test_a_port_of_another_process_is_a_hint(run):
    """Whatever exception a client library raises, the hint names the process outside that listens
    on the very port.
    """
    result = run(
        """
    import socket, subprocess, sys, pytest

    SERVER = "import socket; s = socket.create_server(('127.0.0.1', 0)); " \\
        "print(s.getsockname()[1], flush=True); input()"

    @pytest.fixture(scope="session")
    def port():
        command = [sys.executable, "-c", SERVER]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as one:
            yield int(one.stdout.readline())
            one.communicate("")

    class OperationalError(Exception): pass

    def test(port):
        try:
            socket.create_connection(("127.0.0.1", port))
        except OSError:
            pass
        raise OperationalError(
            f'connection to server at "127.0.0.1", port {port} failed: Connection refused'
        )

    def test_program(port):
        said = f"Failed to connect to 127.0.0.1 port {port} after 0 ms: Couldn't connect to server"
        command = [sys.executable, "-c", f"import sys; sys.exit({said!r})"]
        subprocess.run(command, check=True, stderr=subprocess.PIPE)
    """
    )
    result.assert_outcomes(failed=2)
    said = "refused inside, but another process listens outside, on 127.0.0.1:"
    assert 2 == sum(said in line for line in result.outlines)


def test_another_port_of_the_pytest_process_is_no_hint(run):
    """A server outside on a port that the test has not tried explains nothing."""
    result = run(
        """
    import socket, pytest

    @pytest.fixture(scope="session")
    def server():
        with socket.create_server(("127.0.0.1", 0)) as one:
            yield one

    def test(server):
        with socket.create_server(("127.0.0.1", 0)) as one:
            port = one.getsockname()[1]
        socket.create_connection(("127.0.0.1", port))
    """
    )
    result.assert_outcomes(failed=1)
    result.stdout.no_fnmatch_line("*listens outside*")


BROWSER = """
import socket, subprocess, sys, threading, pytest

PROGRAM = '''
import socket
while True:
    port = input()
    try:
        socket.create_connection(("127.0.0.1", int(port))).close()
    except OSError:
        print(f"net::ERR_CONNECTION_REFUSED at http://localhost:{port}/", flush=True)
    else:
        print(flush=True)
'''

@pytest.fixture(scope=SCOPE)
def browser():
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", PROGRAM]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as one:
        def go(port):
            print(port, file=one.stdin, flush=True)
            if error := one.stdout.readline().strip():
                raise Exception(f"Page.goto: {error}")
        yield go
        one.terminate()

@pytest.fixture
def server():
    with socket.create_server(("127.0.0.1", 0)) as one:
        yield one.getsockname()[1]

def test_served(browser, server): browser(server)
def test_not_served(browser, request):
    with socket.create_server(("127.0.0.1", 0)) as one:
        port = one.getsockname()[1]
    browser(port)
"""


def test_a_browser_outside_is_a_hint(run, reports):
    """A browser that a session fixture has started does not reach a server inside: the hint says
    so, and its remedies work. Where nothing listens, there is no hint.
    """
    run(BROWSER.replace("SCOPE", "'session'")).assert_outcomes(failed=2)
    hints = {one["test"]: dict(one["sections"]).get("hint", "") for one in reports() if one["text"]}
    assert "The browser was refused at port" in hints["test_served"]
    assert "the browser runs outside" in hints["test_served"]
    assert "" == hints["test_not_served"]
    for scope, options in (
        ("function", ()),
        ("module", ("--sandbox-scope=module",)),
        ("session", ("--sandbox-network=host",)),
    ):
        result = run(BROWSER.replace("SCOPE", repr(scope)), *options)
        result.assert_outcomes(passed=1, failed=1)


def test_full_shared_memory_is_a_hint(run):
    """A test that SIGBUS has killed, as /dev/shm was full, has a hint that names the setting."""
    result = run(
        """
    import pytest
    from multiprocessing import shared_memory

    @pytest.mark.container(shm_size="1m")
    def test():
        block = shared_memory.SharedMemory(create=True, size=4 << 20)
        block.buf[:] = bytes(4 << 20)
    """
    )
    result.assert_outcomes(failed=1)
    assert "/dev/shm may hold 1 MiB (shm_size=)" in hint(result)


def test_a_thread_of_the_parent_is_a_hint(run):
    """A test that waits for a thread of a module's fixture has a hint that names the thread."""
    result = run(
        """
    import queue, threading, pytest

    @pytest.fixture(scope="module")
    def echo():
        ask, answer = queue.Queue(), queue.Queue()
        target = lambda: answer.put(ask.get())
        threading.Thread(target=target, daemon=True, name="the echo").start()
        return ask, answer

    def test_empty(echo):
        echo[0].put(1)
        echo[1].get(timeout=0.2)

    @pytest.mark.container(timeout=0.5)
    def test_for_ever(echo):
        echo[1].get()

    def test_other(echo): assert 0
    """
    )
    result.assert_outcomes(failed=3)
    lines = [line for line in result.outlines if "do not exist in the test's process" in line]
    assert 2 == len(lines)
    assert "a fork of it: 'the echo'. A test that waits" in lines[0]


def test_a_thread_of_another_plugin_is_no_hint(run):
    """No test waits for the thread in which pytest-rerunfailures serves the workers of xdist."""
    result = run(
        """
    import queue, threading
    THREADS = [one.name for one in threading.enumerate()]
    def test_there_is_one(): assert ["Thread-1 (run_server)"] == THREADS[1:]
    def test_waits(): queue.Queue().get(timeout=0.1)
    """,
        plugins=("xdist", "rerunfailures"),
    )
    result.assert_outcomes(passed=1, failed=1)
    assert "" == hint(result)


def test_a_native_thread_of_the_parent_is_a_hint(run):
    """A thread that a C library has started is named by the kernel's name for it."""
    result = run(
        """
    import ctypes, pytest
    libc = ctypes.CDLL(None)

    @pytest.fixture(scope="session")
    def pool():
        thread = ctypes.c_ulong()
        assert not libc.pthread_create(ctypes.byref(thread), None, libc.pause, None)
        assert not libc.pthread_setname_np(thread, b"native-pool")

    @pytest.mark.container(timeout=0.5)
    def test(pool): libc.pause()
    """
    )
    result.assert_outcomes(failed=1)
    assert "'native-pool' of a native library" in hint(result)


OUTSIDE = """
import multiprocessing, os, subprocess, pytest

@pytest.fixture(scope="module")
def process():
    with subprocess.Popen(["sleep", "600"]) as one:
        yield one
        one.kill()

class Server:
    def __init__(self, process): self.process = process

@pytest.fixture(scope="module")
def server(process): return Server(process)

@pytest.fixture(scope="module")
def worker():
    one = multiprocessing.get_context("fork").Process(target=sleep)
    one.start()
    yield one
    one.kill()
    one.join()

def sleep():
    import time
    time.sleep(600)

def test_signal(process): os.kill(process.pid, 0)
def test_signal_by_number(process, pid_of): pid = pid_of(); os.kill(pid, 0)
def test_running(process): assert process.poll() is None
def test_attribute(server): assert server.process.poll() is None
def test_proc(process): open(f"/proc/{process.pid}/status")
def test_multiprocessing(worker): assert worker.is_alive()

@pytest.fixture
def pid_of(process): return lambda: process.pid

# No hint: a process of the test, one that has ended, another assertion, another file.
def test_own():
    with subprocess.Popen(["true"]) as one: pass
    os.kill(one.pid, 0)
def test_own_has_ended():
    with subprocess.Popen(["true"]) as one: pass
    assert one.poll() is None
def test_other_assertion(process): assert 1 == 2
def test_other_process(process): open("/proc/999999999/status")
"""


@pytest.mark.needs("root", "limits")
def test_a_process_outside_is_a_hint(run, reports):
    """A test that looks for a process of a module's fixture has a hint that names the process,
    whatever way it looks; a wider scope is a remedy.
    """
    run(OUTSIDE).assert_outcomes(failed=10)
    hints = {one["test"]: dict(one["sections"]).get("hint", "") for one in reports() if one["text"]}
    looking = ("signal", "signal_by_number", "running", "attribute", "proc")
    for name in looking:
        assert re.match(r"Process \d+ \(sleep\) runs outside: a fixture", hints[f"test_{name}"])
    assert re.match(r"Process \d+ \(\S+\) runs outside", hints["test_multiprocessing"])
    others = ("own", "own_has_ended", "other_assertion", "other_process")
    assert [""] * 4 == [hints[f"test_{name}"] for name in others]
    result = run(OUTSIDE, "--sandbox-scope=module")
    result.assert_outcomes(passed=6, failed=4)
