"""A suite that starts each container of ``pytest-sandbox doctor`` as a user's suite does; run on
simulated hosts by test_hosts.py. The ids of the tests are the names of the doctor's rows.
"""

from __future__ import annotations

import io
import os
import stat
import sys
import tarfile
import tempfile
from typing import Any

import pytest

from pytest_sandbox import Container, Image, Network

CPU = str(min(os.sched_getaffinity(0)))
SETTINGS: dict[str, dict[str, Any]] = {
    "test body": {},
    "limit: memory": {"memory": "64m"},
    "limit: cpus": {"cpus": 0.5},
    "limit: cpuset": {"cpuset": CPU},
    "limit: pids_limit": {"pids_limit": 100},
    "limit: memory_swap": {"memory": "64m", "memory_swap": "64m"},
    "limit: memory_high": {"memory_high": "64m"},
    "disk": {"disk": "16m"},
    'storage="disk"': {"storage": "disk"},
    'disk with storage="disk"': {"storage": "disk", "disk": "16m"},
    "shm_size": {"shm_size": "16m"},
    "read_only": {"read_only": True},
    'network="none"': {"network": "none"},
    'network="host"': {"network": "host"},
    "hostname": {"hostname": "doctor"},
    "user": {"user": "65534"},
    "cap_add": {"cap_add": ["NET_ADMIN"]},
    "cap_drop": {"cap_drop": ["ALL"]},
    "ulimits": {"ulimits": {"nofile": 64}},
    "seccomp=unconfined": {"security_opt": ["seccomp=unconfined"]},
    "privileged": {"privileged": True},
}


@pytest.mark.parametrize(
    "_name",
    [
        pytest.param(name, id=name, marks=pytest.mark.container(**settings))
        for name, settings in SETTINGS.items()
    ],
)
def test_body(_name):
    """The test itself runs in the container."""
    assert os.path.isdir("/")


def call(**settings: Any) -> None:
    with Container(**settings) as container:
        assert container.call(os.path.isdir, "/")


def run() -> None:
    with Container() as container:
        container.run([sys.executable, "-I", "-S", "-c", ""], check=True)


def on_a_network() -> None:
    with Network() as network:
        call(network=network)


def with_a_volume() -> None:
    with tempfile.TemporaryDirectory() as directory:
        call(volumes=[f"{directory}:/pytest-sandbox-volume"])


def with_a_rate() -> None:
    with os.scandir("/dev") as entries:
        disks = [
            one.path for one in entries if stat.S_ISBLK(one.stat(follow_symlinks=False).st_mode)
        ]
    whole = [path for path in disks if not path.startswith(("/dev/loop", "/dev/ram", "/dev/zram"))]
    if not whole:
        pytest.fail("a rate is not supported here: there is no disk in /dev")
    call(device_read_bps={min(whole, key=lambda path: (len(path), path)): "1g"})


def on_a_directory() -> None:
    with tempfile.TemporaryDirectory() as directory:
        for name in ("bin", "etc", "usr"):
            os.mkdir(f"{directory}/{name}")
        call(image=directory)


def on_an_image(*names: str) -> None:
    """Load a root file system with these files, and remove the image afterwards."""
    with tempfile.TemporaryDirectory() as directory:
        path = f"{directory}/root.tar"
        with tarfile.open(path, "w") as archive:
            for name in ("bin", "etc", "usr"):
                member = tarfile.TarInfo(name)
                member.type, member.mode = tarfile.DIRTYPE, 0o755
                archive.addfile(member)
            for name in names:
                archive.addfile(tarfile.TarInfo(name), io.BytesIO())
        image = Image.load(path, name=f"starts-suite-{os.getpid()}")
    try:
        call(image=image)
    finally:
        image.remove()


@pytest.mark.no_sandbox
@pytest.mark.parametrize(
    "start",
    [
        pytest.param(start, id=name)
        for name, start in {
            "call": call,
            "run": run,
            "bridge": on_a_network,
            "volumes": with_a_volume,
            "limit: device rates": with_a_rate,
            "image directory": on_a_directory,
            "image store": on_an_image,
        }.items()
    ],
)
def test_api(start):
    """The test is outside, and holds the container."""
    start()
