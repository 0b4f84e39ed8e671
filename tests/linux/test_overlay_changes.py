"""What a writable layer says over several lower ones, made by hand in the kernel's format."""

from __future__ import annotations

import os
import stat

import pytest

from pytest_sandbox.linux.overlay_changes import changes

pytestmark = [pytest.mark.needs("root"), pytest.mark.vm]


class Layer:
    """A folder in which things are made by their paths."""

    def __init__(self, folder):
        self.folder = folder
        folder.mkdir()

    def file(self, path):
        (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / path).touch()
        return self

    def deleted(self, path):
        (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
        os.mknod(self.folder / path, stat.S_IFCHR, 0)
        return self

    def opaque(self, path):
        (self.folder / path).mkdir(parents=True, exist_ok=True)
        os.setxattr(self.folder / path, "trusted.overlay.opaque", b"y")
        return self

    def renamed(self, path, origin):
        (self.folder / path).mkdir(parents=True, exist_ok=True)
        os.setxattr(self.folder / path, "trusted.overlay.redirect", origin.encode())
        return self


@pytest.fixture
def layer(tmp_path):
    return lambda name: Layer(tmp_path / name)


def said(upper, *lower):
    fd = os.open(upper.folder, os.O_RDONLY)
    try:
        return sorted((path, kind) for kind, path in changes(fd, [str(one.folder) for one in lower]))
    finally:
        os.close(fd)


def test_a_name_that_an_upper_lower_layer_deleted_is_added(layer):
    """A whiteout in an image's layer hides what lies below it."""
    top, base = layer("top").deleted("d/x"), layer("base").file("d/x")
    assert [("/d", "modified"), ("/d/x", "added")] == said(layer("upper").file("d/x"), top, base)


def test_what_an_opaque_layer_hides_is_added(layer):
    """An opaque folder in an image's layer hides the one below it, also deep inside."""
    top, base = layer("top").opaque("d"), layer("base").file("d/e/x")
    assert [("/d", "modified"), ("/d/e", "added"), ("/d/e/x", "added")] == said(layer("upper").file("d/e/x"), top, base)


def test_a_file_in_a_layer_hides_the_folder_below(layer):
    """A file in the place of a folder hides what that held."""
    top, base = layer("top").file("d"), layer("base").file("d/x")
    assert [("/d", "modified"), ("/d/x", "added")] == said(layer("upper").file("d/x"), top, base)


def test_an_opaque_folder_deletes_what_all_layers_had(layer):
    """Names of every lower layer are deleted by an opaque folder, hidden ones are not."""
    top, base = layer("top").file("d/a").deleted("d/b"), layer("base").file("d/b").file("d/c")
    found = said(layer("upper").opaque("d").file("d/c"), top, base)
    assert [("/d", "modified"), ("/d/a", "deleted"), ("/d/c", "modified")] == found


def test_a_deletion_of_what_never_was(layer):
    """A whiteout over nothing is no change."""
    assert [] == said(layer("upper").deleted("x"), layer("base").file("y"))


def test_a_renamed_folder_shows_what_both_layers_had(layer):
    """A redirect leads to the merged folder of all layers, minus what was deleted since."""
    top, base = layer("top").file("d/a").deleted("d/gone"), layer("base").file("d/b").file("d/gone").file("d/rm")
    upper = layer("upper").renamed("n", "/d").deleted("d").deleted("n/rm").file("n/new")
    wanted = [("/d", "deleted"), ("/n", "added"), ("/n/a", "added"), ("/n/b", "added"), ("/n/new", "added")]
    assert wanted == said(upper, top, base)


def test_a_redirect_that_leads_nowhere(layer):
    """A forged or stale redirect shows no more than what is in the folder itself."""
    upper = layer("upper").renamed("n", "/no/../such").file("n/x").renamed("m", "none").renamed("o", "/../base").renamed("p", "..")
    assert [("/m", "added"), ("/n", "added"), ("/n/x", "added"), ("/o", "added"), ("/p", "added")] == said(upper, layer("base").file("x"))


def test_a_link_in_a_lower_layer_is_not_followed(layer, tmp_path):
    """A layer's link to a folder of the host is a link, not a folder."""
    base = layer("base")
    (base.folder / "d").symlink_to("/etc")
    assert [("/d", "modified"), ("/d/passwd", "added")] == said(layer("upper").file("d/passwd"), base)
