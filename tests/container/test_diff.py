"""``Container.diff``: added, modified and deleted paths, as in ``docker diff``."""

from __future__ import annotations

import os
from subprocess import PIPE

import pytest
from boxes import make_busybox_root
from descriptors import open_descriptors

from pytest_sandbox import Change, Container
from pytest_sandbox.container.diff import changes_of
from pytest_sandbox.container.path_patterns import Pattern, Patterns

pytestmark = pytest.mark.needs("containers")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Return a directory with a root file system to change."""
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
    """Return what diff() lists after a script, in the form of docker diff."""
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
    "a directory added": (
        "mkdir -p /data/a/b; echo > /data/a/b/c",
        ["C /data", "A /data/a", "A /data/a/b", "A /data/a/b/c"],
    ),
    "a file written": ("echo >> /data/file", ["C /data", "C /data/file"]),
    "a file truncated": (": > /data/file", ["C /data", "C /data/file"]),
    "a file replaced": ("echo x > /data/n; mv /data/n /data/file", ["C /data", "C /data/file"]),
    "a file deleted": ("rm /data/file", ["C /data", "D /data/file"]),
    "a file deleted and created again": (
        "rm /data/file; echo > /data/file",
        ["C /data", "C /data/file"],
    ),
    "a directory deleted": ("rm -r /data/full", ["C /data", "D /data/full"]),
    "an empty directory deleted": ("rmdir /data/empty", ["C /data", "D /data/empty"]),
    "a directory deleted and created again, empty": (
        "rm -r /data/full; mkdir /data/full",
        ["C /data", "C /data/full", "D /data/full/deep", "D /data/full/one", "D /data/full/two"],
    ),
    "a directory deleted and created again, with other things": (
        "rm -r /data/full; mkdir /data/full; echo > /data/full/one; echo > /data/full/four",
        [
            "C /data",
            "C /data/full",
            "D /data/full/deep",
            "A /data/full/four",
            "C /data/full/one",
            "D /data/full/two",
        ],
    ),
    "a deep directory created again": (
        "rm -r /data/full/deep; mkdir /data/full/deep",
        ["C /data", "C /data/full", "C /data/full/deep", "D /data/full/deep/three"],
    ),
    "a mode": ("chmod 600 /data/file", ["C /data", "C /data/file"]),
    "an owner": ("chown 5:6 /data/file", ["C /data", "C /data/file"]),
    "a time": ("touch -d '2020-01-01 00:00' /data/file", ["C /data", "C /data/file"]),
    "a directory's mode": ("chmod 700 /data/full", ["C /data", "C /data/full"]),
    "a directory's mode, back again": (
        "chmod 700 /data/empty; chmod 755 /data/empty",
        ["C /data", "C /data/empty"],
    ),
    "a file becomes a directory": (
        "rm /data/file; mkdir /data/file; echo > /data/file/x",
        ["C /data", "C /data/file", "A /data/file/x"],
    ),
    "a directory becomes a file": (
        "rm -r /data/full; echo > /data/full",
        ["C /data", "C /data/full"],
    ),
    "a directory becomes a link": (
        "rm -r /data/full; ln -s file /data/full",
        ["C /data", "C /data/full"],
    ),
    "a link is pointed elsewhere": ("ln -sf other /data/link", ["C /data", "C /data/link"]),
    "a link is created": ("ln -s /nowhere /data/sym", ["C /data", "A /data/sym"]),
    "a hard link": ("ln /data/file /data/hard", ["C /data", "C /data/file", "A /data/hard"]),
    "a fifo": ("mkfifo /data/pipe", ["C /data", "A /data/pipe"]),
    "a fifo deleted": ("rm /data/fifo", ["C /data", "D /data/fifo"]),
    "a file renamed": ("mv /data/file /data/moved", ["C /data", "D /data/file", "A /data/moved"]),
    "a directory renamed": (
        "mv /data/full /data/moved",
        [
            "C /data",
            "D /data/full",
            "A /data/moved",
            "A /data/moved/deep",
            "A /data/moved/deep/three",
            "A /data/moved/one",
            "A /data/moved/two",
        ],
    ),
    "a directory renamed, then changed": (
        "cd /data; mv full moved; rm moved/one; echo > moved/new; echo >> moved/two",
        [
            "C /data",
            "D /data/full",
            "A /data/moved",
            "A /data/moved/deep",
            "A /data/moved/deep/three",
            "A /data/moved/new",
            "A /data/moved/two",
        ],
    ),
    "a directory renamed elsewhere, and another in its place": (
        "mv /data/full /top; mkdir /data/full; echo > /data/full/x",
        [
            "C /data",
            "C /data/full",
            "D /data/full/deep",
            "D /data/full/one",
            "D /data/full/two",
            "A /data/full/x",
            "A /top",
            "A /top/deep",
            "A /top/deep/three",
            "A /top/one",
            "A /top/two",
        ],
    ),
    "a directory renamed over an empty one": (
        "mv -T /data/full /data/empty",
        [
            "C /data",
            "C /data/empty",
            "A /data/empty/deep",
            "A /data/empty/deep/three",
            "A /data/empty/one",
            "A /data/empty/two",
            "D /data/full",
        ],
    ),
    "a directory renamed, and one in it": (
        "mv /data/full /data/m; mv /data/m/deep /data/m/deeper",
        [
            "C /data",
            "D /data/full",
            "A /data/m",
            "A /data/m/deeper",
            "A /data/m/deeper/three",
            "A /data/m/one",
            "A /data/m/two",
        ],
    ),
    "unusual names": (
        "touch '/data/a b' '/data/new\nline' /data/ü",
        ["C /data", "A /data/a b", "A /data/new\nline", "A /data/ü"],
    ),
}


@pytest.mark.vm
@pytest.mark.needs("root")  # without root, rename(2) of a lower directory fails: mv copies
@pytest.mark.parametrize(("script", "expected"), CHANGES.values(), ids=CHANGES.keys())
def test_diff_lists_changes_as_docker(root, script, expected):
    """Each kind of change is listed as docker does."""
    assert expected == after(root, script)


@pytest.mark.parametrize(
    "script", ["mv /data/full /data/moved", "echo > /data/new; rm -r /data/full"]
)
def test_storage_does_not_change_the_diff(root, script, tmp_path, monkeypatch):
    """A layer on disk gives the same diff as one in memory."""
    monkeypatch.setenv("PYTEST_SANDBOX_HOME", str(tmp_path))
    assert after(root, script) == after(root, script, storage="disk")


def test_mounts_are_not_listed(root, tmp_path):
    """/proc, /sys, /dev, volumes and their mount points are not listed."""
    assert [] == after(
        root,
        "echo > /dev/shm/x; echo > /dev/y; echo > /out/z; echo > /file",
        volumes=[f"{tmp_path}:/out", f"{_touched(tmp_path)}:/file"],
    )


def test_a_change_beside_a_volume_is_listed(root, tmp_path):
    """A change beside a volume's target is listed, the target is not."""
    assert ["A /made", "A /made/x"] == after(
        root, "echo > /made/x; echo > /made/out/z", volumes=[f"{tmp_path}:/made/out"]
    )


