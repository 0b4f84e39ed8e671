"""SIGKILL of any of our processes at any moment leaves no process, and after a cleanup no file,
cgroup or mount.
"""

from __future__ import annotations

import concurrent.futures
import os
import random
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from command_line import output_of, sandbox
from crash import leftovers

pytestmark = pytest.mark.needs("root")


class Zygote:
    """A process that has imported the library, and forks the clients that are killed."""

    def __init__(self, directory, *arguments):
        command = [sys.executable, str(Path(__file__).with_name("driver.py")), *arguments]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.directory = directory
        self.count = 0

    def start(self):
        """Start a client; return its PID, and the path of the file for its result."""
        self.count += 1
        result = self.directory / f"result-{self.process.pid}-{self.count}"
        self._write(f"{result}\n")
        return int(self.process.stdout.readline()), result

    def _write(self, text):
        self.process.stdin.write(text)
        self.process.stdin.flush()

    def end(self, client):
        """Have the client end; return its exit status. One that hangs dumps its stacks, and is
        killed.
        """
        self._write("\n")
        if not select.select([self.process.stdout], [], [], 60)[0]:
            os.kill(client, signal.SIGUSR1)
            select.select([self.process.stdout], [], [], 2)
            kill(client)
        return int(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.wait(30)
        self.process.stdout.close()


def kill(pid):
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def kill_processes(client, kind):
    """Kill the processes of one kind that exist now."""
    if kind in {"launcher", "all"} and (launcher := leftovers.launcher_of(client)):
        kill(launcher)
    if kind in {"init", "all"}:
        for pid in leftovers.containers_of(client)[:2]:
            kill(pid)
    if kind == "helper":
        launcher, inits = leftovers.launcher_of(client), leftovers.containers_of(client)
        for pid in leftovers.processes(client):
            if pid not in {launcher, client, *inits}:
                kill(pid)
    if kind in {"client", "all"}:
        kill(client)


def one_round(zygote, kind, seed):
    """Let a client work for a random time, kill a process; return what went wrong and is left."""
    random.seed(seed)
    client, result = zygote.start()
    time.sleep(random.uniform(0, 0.35))  # nothing is awaited: the moment of the kill is random
    kill_processes(client, kind)
    status = zygote.end(client)
    wrong = []
    if kind not in {"client", "all"} and (status, "ok 0") != (
        status,
        text := result.read_text() if result.exists() else "nothing",
    ):
        wrong.append(f"the client reported {text} and ended with {status}")
    return [(kind, seed, one) for one in wrong + leftovers.of(client)]


def rounds(directory, number, count, arguments):
    zygote = Zygote(directory, *arguments)
    kinds = ("client", "launcher", "init", "all", "helper")
    try:
        return [
            one
            for turn in range(count)
            for one in one_round(zygote, kinds[(turn + number) % len(kinds)], 1000 * number + turn)
        ]
    finally:
        zygote.close()


def workers(tmp_path, each, count=3, arguments=()):
    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        found = [
            one
            for part in pool.map(
                lambda number: rounds(tmp_path, number, each, arguments), range(count)
            )
            for one in part
        ]
    assert not found, "\n".join(map(str, found))


def test_kills_at_some_moments(tmp_path):
    """Each kind of process is killed at a few random moments."""
    workers(tmp_path, 5)


@pytest.mark.slow
def test_kills_at_300_moments(tmp_path):
    """Each kind of process is killed at sixty random moments."""
    workers(tmp_path, 75, 4)


@pytest.mark.needs("bridge")
def test_kills_with_services_at_some_moments(tmp_path):
    """As above, while services, their relays, a network and a forwarder of connections run."""
    workers(tmp_path, 4, 2, ["services"])


@pytest.mark.slow
@pytest.mark.needs("bridge")
@pytest.mark.timeout(1500)
def test_kills_with_services_at_more_moments(tmp_path):
    """As above, ``KILLS=200`` times: by default 30 times, because 200 take eight minutes."""
    workers(tmp_path, int(os.environ.get("KILLS", "30")) // 2, 2, ["services"])


def supervised_round(seed):
    """Kill a process of a detached container; return what is left of it."""
    random.seed(seed)
    flags = ["-d", "-p", "8000", "--network", random.choice(["none", "example.org:443"])]
    name = output_of("run", *flags, "host", "sh", "-c", "sleep 1000 & exec sleep 1000").strip()
    supervisor = int(name.partition("-")[0], 16)
    assert leftovers.processes(supervisor)
    time.sleep(random.uniform(0, 0.1))
    kind = random.choice(["client", "launcher", "helper", "all"])
    kill_processes(supervisor, kind)
    sandbox("rm", "-f", name)  # it lives on without a helper, and an end with a status is kept
    return [(kind, seed, one) for one in leftovers.of(supervisor)]


@pytest.mark.parametrize("count", [4, pytest.param(15, marks=pytest.mark.slow)])
def test_kills_of_a_supervisor(tmp_path, monkeypatch, count):
    """A detached container that publishes a port leaves nothing, whatever is killed."""
    monkeypatch.setenv("PYTEST_SANDBOX_HOME", str(tmp_path / "home"))
    found = [one for seed in range(count) for one in supervised_round(seed)]
    assert not found, "\n".join(map(str, found))
    sandbox("ps", "-a")  # the next session removes what a killed one has kept
    assert [] == os.listdir(tmp_path / "home" / "kept")
