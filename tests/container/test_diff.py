"""``diff()`` says what ``docker diff`` would: added, modified, deleted, in the order of the
paths.
"""

from __future__ import annotations

import os
from subprocess import PIPE

import pytest
from boxes import make_busybox_root
from descriptors import open_descriptors

from pytest_sandbox import Change, Container
from pytest_sandbox.container.diff import changes_of

pytestmark = pytest.mark.needs("containers")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A root with something to change."""
    directory = make_busybox_root(tmp_path_factory.mktemp("diff") / "root")
    for path in (
        "data/full/one",
        "data/full/two",
        "data/full/deep/three",
        "data/file",
        "data/other",
    ):
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_text(path)
    (directory / "data/link").symlink_to("file")
    (directory / "data/empty").mkdir()
    os.mkfifo(directory / "data/fifo")
    return directory


def after(root, script, **settings):
    """What diff says after a script, in docker's words."""
    with Container(image=root, **settings) as c:
        done = c.run(["sh", "-ec", script], stderr=PIPE, text=True)
        assert (0, "") == (done.returncode, done.stderr)
        found = c.diff()
        assert sorted(found) == found
        return [str(change) for change in found]


CHANGES = {
    "nothing": ("true", []),
    "reading": ("cat /data/file /data/full/one >/dev/null; ls -R /data >/dev/null", []),
    "a file added": ("echo > /data/new", ["C /data", "A /data/new"]),
    "a file added at the top": ("echo > /new", ["A /new"]),
    "a file added and deleted": ("echo > /data/new; rm /data/new", ["C /data"]),
    "a directory added": ("mkdir -p /data/a/b; echo > /data/a/b/c", ["C /data", "A /data/a", "A /data/a/b", "A /data/a/b/c"]),
    "a file written": ("echo >> /data/file", ["C /data", "C /data/file"]),
    "a file truncated": (": > /data/file", ["C /data", "C /data/file"]),
    "a file replaced": ("echo x > /data/n; mv /data/n /data/file", ["C /data", "C /data/file"]),
    "a file deleted": ("rm /data/file", ["C /data", "D /data/file"]),
    "a file deleted and made anew": ("rm /data/file; echo > /data/file", ["C /data", "C /data/file"]),
    "a directory deleted": ("rm -r /data/full", ["C /data", "D /data/full"]),
    "an empty directory deleted": ("rmdir /data/empty", ["C /data", "D /data/empty"]),
    "a directory deleted and made anew, empty": (
        "rm -r /data/full; mkdir /data/full",
        ["C /data", "C /data/full", "D /data/full/deep", "D /data/full/one", "D /data/full/two"],
    ),
    "a directory deleted and made anew, with other things": (
        "rm -r /data/full; mkdir /data/full; echo > /data/full/one; echo > /data/full/four",
        ["C /data", "C /data/full", "D /data/full/deep", "A /data/full/four", "C /data/full/one", "D /data/full/two"],
    ),
    "a deep directory anew": (
        "rm -r /data/full/deep; mkdir /data/full/deep",
        ["C /data", "C /data/full", "C /data/full/deep", "D /data/full/deep/three"],
    ),
    "a mode": ("chmod 600 /data/file", ["C /data", "C /data/file"]),
    "an owner": ("chown 5:6 /data/file", ["C /data", "C /data/file"]),
    "a time": ("touch -d '2020-01-01 00:00' /data/file", ["C /data", "C /data/file"]),
    "a directory's mode": ("chmod 700 /data/full", ["C /data", "C /data/full"]),
    "a directory's mode, back again": ("chmod 700 /data/empty; chmod 755 /data/empty", ["C /data", "C /data/empty"]),
    "a file becomes a directory": ("rm /data/file; mkdir /data/file; echo > /data/file/x", ["C /data", "C /data/file", "A /data/file/x"]),
    "a directory becomes a file": ("rm -r /data/full; echo > /data/full", ["C /data", "C /data/full"]),
    "a directory becomes a link": ("rm -r /data/full; ln -s file /data/full", ["C /data", "C /data/full"]),
    "a link is pointed elsewhere": ("ln -sf other /data/link", ["C /data", "C /data/link"]),
    "a link is made": ("ln -s /nowhere /data/sym", ["C /data", "A /data/sym"]),
    "a hard link": ("ln /data/file /data/hard", ["C /data", "C /data/file", "A /data/hard"]),
    "a fifo": ("mkfifo /data/pipe", ["C /data", "A /data/pipe"]),
    "a fifo deleted": ("rm /data/fifo", ["C /data", "D /data/fifo"]),
    "a file renamed": ("mv /data/file /data/moved", ["C /data", "D /data/file", "A /data/moved"]),
    "a directory renamed": (
        "mv /data/full /data/moved",
        ["C /data", "D /data/full", "A /data/moved", "A /data/moved/deep", "A /data/moved/deep/three", "A /data/moved/one", "A /data/moved/two"],
    ),
    "a directory renamed, then changed": (
        "mv /data/full /data/moved; rm /data/moved/one; echo > /data/moved/new; echo >> /data/moved/two",
        ["C /data", "D /data/full", "A /data/moved", "A /data/moved/deep", "A /data/moved/deep/three", "A /data/moved/new", "A /data/moved/two"],
    ),
    "a directory renamed elsewhere, and another in its place": (
        "mv /data/full /top; mkdir /data/full; echo > /data/full/x",
        ["C /data", "C /data/full", "D /data/full/deep", "D /data/full/one", "D /data/full/two", "A /data/full/x", "A /top", "A /top/deep",
         "A /top/deep/three", "A /top/one", "A /top/two"],
    ),
    "a directory renamed over an empty one": (
        "mv -T /data/full /data/empty",
        ["C /data", "C /data/empty", "A /data/empty/deep", "A /data/empty/deep/three", "A /data/empty/one", "A /data/empty/two", "D /data/full"],
    ),
    "a directory renamed, and one in it": (
        "mv /data/full /data/m; mv /data/m/deep /data/m/deeper",
        ["C /data", "D /data/full", "A /data/m", "A /data/m/deeper", "A /data/m/deeper/three", "A /data/m/one", "A /data/m/two"],
    ),
    "odd names": ("touch '/data/a b' '/data/new\nline' /data/ü", ["C /data", "A /data/a b", "A /data/new\nline", "A /data/ü"]),
}  # fmt: skip


