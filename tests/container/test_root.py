"""The root file system of a container, its mounts and volumes."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE

import pytest
from boxes import make_busybox_root

from pytest_sandbox import Change, Container, SetupError

pytestmark = pytest.mark.needs("containers")


def out(container, *args, **keywords):
    return container.run(args, stdout=PIPE, text=True, check=True, **keywords).stdout


def sh(container, script):
    return container.run(
        ["/bin/sh", "-c", script], stdout=PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.vm
@pytest.mark.parametrize("directory", ["/etc", "/usr/share", "/var", "/tmp", "/", "/root"])
@pytest.mark.needs("root")
def test_writes_stay_inside(directory):
    """A file in any directory is seen inside, and neither on the host nor in the next container."""
    name = os.path.join(directory, f"written-inside-{os.getpid()}")
    with Container() as c:
        c.run(["touch", name], check=True)
        assert (True, False) == (c.exists(name), os.path.exists(name))
    with Container() as c:
        assert not c.exists(name)


@pytest.mark.needs("root")
def test_the_hosts_files_are_copy_on_write(tmp_path):
    """Content, mode and owner are the host's; deleting and changing files does not affect
    the host.
    """
    file = tmp_path / "file"
    file.write_text("the host's")
    os.chown(file, 12, 34)
    file.chmod(0o4751)
    with Container() as c:
        assert ["4751", "12", "34"] == out(c, "stat", "-c", "%a %u %g", file).split()
        c.write_text(file, "the container's")
        c.run(["chmod", "600", tmp_path], check=True)
        assert "the container's" == c.read_text(file)
        c.run(["rm", "-rf", tmp_path, "/usr/share/doc"], check=True)
        assert not c.exists(tmp_path)
    assert ("the host's", 0o4751) == (file.read_text(), stat.S_IMODE(file.stat().st_mode))
    assert os.path.isdir("/usr/share/doc")


@pytest.mark.needs("root")
@pytest.mark.slow
def test_rm_rf_of_the_root_does_not_affect_the_host(tmp_path):
    """After proof that it runs inside, rm -rf of everything removes the container's files only."""
    with Container() as c:
        assert c.hostname == out(c, "uname", "-n").strip() != os.uname().nodename
        assert "overlay" == out(c, "stat", "-f", "-c", "%T", "/").strip().replace(
            "overlayfs", "overlay"
        )
        c.run(
            ["rm", "-rf", "--one-file-system", "/usr", "/etc", "/home", "/var", "/opt", tmp_path],
            stderr=subprocess.DEVNULL,
        )
        with pytest.raises(OSError, match="No such file"):
            c.run(["/usr/bin/id"])
    assert [True] * 4 == [
        os.path.exists(path) for path in ("/usr/bin/id", "/etc/passwd", "/var", tmp_path)
    ]


@pytest.mark.vm
def test_top_directories_have_the_hosts_modes(box):
    """The top directories are the host's, with their modes; /tmp has its sticky bit."""
    assert sorted(os.listdir("/")) == box.listdir("/")

    def modes():
        shown = set(os.listdir("/")) - {"proc", "sys"}
        return {name: oct(os.lstat(f"/{name}").st_mode) for name in shown}

    assert modes() == box.call(modes)


@pytest.mark.vm
def test_dev_has_the_usual_nodes_only(box):
    """/dev has the usual nodes and directories, and none of the host's devices."""
    names = [
        "fd",
        "full",
        "mqueue",
        "null",
        "ptmx",
        "pts",
        "random",
        "shm",
        "stderr",
        "stdin",
        "stdout",
        "tty",
        "urandom",
        "zero",
    ]
    assert names == box.listdir("/dev")
    assert ["3", "16"] == sh(
        box, "head -c 3 /dev/zero | wc -c; head -c 16 /dev/urandom | wc -c; echo lost > /dev/null"
    ).stdout.split()
    assert "No space left" in sh(box, "dd if=/dev/zero of=/dev/full bs=1 count=1").stdout
    assert ["ptmx"] == box.listdir("/dev/pts")
    assert [] == box.listdir("/dev/shm")


def test_dev_pts_is_not_shared(box):
    """A pseudo-terminal that is opened inside is number 0 of the container."""
    assert "/dev/pts/0" == box.call(lambda: os.ttyname(os.openpty()[1]))


