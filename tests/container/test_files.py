"""Methods that read, write and copy files; no link inside leads to a file of the host."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest
from boxes import make_busybox_root
from descriptors import open_descriptors

from pytest_sandbox import Container

pytestmark = pytest.mark.needs("containers")


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """Return a container whose root is not the host's, so that their files can be told apart."""
    root = make_busybox_root(tmp_path_factory.mktemp("files") / "root")
    with Container(image=root) as c:
        yield c


@pytest.fixture
def secret(tmp_path):
    """Return the path of a file that only the host has."""
    file = tmp_path / "secret"
    file.write_text("the host's")
    return file


@pytest.mark.vm
def test_write_and_read_text_and_bytes(other):
    """Writing truncates and returns the length; reading returns what was written."""
    assert (6, 3) == (
        other.write_text("/tmp/a", "süß\nb\n"),
        other.write_bytes("/tmp/b", b"\0\xff\n"),
    )
    assert ("süß\nb\n", b"\0\xff\n") == (other.read_text("/tmp/a"), other.read_bytes("/tmp/b"))
    other.write_text("/tmp/a", "x")
    assert b"x" == other.read_bytes(Path("/tmp/a"))


def test_encodings(other):
    """Encoding and errors are those of open()."""
    other.write_text("/tmp/e", "ü", encoding="latin-1")
    assert ("ü", "\ufffd") == (
        other.read_text("/tmp/e", encoding="latin-1"),
        other.read_text("/tmp/e", errors="replace"),
    )
    with pytest.raises(UnicodeDecodeError):
        other.read_text("/tmp/e")


def test_newlines_are_written_unchanged(other):
    """Text is written with its carriage returns."""
    other.write_text("/tmp/l", "a\r\nb\n")
    assert b"a\r\nb\n" == other.read_bytes("/tmp/l")


@pytest.mark.vm
def test_mkdir_listdir_and_exists(other):
    """mkdir, listdir and exists work as in pathlib."""
    other.mkdir("/tmp/d")
    with pytest.raises(FileExistsError):
        other.mkdir("/tmp/d")
    other.mkdir("/tmp/d", exist_ok=True)
    with pytest.raises(FileNotFoundError):
        other.mkdir("/tmp/x/y")
    other.mkdir("/tmp/x/y", parents=True)
    other.write_text("/tmp/d/b", "")
    other.write_text("/tmp/d/a", "")
    assert (["a", "b"], True, False) == (
        other.listdir("/tmp/d"),
        other.exists("/tmp/d/a"),
        other.exists("/tmp/d/c"),
    )


def test_relative_paths_start_in_the_workdir():
    """A relative path starts at the container's working directory, as for a command."""
    with Container(workdir="/usr/share") as c:
        c.write_text("here", "x")
        assert ("x", True) == (c.read_text("/usr/share/here"), "here" in c.listdir())


@pytest.mark.parametrize(
    ("use", "error"),
    [
        (lambda c: c.read_bytes("/no/such"), FileNotFoundError),
        (lambda c: c.read_text("/tmp"), IsADirectoryError),
        (lambda c: c.write_text("/no/such/file", ""), FileNotFoundError),
        (lambda c: c.write_text("/tmp", ""), IsADirectoryError),
        (lambda c: c.listdir("/no/such"), FileNotFoundError),
        (lambda c: c.listdir("/etc/passwd"), NotADirectoryError),
        (lambda c: c.mkdir("/etc/passwd/x"), NotADirectoryError),
        (lambda c: c.copy_out("/no/such", "/tmp/never-made"), FileNotFoundError),
        (lambda c: c.copy_in("/no/such", "/tmp"), FileNotFoundError),
        (lambda c: c.read_bytes("/a\0b"), ValueError),
    ],
)
def test_errors_are_those_of_open(other, use, error):
    """A failure is the OSError of open(), with the path as it was given."""
    with pytest.raises(error) as caught:
        use(other)
    if isinstance(caught.value, OSError):
        assert caught.value.filename in {
            "/no/such",
            "/tmp",
            "/no/such/file",
            "/etc/passwd",
            "/etc/passwd/x",
        }


LINKS = {
    "absolute": str,
    "relative": lambda secret: "../" * 20 + str(secret).lstrip("/"),
    "proc root": lambda secret: f"/proc/1/root{secret}",
    "proc self root": lambda secret: f"/proc/self/root{secret}",
    "proc cwd": lambda secret: f"/proc/1/cwd/../../..{secret}",
}


@pytest.mark.parametrize("link", LINKS.values(), ids=LINKS.keys())
def test_links_are_resolved_inside(other, secret, link):
    """A symbolic link is resolved inside: the host's file is neither read, nor written, nor
    seen.
    """
    target = link(secret)
    other.run(
        [
            "sh",
            "-c",
            'rm -rf /tmp/link /tmp/dir; ln -s "$0" /tmp/link; ln -s "$(dirname "$0")" /tmp/dir',
            target,
        ],
        check=True,
    )
    for path in ("/tmp/link", "/tmp/dir/secret"):
        with pytest.raises(
            OSError, match=r"No such file|Permission denied|Not a directory|symbolic links"
        ):
            other.read_bytes(path)
        assert not other.exists(path)
        with pytest.raises(
            OSError, match=r"No such file|Permission denied|Not a directory|symbolic links"
        ):
            other.write_text(path, "inside")
    assert "the host's" == secret.read_text()
    assert ["secret"] == os.listdir(secret.parent)


