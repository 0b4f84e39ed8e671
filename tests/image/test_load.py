"""Images that lie in files and directories are told apart by their content, verified, and stored
once.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tarballs import (
    OCI,
    Made,
    digest_of,
    directory,
    docker_archive,
    entry,
    files,
    layer,
    link,
    tar_of,
)

from pytest_sandbox import Container, Image, ImageError
from pytest_sandbox.image.image import find
from pytest_sandbox.image.manifest import Platform
from pytest_sandbox.image.store import UnknownImage

if TYPE_CHECKING:
    from pytest_sandbox.image.store import Store

HOST = Platform.of_host()


@pytest.fixture
def made() -> Made:
    config = {"Env": ["A=1"], "Cmd": ["sh"]}
    return Made(
        [files(one="1", two="2"), layer(entry(".wh.one"), entry("three", b"3"))],
        config,
        reference="example.test/made:1",
    )


def shown(image: Image) -> dict[str, str]:
    """The files of an image's layers, without an overlay."""
    found: dict[str, str] = {}
    for lower in reversed(image.lower_directories()):
        for path in sorted(Path(lower).rglob("*")):
            if path.is_file():
                found[str(path.relative_to(lower))] = path.read_text()
            elif path.is_char_device():
                found.pop(str(path.relative_to(lower)), None)
    return found


def left_in(store: Store) -> dict[str, list[str]]:
    """What lies in a store: nothing may be left in tmp, and no layer or document that no image
    has.
    """
    names = ("documents", "layers", "images", "tmp")
    return {
        name: sorted(os.listdir(store.path(name)))
        for name in names
        if os.path.isdir(store.path(name))
    }


def is_clean(store: Store) -> bool:
    index, found = store.index(), left_in(store)
    digits = {
        "documents": index.documents_in_use() - {""},
        "layers": index.layers_in_use(),
        "images": set(index.images),
        "tmp": set(),
    }
    return all(
        sorted(one.removeprefix("sha256:") for one in digits[name]) == names
        for name, names in found.items()
    )


def as_layout(made: Made, tmp_path: Path) -> Path:
    return made.write(tmp_path / "layout")


def as_layout_tar(made: Made, tmp_path: Path) -> Path:
    (tmp_path / "layout.tar").write_bytes(tar_of(as_layout(made, tmp_path)))
    return tmp_path / "layout.tar"


def as_archive(made: Made, tmp_path: Path) -> Path:
    (tmp_path / "saved").write_bytes(docker_archive(made, "example.test/made:1"))
    return tmp_path / "saved"


def as_compressed_archive(made: Made, tmp_path: Path) -> Path:
    (tmp_path / "saved.gz").write_bytes(gzip.compress(docker_archive(made, "example.test/made:1")))
    return tmp_path / "saved.gz"


def as_unpacked_archive(made: Made, tmp_path: Path) -> Path:
    with tarfile.open(as_archive(made, tmp_path)) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    return tmp_path / "unpacked"


@pytest.mark.needs("root")
@pytest.mark.parametrize(
    "write", [as_layout, as_layout_tar, as_archive, as_compressed_archive, as_unpacked_archive]
)
def test_every_kind_of_source_gives_the_same_image(made, tmp_path, store, write):
    """A layout and an archive, as directory and as file, hold the same id, layers, history,
    configuration and files.
    """
    image = Image.load(write(made, tmp_path))
    assert ("example.test/made:1", digest_of(json.dumps(made.document).encode())) == (
        image.reference,
        image.id,
    )
    assert tuple(made.document["rootfs"]["diff_ids"]) == image.layers
    assert (made.config, tuple(made.document["history"])) == (image.config, image.history)
    assert (3, {"two": "2", "three": "3"}) == (image.size, shown(image))
    assert [image] == Image.list() == [Image.get("example.test/made:1")]
    assert is_clean(store)


@pytest.mark.parametrize(
    "packer",
    [pytest.param(name, marks=pytest.mark.needs(name)) for name in ("cat", "gzip", "zstd", "xz")],
)
def test_a_root_file_system_is_an_image_of_one_layer(tmp_path, store, packer):
    """Plain or compressed, the tar of a root file system is stored under its content: the same
    content is the same image.
    """
    (tmp_path / "root.tar").write_bytes(layer(directory("etc"), entry("etc/name", b"me")))
    packed = tmp_path / "packed"
    with (tmp_path / "root.tar").open("rb") as source, packed.open("wb") as target:
        subprocess.run([packer], stdin=source, stdout=target, check=True)
    image = Image.load(packed, name="mine")
    assert ("mine:latest", {"etc/name": "me"}) == (image.reference, shown(image))
    assert image.layers == (digest_of((tmp_path / "root.tar").read_bytes()),)
    assert Image.load(tmp_path / "root.tar").layers == image.layers
    assert is_clean(store)


