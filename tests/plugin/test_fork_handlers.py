"""Libraries with fork handlers that start threads: in the parent and in the test's process."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.needs("root")


def test_a_grpc_server_of_the_session(run):
    """gRPC, whose fork handlers start threads, works in a session fixture, and each test runs."""
    pytest.importorskip("grpc")
    run("""
    from concurrent.futures import ThreadPoolExecutor
    import grpc, pytest

    @pytest.fixture(scope="session", autouse=True)
    def server():
        made = grpc.server(ThreadPoolExecutor(1))
        made.add_insecure_port("127.0.0.1:0")
        made.start()
        yield
        made.stop(None)

    def test_one(): pass
    def test_two(): pass
    def test_failure(): assert 0
    """).assert_outcomes(passed=2, failed=1)


HANDLERS = """
import os, threading
import pytest

started = []

def start(where):
    thread = threading.Thread(target=started.append, args=(where,))
    thread.start()
    thread.join()

os.register_at_fork(
    before=lambda: start("before"),
    after_in_parent=lambda: start("parent"),
    after_in_child=lambda: start("child"),
)

@pytest.fixture(scope="session", autouse=True)
def library():
    yield
    assert ["before", "parent"] * 3 == started

def test_threads_of_handlers():
    assert ["before", "child"] == started[-2:]

def test_a_fork_of_the_test():
    del started[:]
    pid = os.fork()
    if pid == 0:
        os._exit(["before", "child"] != started)
    assert 0 == os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert ["before", "parent"] == started

def test_failure(): assert 0
"""


def test_python_handlers_that_start_threads(run):
    """Handlers of os.register_at_fork start threads before and after the fork, in both processes,
    and after a fork that the test makes.
    """
    run(HANDLERS).assert_outcomes(passed=2, failed=1)


NATIVE = """
import ctypes, os
import pytest

libc = ctypes.CDLL(None)
seen = []

# Called without the GIL being held by anybody else: fork(2) is called with it.
HANDLER = ctypes.PYFUNCTYPE(None)

def look(where):
    namespaces = [os.readlink(f"/proc/thread-self/ns/{name}") for name in NAMES]
    seen.append((where, namespaces[0] == namespaces[1]))

NAMES = ("pid", "pid_for_children")
handlers = [HANDLER(lambda where=where: look(where)) for where in ("before", "parent", "child")]
getattr(libc, "__register_atfork")(*handlers, None)

@pytest.fixture(scope="session", autouse=True)
def library():
    yield
    assert [("before", True), ("parent", True)] * 2 == seen

def test_handlers_run_inside():
    assert [("before", True), ("child", True)] == seen[-2:]
    assert "mnt" in os.listdir("/proc/self/ns")

def test_failure(): assert 0
"""


def test_native_handlers_see_an_ordinary_process(run):
    """Handlers of pthread_atfork run while the process's children belong to its own PID namespace:
    threads can be started.
    """
    run(NATIVE).assert_outcomes(passed=1, failed=1)


def test_no_handler_acts_for_another_thread(run):
    """A fork that another thread of pytest's process makes at the same time stays outside."""
    run("""
    import os, threading
    import pytest

    @pytest.fixture(scope="session", autouse=True)
    def forks():
        over, codes = threading.Event(), []
        own = os.readlink("/proc/self/ns/pid")

        def fork():
            while not over.is_set():
                pid = os.fork()
                if pid == 0:
                    os._exit(os.readlink("/proc/self/ns/pid") != own)
                codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

        thread = threading.Thread(target=fork)
        thread.start()
        yield
        over.set()
        thread.join()
        assert codes and not any(codes)

    @pytest.mark.parametrize("number", range(20))
    def test(number): assert 0 == os.getppid()
    """).assert_outcomes(passed=20)


def test_a_thread_that_logs_while_tests_start(run):
    """A thread of a session fixture that logs all the time keeps no test from logging."""
    run(
        """
    import logging, threading
    import pytest

    @pytest.fixture(scope="session", autouse=True)
    def server():
        over = threading.Event()

        def serve():
            while not over.wait(0.0002):
                for _ in range(20):
                    logging.getLogger("server").warning("a request")

        thread = threading.Thread(target=serve)
        thread.start()
        yield
        over.set()
        thread.join()

    @pytest.mark.parametrize("number", range(60))
    def test(number):
        logging.getLogger("test").warning("hello")
    """,
        "--sandbox-timeout=20",
    ).assert_outcomes(passed=60)