def test_writing_to_a_dangling_link_creates_its_target_inside(other, tmp_path):
    """A link whose target exists on the host only creates the target inside."""
    (tmp_path / "f").touch()
    other.mkdir(tmp_path, parents=True, exist_ok=True)
    other.run(["ln", "-sf", tmp_path / "f", "/tmp/dangling"], check=True)
    other.write_text("/tmp/dangling", "inside")
    assert ("inside", "") == (other.read_text(tmp_path / "f"), (tmp_path / "f").read_text())


def test_proc_descriptors_do_not_lead_out(other):
    """/proc/1/fd and /proc/self/fd of the process that opens files lead nowhere."""
    for number in range(20):
        for whose in ("self", "1", "thread-self"):
            with pytest.raises(
                OSError,
                match=r"No such file|Permission denied|No such device|Not a directory|Is a "
                r"directory|denied|symbolic links",
            ):
                other.read_bytes(f"/proc/{whose}/fd/{number}/etc/hostname")


def test_opening_a_fifo_or_a_terminal_does_not_wait(other):
    """Opening a FIFO does not wait for its other end; a terminal does not become a
    controlling one.
    """
    other.run(["sh", "-c", "mkfifo /tmp/fifo"], check=True)
    with pytest.raises(OSError, match="No such device or address"):
        other.write_text("/tmp/fifo", "x")
    assert b"" == other.read_bytes("/tmp/fifo")
    assert 0 == other.run(["true"]).returncode


def test_dev_null(other):
    """/dev/null reads empty and accepts writes."""
    assert (b"", 3) == (other.read_bytes("/dev/null"), other.write_text("/dev/null", "abc"))


def test_large_files(other):
    """Files larger than any message are written and read complete."""
    data = os.urandom(1 << 20) * 40
    assert len(data) == other.write_bytes("/tmp/big", data)
    assert data == other.read_bytes("/tmp/big")


def tree(directory):
    """Create a directory with every kind of file that can be copied; return its expected
    content.
    """
    (directory / "sub/empty").mkdir(parents=True)
    (directory / "sub/file").write_text("content")
    (directory / "sub/file").chmod(0o640)
    (directory / "run").write_text("#!/bin/sh\necho ran\n")
    (directory / "run").chmod(0o755)
    (directory / "link").symlink_to("sub/file")
    (directory / "outside").symlink_to("/no/such/file")
    os.mkfifo(directory / "fifo")
    os.utime(directory / "sub/file", (1, 2))
    return ["link", "outside", "run", "sub"]


@pytest.mark.vm
def test_copy_a_directory_in_and_out(other, tmp_path):
    """Files, links, modes and times of a directory are copied both ways; a FIFO is skipped."""
    (tmp_path / "in").mkdir()
    names = tree(tmp_path / "in")
    other.copy_in(tmp_path / "in", "/root/copied")
    assert names == other.listdir("/root/copied")
    assert "ran\n" == other.run(["/root/copied/run"], capture_output=True, text=True).stdout
    outside = other.run(
        ["readlink", "/root/copied/outside"], capture_output=True, text=True
    ).stdout.strip()
    other.copy_out("/root/copied", tmp_path / "out")
    names.remove("outside")  # a dangling link inside
    assert names == sorted(os.listdir(tmp_path / "out"))
    file = tmp_path / "out/sub/file"
    assert ("content", 0o640, 2) == (
        file.read_text(),
        stat.S_IMODE(file.stat().st_mode),
        int(file.stat().st_mtime),
    )
    assert ("sub/file", "/no/such/file") == (os.readlink(tmp_path / "out/link"), outside)
    assert (0o755, True) == (
        stat.S_IMODE((tmp_path / "out/run").stat().st_mode),
        (tmp_path / "out/sub/empty").is_dir(),
    )


def test_copy_a_file_into_a_directory_or_to_a_name(other, tmp_path):
    """As docker cp: into a directory if the target is one, else to the name."""
    (tmp_path / "f").write_text("x")
    other.mkdir("/root/into", exist_ok=True)
    other.copy_in(tmp_path / "f", "/root/into")
    other.copy_in(tmp_path / "f", "/root/as-name")
    assert ("x", "x") == (other.read_text("/root/into/f"), other.read_text("/root/as-name"))
    (tmp_path / "directory").mkdir()
    other.copy_out("/root/into/f", tmp_path / "directory")
    other.copy_out("/root/into/f", tmp_path / "named")
    assert ("x", "x") == ((tmp_path / "directory/f").read_text(), (tmp_path / "named").read_text())


