"""A pytest session as a worker of the benchmark: ``python bench/pytest_worker.py TEST MEGABYTES
[ARGUMENTS OF PYTEST]``.

It answers "COUNT GAP_MS BUSY_MS" on stdin with the times of COUNT runs of one test, with all phases
and hooks. It imports nothing of this project, so that another interpreter with another pytest can
run it for a peer.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import TextIO

import pytest

TESTS = {
    "empty": "def test_{}(): pass\n",
    "holds": "def test_{}(container): container.run(['true'])\n",
}


def fill_heap(megabytes: int) -> list[bytes]:
    """Allocate small objects, as a real program does."""
    return [b"%1000d" % number for number in range(megabytes * 1000)]


def fork_and_exit() -> None:
    """Fork a child that exits at once, and wait for it."""
    pid = os.fork()
    if not pid:
        os._exit(0)
    os.waitpid(pid, 0)


class Loop:
    """A plugin that replaces pytest's loop over the tests."""

    def __init__(self, questions: TextIO, answers: int, *, bare_fork: bool) -> None:
        self.questions = questions
        self.answers = answers
        self.bare_fork = bare_fork

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Run the two tests in turn, so that each is torn down before the other."""
        items = session.items
        number = 0
        for line in self.questions:
            count, _gap, _busy = map(int, line.split())
            times = []
            for _ in range(count):
                item, following = items[number % 2], items[(number + 1) % 2]
                number += 1
                start = time.perf_counter()
                if self.bare_fork:
                    fork_and_exit()
                else:
                    item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
                times.append((time.perf_counter() - start) * 1e3)
            os.write(self.answers, json.dumps(times).encode() + b"\n")
        return True


def main() -> int:
    """Run pytest with the loop on two copies of the test."""
    test, megabytes, *arguments = sys.argv[1:]
    questions, answers = os.fdopen(os.dup(0)), os.dup(1)  # pytest captures 0 and 1
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    heap = fill_heap(int(megabytes))
    with tempfile.TemporaryDirectory() as directory:
        os.chdir(directory)
        Path("test_it.py").write_text(
            "".join(TESTS.get(test, TESTS["empty"]).format(name) for name in "ab"), encoding="utf-8"
        )
        status = pytest.main(
            ["-q", "-p", "no:cacheprovider", "--rootdir=.", *arguments],
            plugins=[Loop(questions, answers, bare_fork=test == "fork")],
        )
    del heap
    with suppress(OSError):
        os.close(answers)
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
