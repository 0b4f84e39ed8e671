"""Containers start from images, and what an image's configuration says holds as it does under
docker.
"""

from __future__ import annotations

import os

import pytest
from tarballs import directory, entry, files, layer, link

from pytest_sandbox import Container, Image, ImageError
from pytest_sandbox.image.prune import prune
from pytest_sandbox.image.store import UnknownImage

pytestmark = pytest.mark.needs("containers", "busybox")


def said(container: Container, *args: str, **keywords: object) -> str:
    return container.run(
        args, capture_output=True, text=True, check=True, **keywords
    ).stdout.strip()


@pytest.mark.vm
def test_a_container_starts_from_an_image_by_name_id_or_object(busybox):
    """Its root is the image's, and what it writes is gone with it."""
    image = busybox(files(greeting="hello"))
    for given in (image, "busybox:1", image.id):
        with Container(image=given) as container:
            assert "hello" == said(container, "cat", "/greeting")
            container.write_text("/greeting", "changed")
            assert ["/greeting"] == [change.path for change in container.diff()]
            assert not container.exists("/usr/share")


@pytest.mark.parametrize("count", [20, 60, 300])
def test_a_container_starts_from_any_number_of_layers(busybox, count):
    """The topmost layer wins, deletions hold, and the lowest layer is still there."""
    image = busybox(
        *(
            layer(entry("top", str(n).encode()), entry(f"f{n}"), entry(f".wh.f{n - 1}"))
            for n in range(count)
        )
    )
    with Container(image=image) as container:
        assert str(count - 1) == said(container, "cat", "/top")
        assert [f"f{count - 1}"] == [
            name for name in container.listdir("/") if name.startswith("f")
        ]
        assert [("added", "/new")] == [(change.kind, change.path) for change in made_in(container)]


def made_in(container: Container) -> list:
    container.write_text("/new", "x")
    return container.diff()


