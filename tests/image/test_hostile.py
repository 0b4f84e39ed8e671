"""Images that are damaged, forged or hostile raise an ImageError and leave nothing in the store."""

from __future__ import annotations

import gzip
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from stores import is_clean, large_image
from tarballs import (
    DOCKER,
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

from pytest_sandbox import Image, ImageError
from pytest_sandbox.image.prune import collect
from pytest_sandbox.image.size_limits import DEFAULT_LIMITS

if TYPE_CHECKING:
    from collections.abc import Callable


def wrong(where: str, key: str, value: object) -> Callable[[Made], None]:
    """Return a function that changes one key of a document."""

    def change(made: Made) -> None:
        target: Any = {
            "manifest": made.manifest,
            "layer": made.manifest["layers"][0],
            "config": made.document,
            "config.config": made.document["config"],
            "config.rootfs": made.document["rootfs"],
            "described": made.manifest["config"],
        }[where]
        target[key] = value
        if where.startswith("config"):
            made.reseal()

    return change


def without_blob(which: str) -> Callable[[Made], None]:
    def change(made: Made) -> None:
        described = made.manifest["config"] if which == "config" else made.manifest["layers"][0]
        del made.blobs[described["digest"]]

    return change


def blob(which: str, data: Callable[[bytes], bytes]) -> Callable[[Made], None]:
    def change(made: Made) -> None:
        described = made.manifest["config"] if which == "config" else made.manifest["layers"][0]
        made.blobs[described["digest"]] = data(made.blobs[described["digest"]])

    return change


def nested(depth: int) -> Callable[[Made], None]:
    def change(made: Made) -> None:
        def index() -> dict[str, Any]:
            inner: dict[str, Any] = {
                "manifests": [made.descriptor()],
                "mediaType": f"{OCI}.index.v1+json",
            }
            for _ in range(depth):
                inner = {
                    "manifests": [made.add(json.dumps(inner).encode(), f"{OCI}.index.v1+json")],
                    "mediaType": f"{OCI}.index.v1+json",
                }
            return inner

        made.index = index  # type: ignore[method-assign]

    return change


def cyclic(made: Made) -> None:
    """Make the index list itself, by a wrong digest."""
    digest = digest_of(b"cycle")
    document = {
        "mediaType": f"{OCI}.index.v1+json",
        "manifests": [{"mediaType": f"{OCI}.index.v1+json", "digest": digest, "size": 1}],
    }
    made.blobs[digest] = json.dumps(document).encode()
    made.index = lambda: document  # type: ignore[method-assign]


HUGE = DEFAULT_LIMITS.document_bytes + 1
FORGED = {
    "layer digest": (
        blob("layer", lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]),
        "the layer sha256",
    ),
    "layer of other content": (
        blob("layer", lambda _: gzip.compress(files(evil="e"))),
        "its digest is",
    ),
    "layer cut off": (blob("layer", lambda data: data[:-10]), "stream is damaged"),
    "layer followed by data": (blob("layer", lambda data: data + b"x"), "stream is damaged"),
    "layer of two archives": (
        blob("layer", lambda _: gzip.compress(files(a="1") + files(b="2"))),
        "follows the end",
    ),
    "layer that is not an archive": (
        blob("layer", lambda _: gzip.compress(b"x" * 1024)),
        "a header's",
    ),
    "layer missing": (without_blob("layer"), "is missing: there is no file"),
    "layer size": (wrong("layer", "size", 7), "its size is"),
    "layer size negative": (wrong("layer", "size", -1), "an invalid size"),
    "layer size of text": (wrong("layer", "size", "7"), "an invalid size"),
    "layer digest of md5": (wrong("layer", "digest", "md5:00"), "an invalid sha256 digest"),
    "layer digest with slashes": (
        wrong("layer", "digest", "sha256:../../../../etc/passwd"),
        "an invalid sha256 digest",
    ),
    "layer media type": (wrong("layer", "mediaType", "application/x-evil"), "unknown media type"),
    "encrypted layer": (
        wrong("layer", "mediaType", f"{OCI}.layer.v1.tar+gzip+encrypted"),
        "unknown media type",
    ),
    "layers not a list": (wrong("manifest", "layers", {}), "no list of layers"),
    "layers not objects": (wrong("manifest", "layers", ["x"]), "is not an object"),
    "too many layers": (wrong("manifest", "layers", [{}] * 2001), "more than 2000"),
    "manifest media type": (
        wrong("manifest", "mediaType", "application/x-evil"),
        "unknown media type",
    ),
    "manifest schema 1": (wrong("manifest", "schemaVersion", 1), "schema 1"),
    "manifest and index at once": (
        wrong("manifest", "manifests", []),
        "both a manifest and an index",
    ),
    "config missing": (without_blob("config"), "missing"),
    "config digest": (blob("config", lambda data: data + b" "), "damaged or forged"),
    "config not JSON": (blob("config", lambda _: b"{"), "damaged or forged"),
    "config without digest": (wrong("described", "digest", None), "an invalid sha256 digest"),
    "config too large": (blob("config", lambda _: b" " * HUGE), "larger than"),
    "diff_ids missing": (wrong("config", "rootfs", {}), "no list of diff_ids"),
    "diff_ids too few": (wrong("config.rootfs", "diff_ids", []), "names 0 layers"),
    "diff_id wrong": (wrong("config.rootfs", "diff_ids", [digest_of(b"x")]), "its diff_id is"),
    "diff_id with slashes": (
        wrong("config.rootfs", "diff_ids", ["sha256:../../x"]),
        "no list of diff_ids",
    ),
    "another system": (wrong("config", "os", "windows"), "not for linux"),
    "env of numbers": (wrong("config.config", "Env", [1]), "config.Env"),
    "env as text": (wrong("config.config", "Env", "A=1"), "config.Env"),
    "command with NUL": (wrong("config.config", "Cmd", ["a\0b"]), "config.Cmd"),
    "user of numbers": (wrong("config.config", "User", 1), "config.User"),
    "history as text": (wrong("config", "history", "x"), "history"),
    "nested too deep": (nested(8), "nested more than"),
    "cyclic": (cyclic, "damaged or forged|contains itself"),
}