@pytest.mark.vm
@pytest.mark.needs("root")  # a user's overlay moves no directory of the host's: mv copies it
@pytest.mark.parametrize(("script", "expected"), CHANGES.values(), ids=CHANGES.keys())
def test_what_a_script_changed(root, script, expected):
    """Each kind of change is told as docker tells it."""
    assert expected == after(root, script)


@pytest.mark.parametrize(
    "script", ["mv /data/full /data/moved", "echo > /data/new; rm -r /data/full"]
)
def test_a_layer_on_disk_tells_the_same(root, script, tmp_path, monkeypatch):
    """The kind of storage changes nothing."""
    monkeypatch.setenv("PYTEST_SANDBOX_HOME", str(tmp_path))
    assert after(root, script) == after(root, script, storage="disk")


def test_mounted_file_systems_are_no_change(root, tmp_path):
    """/proc, /sys, /dev and volumes do not count, nor do the places that were made for them."""
    assert [] == after(
        root,
        "echo > /dev/shm/x; echo > /dev/y; echo > /out/z; echo > /file",
        volumes=[f"{tmp_path}:/out", f"{_touched(tmp_path)}:/file"],
    )


def test_a_change_beside_a_volume(root, tmp_path):
    """What lies beside a volume's target is told, the target is not."""
    assert ["A /made", "A /made/x"] == after(
        root, "echo > /made/x; echo > /made/out/z", volumes=[f"{tmp_path}:/made/out"]
    )


def _touched(directory):
    (directory / "file").touch()
    return directory / "file"


def test_the_hosts_root(tmp_path):
    """On the host's root, too; and a stopped container tells nothing."""
    (tmp_path / "f").touch()
    with Container() as c:
        c.run(["sh", "-c", f"rm {tmp_path}/f; echo > {tmp_path}/g"], check=True)
        found = [str(change) for change in c.diff() if change.path.startswith(str(tmp_path))]
    assert [f"C {tmp_path}", f"D {tmp_path}/f", f"A {tmp_path}/g"] == found