def test_a_root_directory_is_used_as_it_is(tmp_path, store):
    """Nothing of it is stored, and what it shows is what it holds."""
    (tmp_path / "root/etc").mkdir(parents=True)
    image = Image.load(tmp_path / "root")
    assert ((str(tmp_path / "root"),), []) == (image.lower_directories(), Image.list())
    image.remove()
    assert (tmp_path / "root/etc").is_dir()


@pytest.mark.needs("skopeo", "umoci", "root")
@pytest.mark.parametrize("form", ["oci", "oci-archive", "docker-archive"])
def test_what_skopeo_writes_is_loaded(tmp_path, umoci_image, form):
    """An image made by umoci and copied by skopeo into each form has the id that skopeo itself
    reports.
    """
    target = f"{form}:{tmp_path / 'copy'}:example.test/x:1"
    subprocess.run(
        ["skopeo", "--insecure-policy", "copy", "-q", f"oci:{umoci_image}:latest", target],
        check=True,
    )
    image = Image.load(tmp_path / "copy")
    raw = subprocess.run(
        ["skopeo", "inspect", "--raw", "--config", target], check=True, capture_output=True
    ).stdout
    assert (digest_of(raw), "example.test/x:1") == (image.id, image.reference)
    assert {"bin/busybox", "etc/greeting"} <= {str(path) for path in shown_names(image)}


def shown_names(image: Image) -> set[Path]:
    return {
        path.relative_to(lower)
        for lower in image.lower_directories()
        for path in Path(lower).rglob("*")
    }


def test_a_second_load_makes_nothing_again(made, tmp_path, store):
    """Layers that are stored are neither unpacked nor read again."""
    where = as_layout(made, tmp_path)
    first = Image.load(where)
    inode = os.stat(first.lower_directories()[0]).st_ino
    for descriptor in made.manifest["layers"]:
        (where / "blobs/sha256" / descriptor["digest"][7:]).write_bytes(b"no longer what it was")
    assert first == Image.load(where)
    assert inode == os.stat(first.lower_directories()[0]).st_ino


def test_images_share_their_layers(tmp_path, store):
    """A layer lies in the store once, and stays until its last image has gone."""
    base, own = files(base="b"), files(own="o")
    first = Image.load(Made([base], reference="first:1").write(tmp_path / "1"))
    second = Image.load(Made([base, own], reference="second:1").write(tmp_path / "2"))
    assert 2 == len(left_in(store)["layers"])
    first.remove()
    assert {"base": "b", "own": "o"} == shown(second)
    second.remove()
    assert {"documents": [], "layers": [], "images": [], "tmp": []} == left_in(store)


def test_the_manifest_for_this_platform_is_chosen(tmp_path):
    """Of an index for several platforms the nearest one is taken, also from an index within an
    index.
    """
    made = Made([files(name="right")])
    other = Made([files(name="wrong")])
    right = made.descriptor() | {"platform": {"os": "linux", "architecture": HOST.architecture}}
    wrong = other.descriptor() | {"platform": {"os": "linux", "architecture": "s390x"}}
    unknown = other.descriptor() | {"platform": {"os": "unknown", "architecture": "unknown"}}
    made.blobs |= other.blobs
    inner = {
        "schemaVersion": 2,
        "mediaType": f"{OCI}.index.v1+json",
        "manifests": [wrong, unknown, right],
    }
    made.index = lambda: {
        "schemaVersion": 2,
        "manifests": [made.add(json.dumps(inner).encode(), f"{OCI}.index.v1+json")],
    }
    assert {"name": "right"} == shown(Image.load(made.write(tmp_path / "layout")))


def test_an_image_for_other_platforms_is_refused_by_name(tmp_path):
    """The error says what the image is for, and what was wanted."""
    made = Made([files(name="wrong")])
    inner = {
        "mediaType": f"{OCI}.index.v1+json",
        "manifests": [made.descriptor() | {"platform": {"os": "linux", "architecture": "s390x"}}],
    }
    made.index = lambda: {
        "manifests": [made.add(json.dumps(inner).encode(), f"{OCI}.index.v1+json")]
    }
    with pytest.raises(ImageError, match=f"not there for {HOST}; it is for linux/s390x"):
        Image.load(made.write(tmp_path / "layout"))


