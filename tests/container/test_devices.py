"""Device nodes of the host in a container: devices= and gpus=."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from command_line import sandbox

from pytest_sandbox import Container, Settings, SettingsError, UnsupportedError
from pytest_sandbox.container import devices, gpus
from pytest_sandbox.container.validate import check

pytestmark = pytest.mark.needs("containers")

OPENED = "import os; os.close(os.open('{}', os.O_RDWR)); print('opened')"
# -type asks readdir(3), which sees the mount points; test(1) asks stat(2).
LIST = 'find "$0" -exec test -c "{}" ";" -print'
ZERO = os.makedev(1, 5)  # mem(4)


def open_inside(container, path):
    """Open a device for reading and writing; return "opened", or the last line of the error."""
    done = container.run(
        ["python3", "-S", "-c", OPENED.format(path)], capture_output=True, text=True
    )
    return (done.stdout or done.stderr).splitlines()[-1]


@pytest.fixture
def fake_dev(tmp_path, monkeypatch):
    """Return a directory with the device nodes of NVIDIA's driver, which are /dev/zero."""
    dev = tmp_path / "dev"
    (dev / "nvidia-caps").mkdir(parents=True)
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "nvidia-caps/nvidia-cap1"):
        os.mknod(dev / name, stat.S_IFCHR | 0o666, ZERO)
    monkeypatch.setattr(gpus, "_DEV", str(dev))
    return dev


@pytest.fixture
def fake_driver(tmp_path, monkeypatch):
    """Let the loader's cache have a driver's libraries; return their directory."""
    lib = tmp_path / "lib"
    lib.mkdir()
    lines = ["2 libs found in cache `/etc/ld.so.cache'"]
    for name in ("libcuda.so.1", "libnvidia-ml.so.1", "libc.so.6"):
        (lib / f"{name}.550").write_text(f"driver {name}")
        os.symlink(f"{name}.550", lib / name)
        lines.append(f"\t{name} (libc6,x86-64) => {lib}/{name}")
        lines.append(f"\t{name} (libc6) => /lib32/{name}")
    program = tmp_path / "bin/ldconfig"
    program.parent.mkdir()
    text = "\n".join(lines)
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{text}\nEND\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    gpus.found_libraries.cache_clear()
    yield lib
    gpus.found_libraries.cache_clear()


@pytest.mark.needs("root")
@pytest.mark.parametrize("settings", [{}, {"privileged": True}, {"network": "host"}])
def test_a_device_can_be_opened_only_if_it_was_passed(settings):
    """With devices= a node of the host works inside; a node beside it does not exist."""
    with Container(devices=["/dev/loop-control"], **settings) as container:
        assert "opened" == open_inside(container, "/dev/loop-control")
        assert "No such file" in open_inside(container, "/dev/loop0")
    with Container(**settings) as container:
        assert "No such file" in open_inside(container, "/dev/loop-control")


@pytest.mark.needs("root")
def test_a_device_at_another_path(tmp_path):
    """A node gets the path inside that was given; missing directories are created."""
    with Container(devices=["/dev/zero:/srv/new/null:rwm"]) as container:
        assert "opened" == open_inside(container, "/srv/new/null")
        assert b"\0" == container.run(["head", "-c1", "/srv/new/null"], capture_output=True).stdout
        assert [] == [one for one in container.diff() if one.path == "/srv/new/null"]
    assert not os.path.exists("/srv/new")


@pytest.mark.needs("root")
def test_a_directory_of_devices(fake_dev):
    """A directory passes in each node below it, as in docker."""
    (fake_dev / "file").write_text("")
    with Container(devices=[f"{fake_dev}:/dev/gpu"]) as container:
        found = container.run(["sh", "-c", LIST, "/dev/gpu"], capture_output=True, text=True)
        assert not container.exists("/dev/gpu/file")
    names = ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "nvidia-caps/nvidia-cap1")
    assert {f"/dev/gpu/{name}" for name in names} == set(found.stdout.split())


@pytest.mark.needs("root")
def test_a_device_of_the_host_cannot_be_changed():
    """Root inside can use the node, and not change its mode or owner on the host."""
    with Container(devices=["/dev/loop-control"]) as container:
        done = container.run(["chmod", "600", "/dev/loop-control"], capture_output=True, text=True)
    assert "Read-only file system" in done.stderr


@pytest.mark.needs("root", "ip")
@pytest.mark.skipif(not os.path.exists("/dev/net/tun"), reason="needs /dev/net/tun")
def test_a_tunnel_can_be_made():
    """With /dev/net/tun and NET_ADMIN, ip-tuntap(8) works in the container's network."""
    with Container(devices=["/dev/net/tun:/dev/net/tun:rw"], cap_add=["NET_ADMIN"]) as container:
        made = container.run(["ip", "tuntap", "add", "t0", "mode", "tun"], capture_output=True)
        assert (0, b"") == (made.returncode, made.stderr)
        assert 0 == container.run(["ip", "link", "show", "t0"], capture_output=True).returncode
    assert not os.path.exists("/sys/class/net/t0")


@pytest.mark.parametrize("path", ["/dev/null", "/dev"])
def test_a_device_as_a_volume_is_refused(path):
    """The error names the setting that passes devices in."""
    with pytest.raises(SettingsError, match=rf'volumes=.*devices=\["{path}"\]'):
        check(Settings(volumes=[f"{path}:{path}"]))


