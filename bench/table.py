"""The results as markdown and as JSON, with the machine that they were measured on."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from bench.measure import ROOT

if TYPE_CHECKING:
    from bench.table_row import Figure, Row


def commit() -> str:
    """Return the commit of this checkout, or "unknown"."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or "unknown"


def machine() -> dict[str, str]:
    """Return what a reader has to know about this machine."""
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "commit": commit(),
        "kernel": platform.release(),
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} CPUs",
        "python": platform.python_version(),
        "cgroup": "v2" if Path("/sys/fs/cgroup/cgroup.controllers").exists() else "v1",
        "user": "root" if os.geteuid() == 0 else "unprivileged",
    }


def verdict(figure: Figure) -> str:
    """Return the limit and whether it was kept. It applies to the ratio, or, without one, to the
    value.
    """
    if figure.at_most is None:
        return ""
    found = figure.value if figure.ratio is None else figure.ratio
    return f"{figure.at_most:g}, {'kept' if found <= figure.at_most else 'missed'}"


def line(figure: Figure) -> str:
    """Return a line of the table."""
    value = f"{figure.value:.2f} {figure.unit}"
    p90 = "" if figure.p90 is None else f"{figure.p90:.2f}"
    ratio = "" if figure.ratio is None else f"{figure.ratio:.2f}"
    paired = "" if figure.paired is None else f"{figure.paired:.2f}"
    return (
        f"| {figure.label} | {value} | {p90} | {ratio} | {paired} | {figure.against} | "
        f"{verdict(figure)} |"
    )


def markdown(row: Row) -> str:
    """Return a row as a section with a table."""
    head = ["| | median | p90 | ratio | paired | to | at most |", "|---|---|---|---|---|---|---|"]
    notes = [f"\n{note}" for note in row.notes]
    return "\n".join([f"### {row.title}", "", *head, *map(line, row.figures), *notes, ""])


def heading(facts: dict[str, str]) -> str:
    """Return the facts of the machine as one line."""
    return ", ".join(f"{key} {value}" for key, value in facts.items()) + ".\n"


def as_json(rows: list[Row], facts: dict[str, str]) -> str:
    """Return all rows as one document."""
    return json.dumps({"on": facts, "rows": [asdict(row) for row in rows]}, indent=2)
