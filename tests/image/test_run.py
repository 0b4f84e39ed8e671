"""Containers on images, whose configuration has the same effect as in docker."""

from __future__ import annotations

import os

import pytest
from tarballs import directory, entry, files, layer, link

from pytest_sandbox import Container, Image, ImageError
from pytest_sandbox.image.prune import prune
from pytest_sandbox.image.store import UnknownImage

pytestmark = pytest.mark.needs("containers", "busybox")


def output_of(container: Container, *args: str, **keywords: object) -> str:
    return container.run(
        args, capture_output=True, text=True, check=True, **keywords
    ).stdout.strip()


@pytest.mark.vm
def test_an_image_is_given_by_name_id_or_object(busybox):
    """The container's root is that of the image, which it does not modify."""
    image = busybox(files(greeting="hello"))
    for given in (image, "busybox:1", image.id):
        with Container(image=given) as container:
            assert "hello" == output_of(container, "cat", "/greeting")
            container.write_text("/greeting", "changed")
            assert ["/greeting"] == [change.path for change in container.diff()]
            assert not container.exists("/usr/share")


@pytest.mark.parametrize("count", [20, 60, 300])
def test_an_image_may_have_any_number_of_layers(busybox, count):
    """The topmost layer has precedence, deletions apply, and the lowest layer is visible."""
    image = busybox(
        *(
            layer(entry("top", str(n).encode()), entry(f"f{n}"), entry(f".wh.f{n - 1}"))
            for n in range(count)
        )
    )
    with Container(image=image) as container:
        assert str(count - 1) == output_of(container, "cat", "/top")
        assert [f"f{count - 1}"] == [
            name for name in container.listdir("/") if name.startswith("f")
        ]
        assert [("added", "/new")] == [(change.kind, change.path) for change in made_in(container)]


def made_in(container: Container) -> list:
    container.write_text("/new", "x")
    return container.diff()


def test_env_of_the_image_is_between_the_defaults_and_the_settings(busybox):
    """Env replaces the defaults of PATH, HOSTNAME and HOME, and settings replace both.

    Variables of the host are not passed.
    """
    image = busybox(Env=["A=image", "B=image", "EMPTY="])
    with Container(image=image, env={"B": "settings"}) as container:
        found = dict(line.partition("=")[::2] for line in output_of(container, "env").splitlines())
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
    ("config", "status"),
    [
        ({}, 15),
        ({"StopSignal": "SIGINT"}, 2),
        ({"StopSignal": "10"}, 10),
        ({"StopSignal": "RTMIN+3"}, 37),
    ],
)
def test_stop_sends_the_stop_signal_of_the_image(busybox, config, status):
    """Commands can handle it and exit, and the container keeps running."""
    image = busybox(**config)
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
        assert "again" == output_of(container, "echo", "again")
        shell.stdout.close()


def test_stop_kills_processes_that_ignore_the_signal(busybox):
    """After the timeout, all processes are killed, also those in the background."""
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


def test_an_unknown_stop_signal_is_an_error(busybox):
    """stop() raises an ImageError with its name."""
    with (
        Container(image=busybox(StopSignal="SIGNONE")) as container,
        pytest.raises(ImageError, match="SIGNONE"),
    ):
        container.stop()


def test_programs_are_found_in_the_path_of_the_image(busybox):
    """Commands are looked up in the image's PATH, not in that of the host."""
    image = busybox(
        layer(directory("opt"), entry("opt/own", b"#!/bin/sh\necho mine\n", mode=0o755)),
        Env=["PATH=/opt:/bin"],
    )
    with Container(image=image) as container:
        assert "mine" == output_of(container, "own")


@pytest.mark.parametrize(
    ("user", "expected"),
    [("me", "1000:1001:1001 44"), ("1000", "1000:1001:1001 44"), ("7:8", "7:8:8"), ("", "0:0:0")],
)
@pytest.mark.vm
def test_user_of_the_image_runs_commands(busybox, user, expected):
    """It is a name or a UID, with the groups in the image's files. user= replaces it."""
    with Container(image=busybox(User=user)) as container:
        assert expected == output_of(container, "sh", "-c", "echo $(id -u):$(id -g):$(id -G)")
        assert "5" == output_of(container, "id", "-u", user="5")


