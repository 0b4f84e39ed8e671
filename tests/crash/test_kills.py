"""SIGKILL to any of the processes at any moment leaves nothing: no process at once, no file, group
or mount after a sweep.
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
from crash import remains

pytestmark = pytest.mark.needs("root")


class Zygote:
    """Forks victims that have the library imported already."""

    def __init__(self, directory):
        command = [sys.executable, str(Path(__file__).with_name("driver.py"))]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.directory = directory
        self.count = 0

    def start(self):
        """Start a victim; returns its number, and where it will say how it ended."""
        self.count += 1
        said = self.directory / f"said-{self.process.pid}-{self.count}"
        self._write(f"{said}\n")
        return int(self.process.stdout.readline()), said

    def _write(self, text):
        self.process.stdin.write(text)
        self.process.stdin.flush()

    def end(self, client):
        """Have the victim come to its end; returns its exit status. One that hangs shows where, and
        is killed.
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


def strike(client, whom):
    """Kill one kind of process; where there is none yet, nobody."""
    if whom in {"launcher", "all"} and (launcher := remains.launcher_of(client)):
        kill(launcher)
    if whom in {"init", "all"}:
        for pid in remains.containers_of(client)[:2]:
            kill(pid)
    if whom == "helper":
        launcher, inits = remains.launcher_of(client), remains.containers_of(client)
        for pid in remains.processes(client):
            if pid not in {launcher, client, *inits}:
                kill(pid)
    if whom in {"client", "all"}:
        kill(client)


def one_round(zygote, whom, seed):
    """Let a victim work for a random time, strike, and return what was wrong and what is left."""
    random.seed(seed)
    client, said = zygote.start()
    time.sleep(random.uniform(0, 0.35))  # the moment is what is random here, nothing is waited for
    strike(client, whom)
    status = zygote.end(client)
    wrong = []
    if whom not in {"client", "all"} and (status, "ok 0") != (
        status,
        text := said.read_text() if said.exists() else "nothing",
    ):
        wrong.append(f"the client said {text} and ended with {status}")
    return [(whom, seed, one) for one in wrong + remains.all_gone(client)]


def rounds(directory, number, count):
    zygote = Zygote(directory)
    whom = ("client", "launcher", "init", "all", "helper")
    try:
        return [
            one
            for turn in range(count)
            for one in one_round(zygote, whom[(turn + number) % len(whom)], 1000 * number + turn)
        ]
    finally:
        zygote.close()


def workers(tmp_path, each, count=3):
    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        found = [
            one
            for part in pool.map(lambda number: rounds(tmp_path, number, each), range(count))
            for one in part
        ]
    assert not found, "\n".join(map(str, found))


def test_kills_at_some_moments(tmp_path):
    """Each kind of process is killed a few times."""
    workers(tmp_path, 5)


@pytest.mark.slow
def test_kills_at_300_moments(tmp_path):
    """The same at three hundred random moments."""
    workers(tmp_path, 75, 4)
