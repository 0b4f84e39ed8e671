"""Processes that use the store at the same time, and processes that are killed."""

from __future__ import annotations

import os
import random
import select
import signal
import subprocess
import sys

import pytest
from registries import push, registry
from stores import is_clean, large_image

from pytest_sandbox import Image
from pytest_sandbox.image.prune import collect, prune

LOADING = (
    "import sys; from pytest_sandbox import Image; print('go', flush=True); "
    "Image.load(sys.argv[1], name='killed:1'); print('done', flush=True)"
)
PULLING = (
    "import sys; from pytest_sandbox import Image; print('go', flush=True); "
    "Image.pull(sys.argv[1]); print('done', flush=True)"
)


def killed_after(code: str, argument: object, seconds: float) -> None:
    """Start a process that modifies the store, and kill it after so many seconds, unless it has
    exited.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(argument)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout
    assert "go\n" == process.stdout.readline()
    pidfd = os.pidfd_open(process.pid)
    select.select([pidfd], [], [], seconds)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    os.close(pidfd)


@pytest.mark.parametrize("how", ["load", "pull"])
@pytest.mark.needs("docker-registry")
def test_a_process_may_be_killed_at_any_time(tmp_path, store, how):
    """Images in the index are complete, unfinished files are removed by the next use, and the next
    attempt succeeds.
    """
    made = large_image()
    with registry(tmp_path / "registry") as server:
        push(server.host, "killed:1", made)
        code, argument = (
            (PULLING, f"{server.host}/killed:1")
            if how == "pull"
            else (LOADING, made.write(tmp_path / "layout"))
        )
        for round_ in range(12):
            killed_after(code, argument, random.uniform(0, 0.5))
            for image in Image.list():
                assert all(os.path.isdir(one) for one in image.lower_directories())
            if round_ % 4 == 3:
                collect(store)
                assert is_clean(store)
                prune(store, every=True)
        image = Image.pull(argument) if how == "pull" else Image.load(argument)
        assert [2 << 20, 1, 700 * 700] == sorted(
            image.layer_sizes(), key=lambda size: (size != 2 << 20, size)
        )
        collect(store)
        assert is_clean(store)


def test_processes_may_load_the_same_image_at_the_same_time(tmp_path, store):
    """They wait for each other, and the image is stored once."""
    where = large_image().write(tmp_path / "layout")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", LOADING, str(where)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    message = [process.communicate() for process in processes]
    assert [("go\ndone\n", "")] * 4 == message
    assert ["killed:1"] == [image.reference for image in Image.list()]
    collect(store)
    assert is_clean(store)


def test_removing_and_loading_may_run_at_the_same_time(tmp_path, store):
    """A loaded image is complete, whatever other processes remove."""
    where = large_image().write(tmp_path / "layout")
    code = (
        "import sys, os\n"
        "from pytest_sandbox import Image\n"
        "from pytest_sandbox.image.prune import collect\n"
        "from pytest_sandbox.image.store import Store\n"
        "for n in range(8):\n"
        "    image = Image.load(sys.argv[1], name=f'{sys.argv[2]}:1')\n"
        "    assert all(os.path.isdir(one) for one in image.lower_directories()), n\n"
        "    image.remove()\n"
        "    collect(Store())\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(where), name], stderr=subprocess.PIPE, text=True
        )
        for name in ("a", "b", "c")
    ]
    assert [(None, "")] * 3 == [process.communicate() for process in processes]
    collect(store)
    assert is_clean(store)
    assert [] == Image.list()
