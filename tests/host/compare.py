"""What the doctor says, and what happens: run on a simulated host, it prints both as JSON."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

PLUGIN = "pytest_sandbox.plugin"
SUITE = Path(__file__).with_name("starts_suite.py")


class Collector:
    """Notes for each test whether it passed, and the text of its failure."""

    def __init__(self) -> None:
        self.failures: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = report.nodeid.partition("[")[2].removesuffix("]")
        self.failures.setdefault(name, "")
        if not report.passed:
            self.failures[name] = report.longreprtext


def main() -> None:
    sys.dont_write_bytecode = True
    os.environ |= {"PYTHONDONTWRITEBYTECODE": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    doctor = program("doctor", "--json")
    run = program("run", "host", sys.executable, "-I", "-S", "-c", "print('ran')")
    collector, out = Collector(), io.StringIO()
    arguments = [
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        PLUGIN,
        "--rootdir=/",
        "-c/dev/null",
        "--sandbox",
    ]
    with redirect_stdout(out), redirect_stderr(out):
        pytest.main([*arguments, str(SUITE)], plugins=[collector])
    sys.stdout.write(f"\n{json.dumps([doctor, run, collector.failures, out.getvalue()])}\n")


def program(*arguments: str) -> list[str]:
    command = [sys.executable, "-m", "pytest_sandbox", *arguments]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, cwd="/"
    )
    return [done.stdout, done.stderr]


if __name__ == "__main__":
    main()
