"""/etc/hosts, /etc/hostname and /etc/resolv.conf: docker's on an image, the host's with the
container's own name on its root.
"""

from __future__ import annotations

import os
import socket

import pytest

from pytest_sandbox import Container
from pytest_sandbox.runtime.etc_files import LOCALHOST

pytestmark = [pytest.mark.needs("containers")]


def files(container):
    return [container.read_text(f"/etc/{name}") for name in ("hosts", "hostname", "resolv.conf")]


def read(path):
    with open(path) as file:
        return file.read()


# Without root, and on a kernel before Linux 6.6, the layer is on disk, and is made before its
# taker's name is known.
NAMED = pytest.param({"hostname": "my.host"}, marks=pytest.mark.needs("root"), id="hostname")


@pytest.mark.parametrize("settings", [pytest.param({}, id="id"), NAMED])
def test_an_image_has_dockers_files(busybox_root, settings):
    """Localhost and the container's own name are in hosts(5), and no name server is named that
    cannot be reached.
    """
    for name in ("hosts", "hostname", "resolv.conf"):
        (busybox_root / f"etc/{name}").write_text("the image's")
    with Container(image=busybox_root, **settings) as c:
        hosts, hostname, resolv = files(c)
        assert (f"{LOCALHOST.decode()}127.0.1.1\t{c.hostname}\n", f"{c.hostname}\n", "#") == (
            hosts,
            hostname,
            resolv[0],
        )
        assert [] == c.diff()
    assert "the image's" == (busybox_root / "etc/hosts").read_text()


def test_an_image_on_the_hosts_network_has_its_name_servers(busybox_root):
    """With network="host" what the host resolves is resolved inside."""
    with Container(image=busybox_root, network="host") as c:
        hosts, _hostname, resolv = files(c)
    assert (True, read("/etc/resolv.conf")) == (hosts.startswith(read("/etc/hosts")), resolv)


def test_an_image_without_etc_gets_one(tmp_path):
    """What an image lacks is made, and is no change of the test's."""
    (tmp_path / "opt").mkdir()
    with Container(image=tmp_path) as c:
        assert (["hostname", "hosts", "resolv.conf"], []) == (sorted(c.listdir("/etc")), c.diff())


def test_an_image_whose_etc_is_a_link_keeps_it(tmp_path):
    """No link of an image is followed to make them."""
    (tmp_path / "etc").symlink_to("/elsewhere")
    with Container(image=tmp_path) as c:
        assert ["dev", "etc", "proc", "sys"] == sorted(c.listdir("/"))


@pytest.mark.parametrize(
    "settings",
    [{}, NAMED, {"storage": "disk"}, {"storage": "disk", "hostname": "my.host"}],
    ids=str,
)
def test_the_hosts_root_has_the_containers_own_name(settings):
    """Its host name is in /etc/hostname, where the host has one, and leads to the container itself;
    the rest is the host's.
    """
    with Container(**settings) as c:
        hosts, *_ = files(c) if os.path.exists("/etc/hostname") else [c.read_text("/etc/hosts")]
        assert f"{read('/etc/hosts')}127.0.1.1\t{c.hostname}\n" == hosts
        assert not os.path.exists("/etc/hostname") or f"{c.hostname}\n" == c.read_text(
            "/etc/hostname"
        )
        assert "127.0.1.1" == c.call(socket.gethostbyname, c.hostname)
        assert [] == c.diff()


def test_the_generated_files_are_the_tests_to_change(busybox_root):
    """They can be written, renamed and removed as any file."""
    with Container(image=busybox_root) as c:
        c.run(
            [
                "sh",
                "-ec",
                "echo 10.0.0.1 db >> /etc/hosts; mv /etc/hostname /etc/name; rm /etc/resolv.conf",
            ],
            check=True,
        )
        assert ("10.0.0.1 db", [False, True, False]) == (
            c.read_text("/etc/hosts").split("\n")[-2],
            [c.exists(f"/etc/{name}") for name in ("hostname", "name", "resolv.conf")],
        )
