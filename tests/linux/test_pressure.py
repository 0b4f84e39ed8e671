"""Pressure stall information of cgroup v2 (accounting/psi.rst)."""

from __future__ import annotations

import pytest

from pytest_sandbox.linux.cgroup.v2 import CgroupV2

SOME = (
    "some avg10=0.00 avg60=0.12 avg300=1.00 total={}\nfull avg10=0.00 avg60=0.00 avg300=0.00 "
    "total=7\n"
)


@pytest.mark.vm
def test_pressure_seconds(tmp_path):
    """Each resource has the total of its "some" line, in seconds."""
    for name, total in (("cpu", 1_500_000), ("memory", 0), ("io", 20)):
        (tmp_path / f"{name}.pressure").write_text(SOME.format(total))
    found = CgroupV2(None, "one", str(tmp_path)).pressure()
    assert {
        "cpu_pressure_seconds": 1.5,
        "memory_pressure_seconds": 0.0,
        "io_pressure_seconds": 0.00002,
    } == found


@pytest.mark.vm
def test_no_pressure_files(tmp_path):
    """Without the kernel's files there are no figures."""
    assert {} == CgroupV2(None, "one", str(tmp_path)).pressure()
