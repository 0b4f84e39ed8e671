"""``copy_in`` and ``copy_out`` with links and files that a container has prepared."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from boxes import make_busybox_root
from descriptors import open_descriptors
from trees import deep_path, dig, levels

from pytest_sandbox import Container

__all__ = ["deep_path"]

pytestmark = pytest.mark.needs("containers")

_GIB = 1 << 30


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """Return a container whose root is not the host's, so that their files can be told apart."""
    root = make_busybox_root(tmp_path_factory.mktemp("transfer") / "root")
    with Container(image=root) as c:
        c.write_text("/etc/hostname", "the container's\n")
        yield c


@pytest.fixture
def made(other):
    """Return a function that creates files in the new directory /root/made by a script."""

    def made(script):
        other.run(
            ["sh", "-ec", f"rm -rf /root/made; mkdir /root/made; cd /root/made; {script}"],
            check=True,
            capture_output=True,  # without a thread for an inherited pipe
        )

    return made


def test_a_link_as_source_is_followed_inside(other, made, tmp_path):
    """copy_out of a link to a file or a directory copies that of the container, and creates no link
    on the host.
    """
    made("mkdir dir; echo in > dir/file; ln -s /etc/hostname f; ln -s dir d")
    other.copy_out("/root/made/f", tmp_path)
    other.copy_out("/root/made/d", tmp_path / "as")
    assert (False, "the container's\n") == (
        (tmp_path / "f").is_symlink(),
        (tmp_path / "f").read_text(),
    )
    assert (False, ["file"]) == ((tmp_path / "as").is_symlink(), os.listdir(tmp_path / "as"))


def test_a_dangling_link_as_source_is_refused(other, made, tmp_path):
    """A link whose target exists on the host only is an error."""
    (tmp_path / "host").write_text("the host's")
    made(f"ln -s {tmp_path}/host f")
    with pytest.raises(FileNotFoundError):
        other.copy_out("/root/made/f", tmp_path / "out")
    assert ["host"] == os.listdir(tmp_path)


@pytest.mark.parametrize("script", ["mkfifo x", "ln -s /dev/zero x"])
def test_fifos_and_devices_are_refused(other, made, tmp_path, script):
    """copy_out of a FIFO or a device raises an error and does not open it."""
    made(script)
    with pytest.raises(OSError, match="FIFO, a socket or a device"):
        other.copy_out("/root/made/x", tmp_path / "out")
    assert [] == os.listdir(tmp_path)


def test_links_that_stay_in_the_directory_are_links(other, made, tmp_path):
    """A relative link to a path below the copied directory is copied as a link, dangling or not."""
    made(
        "mkdir -p a/b; echo x > f; ln -s b/../../f a/odd; ln -s ../../f a/b/up; ln -s a/./b down; "
        "ln -s nothing dangling"
    )
    other.copy_out("/root/made", tmp_path / "out")
    assert ("../../f", "a/./b", "nothing") == tuple(
        os.readlink(tmp_path / "out" / one) for one in ("a/b/up", "down", "dangling")
    )
    assert (False, "x\n") == (
        (tmp_path / "out/a/odd").is_symlink(),
        (tmp_path / "out/a/odd").read_text(),
    )


ESCAPES = {
    "absolute": "ln -s /etc/hostname x",
    "relative": "ln -s ../../etc/hostname x",
    "from below": "mkdir -p d/e; ln -s ../../../../etc/hostname d/e/x",
    "through another link": "mkdir -p d/e; ln -s ../.. d/e/top; ln -s d/e/top/../../etc/hostname x",
    "the host's alone": "ln -s {host} x",
    "in procfs": "ln -s /proc/self/environ x",
}


@pytest.mark.parametrize("script", ESCAPES.values(), ids=ESCAPES.keys())
@pytest.mark.parametrize("content", ["", "/."])
def test_no_link_leads_out_of_the_copy(other, made, tmp_path, script, content):
    """A link that would lead out is copied as the file that the container sees, or not at all."""
    (tmp_path / "host").write_text("the host's")
    made(script.format(host=tmp_path / "host"))
    other.copy_out(f"/root/made{content}", tmp_path / "out")
    for directory, directories, files in os.walk(tmp_path / "out"):
        for path in (os.path.join(directory, name) for name in (*directories, *files)):
            assert os.path.realpath(path).startswith(f"{tmp_path}/out")
            assert os.path.isdir(path) or "the container's\n" == Path(path).read_text()


def test_a_link_to_a_directory_elsewhere_is_refused(other, made, tmp_path):
    """The error of a link to a directory outside of the copied one names the link."""
    made("ln -s / root")
    with pytest.raises(
        OSError, match=r"leads to a directory outside of the copied one.*/root/made/root"
    ):
        other.copy_out("/root/made", tmp_path / "out")


