"""What a writable layer says over several lower ones, made by hand in the kernel's format."""

from __future__ import annotations

import os
import stat

import pytest
from trees import deep_path, dig, few_descriptors

from pytest_sandbox.linux.overlay_diff import Budget, changes

__all__ = ["deep_path"]

pytestmark = [pytest.mark.needs("root"), pytest.mark.vm]


class Layer:
    """A directory in which things are made by their paths."""

    def __init__(self, directory):
        self.directory = directory
        directory.mkdir()

    def file(self, path):
        (self.directory / path).parent.mkdir(parents=True, exist_ok=True)
        (self.directory / path).touch()
        return self

    def deleted(self, path):
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


def said(upper, *lower):
    fd = os.open(upper.directory, os.O_RDONLY)
    try:
        return sorted(
            (path, kind) for kind, path in changes(fd, [str(one.directory) for one in lower])
        )
    finally:
        os.close(fd)


def test_a_name_that_an_upper_lower_layer_deleted_is_added(layer):
    """A whiteout in an image's layer hides what lies below it."""
    top, base = layer("top").deleted("d/x"), layer("base").file("d/x")
    assert [("/d", "modified"), ("/d/x", "added")] == said(layer("upper").file("d/x"), top, base)


def test_what_an_opaque_layer_hides_is_added(layer):
    """An opaque directory in an image's layer hides the one below it, also deep inside."""
    top, base = layer("top").opaque("d"), layer("base").file("d/e/x")
    assert [("/d", "modified"), ("/d/e", "added"), ("/d/e/x", "added")] == said(
        layer("upper").file("d/e/x"), top, base
    )


def test_a_file_in_a_layer_hides_the_directory_below(layer):
    """A file in the place of a directory hides what that held."""
    top, base = layer("top").file("d"), layer("base").file("d/x")
    assert [("/d", "modified"), ("/d/x", "added")] == said(layer("upper").file("d/x"), top, base)


def test_an_opaque_directory_deletes_what_all_layers_had(layer):
    """Names of every lower layer are deleted by an opaque directory, hidden ones are not."""
    top, base = layer("top").file("d/a").deleted("d/b"), layer("base").file("d/b").file("d/c")
    found = said(layer("upper").opaque("d").file("d/c"), top, base)
    assert [("/d", "modified"), ("/d/a", "deleted"), ("/d/c", "modified")] == found


def test_a_deletion_of_what_never_was(layer):
    """A whiteout over nothing is no change."""
    assert [] == said(layer("upper").deleted("x"), layer("base").file("y"))


def test_a_renamed_directory_shows_what_both_layers_had(layer):
    """A redirect leads to the merged directory of all layers, minus what was deleted since."""
    top, base = (
        layer("top").file("d/a").deleted("d/gone"),
        layer("base").file("d/b").file("d/gone").file("d/rm"),
    )
    upper = layer("upper").renamed("n", "/d").deleted("d").deleted("n/rm").file("n/new")
    wanted = [
        ("/d", "deleted"),
        ("/n", "added"),
        ("/n/a", "added"),
        ("/n/b", "added"),
        ("/n/new", "added"),
    ]
    assert wanted == said(upper, top, base)


def test_a_redirect_that_leads_nowhere(layer):
    """A forged or stale redirect shows no more than what is in the directory itself."""
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
    ] == said(upper, layer("base").file("x"))


def test_a_link_in_a_lower_layer_is_not_followed(layer, tmp_path):
    """A layer's link to a directory of the host is a link, not a directory."""
    base = layer("base")
    (base.directory / "d").symlink_to("/etc")
    assert [("/d", "modified"), ("/d/passwd", "added")] == said(
        layer("upper").file("d/passwd"), base
    )


def test_deep_layers_are_compared(deep_path):
    """A tree that is deeper than any path is long is compared level by level, with few
    descriptors.
    """
    layers = [Layer(deep_path / name) for name in ("upper", "top", "base")]
    dig(layers[0].directory, 1100, "d" * 200)
    dig(layers[1].directory, 1000, "d" * 200)
    dig(layers[2].directory, 300, "d" * 200)
    fd = os.open(layers[0].directory, os.O_RDONLY)
    budget = Budget(entries=0)
    with few_descriptors():
        assert [] == list(changes(fd, [str(one.directory) for one in layers[1:]], budget))
    os.close(fd)
    # a directory and the file beside it for each level, and the file at the end
    assert (2 * 1100 + 1, False) == (budget.counted, budget.complete)


def test_what_is_found_at_the_end_of_a_deep_layer(deep_path):
    """A change below thousands of levels of a lower layer is told by what was there, and
    directories beside the way are compared too.
    """
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


def test_renamed_directories_in_renamed_ones(layer):
    """Each redirect begins at its own place, and what follows it is compared with what was
    there.
    """
    base = layer("base").file("a/x").file("b/y").file("c/z")
    upper = (
        layer("upper")
        .deleted("a")
        .deleted("b")
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
    assert [*wanted, ("/n/m/y", "added"), ("/n/x", "added")] == said(upper, base)


def test_time_is_bounded(layer):
    """A walk whose time is over says that it is not complete."""
    upper = layer("upper").file("x")
    budget = Budget(seconds=0)
    fd = os.open(upper.directory, os.O_RDONLY)
    assert ([], False) == (list(changes(fd, [], budget)), budget.complete)
    os.close(fd)