@pytest.mark.parametrize("form", ["directory", "tar"])
@pytest.mark.parametrize(("change", "message"), FORGED.values(), ids=FORGED)
def test_a_forged_layout_is_an_error_and_leaves_nothing(tmp_path, store, change, message, form):
    """Inconsistent documents and layers raise an ImageError."""
    made = Made([files(a="1")], {"Cmd": ["sh"]})
    change(made)
    where = made.write(tmp_path / "layout")
    if form == "tar":
        (tmp_path / "layout.tar").write_bytes(tar_of(where))
        where = tmp_path / "layout.tar"
    with pytest.raises(ImageError, match=message):
        Image.load(where)
    collect(store)
    assert [] == Image.list()
    assert is_clean(store)


EVIL = {
    "dot dot": (entry("../../evil"), r"\.\./\.\./evil"),
    "absolute": (entry("/evil"), "/evil"),
    "link out": (link("a", "../../..") + entry("a/evil"), "a: an entry goes through a link"),
    "whiteout out": (entry("../.wh.precious"), "out of the layer"),
    "hard link to the host": (
        link("shadow", "../../../../../etc/shadow", kind="hard"),
        "out of the layer",
    ),
    "newline in the name": (entry("x\ny/../../evil"), r"x\\x0ay"),
    "no UTF-8 in the name": (entry("../\udcff", tar_format=1), r"\\xff"),
    "escape sequence in the name": (entry("../\x1b[2J"), r"\\x1b\[2J"),
}


@pytest.mark.parametrize(("entries", "message"), EVIL.values(), ids=EVIL)
def test_errors_of_a_hostile_layer_name_layer_and_path(tmp_path, store, entries, message):
    """Control characters in names are escaped."""
    (tmp_path / "precious").write_text("untouched")
    made = Made([files(a="1"), layer(directory("d"), entry("d/good"), entries)])
    with pytest.raises(ImageError, match=message) as caught:
        Image.load(made.write(tmp_path / "layout"))
    assert made.manifest["layers"][1]["digest"] in str(caught.value)
    assert str(caught.value).isprintable()
    assert "untouched" == (tmp_path / "precious").read_text()
    assert not Path("/evil").exists()
    collect(store)
    assert is_clean(store)


def test_a_layer_above_the_size_limit_is_an_error(tmp_path, store, monkeypatch):
    """Nothing of it is stored; with a higher limit it is."""
    made = Made([layer(entry("zeros", bytes(3 << 20)))])
    where = made.write(tmp_path / "layout")
    monkeypatch.setenv("PYTEST_SANDBOX_MAX_LAYER", "1m")
    with pytest.raises(ImageError, match="PYTEST_SANDBOX_MAX_LAYER"):
        Image.load(where)
    collect(store)
    assert is_clean(store)
    monkeypatch.setenv("PYTEST_SANDBOX_MAX_LAYER", "4m")
    assert 3 << 20 == Image.load(where).size


def test_an_invalid_size_limit_is_an_error(tmp_path, monkeypatch):
    """The error has an example of a valid one."""
    monkeypatch.setenv("PYTEST_SANDBOX_MAX_LAYER", "much")
    with pytest.raises(ImageError, match="as in 100g"):
        Image.load(Made([files(a="1")]).write(tmp_path / "layout"))


def fifo(path: Path) -> None:
    os.mkfifo(path)