def test_many_links_to_one_file_take_its_space_once(other, made, tmp_path):
    """A thousand links to one file become hard links to one copy."""
    made("i=0; while [ $i -lt 20 ]; do ln -s /bin/busybox l$i; i=$((i+1)); done")
    other.copy_out("/root/made", tmp_path / "out")
    assert [1, 20] == [
        len({os.lstat(tmp_path / f"out/l{i}").st_ino for i in range(20)}),
        len(os.listdir(tmp_path / "out")),
    ]


def test_hard_links_are_copied_as_hard_links(other, tmp_path):
    """Hard links, also three to one file, are hard links inside and when copied out."""
    (tmp_path / "in/sub").mkdir(parents=True)
    (tmp_path / "in/a").write_text("shared")
    for name in ("b", "sub/c", "sub/d"):
        os.link(tmp_path / "in/a", tmp_path / "in" / name)
    other.copy_in(tmp_path / "in", "/root/shared")
    links = other.run(
        ["stat", "-c", "%h", "/root/shared/a"], capture_output=True, text=True, check=True
    ).stdout
    other.copy_out("/root/shared", tmp_path / "out")
    other.copy_out("/root/shared/.", tmp_path / "out")
    found = [tmp_path / "out" / name for name in ("a", "b", "sub/c", "sub/d")]
    assert ("4\n", 1, {"shared"}) == (
        links,
        len({one.stat().st_ino for one in found}),
        {one.read_text() for one in found},
    )


def test_sparse_files_stay_sparse(other, tmp_path):
    """A hole of gigabytes takes no space on either side, and the content is at its place."""
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(2 * _GIB)
        os.pwrite(file.fileno(), b"middle", _GIB)
    other.copy_in(tmp_path / "sparse", "/root/sparse")
    other.copy_out("/root/sparse", tmp_path / "out")
    with open(tmp_path / "out", "rb") as file:
        assert (b"middle", 2 * _GIB) == (
            os.pread(file.fileno(), 6, _GIB),
            os.fstat(file.fileno()).st_size,
        )
    assert (tmp_path / "out").stat().st_blocks * 512 < 1 << 20
    other.run(["rm", "/root/sparse"], check=True)


def test_deep_trees(other, deep_path):
    """Neither depth nor the length of paths is limited."""
    (deep_path / "in").mkdir()
    dig(deep_path / "in", 1000, "d" * 200)
    other.copy_in(deep_path / "in", "/root/deep")
    other.copy_out("/root/deep", deep_path / "out")
    assert (1000, "the end") == levels(deep_path / "out", "d" * 200)


def test_a_fifo_at_the_target_is_refused(other, made, tmp_path):
    """A copy to the path of a FIFO raises an error, without waiting and without writing to it."""
    (tmp_path / "f").write_text("x")
    made("mkfifo f")
    with pytest.raises(FileExistsError, match="not a regular file"):
        other.copy_in(tmp_path / "f", "/root/made/f")


def test_copying_over_a_longer_file_truncates_it(other, tmp_path):
    """A copy over a longer file leaves nothing of its content, on either side."""
    (tmp_path / "f").write_text("short")
    other.write_text("/root/f", "a longer text")
    other.copy_in(tmp_path / "f", "/root/f")
    (tmp_path / "f").write_text("a longer text")
    other.copy_out("/root/f", tmp_path / "f")
    assert ("short", "short") == (other.read_text("/root/f"), (tmp_path / "f").read_text())


def test_no_descriptor_is_left(other, made, tmp_path):
    """Copying and failing leave no descriptor open."""
    made("mkdir -p a/b/c; echo x > a/f; ln -s / out")
    before = open_descriptors()
    for number in range(10):
        other.copy_out("/root/made/a", tmp_path / f"a{number}")
        with pytest.raises(OSError, match="leads to a directory"):
            other.copy_out("/root/made", tmp_path / f"b{number}")
        with pytest.raises(FileNotFoundError):
            other.copy_in(tmp_path / f"a{number}", "/none/such")
    assert before == open_descriptors()


def test_modes_and_times(other, tmp_path):
    """Mode (without set-user-ID) and modification time are copied both ways."""
    (tmp_path / "f").write_text("x")
    (tmp_path / "f").chmod(0o4750)
    os.utime(tmp_path / "f", (1, 2))
    other.copy_in(tmp_path / "f", "/root/modes")
    other.copy_out("/root/modes", tmp_path / "out")
    status = (tmp_path / "out").stat()
    assert (0o750, 2) == (stat.S_IMODE(status.st_mode), int(status.st_mtime))
