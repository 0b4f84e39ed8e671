"""Images in files and directories are recognised by their content, verified, and stored once."""

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
    """Return the files of an image's layers, merged without an overlay."""
    found: dict[str, str] = {}
    for lower in reversed(image.lower_directories()):
        for path in sorted(Path(lower).rglob("*")):
            if path.is_file():
                found[str(path.relative_to(lower))] = path.read_text()
            elif path.is_char_device():
                found.pop(str(path.relative_to(lower)), None)
    return found


def left_in(store: Store) -> dict[str, list[str]]:
    """Return the names in the directories of a store."""
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
def test_all_sources_give_the_same_image(made, tmp_path, store, write):
    """A layout and an archive, as directory and as file, have the same id, layers, history,
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


@pytest.mark.parametrize("first", [entry("etc/hosts", b""), entry("./usr/bin/true", b"")])
def test_a_root_file_system_may_contain_a_manifest(tmp_path, store, first):
    """A file /manifest.json does not make it an archive of images."""
    path = tmp_path / "root.tar"
    path.write_bytes(layer(first, entry("manifest.json", b"[]")))
    image = Image.load(path)
    assert "[]" == shown(image)["manifest.json"]


@pytest.mark.parametrize(
    "packer",
    [pytest.param(name, marks=pytest.mark.needs(name)) for name in ("cat", "gzip", "zstd", "xz")],
)
def test_a_root_file_system_is_an_image_of_one_layer(tmp_path, store, packer):
    """Its key is the digest of the plain tar, whether it is compressed or not."""
    (tmp_path / "root.tar").write_bytes(layer(directory("etc"), entry("etc/name", b"me")))
    packed = tmp_path / "packed"
    with (tmp_path / "root.tar").open("rb") as source, packed.open("wb") as target:
        subprocess.run([packer], stdin=source, stdout=target, check=True)
    image = Image.load(packed, name="mine")
    assert ("mine:latest", {"etc/name": "me"}) == (image.reference, shown(image))
    assert image.layers == (digest_of((tmp_path / "root.tar").read_bytes()),)
    assert Image.load(tmp_path / "root.tar").layers == image.layers
    assert is_clean(store)


def test_a_directory_is_used_in_place(tmp_path, store):
    """Nothing of it is stored or removed."""
    (tmp_path / "root/etc").mkdir(parents=True)
    image = Image.load(tmp_path / "root")
    assert ((str(tmp_path / "root"),), []) == (image.lower_directories(), Image.list())
    image.remove()
    assert (tmp_path / "root/etc").is_dir()


@pytest.mark.needs("skopeo", "umoci", "root")
@pytest.mark.parametrize("form", ["oci", "oci-archive", "docker-archive"])
def test_files_of_skopeo_are_loaded(tmp_path, umoci_image, form):
    """An image of umoci that skopeo copied to each format has the id that skopeo prints."""
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


def test_a_second_load_reuses_all_layers(made, tmp_path, store):
    """Stored layers are neither extracted nor read again."""
    where = as_layout(made, tmp_path)
    first = Image.load(where)
    inode = os.stat(first.lower_directories()[0]).st_ino
    for descriptor in made.manifest["layers"]:
        (where / "blobs/sha256" / descriptor["digest"][7:]).write_bytes(b"no longer what it was")
    assert first == Image.load(where)
    assert inode == os.stat(first.lower_directories()[0]).st_ino


def test_images_share_their_layers(tmp_path, store):
    """A layer is stored once, until its last image is removed."""
    base, own = files(base="b"), files(own="o")
    first = Image.load(Made([base], reference="first:1").write(tmp_path / "1"))
    second = Image.load(Made([base, own], reference="second:1").write(tmp_path / "2"))
    assert 2 == len(left_in(store)["layers"])
    first.remove()
    assert {"base": "b", "own": "o"} == shown(second)
    second.remove()
    assert {"documents": [], "layers": [], "images": [], "tmp": []} == left_in(store)


def test_the_manifest_for_this_platform_is_chosen(tmp_path):
    """The best match in an index is used, also from a nested index."""
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


def test_an_image_for_other_platforms_is_an_error(tmp_path):
    """The error names the platforms of the image and that of the host."""
    made = Made([files(name="wrong")])
    inner = {
        "mediaType": f"{OCI}.index.v1+json",
        "manifests": [made.descriptor() | {"platform": {"os": "linux", "architecture": "s390x"}}],
    }
    made.index = lambda: {
        "manifests": [made.add(json.dumps(inner).encode(), f"{OCI}.index.v1+json")]
    }
    with pytest.raises(ImageError, match=f"not available for {HOST}; it is for linux/s390x"):
        Image.load(made.write(tmp_path / "layout"))


def test_implied_directories_have_the_attributes_of_the_layer_below(tmp_path):
    """A layer with a file in /tmp but no entry for /tmp does not change the mode of /tmp."""
    layers = [
        layer(directory(".", mode=0o751), directory("tmp", mode=0o1777)),
        layer(entry("tmp/file", b"x")),
    ]
    top = Path(Image.load(Made(layers).write(tmp_path / "layout")).lower_directories()[0])
    assert (0o41777, 0o40751) == ((top / "tmp").stat().st_mode, top.stat().st_mode)


# Mount an overlay of the layers $1 on $2, and print what it shows.
SHOW_OVERLAY = """
mount -t overlay overlay -o "lowerdir=$1" "$2" && cd "$2"
find . -mindepth 1 -printf "%P %m\\n" | sort
cat top; echo; cat file0
"""


def many_layers(count: int) -> list[bytes]:
    """Layers with deletions, an opaque directory, hard links and modes near the bottom."""
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
    return layers


@pytest.mark.needs("root")
@pytest.mark.parametrize("count", [20, 130, 700])
def test_any_number_of_layers_fits_into_a_mount(tmp_path, count):
    """More layers than mount(2) accepts are flattened; deletions, replaced directories, hard links
    and modes are those that an overlay of all layers shows.
    """
    image = Image.load(Made(many_layers(count)).write(tmp_path / "layout"))
    lower = image.lower_directories()
    assert len(",".join(lower)) < 3600
    assert count == len(image.layers)
    target = tmp_path / "mounted"
    target.mkdir()
    done = subprocess.run(
        # A mount namespace of its own: the mount is gone with the shell.
        [
            "unshare",
            "--mount",
            "sh",
            "-ec",
            SHOW_OVERLAY,
            "sh",
            f"{':'.join(lower)}:{target}",
            target,
        ],
        # Newer versions of mount(8) use fsconfig(2), which takes options of at most 256 bytes.
        env={**os.environ, "LIBMOUNT_FORCE_MOUNT2": "always"},
        capture_output=True,
        text=True,
        check=True,
    )
    modes = {f"file{n}": "644" for n in range(count) if n not in (1, 2, 3, 4)} | {
        "top": "644",
        "d": "700",
        "d/b": "644",
        "o": "711",
        "o/new": "644",
    }
    expected = sorted(f"{name} {mode}" for name, mode in modes.items())
    *found, top, file0 = done.stdout.splitlines()
    assert (expected, str(count - 1), "new") == (sorted(found), top, file0)


def test_an_opaque_root_hides_all_below(tmp_path):
    """The layers below are not mounted, as overlayfs ignores the xattr of a root."""
    image = Image.load(
        Made([files(old="o"), layer(entry(".wh..wh..opq"), entry("new", b"n"))]).write(
            tmp_path / "layout"
        )
    )
    assert {"new": "n"} == shown(image)


def test_an_image_is_found_by_name_and_by_a_prefix_of_its_id(made, tmp_path):
    """The error for an unknown image has the command that pulls it."""
    image = Image.load(as_layout(made, tmp_path))
    assert [image] * 4 == [
        Image.get(text) for text in ("example.test/made:1", image.id, image.id[:14], image.id[7:19])
    ]
    with pytest.raises(ImageError, match="pytest-sandbox pull debian:12"):
        Image.get("debian:12")


def test_two_names_of_an_image_are_removed_one_by_one(made, tmp_path, store):
    """The layers are removed with the last name."""
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
    """The older image of this name has no name afterwards."""
    old = Image.load(Made([files(a="1")]).write(tmp_path / "1"), name="x:1")
    new = Image.load(Made([files(a="2")]).write(tmp_path / "2"), name="x:1")
    assert new == Image.get("x:1")
    assert {"x:1", old.id} == {image.reference for image in Image.list()}


def test_the_setting_takes_the_host_an_image_or_a_directory(made, tmp_path, monkeypatch):
    """A stored name has precedence over a directory, unless it is written as a path."""
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


def test_the_store_has_mode_0700(made, tmp_path, store):
    """Also in a directory that had another mode before."""
    os.makedirs(store.directory, 0o755)
    Image.load(as_layout(made, tmp_path))
    assert 0o40700 == os.stat(store.directory).st_mode


@pytest.mark.needs("root", "plain_root")
def test_a_whiteout_in_a_store_on_an_overlay_is_an_error(made, tmp_path):
    """On a root that is an overlay, as in docker and in a container, the error names the variable
    that moves the store.
    """
    layout = as_layout(made, tmp_path)
    with (
        Container() as container,
        pytest.raises(ImageError, match=r"\.wh\.one: .*PYTEST_SANDBOX_HOME"),
    ):
        container.call(lambda: Image.load(layout).id)


def test_the_store_follows_the_environment(monkeypatch, tmp_path):
    """It is $PYTEST_SANDBOX_HOME, else in $XDG_CACHE_HOME, else in ~/.cache.

    A relative XDG directory is ignored, as its specification requires.
    """
    from pytest_sandbox.paths import images as home

    assert str(tmp_path / "home") == home()
    monkeypatch.delenv("PYTEST_SANDBOX_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere/cache")
    assert "/somewhere/cache/pytest-sandbox" == home()
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", "/home/me")
    assert "/home/me/.cache/pytest-sandbox" == home()


def test_a_damaged_index_is_an_error_with_its_path(made, tmp_path, store):
    """The error names the file."""
    Image.load(as_layout(made, tmp_path))
    Path(store.path("index.json")).write_text("{")
    with pytest.raises(ImageError, match=r"index\.json is damaged"):
        Image.list()


def test_a_layer_of_links_is_read_from_an_old_archive(made, tmp_path):
    """Before docker 1.14, equal layers were saved as links to the first."""
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
    """`docker save a b` writes two."""
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
def test_a_directory_that_is_not_a_root_file_system_is_an_error(tmp_path, use):
    """The error lists the names that a root file system has."""
    (tmp_path / "project/tests").mkdir(parents=True)
    with pytest.raises(ImageError, match="does not look like a root file system"):
        use(tmp_path / "project")
    with pytest.raises(ImageError):
        use("/dev/zero")
