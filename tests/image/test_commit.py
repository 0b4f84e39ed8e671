"""A container's writable layer becomes an image: at once, apart from what the container does next,
and as deep as anybody likes.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading

import pytest
from tarballs import entry, files, layer

from pytest_sandbox import Container, Image, ImageError

pytestmark = pytest.mark.needs("root", "busybox")


def kinds(container: Container, below: str = "/") -> dict[str, str]:
    return {
        change.path: change.kind for change in container.diff() if change.path.startswith(below)
    }


@pytest.fixture(params=["host", "image"])
def rootfs(request, busybox) -> object:
    """What the committed container lies on."""
    return "host" if request.param == "host" else busybox(files(below="b"), Env=["A=image"])


@pytest.mark.parametrize("name", [None, "committed:1"])
def test_what_was_written_is_there_in_each_container_from_it(rootfs, name):
    """Files, deletions and modes; each container has its own copy of all that it changes."""
    with Container(image=rootfs) as container:
        container.run(
            ["sh", "-c", "mkdir -m 700 /srv2; echo 1 > /srv2/a; rm /etc/passwd; chmod 711 /etc"],
            check=True,
        )
        image = container.commit(name)
    with Container(image=image) as first, Container(image=image) as second:
        first.write_text("/srv2/a", "changed")
        assert ("changed", "1\n") == (first.read_text("/srv2/a"), second.read_text("/srv2/a"))
        assert not second.exists("/etc/passwd")
        assert "700 711\n" == second.run(
            ["stat", "-c", "%a", "/srv2", "/etc"], capture_output=True, text=True
        ).stdout.replace("\n", " ", 1)
        assert ({"/srv2": "modified", "/srv2/a": "modified"}, {}) == (
            kinds(first, "/srv2"),
            kinds(second),
        )


@pytest.mark.parametrize("name", [None, "committed:1"])
def test_the_container_goes_on_apart_from_the_image(rootfs, name):
    """Neither sees what the other does afterwards; id, name, group and settings of the container
    stay.
    """
    with Container(image=rootfs, memory="200m", env={"B": "2"}) as container:
        container.write_text("/state", "before")
        identity = (container.id, container.hostname)
        image = container.commit(name)
        container.write_text("/state", "after")
        container.run(["sh", "-c", "echo more >> /state; echo $(hostname) $B > /said"], check=True)
        with Container(image=image) as clone:
            assert "before" == clone.read_text("/state")
            clone.write_text("/state", "clone")
        assert "aftermore\n" == container.read_text("/state")
        assert (*identity, f"{container.hostname} 2\n") == (
            container.id,
            container.hostname,
            container.read_text("/said"),
        )
        assert {"/state": "added", "/said": "added"} == kinds(container)
        assert 200 << 20 == container.stats().memory_limit


def test_what_runs_on_keeps_its_files(rootfs):
    """With a process inside, the layer is copied while it is paused; it goes on where it was."""
    with Container(image=rootfs) as container:
        popen = container.popen(
            ["sh", "-c", "exec 3>/log; echo one >&3; echo ready; read line; echo two >&3"],
            stdin=-1,
            stdout=-1,
            text=True,
        )
        assert "ready\n" == popen.stdout.readline()
        image = container.commit()
        popen.communicate("go on\n")
        assert "one\ntwo\n" == container.read_text("/log")
    with Container(image=image) as clone:
        assert "one\n" == clone.read_text("/log")


def test_a_paused_container_is_committed_and_stays_paused(rootfs):
    """As docker commits it."""
    with Container(image=rootfs) as container:
        container.write_text("/state", "x")
        container.pause()
        image = container.commit()
        assert "paused" == container.status
        container.unpause()
        with Container(image=image) as clone:
            assert "x" == clone.read_text("/state")


@pytest.mark.parametrize("name", [None, "deep"])
def test_commits_lie_on_commits(rootfs, name):
    """Each step adds to the one before, and deletes from it."""
    image = rootfs
    for step in range(5):
        with Container(image=image) as container:
            container.write_text(f"/step{step}", str(step))
            if step:
                container.run(["rm", f"/step{step - 1}"], check=True)
            image = container.commit(f"{name}:{step}" if name else None)
    with Container(image=image) as container:
        assert ["step4"] == [one for one in container.listdir("/") if one.startswith("step")]
        assert {} == kinds(container)
    assert 5 == len([step for step in image.history if "commit" in step["created_by"]])


def test_one_container_is_committed_again_and_again(rootfs):
    """Each image is what the container was at that moment."""
    images = []
    with Container(image=rootfs) as container:
        for number in range(4):
            container.write_text("/count", str(number))
            container.write_text(f"/only{number}", "x")
            if number:
                container.run(["rm", f"/only{number - 1}"], check=True)
            images.append(container.commit())
            images.append(container.commit())
        assert {"/count": "added", "/only3": "added"} == kinds(container)
    for number, image in enumerate(images):
        with Container(image=image) as clone:
            assert str(number // 2) == clone.read_text("/count")
            assert [f"only{number // 2}"] == [
                one for one in clone.listdir("/") if one.startswith("only")
            ]


def test_a_name_stores_the_whole_chain(rootfs):
    """Another process starts from it, although the layers below were in memory alone."""
    with Container(image=rootfs) as container:
        container.write_text("/one", "1")
        first = container.commit()
    with Container(image=first) as container:
        container.write_text("/two", "2")
        stored = container.commit("stored:1")
    assert ("stored:1", stored) == (stored.reference, Image.get("stored:1"))
    code = (
        "from pytest_sandbox import Container\nwith Container(image='stored:1') as c: "
        "print(c.read_text('/one') + c.read_text('/two'))"
    )
    assert (
        "12\n"
        == subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True
        ).stdout
    )
    stored.remove()
    assert [] == [image for image in Image.list() if image.id == stored.id]


def test_a_commit_keeps_its_image(busybox):
    """The image below a commit in memory is not removed while a container lies on it."""
    below = busybox(layer(entry("f", b"x")))
    with Container(image=below) as container:
        image = container.commit()
    with Container(image=image) as container:
        with pytest.raises(ImageError, match="in use"):
            below.remove()
        assert "x" == container.read_text("/f")


def test_configuration_survives_a_commit(busybox):
    """Commands in a container from a commit find what the image below says."""
    image = busybox(Env=["A=image"], User="me", WorkingDir="/tmp")
    for name in (None, "named:1"):
        with Container(image=image) as container:
            committed = container.commit(name)
        with Container(image=committed) as container:
            said = container.run(
                ["sh", "-c", "echo $A $(id -u) $PWD"], capture_output=True, text=True
            ).stdout
            assert "image 1000 /tmp\n" == said
        assert image.config == committed.config


def test_a_wrong_name_is_refused_before_anything_is_done():
    """The container goes on."""
    with Container() as container:
        with pytest.raises(ImageError, match="not an image reference"):
            container.commit("Not A Name")
        assert 0 == container.run(["true"]).returncode


def test_memory_of_a_commit_is_freed_when_nobody_refers_to_it():
    """The layer holder drops the layer when the next container starts."""
    with Container() as container:
        container.write_text("/x", "x")
        image = container.commit()
        launcher = container.handle.launcher
    key = image.snapshots[0].key
    del image, container
    gc.collect()
    launcher.snapshots.collect()
    assert [key] == launcher.snapshots.unused
    with Container() as container:
        assert [] == launcher.snapshots.unused
        assert 0 == container.run(["true"]).returncode


def test_a_layer_on_disk_is_committed(rootfs):
    """It is copied into the store, as an image without a name."""
    with Container(image=rootfs, storage="disk") as container:
        container.write_text("/x", "x")
        image = container.commit()
        container.write_text("/x", "y")
    with Container(image=image) as clone:
        assert "x" == clone.read_text("/x")


def test_capabilities_of_files_survive_a_copy(tmp_path):
    """Owner first: a change of it takes them away."""
    from pytest_sandbox.linux.copying import copy_tree

    (tmp_path / "source").mkdir()
    capability = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0"
    (tmp_path / "source/file").write_text("x")
    os.chown(tmp_path / "source/file", 5, 5)
    os.setxattr(tmp_path / "source/file", "security.capability", capability)
    fd = os.open(tmp_path / "source", os.O_RDONLY)
    copy_tree(fd, str(tmp_path / "target"))
    os.close(fd)
    assert capability == os.getxattr(tmp_path / "target/file", "security.capability")


def test_threads_use_a_container_that_is_committed(rootfs):
    """A renewal happens once, whoever comes first."""
    with Container(image=rootfs) as container:
        container.write_text("/x", "x")
        container.commit()
        codes: list[int] = []
        threads = [
            threading.Thread(target=lambda: codes.append(container.run(["true"]).returncode))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [0] * 4 == codes
