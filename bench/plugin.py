"""The row of the plugin: what a test costs inside or holding a container, above the same test
plain, beside the peer and a bare fork.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

from bench.measure import ROOT, Sample, Series, interleave, python
from bench.table_row import Figure, Row

if TYPE_CHECKING:
    from bench.rows import Bench

PEER = ROOT / "build/pytest-forked"
PEER_PYTEST = "8.4.2"
SESSION = str(ROOT / "bench/session.py")


def peer() -> str:
    """Return the interpreter that has pytest-forked, and the last pytest on which it works; made at
    first need.
    """
    interpreter = PEER / "bin/python"
    if not (PEER / "ready").exists():
        subprocess.run([sys.executable, "-m", "venv", PEER], check=True)
        wanted = [f"pytest=={PEER_PYTEST}", "pytest-forked==1.7.5"]
        subprocess.run(
            [
                interpreter,
                "-m",
                "pip",
                "--quiet",
                "--disable-pip-version-check",
                "install",
                *wanted,
            ],
            check=True,
        )
        (PEER / "ready").touch()
    return str(interpreter)


def session(
    label: str,
    test: str = "empty",
    megabytes: int = 0,
    *arguments: str,
    interpreter: str = sys.executable,
) -> Series:
    return Series(
        label, (interpreter, SESSION, test, str(megabytes), "-p", "no:randomly", *arguments)
    )


def ours(label: str, test: str, megabytes: int, *arguments: str) -> Series:
    return session(label, test, megabytes, "-p", "sandbox", *arguments)


def series() -> list[Series]:
    forked = peer()
    return [
        ours("plain", "empty", 0),
        ours("inside", "empty", 0, "--sandbox"),
        session("plain, pytest 8.4", interpreter=forked),
        session("pytest-forked", "empty", 0, "-p", "pytest_forked", "--forked", interpreter=forked),
        ours("holds a container and runs true in it", "holds", 0),
        python_sandbox(),
        *(ours(f"inside, {size} MB", "empty", size, "--sandbox") for size in (150, 500)),
        *(ours(f"os.fork + exit, {size} MB", "fork", size) for size in (150, 500)),
    ]


def python_sandbox() -> Series:
    return Series("the same by the library alone", python("sandbox"))


def above(samples: dict[str, Sample], label: str, plain: str) -> float:
    return samples[label].median - samples[plain].median


def plugin(bench: Bench) -> Row:
    """Measure all series interleaved, in one run."""
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    samples = interleave(series(), blocks=bench.scale.blocks, size=bench.scale.size)
    figures = [Figure(label, sample.median, p90=sample.p90) for label, sample in samples.items()]
    inside = above(samples, "inside", "plain")
    forked = above(samples, "pytest-forked", "plain, pytest 8.4")
    figures.append(Figure("an empty test inside, above plain", inside, at_most=4.0))
    figures.append(
        Figure(
            "the same",
            inside,
            against="pytest-forked above its plain",
            ratio=inside / forked,
            at_most=0.7,
        )
    )
    for size in (150, 500):
        cost, fork = (
            above(samples, f"inside, {size} MB", "plain"),
            samples[f"os.fork + exit, {size} MB"].median,
        )
        figures.append(
            Figure(
                f"an empty test inside, {size} MB, above plain",
                cost,
                against="os.fork + exit",
                ratio=cost / fork,
                at_most=1.25,
            )
        )
    holds, library = (
        above(samples, "holds a container and runs true in it", "plain"),
        samples["the same by the library alone"].median,
    )
    figures.append(
        Figure(
            "a held container and true, above plain",
            holds,
            against="the library alone",
            ratio=holds / library,
            at_most=1.3,
        )
    )
    return Row(
        "plugin",
        f"A test through the plugin (pytest-forked 1.7.5 on pytest {PEER_PYTEST})",
        figures,
    )
