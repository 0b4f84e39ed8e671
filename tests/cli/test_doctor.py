"""``pytest-sandbox doctor``: every row, for people and as JSON."""

from __future__ import annotations

import glob
import json
import subprocess
from dataclasses import replace

import pytest

from pytest_sandbox import doctor as doctors
from pytest_sandbox import host, paths
from pytest_sandbox.cli import main
from pytest_sandbox.client import cleanup

pytestmark = pytest.mark.vm

HERE = host.Capability(
    name="pidfd", area="kernel", use="waiting", needed=True, found=True, why="pidfd_open"
)
LACKED = replace(
    HERE,
    name="limit: memory",
    area="limits",
    needed=False,
    found=False,
    why="refused",
    remedy="Run as root.",
)
NEEDED = replace(LACKED, name="overlay", area="files", needed=True)


@pytest.fixture
def doctor(monkeypatch, capsys):
    """Runs the verb over given rows; returns its status and what it printed."""

    def run(rows: tuple[host.Capability, ...], *words: str) -> tuple[int, str]:
        monkeypatch.setattr(doctors, "examine", lambda: rows)
        return main.main(["doctor", *words]), capsys.readouterr().out

    return run


def test_the_rows_are_printed_as_json(capsys):
    """--json is a list with one object a row: name, found, why, remedy and more."""
    status = main.main(["doctor", "--json"])
    rows = json.loads(capsys.readouterr().out)
    assert {"name", "found", "why", "remedy", "needed", "area", "use"} == set(rows[0])
    assert len(rows) == len({row["name"] for row in rows})
    assert int(any(row["needed"] and not row["found"] for row in rows)) == status
    assert {"test body", "call", "run"} == {row["name"] for row in rows if row["needed"]}


def test_nothing_is_left(monkeypatch):
    """Sessions, images and directories are gone when the report is there."""
    started = []

    class Recorded(subprocess.Popen):
        def __init__(self, *args, **keywords):
            super().__init__(*args, **keywords)
            started.append(self.pid)

    monkeypatch.setattr(doctors.subprocess, "Popen", Recorded)
    doctors.examine()
    assert 1 == len(started)
    assert [] == [name for name in cleanup.sessions() if name.startswith(f"{started[0]:x}-")]
    assert [] == glob.glob(f"{paths.images()}/doctor-*")


def test_a_doctor_that_dies_says_so(monkeypatch):
    """A report that ends early has a row that says why, and is no report of a working host."""
    monkeypatch.setattr(doctors, "_START", "import sys; sys.exit('out of cheese')  # {path}")
    rows = doctors.examine()
    assert [("examination", True, False, "out of cheese")] == [
        (row.name, row.needed, row.found, row.why) for row in rows if row.area != "packages"
    ]


def test_a_doctor_that_hangs_is_killed(monkeypatch):
    """A container that never ends does not keep the report for ever."""
    monkeypatch.setattr(doctors, "_START", "import time; time.sleep(600)  # {path}")
    monkeypatch.setattr(doctors, "_TIMEOUT", 0.2)
    assert "not complete after" in doctors.examine()[0].why


def test_what_is_found_is_one_line(doctor):
    """A row that was found takes one line, below its area."""
    assert (
        0,
        "kernel\n  yes  pidfd  pidfd_open\nContainers can be used here, with every limit.\n",
    ) == doctor((HERE,))


def test_what_is_lacking_has_its_remedy_below(doctor):
    """A row that was not found is followed by what helps, and by what it is for."""
    status, out = doctor((HERE, LACKED))
    assert (0, True) == (
        status,
        "  no   limit: memory  refused\n                      -> Run as root. (for: waiting)\n"
        in out,
    )
    assert out.endswith("Containers can be used here, without limits on memory.\n")


def test_what_is_needed_and_lacking_is_status_1(doctor):
    """A script can ask whether containers can be made here."""
    status, out = doctor((HERE, NEEDED))
    assert (1, True) == (status, out.endswith("Containers cannot be used here: overlay.\n"))
    assert "\n  NO   overlay" in out


def test_json_has_the_same_status(doctor):
    """The status does not depend on the form."""
    assert 1 == doctor((NEEDED,), "--json")[0]