def test_dev_is_writable_like_dockers(box):
    """Files and links can be created in /dev, as in docker, and are discarded."""
    assert (
        ""
        == sh(
            box, "ln -s /tmp /dev/link && mkdir /dev/directory && rm -r /dev/directory /dev/link"
        ).stdout
    )


def test_proc_shows_the_containers_pid_namespace(box):
    """/proc/self is the process by its PID inside; /proc/1 is init."""
    mine = box.call(lambda: (str(os.getpid()), os.readlink("/proc/self")))
    assert mine[0] == mine[1]


def test_the_mount_table_has_no_old_root(box):
    """The mount table starts with the root and has each mount point once, without the old root."""
    lines = box.call(Path("/proc/self/mountinfo").read_text).splitlines()
    points = [line.split()[4] for line in lines]
    assert ("/", len(points)) == (points[0], len(set(points)))


READ_ONLY_ATTACKS = (
    "touch /x; touch /usr/x; touch /tmp/x; mkdir /var/x; echo > /etc/passwd; "
    "chmod 777 /etc; ln -s a /root/l; rm -f /etc/hostname"
)


@pytest.mark.needs("root")
def test_read_only_refuses_writes():
    """With read_only=True, writes fail with EROFS everywhere but in /dev/shm, as in docker."""
    with Container(read_only=True) as c:
        said = sh(c, READ_ONLY_ATTACKS).stdout.splitlines()
        assert [True] * 8 == ["Read-only file system" in line for line in said]
        assert 0 == sh(c, "touch /dev/shm/x").returncode
        assert [] == c.diff()
    with Container() as c:
        assert "" == sh(c, READ_ONLY_ATTACKS).stdout


def test_read_only_with_a_writable_volume(tmp_path):
    """A volume is writable on a read-only root, also if its target has to be created."""
    with Container(read_only=True, volumes=[f"{tmp_path}:/made/out"]) as c:
        c.write_text("/made/out/x", "kept")
        assert 1 == sh(c, "touch /made/x").returncode
    assert "kept" == (tmp_path / "x").read_text()


@pytest.mark.vm
def test_a_volume_is_shared_with_the_host(tmp_path):
    """Writes to a volume are seen on both sides at once."""
    (tmp_path / "from-host").write_text("hello")
    with Container(volumes=[f"{tmp_path}:/data"]) as c:
        assert "hello" == c.read_text("/data/from-host")
        c.write_text("/data/from-inside", "kept")
        assert "kept" == (tmp_path / "from-inside").read_text()
        (tmp_path / "later").write_text("seen")
        assert "seen" == c.read_text("/data/later")


@pytest.mark.needs("root")
def test_a_read_only_volume(tmp_path):
    """A volume with ``:ro`` refuses writes, for root too, also below a nested mount."""
    with Container(volumes=[f"{tmp_path}:/data:ro"]) as c:
        assert "Read-only file system" in sh(c, "touch /data/x").stdout
        assert "ermission" in sh(c, "mount -o remount,rw,bind /data").stdout
    assert [] == os.listdir(tmp_path)


@pytest.mark.vm
def test_a_file_as_volume(tmp_path):
    """A volume may be a single file, at a path that exists or not."""
    (tmp_path / "file").write_text("one\n")
    with Container(
        volumes=[f"{tmp_path}/file:/etc/hostname", f"{tmp_path}/file:/new/place:ro"]
    ) as c:
        sh(c, "echo two >> /etc/hostname")
        assert "one\ntwo\n" == c.read_text("/new/place")
    assert "one\ntwo\n" == (tmp_path / "file").read_text()


def test_nested_volumes(tmp_path):
    """Of nested volumes, the inner one is mounted on the outer one, in either order."""
    (tmp_path / "outer/inner").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    volumes = [f"{tmp_path}/other:/data/inner", f"{tmp_path}/outer:/data"]
    for order in (volumes, volumes[::-1]):
        with Container(volumes=order) as c:
            c.write_text("/data/inner/x", "")
            c.write_text("/data/y", "")
        assert (["x"], ["inner", "y"]) == (
            os.listdir(tmp_path / "other"),
            sorted(os.listdir(tmp_path / "outer")),
        )


def test_a_volume_covers_a_path_of_the_root(tmp_path):
    """A volume covers the files of the root at its target."""
    (tmp_path / "x").touch()
    with Container(volumes=[f"{tmp_path}:/usr/share"]) as c:
        assert ["x"] == c.listdir("/usr/share")


