"""Changes of a writable layer over several lower layers, created in overlayfs's format."""

from __future__ import annotations

import os
import stat

import pytest
from trees import deep_path, dig, few_descriptors

from pytest_sandbox.linux import overlay_diff
from pytest_sandbox.linux.directories import DirectoryStack, OpenDirectory
from pytest_sandbox.linux.lower_directories import OpenLowers
from pytest_sandbox.linux.overlay_diff import Budget, changes

__all__ = ["deep_path"]

pytestmark = [pytest.mark.needs("root"), pytest.mark.vm]


class Layer:
    """A layer directory, with methods that create its entries."""

    def __init__(self, directory):
        self.directory = directory
        directory.mkdir()

    def file(self, path):
        (self.directory / path).parent.mkdir(parents=True, exist_ok=True)
        (self.directory / path).touch()
        return self

    def whiteout(self, path):
        (self.directory / path).parent.mkdir(parents=True, exist_ok=True)
        os.mknod(self.directory / path, stat.S_IFCHR, 0)
        return self

    def opaque(self, path):
        (self.directory / path).mkdir(parents=True, exist_ok=True)
        os.setxattr(self.directory / path, "trusted.overlay.opaque", b"y")
        return self

    def renamed(self, path, origin):
        (self.directory / path).mkdir(parents=True, exist_ok=True)
        os.setxattr(self.directory / path, "trusted.overlay.redirect", origin.encode())
        return self


@pytest.fixture
def layer(tmp_path):
    return lambda name: Layer(tmp_path / name)


def diff(upper, *lower):
    fd = os.open(upper.directory, os.O_RDONLY)
    try:
        return sorted(
            (path, kind) for kind, path in changes(fd, [str(one.directory) for one in lower])
        )
    finally:
        os.close(fd)


def test_a_name_hidden_by_a_lower_whiteout_is_added(layer):
    """A whiteout in a lower layer hides the file below it."""
    top, base = layer("top").whiteout("d/x"), layer("base").file("d/x")
    assert [("/d", "modified"), ("/d/x", "added")] == diff(layer("upper").file("d/x"), top, base)


def test_a_name_hidden_by_an_opaque_directory_is_added(layer):
    """An opaque directory in a lower layer hides the whole directory below it."""
    top, base = layer("top").opaque("d"), layer("base").file("d/e/x")
    assert [("/d", "modified"), ("/d/e", "added"), ("/d/e/x", "added")] == diff(
        layer("upper").file("d/e/x"), top, base
    )


def test_a_file_hides_a_lower_directory(layer):
    """A file in a lower layer hides a directory with the same name."""
    top, base = layer("top").file("d"), layer("base").file("d/x")
    assert [("/d", "modified"), ("/d/x", "added")] == diff(layer("upper").file("d/x"), top, base)


def test_an_opaque_directory_deletes_lower_names(layer):
    """Visible names of all lower layers are deleted, hidden ones are not listed."""
    top, base = layer("top").file("d/a").whiteout("d/b"), layer("base").file("d/b").file("d/c")
    found = diff(layer("upper").opaque("d").file("d/c"), top, base)
    assert [("/d", "modified"), ("/d/a", "deleted"), ("/d/c", "modified")] == found


def test_a_whiteout_without_a_lower_file(layer):
    """A whiteout of a name that does not exist is not a change."""
    assert [] == diff(layer("upper").whiteout("x"), layer("base").file("y"))


def test_a_renamed_directory(layer):
    """A redirect refers to the merged directory of all lower layers."""
    top, base = (
        layer("top").file("d/a").whiteout("d/gone"),
        layer("base").file("d/b").file("d/gone").file("d/rm"),
    )
    upper = layer("upper").renamed("n", "/d").whiteout("d").whiteout("n/rm").file("n/new")
    wanted = [
        ("/d", "deleted"),
        ("/n", "added"),
        ("/n/a", "added"),
        ("/n/b", "added"),
        ("/n/new", "added"),
    ]
    assert wanted == diff(upper, top, base)


