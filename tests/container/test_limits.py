"""Limits and figures of a container's cgroup."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import pytest
from capabilities import disk_of, has

from pytest_sandbox import Container, Settings, SettingsError
from pytest_sandbox.container.validate import check

pytestmark = [pytest.mark.needs("containers"), pytest.mark.vm]

PRESSURE = ("cpu_pressure_seconds", "memory_pressure_seconds", "io_pressure_seconds")


@pytest.mark.needs("limits", "disk")
def test_device_write_bps_limits_writes():
    """Writing with O_DIRECT to a volume takes the time that device_write_bps allows."""
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
def test_a_device_limit_needs_a_block_device(path):
    """A path that is not a block device is refused before anything starts."""
    with pytest.raises(SettingsError, match=rf"device_read_iops='{path}'.*a block device"):
        check(Settings.of(device_read_iops={path: 10}))


@pytest.mark.needs("cgroup_v2", "limits")
def test_memory_high_is_written_to_the_cgroup():
    """memory_high is set in the container's cgroup, and in no other."""
    with Container(memory_high="32m") as container, Container() as free:
        limits = [
            Path(one.handle.cgroup.directory, "memory.high").read_text()
            for one in (container, free)
        ]
    assert ["33554432\n", "max\n"] == limits


@pytest.mark.needs("cgroup_v2", "limits", "pressure")
def test_memory_high_causes_memory_pressure():
    """Above memory_high, the time that processes wait for memory grows."""
    with Container(memory_high="32m") as container:
        greedy = container.popen([sys.executable, "-S", "-c", "held = b'x' * (96 << 20)"])
        deadline = time.monotonic() + 60
        while not container.stats().memory_pressure_seconds:
            assert time.monotonic() < deadline, "it does not come"
        greedy.kill()
        greedy.wait()


@pytest.mark.needs("limits")
def test_pressure_is_in_stats_only():
    """stats() has the pressure of cgroup version 2, else None; the figures that are read after
    every test leave it out.
    """
    with Container() as container:
        container.run(["true"], check=True)
        full, read = container.stats(), container.handle.figures()
    assert [has("pressure")] * 3 == [getattr(full, name) is not None for name in PRESSURE]
    assert [None] * 3 == [getattr(read, name) for name in PRESSURE]