def test_copy_in_follows_no_link(other, tmp_path, secret):
    """A link at the target is replaced or refused inside, and the host's file does not change."""
    (tmp_path / "f").write_text("new")
    other.run(["sh", "-c", f"rm -rf /root/t; mkdir /root/t; ln -s {secret} /root/t/f"], check=True)
    try:
        other.copy_in(tmp_path / "f", "/root/t")
    except OSError as error:
        assert error.errno in {40, 17}  # noqa: PT017 - either is right
    assert "the host's" == secret.read_text()


def test_copy_out_follows_no_link(other, tmp_path, secret):
    """A link at the target on the host is not followed, and a link inside to a file of the host is
    not copied out.
    """
    script = (
        f"rm -rf /root/evil; mkdir -p /root/evil; ln -s {secret.parent} /root/evil/d; ln -s "
        f"{secret} /root/evil/f"
    )
    other.run(["sh", "-c", script], check=True)
    other.copy_out("/root/evil", tmp_path / "out")
    assert [] == os.listdir(tmp_path / "out")
    other.run(
        [
            "sh",
            "-c",
            (
                "rm /root/evil/*; mkdir /root/evil/d; echo bad > /root/evil/d/secret; echo bad > "
                "/root/evil/f"
            ),
        ],
        check=True,
    )
    for name, target in (("d", secret.parent), ("f", secret)):
        (tmp_path / "out" / name).symlink_to(target)
        with pytest.raises(OSError, match=r"Not a directory|not a regular file"):
            other.copy_out(f"/root/evil/{name}", tmp_path / "out")
    assert "the host's" == secret.read_text()


def test_copies_are_safe_while_directories_become_links(other, tmp_path, secret):
    """While a process inside replaces a directory by a link to the outside, no copy reads or writes
    the host's file.
    """
    script = (
        f"cd /root; mkdir -p race/d; echo inside > race/d/secret; ln -sfn {secret.parent} "
        "race/l; exec 2>/dev/null; while :; do mv -T race/d race/x; mv -T race/l race/d; "
        "mv -T race/d race/l; mv -T race/x race/d; done"
    )
    found = set()
    with other.popen(["sh", "-c", script]) as p:
        end = threading.Event()
        timer = threading.Timer(1.5, end.set)
        timer.start()
        count = 0
        while not end.is_set():
            count += 1
            try:
                found.add(other.read_text("/root/race/d/secret"))
                out = tmp_path / f"out{count}"
                other.copy_out("/root/race", out)
                for directory, _directories, files in os.walk(out):
                    found.update((Path(directory) / name).read_text() for name in files)
            except OSError:
                continue
        p.kill()
    assert found <= {"inside\n"}
    assert "the host's" == secret.read_text()


def test_copy_the_content_of_a_directory(other, tmp_path):
    """DIRECTORY/. copies the content of a directory; the target keeps its mode."""
    other.run(["sh", "-c", "mkdir -m 711 /root/c; echo x > /root/c/x"], check=True)
    (tmp_path / "there").mkdir()
    (tmp_path / "there").chmod(0o1777)
    other.copy_out("/root/c/.", tmp_path / "there")
    other.copy_out("/root/c/.", tmp_path / "new")
    assert (["x"], ["x"]) == (os.listdir(tmp_path / "there"), os.listdir(tmp_path / "new"))
    assert (0o1777, 0o711) == (
        stat.S_IMODE((tmp_path / "there").stat().st_mode),
        stat.S_IMODE((tmp_path / "new").stat().st_mode),
    )


def test_copies_have_no_set_user_id_bit(other, tmp_path):
    """A copied set-user-ID program does not have the bit, and devices are not copied."""
    other.run(
        [
            "sh",
            "-c",
            (
                "rm -rf /root/s; mkdir /root/s; echo x > /root/s/suid; "
                "chmod 6755 /root/s/suid; chmod 1777 /root/s"
            ),
        ],
        check=True,
    )
    other.copy_out("/root/s", tmp_path / "s")
    assert (0o755, 0o777) == (
        stat.S_IMODE((tmp_path / "s/suid").stat().st_mode),
        stat.S_IMODE((tmp_path / "s").stat().st_mode),
    )


def test_files_from_several_threads(other):
    """Several threads read and write files at the same time."""

    def work(number):
        other.write_text(f"/tmp/t{number}", str(number))
        results.append(other.read_text(f"/tmp/t{number}") == str(number))

    results = []
    threads = [threading.Thread(target=work, args=(n,)) for n in range(30)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(60)
    assert [True] * 30 == results


def test_files_are_opened_as_root_inside():
    """Files of any user inside can be read; a write to a read-only container raises OSError."""
    with Container(user="daemon") as c:
        c.run(["sh", "-c", "umask 077; echo mine > /tmp/mine"], check=True)
        assert "mine\n" == c.read_text("/tmp/mine")
    with Container(read_only=True) as c, pytest.raises(OSError, match="Read-only file system"):
        c.write_text("/tmp/x", "")


def test_no_descriptor_is_left(other):
    """Reading, failing and copying leave no descriptor open."""
    other.read_bytes("/etc/passwd")
    before = open_descriptors()
    for _ in range(20):
        other.read_bytes("/etc/passwd")
        with pytest.raises(FileNotFoundError):
            other.read_bytes("/none")
    assert before == open_descriptors()