def test_other_file_systems_below_dev_can_be_volumes():
    """Shared memory of the host can be a volume."""
    check(Settings(volumes=["/dev/shm:/host-shm"]))


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/dev/not-there", "there is nothing at this path"),
        ("/etc/passwd", "volumes= passes other files"),
        ("/etc", "has 0"),
    ],
)
def test_what_is_no_device_is_refused(path, reason):
    """Only device nodes and directories of them can be devices."""
    with pytest.raises(SettingsError, match=f"devices='{path}'.*{reason}"):
        check(Settings(devices=[path]))


def test_a_device_that_the_user_may_not_open_is_refused(monkeypatch):
    """The error names the mode and what allows it."""
    monkeypatch.setattr(os, "access", lambda *_arguments: False)
    with pytest.raises(UnsupportedError, match=r"devices='/dev/null'.*setfacl"):
        devices.nodes(Settings(devices=["/dev/null"]))


@pytest.mark.needs("user")
@pytest.mark.vm
def test_a_user_passes_a_device_that_it_may_open():
    """An unprivileged user's container has the nodes that the user may open."""
    with Container(devices=["/dev/zero:/dev/mine"]) as container:
        done = container.run(["head", "-c1", "/dev/mine"], capture_output=True)
    assert b"\0" == done.stdout
    with pytest.raises(UnsupportedError, match=r"devices='/dev/console'"):
        check(Settings(devices=["/dev/console"]))


@pytest.mark.needs("root")
def test_all_gpus(fake_dev):
    """gpus="all" passes in every GPU and the driver's other nodes."""
    with Container(gpus="all") as container:
        found = container.run(["sh", "-c", LIST, fake_dev], capture_output=True, text=True)
        assert "opened" == open_inside(container, fake_dev / "nvidia1")
    names = ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "nvidia-caps/nvidia-cap1")
    assert {str(fake_dev / name) for name in names} == set(found.stdout.split())


@pytest.mark.needs("root")
def test_some_gpus(fake_dev):
    """gpus="device=1" leaves the other GPUs out."""
    passed = {source for source, _target in devices.nodes(Settings(gpus="device=1"))}
    assert (True, False) == (f"{fake_dev}/nvidia1" in passed, f"{fake_dev}/nvidia0" in passed)


@pytest.mark.needs("root")
@pytest.mark.parametrize("wanted", ["device=7", "device=0,7"])
def test_a_gpu_that_does_not_exist_is_refused(fake_dev, wanted):
    """The error lists what was found."""
    with pytest.raises(UnsupportedError, match=rf"gpus='{wanted}'.*found: .*nvidia0"):
        check(Settings(gpus=wanted))


def test_gpus_without_a_driver_are_refused(tmp_path, monkeypatch):
    """Without the driver's nodes, the error says how to load it."""
    monkeypatch.setattr(gpus, "_DEV", str(tmp_path))
    with pytest.raises(UnsupportedError, match=r"gpus='all'.*nvidia-modprobe"):
        check(Settings(gpus="all"))


@pytest.mark.needs("root")
def test_an_image_gets_the_hosts_libraries(fake_dev, fake_driver, busybox_root):
    """On an image, the loader finds the driver's libraries of the host, and no others."""
    settings = {"gpus": "all", "image": busybox_root, "env": {"A": "b"}}
    with Container(**settings) as container:
        script = "cd $LD_LIBRARY_PATH; cat *; ls"
        done = container.run(["sh", "-c", script], capture_output=True, text=True)
        changed = container.run(["touch", "/usr/local/nvidia/lib64/libcuda.so.1"])
        assert container.exists(str(fake_dev / "nvidia0"))
    expected = "driver libcuda.so.1driver libnvidia-ml.so.1libcuda.so.1\nlibnvidia-ml.so.1\n"
    assert (expected, "", 1) == (done.stdout, done.stderr, changed.returncode)


@pytest.mark.needs("root")
def test_an_images_library_path_is_kept(fake_driver):
    """The image's LD_LIBRARY_PATH follows the driver's directory."""
    env = gpus.add_library_path({"LD_LIBRARY_PATH": "/opt/lib"})
    assert {"LD_LIBRARY_PATH": "/usr/local/nvidia/lib64:/opt/lib"} == env


@pytest.mark.needs("root")
def test_a_driver_without_libraries_is_refused(fake_dev, busybox_root, monkeypatch):
    """Nodes without libraries are no GPU for an image."""
    monkeypatch.setattr(gpus, "found_libraries", dict)
    with pytest.raises(UnsupportedError, match=r"no libcuda\.so"):
        check(Settings(gpus="all", image=busybox_root))


@pytest.mark.needs("root")
def test_docker_flags():
    """Run --device passes a device in, and --gpus names itself in its error."""
    done = sandbox(
        "run", "--device", "/dev/loop-control", "host", "test", "-c", "/dev/loop-control"
    )
    assert (0, "") == (done.returncode, done.stderr)
    refused = sandbox("run", "--device", "/etc/passwd", "host", "true")
    assert (125, True) == (refused.returncode, "--device '/etc/passwd'" in refused.stderr)
    if not Path("/dev/nvidiactl").exists():
        without = sandbox("run", "--gpus", "all", "host", "true")
        assert (125, True) == (without.returncode, "--gpus 'all'" in without.stderr)
