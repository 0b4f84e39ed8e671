"""``pytest-sandbox doctor``: every row, for people and as JSON."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from pytest_sandbox import host
from pytest_sandbox.cli import main

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
        monkeypatch.setattr(host, "capabilities", lambda: rows)
        return main.main(["doctor", *words]), capsys.readouterr().out

    return run


@pytest.mark.vm
def test_the_rows_are_printed_as_json(capsys):
    """--json is a list with one object a row: name, found, why, remedy and more."""
    status = main.main(["doctor", "--json"])
    rows = json.loads(capsys.readouterr().out)
    assert [row.to_json() for row in host.capabilities()] == rows
    assert {"name", "found", "why", "remedy", "needed", "area", "use"} == set(rows[0])
    assert int(any(row["needed"] and not row["found"] for row in rows)) == status


def test_what_is_found_is_one_line(doctor):
    """A row that was found takes one line, below its area."""
    assert (
        0,
        "kernel\n  yes  pidfd  pidfd_open\nContainers can be made here, with every limit.\n",
    ) == doctor((HERE,))


def test_what_is_lacking_has_its_remedy_below(doctor):
    """A row that was not found is followed by what helps, and by what it is for."""
    status, out = doctor((HERE, LACKED))
    assert (0, True) == (
        status,
        "  no   limit: memory  refused\n                      -> Run as root. (for: waiting)\n"
        in out,
    )
    assert out.endswith("Containers can be made here, without limits on memory.\n")


def test_what_is_needed_and_lacking_is_status_1(doctor):
    """A script can ask whether containers can be made here."""
    status, out = doctor((HERE, NEEDED))
    assert (1, True) == (status, out.endswith("No container can be made here: overlay.\n"))
    assert "\n  NO   overlay" in out


def test_json_has_the_same_status(doctor):
    """The status does not depend on the form."""
    assert 1 == doctor((NEEDED,), "--json")[0]