def _touched(directory):
    (directory / "file").touch()
    return directory / "file"


def test_diff_on_the_hosts_root(tmp_path):
    """Changes are listed on the host's root too; a stopped container raises ContainerStopped."""
    (tmp_path / "f").touch()
    with Container() as c:
        c.run(["sh", "-c", f"rm {tmp_path}/f; echo > {tmp_path}/g"], check=True)
        found = [str(change) for change in c.diff() if change.path.startswith(str(tmp_path))]
    assert [f"C {tmp_path}", f"D {tmp_path}/f", f"A {tmp_path}/g"] == found


def test_names_that_are_not_utf8_have_surrogates(root):
    """A name that is not UTF-8 has surrogate escapes, as from os.listdir."""
    with Container(image=root) as c:
        c.run([b"touch", b"/data/\xff"], check=True)
        assert [Change("/data", "modified"), Change("/data/\udcff", "added")] == c.diff()


def test_deep_trees_are_listed(root):
    """Deep directories and long paths are listed."""

    def dig():
        os.chdir("/data")
        for _ in range(400):
            os.mkdir("directory-of-some-length")
            os.chdir("directory-of-some-length")

    with Container(image=root) as c:
        c.call(dig)
        assert 401 == len(c.diff())


def test_a_limited_diff_is_incomplete(root):
    """With more changes than the limit, the first are listed, all are counted, and ``complete`` is
    false.
    """
    with Container(image=root) as c:
        c.run(["sh", "-c", "mkdir /data/many; cd /data/many; seq 100 | xargs touch"], check=True)
        whole, part = c.diff(), changes_of(c.handle, most=10)
        assert (102, 102, True) == (len(whole), whole.counted, whole.complete)
        assert (10, 102, False) == (len(part), part.counted, part.complete)
        assert set(part) <= set(whole)