def test_directories_that_a_layer_does_not_describe_look_as_below(tmp_path):
    """A file put into /tmp by an archive without an entry for /tmp leaves its mode and owner as the
    layer below has them.
    """
    layers = [
        layer(directory(".", mode=0o751), directory("tmp", mode=0o1777)),
        layer(entry("tmp/file", b"x")),
    ]
    top = Path(Image.load(Made(layers).write(tmp_path / "layout")).lower_directories()[0])
    assert (0o41777, 0o40751) == ((top / "tmp").stat().st_mode, top.stat().st_mode)


@pytest.mark.needs("root")
@pytest.mark.parametrize("count", [20, 130, 700])
def test_any_number_of_layers_fits_into_a_mount(tmp_path, store, count):
    """More layers than mount(2) takes are folded: deletions, replaced directories, hard links and
    modes are as an overlay shows them.
    """
    layers = [files(**{f"file{n}": str(n), "top": str(n)}) for n in range(count)]
    layers[1] = layer(
        directory("d", mode=0o700),
        entry("d/a", b"a"),
        link("d/b", "d/a", kind="hard"),
        directory("gone"),
        entry("gone/x"),
    )
    layers[2] = layer(entry(".wh.gone"), entry("d/.wh.a"), entry("file0", b"new"))
    layers[3] = layer(directory("o"), entry("o/old"))
    layers[4] = layer(directory("o", mode=0o711), entry("o/.wh..wh..opq"), entry("o/new", b"n"))
    image = Image.load(Made(layers).write(tmp_path / "layout"))
    lower = image.lower_directories()
    assert len(",".join(lower)) < 3600
    assert count == len(image.layers)
    target = tmp_path / "mounted"
    target.mkdir()
    subprocess.run(
        [
            "mount",
            "-t",
            "overlay",
            "overlay",
            "-o",
            f"lowerdir={':'.join([*lower, str(target)])}",
            target,
        ],
        check=True,
    )
    try:
        found = {str(path.relative_to(target)) for path in target.rglob("*")}
        expected = {f"file{n}" for n in range(count) if n not in (1, 2, 3, 4)} | {
            "top",
            "d",
            "d/b",
            "o",
            "o/new",
        }
        assert expected == found
        assert (str(count - 1), "new") == (
            (target / "top").read_text(),
            (target / "file0").read_text(),
        )
        assert (0o40700, 0o40711) == ((target / "d").stat().st_mode, (target / "o").stat().st_mode)
    finally:
        subprocess.run(["umount", target], check=True)


def test_an_opaque_root_hides_all_below(tmp_path):
    """The overlay does not look at the root's mark, so the layers below are not mounted at all."""
    image = Image.load(
        Made([files(old="o"), layer(entry(".wh..wh..opq"), entry("new", b"n"))]).write(
            tmp_path / "layout"
        )
    )
    assert {"new": "n"} == shown(image)


def test_an_image_is_found_by_name_and_by_the_beginning_of_its_id(made, tmp_path):
    """As docker finds it; what is not there is named, with what would bring it."""
    image = Image.load(as_layout(made, tmp_path))
    assert [image] * 4 == [
        Image.get(text) for text in ("example.test/made:1", image.id, image.id[:14], image.id[7:19])
    ]
    with pytest.raises(ImageError, match="pytest-sandbox pull debian:12"):
        Image.get("debian:12")


def test_two_names_of_an_image_go_one_by_one(made, tmp_path, store):
    """The layers go with the last name."""
    where = as_layout(made, tmp_path)
    first, second = Image.load(where, name="a:1"), Image.load(where, name="b:1")
    assert (first.id, "a:1", "b:1") == (second.id, first.reference, second.reference)
    assert ["a:1", "b:1"] == [image.reference for image in Image.list()]
    Image.get("a:1").remove()
    assert ["b:1"] == [image.reference for image in Image.list()]
    assert {"two": "2", "three": "3"} == shown(second)
    Image.get("b:1").remove()
    assert [] == left_in(store)["layers"]
    with pytest.raises(UnknownImage, match="It was removed"):
        second.lower_directories()


def test_a_name_moves_to_the_newer_image(tmp_path):
    """Loading another image under a known name leaves the old one without a name."""
    old = Image.load(Made([files(a="1")]).write(tmp_path / "1"), name="x:1")
    new = Image.load(Made([files(a="2")]).write(tmp_path / "2"), name="x:1")
    assert new == Image.get("x:1")
    assert {"x:1", old.id} == {image.reference for image in Image.list()}