def unix_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(path)[-100:] if len(str(path)) < 100 else os.path.relpath(path))


@pytest.mark.parametrize(
    "make",
    [
        fifo,
        unix_socket,
        lambda path: path.symlink_to("/dev/zero"),
        lambda path: path.symlink_to("nowhere"),
    ],
)
def test_special_files_are_not_read(tmp_path, store, make, monkeypatch):
    """A FIFO, socket, device or dangling link raises an ImageError, also as a document."""
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "image")
    with pytest.raises(ImageError):
        Image.load(tmp_path / "image")
    where = Made([files(a="1")]).write(tmp_path / "layout")
    (where / "index.json").unlink()
    make(where / "index.json")
    (where / "manifest.json").write_text("[]")
    with pytest.raises(ImageError):
        Image.load(where)


NOT_IMAGES = {
    "empty": b"",
    "text": b"hello\n" * 500,
    "zeros": bytes(4096),
    "a gzip of text": gzip.compress(b"hello"),
    "a gzip of nothing": gzip.compress(b""),
    "a cut gzip": gzip.compress(os.urandom(5000))[:2000],
    "an archive list": layer(entry("manifest.json", b"{}")),
    "an empty archive list": layer(entry("manifest.json", b"[]")),
    "an archive that leads out": layer(
        entry("manifest.json", b'[{"Config": "../../../../etc/passwd", "Layers": []}]'),
        link("x", "/etc/passwd"),
    ),
    "an archive without its layer": layer(
        entry("manifest.json", b'[{"Config": "c", "Layers": ["l"]}]'), entry("c", b"{}")
    ),
    "a layout of an unknown version": layer(
        entry("oci-layout", b'{"imageLayoutVersion": "9"}'), entry("index.json", b"{}")
    ),
    "a layout without manifests": layer(
        entry("oci-layout", b'{"imageLayoutVersion": "1.0.0"}'), entry("index.json", b"{}")
    ),
    "links in a circle": layer(link("manifest.json", "a"), link("a", "manifest.json")),
    "deep JSON": layer(entry("manifest.json", b"[" * 100_000)),
}


@pytest.mark.parametrize("data", NOT_IMAGES.values(), ids=NOT_IMAGES)
def test_files_that_are_not_images_are_an_error(tmp_path, store, data, request):
    """Their content raises an ImageError and no other exception."""
    (tmp_path / "file").write_bytes(data)
    if request.node.callspec.id in ("zeros", "links in a circle"):
        Image.load(tmp_path / "file")  # an empty archive, or one of two links, is a rootfs
    else:
        with pytest.raises(ImageError):
            Image.load(tmp_path / "file")
    collect(store)
    assert is_clean(store)


def test_other_users_cannot_reach_setuid_programs_and_devices(tmp_path, store):
    """The store has mode 0700."""
    made = Made(
        [
            layer(
                entry("su", b"#!/bin/sh\n", mode=0o4755),
                entry("null", kind="char", devmajor=1, devminor=3, mode=0o666),
            )
        ]
    )
    top = Image.load(made.write(tmp_path / "layout")).lower_directories()[0]
    assert 0o40700 == os.stat(store.directory).st_mode
    if os.geteuid() == 0:
        code = "import os, sys; os.setuid(65534); os.stat(sys.argv[1])"
        done = subprocess.run(
            [sys.executable, "-c", code, f"{top}/su"], capture_output=True, text=True, check=False
        )
        assert "PermissionError" in done.stderr


def test_a_saved_archive_with_a_wrong_layer_is_an_error(tmp_path, store):
    """Layers of ``docker save`` have no digest: their diff_id is verified."""
    made = Made([files(a="1")])
    forged = Made([files(a="2")])
    data = docker_archive(made, "x:1").replace(made.layers[0], forged.layers[0])
    (tmp_path / "saved.tar").write_bytes(data)
    with pytest.raises(ImageError, match="its diff_id is"):
        Image.load(tmp_path / "saved.tar")
    collect(store)
    assert is_clean(store)


@pytest.mark.needs("root")
def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path, store):
    """The ImageError tells how to free space."""
    where = large_image().write(tmp_path / "layout")
    store.prepare()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "tmpfs", store.directory], check=True
    )
    try:
        with pytest.raises(ImageError, match=r"No space left.*pytest-sandbox prune"):
            Image.load(where)
        collect(store)
        assert is_clean(store)
    finally:
        subprocess.run(["umount", store.directory], check=True)


def test_media_types_of_docker_are_accepted():
    """Layers may have the media type of docker's schema 2."""
    made = Made(
        [files(a="1")], media=f"{DOCKER.replace('distribution', 'image')}.rootfs.diff.tar.gzip"
    )
    from pytest_sandbox.image.manifest import _LAYER

    assert _LAYER.match(made.manifest["layers"][0]["mediaType"])
