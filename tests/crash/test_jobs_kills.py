"""Signals to any process of a session with ``--sandbox-jobs`` at any moment: nothing is left, and
the session does not succeed if a test has not run.
"""

from __future__ import annotations

import concurrent.futures
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress

import pytest
from crash import leftovers

pytestmark = pytest.mark.needs("root")

MODULES, EACH = 3, 10
#: Each test has a process besides its own, and shows by a file that it has run to its end.
SUITE = """
import os, subprocess, threading, time
import pytest

@pytest.fixture(scope="module")
def of_module(): yield

@pytest.mark.parametrize("number", range({each}))
def test(number, of_module, tmp_path):
    with subprocess.Popen(["sleep", "60"]) as child:
        (tmp_path / "file").write_text("x" * 10_000)
        time.sleep(0.02 * (number % 4))
        child.kill()
    open(os.path.join(os.environ["DONE"], f"{{__name__}}-{{number}}"), "w").close()
"""
#: The descriptors that are open after the last test, by what they refer to.
CONFTEST = """
import json, os, re

def pytest_sessionfinish(session):
    links = []
    for name in os.listdir("/proc/self/fd"):
        try:
            links.append(re.sub("[0-9]+", "N", os.readlink(f"/proc/self/fd/{name}")))
        except OSError:
            pass
    with open(os.path.join(os.environ["DONE"], "descriptors"), "w") as file:
        json.dump(links, file)
"""
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGSEGV)
KINDS = ("parent", "launcher", "child", "inside")
SCOPES = ("function", "module")
#: Seconds in which a session must have ended: some of its tests may wait for ten.
DEADLINE = 90


def start(suite, done, scope):
    """Start the session, with the directory to which its tests write."""
    done.mkdir()
    options = ["-p", "sandbox", "--sandbox", "--sandbox-jobs=8", f"--sandbox-scope={scope}"]
    options += ["-o", f"sandbox_volumes={done}:{done}", "-p", "no:cacheprovider", "--color=no"]
    environment = {**os.environ, "DONE": str(done), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    for name in ("PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER"):
        environment.pop(name, None)
    return subprocess.Popen(
        [sys.executable, "-m", "pytest", *options, f"--basetemp={done}-temporary"],
        cwd=suite,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def victims(client, kind):
    """Return the PIDs of the processes of one kind that exist now."""
    launcher = leftovers.launcher_of(client)
    if kind == "parent":
        return [client]
    if kind == "launcher":
        return [launcher] if launcher else []
    children = [one for one in leftovers.children_of(client) if one != launcher]
    if kind == "child":
        return children
    return [inner for one in children for inner in leftovers.children_of(one)]


def send(client, kind, number, seconds):
    """Send a signal to a random process of a kind, as soon as there is one; return whether there
    was one.
    """
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = victims(client.pid, kind)
        # The session is a child that was not waited for: its PID is of no other process. One of
        # its descendants is identified by a descriptor before it is looked for again.
        with suppress(OSError):
            pid = random.choice(found or [0])
            if pid and client.poll() is None:
                pidfd = os.pidfd_open(pid)
                try:
                    if pid in victims(client.pid, kind):
                        signal.pidfd_send_signal(pidfd, number)
                        return True
                finally:
                    os.close(pidfd)
        if client.poll() is not None:
            return False
        os.sched_yield()
    return False


def missing(done):
    """Return the names of the tests that have not run to their end."""
    wanted = {f"test_{module}-{number}" for module in range(MODULES) for number in range(EACH)}
    return sorted(wanted - set(os.listdir(done)))


def descriptors(done):
    """Return how many descriptors the session had open after its last test, by their files."""
    with suppress(OSError):
        return Counter(json.loads((done / "descriptors").read_text()))
    return Counter()


def one_round(suite, directory, seed, expected):
    """Run a session and send it a signal; return what was wrong."""
    random.seed(seed)
    kind, number = KINDS[seed % len(KINDS)], random.choice(SIGNALS)
    scope = random.choice(SCOPES)
    done = directory / str(seed)
    with start(suite, done, scope) as client:
        try:
            time.sleep(random.uniform(0.1, 3))  # the moment of the signal is random
            was_sent = send(client, kind, number, 5)
            out = client.communicate(timeout=DEADLINE)[0]
        except subprocess.TimeoutExpired:
            client.kill()
            out = "it did not end\n" + client.communicate()[0]
    wrong = ["it did not end"] if out.startswith("it did not end") else []
    if client.returncode == 0 and (lacking := missing(done)):
        wrong.append(f"status 0, but not run: {lacking}")
    if client.returncode != 0 and not was_sent:
        wrong.append(f"status {client.returncode} without a signal")
    # A KeyboardInterrupt has a traceback wherever it comes.
    if "INTERNALERROR" in out or (number != signal.SIGINT and "Traceback (most recent" in out):
        wrong.append("an internal error")
    if more := descriptors(done) - expected:
        wrong.append(f"descriptors: {dict(more)}")
    wrong += leftovers.of(client.pid)
    what = f"seed {seed}, {number.name} to {kind}, scope {scope}, status {client.returncode}"
    return [f"{what}: {one}\n{out[-3000:]}" for one in wrong]


def kills(directory, seeds, at_once):
    """Run the rounds with these seeds; return what was wrong."""
    suite = directory / "suite"
    suite.mkdir()
    (suite / "conftest.py").write_text(CONFTEST)
    (suite / "pytest.ini").write_text("[pytest]\n")
    for module in range(MODULES):
        (suite / f"test_{module}.py").write_text(SUITE.format(each=EACH))
    with start(suite, directory / "undisturbed", "function") as client:
        out = client.communicate(timeout=DEADLINE)[0]
    assert (0, []) == (client.returncode, missing(directory / "undisturbed")), out
    expected = descriptors(directory / "undisturbed")
    assert expected
    command = [sys.executable, "-c", ROUND]
    with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
        found = pool.map(lambda seed: apart(command, suite, directory, seed, expected), seeds)
        return [one for part in found for one in part]


#: Each round has an interpreter of its own, with its own random numbers.
ROUND = """
import json, sys
from collections import Counter
from pathlib import Path
from crash import test_jobs_kills as kills
suite, directory, seed, expected = json.loads(sys.argv[1])
found = kills.one_round(Path(suite), Path(directory), seed, Counter(expected))
print(json.dumps(found))
"""


def apart(command, suite, directory, seed, expected):
    """Run a round in a process of its own."""
    data = json.dumps([str(suite), str(directory), seed, expected])
    path = os.pathsep.join([os.path.dirname(os.path.dirname(__file__)), *sys.path])
    done = subprocess.run(
        [*command, data],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        timeout=2 * DEADLINE,
    )
    return json.loads(done.stdout)


@pytest.mark.timeout(400)
def test_20_signals(tmp_path):
    """Each kind of process gets a signal at a few random moments."""
    assert [] == kills(tmp_path, range(20), 2)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_more_signals(tmp_path):
    """As above, ``KILLS=300`` times: by default 40 times, because 300 take a quarter of an hour."""
    assert [] == kills(tmp_path, range(1000, 1000 + int(os.environ.get("KILLS", "40"))), 2)