def test_home_is_that_of_the_user_of_the_image(busybox):
    """It is read from the image's /etc/passwd."""
    with Container(image=busybox(User="me")) as container:
        assert "/home/me" == output_of(container, "sh", "-c", "echo $HOME")


@pytest.mark.vm
def test_commands_start_in_the_workdir_of_the_image(busybox):
    """It is created if it does not exist, as in docker; the setting replaces it."""
    image = busybox(layer(directory("here")), WorkingDir="/here")
    with Container(image=image) as container:
        assert ("/here", []) == (output_of(container, "pwd"), container.diff())
        assert "/here/x" == output_of(container, "sh", "-c", "echo 1 > x; ls $PWD/x")
    with Container(image=busybox(WorkingDir="/not/there")) as container:
        assert "/not/there" == output_of(container, "pwd")
    with Container(image=image, workdir="/tmp") as container:
        assert "/tmp" == output_of(container, "pwd")


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
def test_the_command_of_an_image_is_that_of_docker(busybox, config, arguments, expected):
    """It begins with the entry point; arguments replace the image's command."""
    assert expected == busybox(**config).command(arguments)


def test_an_image_in_use_is_not_removed(busybox, store):
    """remove() raises an ImageError; after the container is closed, the image and its layers are
    removed.
    """
    image = busybox(files(greeting="hello"))
    with Container(image=image) as container:
        with pytest.raises(ImageError, match="in use by a container"):
            image.remove()
        assert ([], 0) == prune(store, every=True)
        assert "hello" == output_of(container, "cat", "/greeting")
    image.remove()
    assert [] == os.listdir(store.path("layers"))
    with pytest.raises(ImageError, match="pytest-sandbox pull busybox:1"):
        Container(image="busybox:1").start()


def test_a_removed_image_is_an_error(busybox):
    """Starting a container on its object raises UnknownImage."""
    image = busybox()
    image.remove()
    with pytest.raises(UnknownImage, match="It was removed"):
        Container(image=image).start()


def test_devices_of_an_image_cannot_be_opened(busybox):
    """Opening a device file of a layer fails."""
    image = busybox(
        layer(
            directory("dev2"), entry("dev2/kmsg", kind="char", devmajor=1, devminor=11, mode=0o666)
        )
    )
    with Container(image=image) as container:
        assert 0 != container.run(["cat", "/dev2/kmsg"], capture_output=True).returncode


def test_images_are_listed_newest_first(busybox):
    """The order is that of docker."""
    busybox(name="a:1")
    busybox(files(x="1"), name="b:1")
    assert ["b:1", "a:1"] == [image.reference for image in Image.list()]


def test_volumes_of_the_image_stay_writable_on_a_read_only_root(busybox):
    """They have the image's files, as in docker. On a writable root they are part of the writable
    layer, so that a commit includes them.
    """
    own = layer(directory("data", uid=1000, mode=0o700), entry("data/there", b"1", uid=1000))
    image = busybox(own, Volumes={"/data": {}, "/new/one": {}, "/": {}}, User="me")
    with Container(image=image, read_only=True) as container:
        assert "1" == output_of(container, "cat", "/data/there")
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
        assert "2" == output_of(container, "cat", "/data/there")


def test_a_link_in_the_path_of_a_volume_is_an_error(busybox, tmp_path):
    """It could lead to a directory of the host while the container is created."""
    image = busybox(layer(link("data", str(tmp_path))), Volumes={"/data/inner": {}})
    with pytest.raises(ImageError, match="a link at /data"):
        Container(image=image, read_only=True).start()
    assert not (tmp_path / "inner").exists()


def test_a_link_in_the_path_of_a_shared_directory_is_an_error(busybox, tmp_path):
    """The same applies to Python's directories, for test bodies in an image."""
    image = busybox(layer(link("opt", str(tmp_path))))
    container = Container(image=image)
    container.handle.directories = ("/opt/python",)
    with pytest.raises(ImageError, match="a link at /opt"):
        container.start()
    assert [] == [name for name in os.listdir(tmp_path) if name == "python"]