def test_an_invalid_redirect(layer):
    """A forged or stale redirect shows only the content of the directory itself."""
    upper = (
        layer("upper")
        .renamed("n", "/no/../such")
        .file("n/x")
        .renamed("m", "none")
        .renamed("o", "/../base")
        .renamed("p", "..")
    )
    assert [
        ("/m", "added"),
        ("/n", "added"),
        ("/n/x", "added"),
        ("/o", "added"),
        ("/p", "added"),
    ] == diff(upper, layer("base").file("x"))


def test_symbolic_links_in_lower_layers_are_not_followed(layer, tmp_path):
    """A link to a directory of the host is not treated as a directory."""
    base = layer("base")
    (base.directory / "d").symlink_to("/etc")
    assert [("/d", "modified"), ("/d/passwd", "added")] == diff(
        layer("upper").file("d/passwd"), base
    )


def test_deep_layers(deep_path):
    """Trees deeper than PATH_MAX are compared with few descriptors."""
    layers = [Layer(deep_path / name) for name in ("upper", "top", "base")]
    dig(layers[0].directory, 1100, "d" * 200)
    dig(layers[1].directory, 1000, "d" * 200)
    dig(layers[2].directory, 300, "d" * 200)
    fd = os.open(layers[0].directory, os.O_RDONLY)
    budget = Budget(entries=0)
    with few_descriptors():
        assert [] == list(changes(fd, [str(one.directory) for one in layers[1:]], budget))
    os.close(fd)
    # For each level a directory and a file, and the file at the end.
    assert (2 * 1100 + 1, False) == (budget.counted, budget.complete)


def test_a_change_in_a_deep_layer(deep_path):
    """A file below thousands of levels of a lower layer is modified, not added."""
    layers = [Layer(deep_path / name) for name in ("upper", "base")]
    for layer in layers:
        dig(layer.directory, 3000)
        fd = os.open(layer.directory, os.O_RDONLY)
        for _depth in range(2):
            os.mkdir("beside", dir_fd=fd)
            os.close(os.open("beside/x", os.O_CREAT, dir_fd=fd))
            deeper = os.open("d", os.O_RDONLY, dir_fd=fd)
            os.close(fd)
            fd = deeper
        os.close(fd)
    fd = os.open(layers[0].directory, os.O_RDONLY)
    kinds = {kind for kind, _path in changes(fd, [str(layers[1].directory)])}
    os.close(fd)
    assert {"modified"} == kinds


def test_nested_redirects(layer):
    """Each redirect is resolved by itself, and its content is compared with the path."""
    base = layer("base").file("a/x").file("b/y").file("c/z")
    upper = (
        layer("upper")
        .whiteout("a")
        .whiteout("b")
        .renamed("n", "/a")
        .renamed("n/m", "/b")
        .renamed("c", "/c")
        .file("n/m/new")
    )
    wanted = [
        ("/a", "deleted"),
        ("/b", "deleted"),
        ("/c", "modified"),
        ("/n", "added"),
        ("/n/m", "added"),
        ("/n/m/new", "added"),
    ]
    assert [*wanted, ("/n/m/y", "added"), ("/n/x", "added")] == diff(upper, base)


def test_timeout(layer):
    """A walk that runs out of time is not complete."""
    upper = layer("upper").file("x")
    budget = Budget(seconds=0)
    fd = os.open(upper.directory, os.O_RDONLY)
    assert ([], False) == (list(changes(fd, [], budget)), budget.complete)
    os.close(fd)


def test_timeout_among_names_that_are_no_changes(layer):
    """The time is limited as well where names of lower layers are compared and none is a change."""
    base = layer("base").file("x")
    directory = str(base.directory)
    with OpenLowers([directory]) as lowers, OpenDirectory(directory) as fd:
        walk = overlay_diff._Walk(DirectoryStack(fd), lowers, Budget(seconds=0), None)
        with pytest.raises(TimeoutError):
            list(walk._names_in(lowers.roots))
