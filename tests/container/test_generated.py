"""/etc/hosts, /etc/hostname and /etc/resolv.conf in containers."""

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


# Without root, before Linux 6.6, the layer is on disk, and is created before the host name of its
# container is known.
NAMED = pytest.param({"hostname": "my.host"}, marks=pytest.mark.needs("root"), id="hostname")


@pytest.mark.parametrize("settings", [pytest.param({}, id="id"), NAMED])
def test_an_image_has_hosts_hostname_and_resolv_conf(busybox_root, settings):
    """hosts(5) has localhost and the container's name, and no name server is listed that cannot be
    reached.
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
    """With network="host", a name that the host resolves is resolved inside."""
    with Container(image=busybox_root, network="host") as c:
        hosts, _hostname, resolv = files(c)
    assert (True, read("/etc/resolv.conf")) == (hosts.startswith(read("/etc/hosts")), resolv)


def test_an_image_without_etc_gets_the_files(tmp_path):
    """A missing /etc is created, and is not listed as a change."""
    (tmp_path / "opt").mkdir()
    with Container(image=tmp_path) as c:
        assert (["hostname", "hosts", "resolv.conf"], []) == (sorted(c.listdir("/etc")), c.diff())


def test_a_link_at_etc_is_not_followed(tmp_path):
    """The files are not created through a symbolic link of the image."""
    (tmp_path / "etc").symlink_to("/elsewhere")
    with Container(image=tmp_path) as c:
        assert ["dev", "etc", "proc", "sys"] == sorted(c.listdir("/"))


@pytest.mark.parametrize(
    "settings",
    [{}, NAMED, {"storage": "disk"}, {"storage": "disk", "hostname": "my.host"}],
    ids=str,
)
def test_the_hosts_root_has_the_containers_host_name(settings):
    """/etc/hostname has the container's host name, which resolves to the container; the other
    entries are the host's.
    """
    with Container(**settings) as c:
        hosts, *_ = files(c) if os.path.exists("/etc/hostname") else [c.read_text("/etc/hosts")]
        assert f"{read('/etc/hosts')}127.0.1.1\t{c.hostname}\n" == hosts
        assert not os.path.exists("/etc/hostname") or f"{c.hostname}\n" == c.read_text(
            "/etc/hostname"
        )
        assert "127.0.1.1" == c.call(socket.gethostbyname, c.hostname)
        assert [] == c.diff()


def test_the_generated_files_can_be_changed(busybox_root):
    """The files can be written, renamed and removed."""
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