def test_a_diff_without_time_is_incomplete(root):
    """When the time is over, the changes found until then are listed, and ``complete`` is false."""
    with Container(image=root) as c:
        c.run(["sh", "-c", "mkdir /data/many; cd /data/many; seq 100 | xargs touch"], check=True)
        part = changes_of(c.handle, seconds=0)
        assert ([], 0, False) == (list(part), part.counted, part.complete)


def test_very_long_paths_are_counted(root):
    """A thousand levels of long names are counted, and their paths are listed up to a limit."""

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


def test_changes_relative_to_a_committed_layer(root):
    """Removing a file of a layer that the container committed before is not a change; adding one
    is.
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


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("data/new/*/*.x", ["/data", "/data/new", "/data/new/a.x", "/data/new/b", "/data/new/sub"]),
        ("data/moved/two", ["/data", "/data/moved", "/data/moved/two"]),
        ("data/full/*", ["/data", "/data/full"]),
        ("elsewhere/**", []),
    ],
)
def test_a_selection_leaves_out_other_paths(root, pattern, found):
    """Only selected paths, and those that could contain one, are listed, also in a directory that
    was renamed.
    """
    selection = Patterns([Pattern.below("/", pattern)])
    with Container(image=root) as c:
        script = "mkdir -p /data/new/sub /other; touch /data/new/a.x /data/new/b /other/a.x"
        c.run(["sh", "-ec", f"{script}; mv /data/full /data/moved"], check=True)
        changes = changes_of(c.handle, selection=selection)
    assert found == [change.path for change in changes]


def test_diff_while_files_change(root):
    """diff() of a container in which files change returns a list and raises no error."""
    with (
        Container(image=root) as c,
        c.popen(["sh", "-c", "while :; do mkdir -p /x/y/z; touch /x/y/z/f; rm -r /x; done"]) as p,
    ):
        for _ in range(30):
            assert {change.path for change in c.diff()} <= {"/x", "/x/y", "/x/y/z", "/x/y/z/f"}
        p.kill()


def test_no_descriptor_is_left(root):
    """diff() leaves no descriptor open."""
    with Container(image=root) as c:
        before = open_descriptors()
        for _ in range(10):
            c.diff()
        assert open_descriptors() < before + 10  # a prepared container has descriptors of its own


@pytest.mark.parametrize(
    "change", [Change("/a", "added"), Change("/a", "modified"), Change("/a", "deleted")], ids=str
)
def test_str_of_a_change_is_dockers_form(change):
    """str() of a change is A, C or D, and the path."""
    assert f"{ {'added': 'A', 'modified': 'C', 'deleted': 'D'}[change.kind] } /a" == str(change)