def test_a_volumes_source_may_be_relative_or_a_link(tmp_path, monkeypatch):
    """``./out`` is relative to the caller's directory, and a link is followed on the host."""
    (tmp_path / "out").mkdir()
    (tmp_path / "link").symlink_to("out")
    monkeypatch.chdir(tmp_path)
    with Container(volumes=["./out:/one", "./link:/two"], workdir="/") as c:
        c.write_text("/one/x", "same")
        assert "same" == c.read_text("/two/x")


def test_a_volumes_target_with_links_is_resolved_inside(tmp_path, busybox_root):
    """A link of the root on the way to the target is resolved inside."""
    root = make_busybox_root(tmp_path / "root")
    (root / "data").symlink_to("/somewhere")
    (root / "somewhere").mkdir()
    (root / "escape").symlink_to("/../../../../etc")
    (tmp_path / "volume").mkdir()
    with Container(
        image=root, volumes=[f"{tmp_path}/volume:/data", f"{tmp_path}/volume:/escape"]
    ) as c:
        c.write_text("/somewhere/x", "")
        assert ["x"] == c.listdir("/etc") == os.listdir(tmp_path / "volume")
    assert not os.path.exists("/etc/x")


def mountinfo(container):
    done = container.run(["cat", "/proc/self/mountinfo"], capture_output=True, text=True)
    return done.stdout.splitlines()


def test_volumes_are_nodev_and_nosuid(tmp_path):
    """Device nodes and set-user-ID programs of a volume have no effect."""
    with Container(volumes=[f"{tmp_path}:/data"]) as c:
        flags = next(line.split()[5] for line in mountinfo(c) if line.split()[4] == "/data")
    assert {"nodev", "nosuid"} <= set(flags.split(","))


@pytest.mark.vm
def test_a_directory_as_the_root(busybox_root):
    """With image=PATH, the files of the directory are the root, /proc, /sys and /dev are added, and
    the directory does not change.
    """
    before = sorted(os.listdir(busybox_root))
    with Container(image=busybox_root) as c:
        assert sorted([*before, "dev", "proc", "sys"]) == c.listdir("/")
        assert "uid=0(root) gid=0(root)" in out(c, "id")
        assert f"{c.id}\n" == out(c, "hostname")
        c.run(["sh", "-c", "echo x > /new; rm /etc/group; echo y >> /etc/passwd"], check=True)
        assert [
            Change("/etc", "modified"),
            Change("/etc/group", "deleted"),
            Change("/etc/passwd", "modified"),
            Change("/new", "added"),
        ] == c.diff()
        assert "/" == out(c, "pwd").strip()
    assert before == sorted(os.listdir(busybox_root))
    assert (busybox_root / "etc/group").exists()


def test_users_are_looked_up_in_the_containers_files(busybox_root):
    """A user name is looked up in the container's /etc/passwd and /etc/group, with home and groups;
    a number needs neither.
    """
    with Container(image=busybox_root, user="ann") as c:
        assert "1234 2345 2345 777 /home/ann\n" == out(
            c, "sh", "-c", "echo $(id -u) $(id -g) $(id -G) $HOME"
        )
        assert "1234 777\n" == out(c, "sh", "-c", "echo $(id -u) $(id -g)", user="ann:staff")
        assert "99 0\n" == out(c, "sh", "-c", "echo $(id -u) $(id -g)", user="99")
        assert "99 98\n" == out(c, "sh", "-c", "echo $(id -u) $(id -g)", user="99:98")
        assert "1234\n" == out(c, "id", "-u", user=1234)


def test_an_images_commands_do_not_inherit_the_callers_environment(busybox_root, monkeypatch):
    """On another root, commands do not inherit the caller's environment."""
    monkeypatch.setenv("SECRET_OF_THE_HOST", "1")
    with Container(image=busybox_root, env={"A": "1"}) as c:
        names = {line.split("=")[0] for line in out(c, "env").splitlines()}
    assert {"A", "PATH"} <= names
    assert "SECRET_OF_THE_HOST" not in names


def test_a_call_on_another_root(busybox_root):
    """The function of ``call`` has that root too."""
    with Container(image=busybox_root) as c:
        found = c.call(Path("/etc/passwd").read_text)
        assert (busybox_root / "etc/passwd").read_text() == found


def test_a_root_whose_proc_is_no_directory_is_refused(tmp_path):
    """A root with a link at /proc, where the library mounts, is refused with step and path."""
    root = make_busybox_root(tmp_path / "root")
    (root / "proc").symlink_to("/etc")
    with pytest.raises(SetupError, match=r"mount root.*/proc"):
        Container(image=root).start()