def test_env_of_the_image_lies_between_dockers_and_the_settings(busybox):
    """PATH, HOSTNAME and HOME are docker's unless the image has them; settings win; nothing of the
    host comes in.
    """
    image = busybox(Env=["A=image", "B=image", "EMPTY="])
    with Container(image=image, env={"B": "settings"}) as container:
        found = dict(line.partition("=")[::2] for line in said(container, "env").splitlines())
        expected = {
            "A": "image",
            "B": "settings",
            "EMPTY": "",
            "HOME": "/root",
            "HOSTNAME": container.hostname,
        }
        assert (
            expected | {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
            == found
        )


@pytest.mark.parametrize(
    ("said_by_image", "status"),
    [
        ({}, 15),
        ({"StopSignal": "SIGINT"}, 2),
        ({"StopSignal": "10"}, 10),
        ({"StopSignal": "RTMIN+3"}, 37),
    ],
)
def test_stop_asks_by_the_images_signal(busybox, said_by_image, status):
    """Each command ends in its own way, what it wrote last is there, and the container goes on."""
    image = busybox(**said_by_image)
    script = "".join(
        f"trap 'echo {number} > /end; exit {number}' {number};" for number in (2, 10, 15, 37)
    )
    with Container(image=image) as container:
        shell = container.popen(
            ["sh", "-c", f"{script} echo ready; while :; do sleep 0.01; done"], stdout=-1, text=True
        )
        assert "ready\n" == shell.stdout.readline()
        container.stop()
        assert (status, f"{status}\n") == (shell.returncode, container.read_text("/end"))
        assert "again" == said(container, "echo", "again")
        shell.stdout.close()


def test_stop_kills_what_does_not_listen(busybox):
    """After the timeout everything is killed, what a command left behind too."""
    with Container(image=busybox()) as container:
        shell = container.popen(
            ["sh", "-c", "trap '' TERM; sleep 1000 & echo ready; while :; do sleep 1; done"],
            stdout=-1,
            text=True,
        )
        assert "ready\n" == shell.stdout.readline()
        container.stop(timeout=0.1)
        assert -9 == shell.returncode
        shell.stdout.read()  # ends when nobody holds the pipe any more
        shell.stdout.close()


def test_a_stop_signal_that_does_not_exist(busybox):
    """It is named when it is needed."""
    with (
        Container(image=busybox(StopSignal="SIGNONE")) as container,
        pytest.raises(ImageError, match="SIGNONE"),
    ):
        container.stop()


def test_path_of_the_image_finds_its_programs(busybox):
    """A program is looked up where the image says, not where the host does."""
    image = busybox(
        layer(directory("opt"), entry("opt/own", b"#!/bin/sh\necho mine\n", mode=0o755)),
        Env=["PATH=/opt:/bin"],
    )
    with Container(image=image) as container:
        assert "mine" == said(container, "own")


@pytest.mark.parametrize(
    ("user", "expected"),
    [("me", "1000:1001:1001 44"), ("1000", "1000:1001:1001 44"), ("7:8", "7:8:8"), ("", "0:0:0")],
)
@pytest.mark.vm
def test_user_of_the_image_runs_commands(busybox, user, expected):
    """By name or number, with the groups that the image's own files give; a command's own user
    wins.
    """
    with Container(image=busybox(User=user)) as container:
        assert expected == said(container, "sh", "-c", "echo $(id -u):$(id -g):$(id -G)")
        assert "5" == said(container, "id", "-u", user="5")


def test_home_follows_the_user_of_the_image(busybox):
    """A user's HOME is what the image's /etc/passwd says."""
    with Container(image=busybox(User="me")) as container:
        assert "/home/me" == said(container, "sh", "-c", "echo $HOME")


@pytest.mark.vm
def test_workdir_of_the_image_is_where_commands_start(busybox):
    """It is made where the image has not got it, as docker does; the setting wins."""
    image = busybox(layer(directory("here")), WorkingDir="/here")
    with Container(image=image) as container:
        assert ("/here", []) == (said(container, "pwd"), container.diff())
        assert "/here/x" == said(container, "sh", "-c", "echo 1 > x; ls $PWD/x")
    with Container(image=busybox(WorkingDir="/not/there")) as container:
        assert "/not/there" == said(container, "pwd")
    with Container(image=image, workdir="/tmp") as container:
        assert "/tmp" == said(container, "pwd")


@pytest.mark.parametrize(
    ("config", "arguments", "expected"),
    [
        ({"Cmd": ["sh", "-c", "x"]}, (), ("sh", "-c", "x")),
        ({"Cmd": ["sh"]}, ("ls", "-l"), ("ls", "-l")),
        ({"Entrypoint": ["/bin/echo"], "Cmd": ["a"]}, (), ("/bin/echo", "a")),
        ({"Entrypoint": ["/bin/echo"], "Cmd": ["a"]}, ("b",), ("/bin/echo", "b")),
        ({"Entrypoint": ["/bin/echo"]}, (), ("/bin/echo",)),
        ({}, (), ()),
    ],
)
def test_the_command_of_an_image_is_dockers(busybox, config, arguments, expected):
    """The entry point comes first; arguments take the place of the image's own command."""
    assert expected == busybox(**config).command(arguments)


def test_an_image_in_use_is_not_removed(busybox, store):
    """As docker refuses it; after the container's end it goes, with its layers."""
    image = busybox(files(greeting="hello"))
    with Container(image=image) as container:
        with pytest.raises(ImageError, match="in use by a container"):
            image.remove()
        assert ([], 0) == prune(store, every=True)
        assert "hello" == said(container, "cat", "/greeting")
    image.remove()
    assert [] == os.listdir(store.path("layers"))
    with pytest.raises(ImageError, match="pytest-sandbox pull busybox:1"):
        Container(image="busybox:1").start()


def test_a_removed_image_starts_no_container(busybox):
    """An object that outlived its image says so."""
    image = busybox()
    image.remove()
    with pytest.raises(UnknownImage, match="It was removed"):
        Container(image=image).start()


def test_devices_of_an_image_are_inert(busybox):
    """A device node that a layer brings opens nothing."""
    image = busybox(
        layer(
            directory("dev2"), entry("dev2/kmsg", kind="char", devmajor=1, devminor=11, mode=0o666)
        )
    )
    with Container(image=image) as container:
        assert 0 != container.run(["cat", "/dev2/kmsg"], capture_output=True).returncode


def test_images_are_listed_newest_first(busybox):
    """As docker lists them."""
    busybox(name="a:1")
    busybox(files(x="1"), name="b:1")
    assert ["b:1", "a:1"] == [image.reference for image in Image.list()]


def test_volumes_of_the_image_stay_writable_on_a_read_only_root(busybox):
    """With what the image has there, as docker fills them; on a writable root they are part of it,
    so that a commit holds them.
    """
    own = layer(directory("data", uid=1000, mode=0o700), entry("data/there", b"1", uid=1000))
    image = busybox(own, Volumes={"/data": {}, "/new/one": {}, "/": {}}, User="me")
    with Container(image=image, read_only=True) as container:
        assert "1" == said(container, "cat", "/data/there")
        assert (
            0
            == container.run(["sh", "-c", "echo 2 > /data/there && echo 3 > /data/more"]).returncode
        )
        assert 0 == container.run(["touch", "/new/one/x"], user="0").returncode
        assert 0 != container.run(["touch", "/tmp/x"], capture_output=True).returncode
        assert {"/data/more", "/data/there", "/new/one/x"} <= {
            change.path for change in container.diff()
        }
    with Container(image=image) as container:
        container.run(["sh", "-c", "echo 2 > /data/there"], check=True)
        committed = container.commit()
    with Container(image=committed) as container:
        assert "2" == said(container, "cat", "/data/there")


def test_a_link_on_the_way_to_a_volume_is_refused(busybox, tmp_path):
    """It would lead to the host while the container is built."""
    image = busybox(layer(link("data", str(tmp_path))), Volumes={"/data/inner": {}})
    with pytest.raises(ImageError, match="a link at /data"):
        Container(image=image, read_only=True).start()
    assert not (tmp_path / "inner").exists()


def test_directories_of_the_host_are_not_laid_through_a_link(busybox, tmp_path):
    """The same for Python's own directories, when a body runs in an image."""
    image = busybox(layer(link("opt", str(tmp_path))))
    container = Container(image=image)
    container.handle.directories = ("/opt/python",)
    with pytest.raises(ImageError, match="a link at /opt"):
        container.start()
    assert [] == [name for name in os.listdir(tmp_path) if name == "python"]