def test_a_setting_means_the_host_an_image_or_a_directory(made, tmp_path, monkeypatch):
    """A stored name wins over a directory of that name; a path always means the directory."""
    image = Image.load(as_layout(made, tmp_path), name="root")
    (tmp_path / "root/etc").mkdir(parents=True)
    (tmp_path / "other/bin").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert (None, image, image) == (find("host"), find(image), find("root"))
    assert [str(tmp_path / "root"), str(tmp_path / "other")] == [
        find(text).directory for text in ("./root", "other")
    ]
    for wrong in ("./missing", "missing:1", str(tmp_path / "missing")):
        with pytest.raises(ImageError, match="missing"):
            find(wrong)


def test_the_store_is_closed_to_others(made, tmp_path, store):
    """Setuid programs and devices of layers are out of other users' reach, also in a directory that
    was open before.
    """
    os.makedirs(store.directory, 0o755)
    Image.load(as_layout(made, tmp_path))
    assert 0o40700 == os.stat(store.directory).st_mode


@pytest.mark.needs("root", "plain_root")
def test_a_store_on_an_overlay_is_told_where_else_it_can_lie(made, tmp_path):
    """On a root that is an overlay, as docker's and a container's own, a layer that deletes
    something cannot be stored: the error says where it can.
    """
    layout = as_layout(made, tmp_path)
    with (
        Container() as container,
        pytest.raises(ImageError, match=r"\.wh\.one: .*PYTEST_SANDBOX_HOME"),
    ):
        container.call(lambda: Image.load(layout).id)


def test_the_store_follows_the_environment(monkeypatch, tmp_path):
    """$PYTEST_SANDBOX_HOME, else the XDG cache home, else ~/.cache; a relative XDG directory counts
    for nothing, as its spec says.
    """
    from pytest_sandbox.paths import images as home

    assert str(tmp_path / "home") == home()
    monkeypatch.delenv("PYTEST_SANDBOX_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere/cache")
    assert "/somewhere/cache/pytest-sandbox" == home()
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", "/home/me")
    assert "/home/me/.cache/pytest-sandbox" == home()


def test_a_damaged_index_is_said_with_its_path(made, tmp_path, store):
    """What was written by others into the store is an error that says what to remove."""
    Image.load(as_layout(made, tmp_path))
    Path(store.path("index.json")).write_text("{")
    with pytest.raises(ImageError, match=r"index\.json is damaged"):
        Image.list()


def test_a_layer_of_links_is_read_from_an_old_archive(made, tmp_path):
    """Before docker 1.14 equal layers were saved as links to the first."""
    twice = Made([made.layers[0], made.layers[0]])
    config = json.dumps(twice.document).encode()
    listing = [{"Config": "c.json", "RepoTags": None, "Layers": ["1/layer.tar", "2/layer.tar"]}]
    archive = layer(
        entry("c.json", config),
        entry("1/layer.tar", made.layers[0]),
        link("2/layer.tar", "../1/layer.tar"),
        entry("manifest.json", json.dumps(listing).encode()),
    )
    (tmp_path / "old.tar").write_bytes(archive)
    assert {"one": "1", "two": "2"} == shown(Image.load(tmp_path / "old.tar"))


def test_every_image_of_an_archive_is_stored(tmp_path):
    """`docker save a b` holds two."""
    first, second = Made([files(a="1")]), Made([files(a="2")])
    parts = [docker_archive(one, f"{name}:1") for one, name in ((first, "a"), (second, "b"))]
    for number, part in enumerate(parts):
        (tmp_path / str(number)).mkdir()
        (tmp_path / f"{number}.tar").write_bytes(part)
        shutil.unpack_archive(tmp_path / f"{number}.tar", tmp_path / str(number), filter="data")
    both = [json.loads((tmp_path / str(n) / "manifest.json").read_text())[0] for n in (0, 1)]
    shutil.copytree(tmp_path / "1", tmp_path / "0", dirs_exist_ok=True)
    (tmp_path / "0/manifest.json").write_text(json.dumps(both))
    assert ["a:1", "b:1"] == [image.reference for image in Image.load_all(tmp_path / "0")]


@pytest.mark.parametrize("use", [Image.load, find], ids=["load", "image="])
def test_a_directory_that_is_no_root_file_system_is_refused(tmp_path, use):
    """Such as a project's own, by a slip of the pen; the error names what a root has."""
    (tmp_path / "project/tests").mkdir(parents=True)
    with pytest.raises(ImageError, match="does not look like a root file system"):
        use(tmp_path / "project")
    with pytest.raises(ImageError):
        use("/dev/zero")
