"""The row of the plugin: the time that a container adds to a test, compared with pytest-forked and
with a bare fork.
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
PYTEST_WORKER = str(ROOT / "bench/pytest_worker.py")
HEAPS = (150, 500)  # megabytes


def peer() -> str:
    """Return an interpreter with pytest-forked and the last pytest that it works on.

    Its virtual environment is made on first use.
    """
    interpreter = PEER / "bin/python"
    if not (PEER / "ready").exists():
        subprocess.run([sys.executable, "-m", "venv", PEER], check=True)
        wanted = [f"pytest=={PEER_PYTEST}", "pytest-forked==1.7.5"]
        pip = [str(interpreter), "-m", "pip", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", *wanted], check=True)
        (PEER / "ready").touch()
    return str(interpreter)


def plain_pytest(
    label: str,
    test: str = "empty",
    megabytes: int = 0,
    *arguments: str,
    interpreter: str = sys.executable,
) -> Series:
    """Return a series of a pytest session with a heap, without this project's plugin."""
    argv = (interpreter, PYTEST_WORKER, test, str(megabytes), "-p", "no:randomly", *arguments)
    return Series(label, argv)


def with_plugin(label: str, test: str, megabytes: int, *arguments: str) -> Series:
    """Return a series of a pytest session with this project's plugin."""
    return plain_pytest(label, test, megabytes, "-p", "sandbox", *arguments)


def series() -> list[Series]:
    """Return everything that is measured."""
    forked = peer()
    options = ("-p", "pytest_forked", "--forked")
    return [
        with_plugin("plain", "empty", 0),
        with_plugin("inside", "empty", 0, "--sandbox"),
        plain_pytest("plain, pytest 8.4", interpreter=forked),
        plain_pytest("pytest-forked", "empty", 0, *options, interpreter=forked),
        with_plugin("holds a container and runs true in it", "holds", 0),
        Series("the same by the library alone", python("sandbox")),
        *(with_plugin(f"inside, {size} MB", "empty", size, "--sandbox") for size in HEAPS),
        *(with_plugin(f"os.fork + exit, {size} MB", "fork", size) for size in HEAPS),
    ]


def plugin(bench: Bench) -> Row:
    """Measure all series interleaved, in one run."""
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    samples = interleave(series(), blocks=bench.scale.blocks, size=bench.scale.size)
    title = f"A test through the plugin (pytest-forked 1.7.5 on pytest {PEER_PYTEST})"
    measured = [Figure(label, sample.median, p90=sample.p90) for label, sample in samples.items()]
    return Row("plugin", title, [*measured, *differences(samples)])


def above(samples: dict[str, Sample], label: str, plain: str = "plain") -> float:
    """Return the difference of two medians in milliseconds."""
    return samples[label].median - samples[plain].median


def differences(samples: dict[str, Sample]) -> list[Figure]:
    """Return what a container adds to a test, and how that compares with others."""
    inside = above(samples, "inside")
    forked = above(samples, "pytest-forked", "plain, pytest 8.4")
    return [
        Figure("an empty test inside, above plain", inside, at_most=4.0),
        compared("the same", inside, "pytest-forked above its plain", forked, at_most=0.7),
        *(
            compared(
                f"an empty test inside, {size} MB, above plain",
                above(samples, f"inside, {size} MB"),
                "os.fork + exit",
                samples[f"os.fork + exit, {size} MB"].median,
                at_most=1.25,
            )
            for size in HEAPS
        ),
        compared(
            "a held container and true, above plain",
            above(samples, "holds a container and runs true in it"),
            "the library alone",
            samples["the same by the library alone"].median,
            at_most=1.3,
        ),
    ]


def compared(label: str, cost: float, against: str, other: float, *, at_most: float) -> Figure:
    """Return a time in milliseconds with its ratio to another one."""
    return Figure(label, cost, against=against, ratio=cost / other, at_most=at_most)
