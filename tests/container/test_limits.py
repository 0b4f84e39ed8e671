"""Limits and figures of a container whose mechanism is tried in tests/linux: that they reach its
group.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import pytest
from capabilities import disk_of, has

from pytest_sandbox import Container, Settings, SettingsError

pytestmark = [pytest.mark.needs("containers"), pytest.mark.vm]

PRESSURE = ("cpu_pressure_seconds", "memory_pressure_seconds", "io_pressure_seconds")


@pytest.mark.needs("limits", "disk")
def test_a_volume_is_written_no_faster_than_its_disk_may_be():
    """Writing past the page cache takes the time that device_write_bps gives it."""
    with (
        tempfile.TemporaryDirectory(dir="/var/tmp") as directory,
        Container(
            device_write_bps=[f"{disk_of('/var/tmp')}:128k"], volumes=[f"{directory}:/data"]
        ) as container,
    ):
        write = ["dd", "if=/dev/zero", "of=/data/file", "bs=8k", "count=16", "oflag=direct"]
        started = time.monotonic()
        container.run(write, check=True, capture_output=True)
        assert time.monotonic() - started > 0.3


@pytest.mark.parametrize("path", ["/etc/passwd", "/dev/null", "/dev/not-there"])
def test_what_is_no_disk_is_a_wrong_setting(path):
    """A path that is no block device is refused before anything starts."""
    with pytest.raises(SettingsError, match=rf"device_read_iops='{path}'.*a block device"):
        Container.check(Settings.of(device_read_iops={path: 10}))


@pytest.mark.needs("cgroup_v2", "limits")
def test_the_soft_limit_reaches_the_group():
    """memory_high is in force while the container lives, and no limit on another."""
    with Container(memory_high="32m") as container, Container() as free:
        limits = [
            Path(one.cgroup.directory, "memory.high").read_text() for one in (container, free)
        ]
    assert ["33554432\n", "max\n"] == limits


@pytest.mark.needs("cgroup_v2", "limits", "pressure")
def test_what_is_slowed_down_is_under_pressure():
    """Over memory_high the time that processes stand still for memory grows."""
    with Container(memory_high="32m") as container:
        greedy = container.popen([sys.executable, "-S", "-c", "held = b'x' * (96 << 20)"])
        deadline = time.monotonic() + 60
        while not container.stats().memory_pressure_seconds:
            assert time.monotonic() < deadline, "it does not come"
        greedy.kill()
        greedy.wait()


@pytest.mark.needs("limits")
def test_pressure_is_told_where_the_kernel_counts_it():
    """stats() has the pressure of version 2, and None elsewhere; what is read after every test
    leaves it out.
    """
    with Container() as container:
        container.run(["true"], check=True)
        told, read = container.stats(), container.figures()
    assert [has("pressure")] * 3 == [getattr(told, name) is not None for name in PRESSURE]
    assert [None] * 3 == [getattr(read, name) for name in PRESSURE]