def test_paths_with_unusual_characters(tmp_path):
    """Roots, volumes and working directories may have blanks, commas, colons, backslashes and
    non-ASCII characters in their paths.
    """
    root = make_busybox_root(tmp_path / "a b,c:d\\e ü" / "root")
    source = tmp_path / "x y,z ü"
    source.mkdir()
    with Container(image=root, volumes=[f"{source}:/o ü"]) as c:
        c.write_text("/o ü/f", "kept")
        c.write_text("/etc/x", "gone")
    assert ("kept", False) == ((source / "f").read_text(), (root / "etc/x").exists())


# -- mounts below the root, in a new mount namespace

MOUNTS = """
import json, os, subprocess, sys
from pytest_sandbox import Container
base = sys.argv[1]
def mount(*words): subprocess.run(["mount", *words], check=True)
for name in ("data", "data/inner", "ro", "over"): os.makedirs(f"{base}/{name}", exist_ok=True)
mount("-t", "tmpfs", "tmpfs", f"{base}/data")
os.makedirs(f"{base}/data/inner")
mount("-t", "tmpfs", "-o", "nosuid,noexec,mode=711", "tmpfs", f"{base}/data/inner")
mount("-t", "tmpfs", "tmpfs", f"{base}/ro")
open(f"{base}/ro/seen", "w").write("seen")
mount("-o", "remount,ro,bind", f"{base}/ro")
open(f"{base}/file", "w").write("host\\n")
open(f"{base}/target", "w").write("covered\\n")
mount("--bind", f"{base}/file", f"{base}/target")
for path in ("data/a", "data/inner/b", "over/c"): open(f"{base}/{path}", "w").write("host")
mount("-t", "tmpfs", "tmpfs", f"{base}/over")
open(f"{base}/over/top", "w").write("host")
"""


def in_own_mounts(tmp_path, code):
    """Run code in a process with a mount namespace in which more file systems are mounted below
    tmp_path; return its JSON.
    """
    command = [
        "unshare",
        "--mount",
        "--propagation",
        "private",
        sys.executable,
        "-c",
        MOUNTS + code,
        str(tmp_path),
    ]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert "" == done.stderr
    return json.loads(done.stdout)


@pytest.mark.needs("unshare")
@pytest.mark.needs("root")
def test_file_systems_below_the_root_are_copy_on_write_too(tmp_path):
    """Mounted file systems and files, nested ones too, can be read and written and do not change;
    read-only ones stay read-only.
    """
    found = in_own_mounts(
        tmp_path,
        """
with Container() as c:
    read = ("data/a", "data/inner/b", "ro/seen", "target", "over/top")
    seen = {p: c.read_text(f"{base}/{p}") for p in read}
    written = ("data/a", "data/inner/b", "data/new", "data/inner/new", "over/top")
    for p in written: c.write_text(f"{base}/{p}", "inside")
    refused = []
    for p in ("ro/x", "target"):
        try: c.write_text(f"{base}/{p}", "x")
        except OSError as e: refused.append(e.errno)
    def out(*args): return c.run(args, capture_output=True, text=True).stdout.strip()
    mounts = map(str.split, out("cat", "/proc/self/mountinfo").splitlines())
    flags = next(fields[5] for fields in mounts if fields[4] == f"{base}/data/inner")
    mode = out("stat", "-c", "%a", f"{base}/data/inner")
    diff = [str(change) for change in c.diff() if change.path.startswith(base)]
host = {p: open(f"{base}/{p}").read() for p in seen}
print(json.dumps([seen, refused, flags, mode, diff, host, sorted(os.listdir(f"{base}/data"))]))
""",
    )
    seen, refused, flags, mode, diff, host, listed = found
    assert (
        {
            "data/a": "host",
            "data/inner/b": "host",
            "ro/seen": "seen",
            "target": "host\n",
            "over/top": "host",
        }
        == seen
        == host
    )
    assert [30] == refused
    assert {"nosuid", "noexec", "nodev"} <= set(flags.split(","))
    assert ("711", ["a", "inner"]) == (mode, listed)
    base = str(tmp_path)
    wanted = [
        "A data/inner/new",
        "A data/new",
        "C data",
        "C data/a",
        "C data/inner",
        "C data/inner/b",
        "C over",
        "C over/top",
        "C target",
    ]
    assert wanted == sorted(line.replace(f"{base}/", "") for line in diff if line != f"C {base}")