def test_bytes_that_are_no_text(root):
    """A name that is no UTF-8 comes with surrogate escapes, as from os.listdir."""
    with Container(image=root) as c:
        c.run([b"touch", b"/data/\xff"], check=True)
        assert [Change("/data", "modified"), Change("/data/\udcff", "added")] == c.diff()


def test_a_deep_tree(root):
    """Deep directories and long paths are no limit of the walk."""

    def dig():
        os.chdir("/data")
        for _ in range(400):
            os.mkdir("directory-of-some-length")
            os.chdir("directory-of-some-length")

    with Container(image=root) as c:
        c.call(dig)
        assert 401 == len(c.diff())


def test_a_bounded_look(root):
    """Of more changes than are asked for, the first are listed, all are counted, and the answer
    says that it is not complete.
    """
    with Container(image=root) as c:
        c.run(["sh", "-c", "mkdir /data/many; cd /data/many; seq 100 | xargs touch"], check=True)
        whole, part = c.diff(), changes_of(c.handle, most=10)
        assert (102, 102, True) == (len(whole), whole.counted, whole.complete)
        assert (10, 102, False) == (len(part), part.counted, part.complete)
        assert set(part) <= set(whole)


def test_a_look_that_has_no_time(root):
    """Where the time is over, the answer has what was found until then, and says that it is not
    complete.
    """
    with Container(image=root) as c:
        c.run(["sh", "-c", "mkdir /data/many; cd /data/many; seq 100 | xargs touch"], check=True)
        part = changes_of(c.handle, seconds=0)
        assert ([], 0, False) == (list(part), part.counted, part.complete)


def test_paths_that_no_memory_holds(root):
    """A thousand levels of long names are counted; their paths are listed as far as they have a
    place.
    """

    def dig():
        os.chdir("/data")
        for _ in range(1200):
            os.mkdir("d" * 250)
            os.chdir("d" * 250)

    with Container(image=root) as c:
        c.call(dig)
        found = c.diff()
        assert (1201, False) == (found.counted, found.complete)
        assert len(found) < 1201
        assert sum(len(change.path) for change in found) <= 64 << 20


def test_changes_below_a_committed_layer(root):
    """What a container removed of a layer that it committed before is no change any more; what it
    added there is one.
    """
    with Container(image=root) as c:
        c.run(
            [
                "sh",
                "-c",
                (
                    "mkdir -p /data/new/sub /data/new-er; touch /data/new/a /data/new/sub/b "
                    "/data/new-er/c"
                ),
            ],
            check=True,
        )
        c.commit()
        c.run(["sh", "-c", "rm -r /data/new; rm -r /data/full; touch /data/new-er/d"], check=True)
        assert [
            "C /data",
            "D /data/full",
            "A /data/new-er",
            "A /data/new-er/c",
            "A /data/new-er/d",
        ] == [str(one) for one in c.diff()]


def test_while_things_change(root):
    """diff() of a container at work gives an answer, not an error."""
    with (
        Container(image=root) as c,
        c.popen(["sh", "-c", "while :; do mkdir -p /x/y/z; touch /x/y/z/f; rm -r /x; done"]) as p,
    ):
        for _ in range(30):
            assert {change.path for change in c.diff()} <= {"/x", "/x/y", "/x/y/z", "/x/y/z/f"}
        p.kill()


def test_no_descriptor_is_left(root):
    """Looking costs nothing that stays."""
    with Container(image=root) as c:
        before = open_descriptors()
        for _ in range(10):
            c.diff()
        assert (
            open_descriptors() < before + 10
        )  # the next container, made ahead, comes and goes with its own


@pytest.mark.parametrize(
    "change", [Change("/a", "added"), Change("/a", "modified"), Change("/a", "deleted")], ids=str
)
def test_a_change_prints_as_docker_prints_it(change):
    """A, C or D, and the path."""
    assert f"{ {'added': 'A', 'modified': 'C', 'deleted': 'D'}[change.kind] } /a" == str(change)