@pytest.mark.needs("unshare")
@pytest.mark.needs("root")
def test_read_only_applies_to_file_systems_below_the_root(tmp_path):
    """read_only=True applies to all of them."""
    found = in_own_mounts(
        tmp_path,
        """
refused = []
with Container(read_only=True) as c:
    for p in ("data/a", "data/inner/b", "over/top", "data/new"):
        try: c.write_text(f"{base}/{p}", "x")
        except OSError as e: refused.append(e.errno)
print(json.dumps(refused))
""",
    )
    assert [30] * 4 == found


@pytest.mark.needs("unshare")
@pytest.mark.needs("root")
def test_a_mount_made_later_is_seen_by_the_next_container(tmp_path):
    """What the host mounts between two containers is in the second one, although one was prepared
    before.
    """
    found = in_own_mounts(
        tmp_path,
        """
with Container() as c: first = c.exists(f"{base}/late/x")
os.makedirs(f"{base}/late")
mount("-t", "tmpfs", "tmpfs", f"{base}/late")
open(f"{base}/late/x", "w").close()
with Container() as c:
    second = c.exists(f"{base}/late/x")
    c.write_text(f"{base}/late/y", "")
subprocess.run(["umount", f"{base}/late"], check=True)
with Container() as c: third = c.exists(f"{base}/late/x")
print(json.dumps([first, second, third]))
""",
    )
    assert [False, True, False] == found


@pytest.mark.needs("unshare")
@pytest.mark.needs("root")
def test_mounts_of_a_container_are_not_seen_outside(tmp_path):
    """A running container appears in no mount table but its own."""
    found = in_own_mounts(
        tmp_path,
        """
before = open("/proc/self/mountinfo").read()
with Container(volumes=[f"{base}/data:/v"]) as c:
    during = open("/proc/self/mountinfo").read()
print(json.dumps([before == during, before == open("/proc/self/mountinfo").read()]))
""",
    )
    assert [True, True] == found


def test_a_unix_socket_of_the_host_needs_a_volume(tmp_path):
    """A socket in a lower layer cannot be connected to, one in a volume can."""
    import socket

    def connect(path):
        try:
            with socket.socket(socket.AF_UNIX) as s:
                s.connect(path)
        except OSError as error:
            return error.errno
        return 0

    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        with Container() as closed, Container(volumes=[f"{tmp_path}:/v"]) as opened:
            assert (111, 0) == (closed.call(connect, path), opened.call(connect, "/v/s"))


@pytest.mark.needs("root")
def test_file_operations_on_lower_files(tmp_path):
    """Renames of directories, hard links, times, truncation and copies work on lower files."""
    (tmp_path / "d/e").mkdir(parents=True)
    (tmp_path / "d/e/f").write_text("x")
    with Container(workdir=str(tmp_path)) as c:
        assert (
            ""
            == sh(
                c,
                "mv d d2 && ln d2/e/f g && touch -d @1 g && mv d2/e/f /usr/moved && cp -a "
                "/usr/moved h && : > h",
            ).stdout
        )
        assert "1 1\n" == out(c, "sh", "-c", "echo $(stat -c %Y g) $(stat -c %h h)")
    assert (tmp_path / "d/e/f").read_text() == "x"
    assert Path("/usr/moved").exists() is False


@pytest.mark.needs("unshare")
def test_containers_start_while_mounts_change(tmp_path):
    """Containers start while file systems are mounted and unmounted all the time, as by other
    container tools.
    """
    found = in_own_mounts(
        tmp_path,
        """
import ctypes, threading
libc, end = ctypes.CDLL(None), threading.Event()
def churn():
    while not end.is_set():
        for n in range(5):
            os.makedirs(f"{base}/churn{n}", exist_ok=True)
            libc.mount(b"tmpfs", f"{base}/churn{n}".encode(), b"tmpfs", 0, None)
        for n in range(5):
            libc.umount2(f"{base}/churn{n}".encode(), 2)
            os.rmdir(f"{base}/churn{n}")
thread = threading.Thread(target=churn)
thread.start()
wrong = []
try:
    for n in range(60):
        try:
            with Container() as c: c.run(["true"], check=True)
        except Exception as error: wrong.append(str(error)[:200])
finally:
    end.set()
    thread.join()
print(json.dumps(wrong))
""",
    )
    assert [] == found
