"""Images that are damaged, forged or made to do harm: an ImageError that says what and where, and
nothing left behind.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from registries import push, registry
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
from pytest_sandbox.image.prune import collect, prune
from pytest_sandbox.image.size_limits import DEFAULT_LIMITS

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_sandbox.image.store import Store


def is_clean(store: Store) -> bool:
    """Whether the store holds what its index names, and nothing else."""
    index = store.index()
    expected = {
        "documents": index.documents_in_use() - {""},
        "layers": index.layers_in_use(),
        "images": set(index.images),
        "tmp": set(),
        "locks": index.layers_in_use(),
    }
    found = {name: set(os.listdir(store.path(name))) for name in expected}
    return found == {
        name: {one.removeprefix("sha256:") for one in digests} for name, digests in expected.items()
    }


def wrong(where: str, key: str, value: object) -> Callable[[Made], None]:
    """Falsify one key of the manifest, the first layer's descriptor, the configuration, or its
    config.
    """

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
    """An index that names itself, by a digest that is not its own."""
    digest = digest_of(b"cycle")
    document = {
        "mediaType": f"{OCI}.index.v1+json",
        "manifests": [{"mediaType": f"{OCI}.index.v1+json", "digest": digest, "size": 1}],
    }
    made.blobs[digest] = json.dumps(document).encode()
    made.index = lambda: document  # type: ignore[method-assign]


HUGE = DEFAULT_LIMITS.document_bytes + 1
FORGED = {
    "layer digest": (blob("layer", lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]), "the layer sha256"),
    "layer of other content": (blob("layer", lambda _: gzip.compress(files(evil="e"))), "its digest is"),
    "layer cut off": (blob("layer", lambda data: data[:-10]), "stream is damaged"),
    "layer with garbage behind": (blob("layer", lambda data: data + b"x"), "stream is damaged"),
    "layer of two archives": (blob("layer", lambda _: gzip.compress(files(a="1") + files(b="2"))), "follows the end"),
    "layer that is no archive": (blob("layer", lambda _: gzip.compress(b"x" * 1024)), "a header's"),
    "layer missing": (without_blob("layer"), "is missing: there is no file"),
    "layer size": (wrong("layer", "size", 7), "its size is"),
    "layer size negative": (wrong("layer", "size", -1), "has no size"),
    "layer size of text": (wrong("layer", "size", "7"), "has no size"),
    "layer digest of md5": (wrong("layer", "digest", "md5:00"), "no sha256 digest"),
    "layer digest that leads out": (wrong("layer", "digest", "sha256:../../../../etc/passwd"), "no sha256 digest"),
    "layer media type": (wrong("layer", "mediaType", "application/x-evil"), "unknown media type"),
    "encrypted layer": (wrong("layer", "mediaType", f"{OCI}.layer.v1.tar+gzip+encrypted"), "unknown media type"),
    "layers no list": (wrong("manifest", "layers", {}), "no list of layers"),
    "layers no objects": (wrong("manifest", "layers", ["x"]), "not described by an object"),
    "too many layers": (wrong("manifest", "layers", [{}] * 2001), "more than 2000"),
    "manifest media type": (wrong("manifest", "mediaType", "application/x-evil"), "unknown media type"),
    "manifest schema 1": (wrong("manifest", "schemaVersion", 1), "schema 1"),
    "manifest and index at once": (wrong("manifest", "manifests", []), "at once"),
    "config missing": (without_blob("config"), "missing"),
    "config digest": (blob("config", lambda data: data + b" "), "damaged or forged"),
    "config no JSON": (blob("config", lambda _: b"{"), "damaged or forged"),
    "config described wrongly": (wrong("described", "digest", None), "no sha256 digest"),
    "config too large": (blob("config", lambda _: b" " * HUGE), "larger than"),
    "diff_ids missing": (wrong("config", "rootfs", {}), "no list of diff_ids"),
    "diff_ids too few": (wrong("config.rootfs", "diff_ids", []), "names 0 layers"),
    "diff_id wrong": (wrong("config.rootfs", "diff_ids", [digest_of(b"x")]), "its diff_id is"),
    "diff_id that leads out": (wrong("config.rootfs", "diff_ids", ["sha256:../../x"]), "no list of diff_ids"),
    "another system": (wrong("config", "os", "windows"), "not for linux"),
    "env of numbers": (wrong("config.config", "Env", [1]), "config.Env"),
    "env as text": (wrong("config.config", "Env", "A=1"), "config.Env"),
    "command with NUL": (wrong("config.config", "Cmd", ["a\0b"]), "config.Cmd"),
    "user of numbers": (wrong("config.config", "User", 1), "config.User"),
    "history as text": (wrong("config", "history", "x"), "history"),
    "nested too deep": (nested(8), "nested more than"),
    "cyclic": (cyclic, "damaged or forged|leads back"),
}  # fmt: skip


@pytest.mark.parametrize("form", ["directory", "tar"])
@pytest.mark.parametrize(("change", "said"), FORGED.values(), ids=FORGED)
def test_a_forged_layout_is_refused_and_leaves_nothing(tmp_path, store, change, said, form):
    """Documents and layers that do not agree, in every place where they could."""
    made = Made([files(a="1")], {"Cmd": ["sh"]})
    change(made)
    where = made.write(tmp_path / "layout")
    if form == "tar":
        (tmp_path / "layout.tar").write_bytes(tar_of(where))
        where = tmp_path / "layout.tar"
    with pytest.raises(ImageError, match=said):
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


@pytest.mark.parametrize(("entries", "said"), EVIL.values(), ids=EVIL)
def test_an_evil_layer_names_layer_and_path(tmp_path, store, entries, said):
    """What a terminal would obey is shown as text."""
    (tmp_path / "precious").write_text("untouched")
    made = Made([files(a="1"), layer(directory("d"), entry("d/good"), entries)])
    with pytest.raises(ImageError, match=said) as caught:
        Image.load(made.write(tmp_path / "layout"))
    assert made.manifest["layers"][1]["digest"] in str(caught.value)
    assert str(caught.value).isprintable()
    assert "untouched" == (tmp_path / "precious").read_text()
    assert not Path("/evil").exists()
    collect(store)
    assert is_clean(store)


def test_a_bomb_is_stopped(tmp_path, store, monkeypatch):
    """A layer that unpacks to more than is allowed goes without a trace; allowing more lets it
    in.
    """
    made = Made([layer(entry("zeros", bytes(3 << 20)))])
    where = made.write(tmp_path / "layout")
    monkeypatch.setenv("PYTEST_SANDBOX_MAX_LAYER", "1m")
    with pytest.raises(ImageError, match="PYTEST_SANDBOX_MAX_LAYER"):
        Image.load(where)
    collect(store)
    assert is_clean(store)
    monkeypatch.setenv("PYTEST_SANDBOX_MAX_LAYER", "4m")
    assert 3 << 20 == Image.load(where).size


def test_a_limit_that_is_none_is_refused(tmp_path, monkeypatch):
    """With the accepted form."""
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
def test_what_is_no_file_is_never_read(tmp_path, store, make, monkeypatch):
    """FIFOs, sockets, devices and dangling links, as the image itself or in the place of a
    document: an error, and no waiting.
    """
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


NO_IMAGES = {
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


@pytest.mark.parametrize("data", NO_IMAGES.values(), ids=NO_IMAGES)
def test_what_is_no_image_is_refused(tmp_path, store, data, request):
    """Whatever a file holds, it is an ImageError or an image, and never another exception."""
    (tmp_path / "file").write_bytes(data)
    if request.node.callspec.id in ("zeros", "links in a circle"):
        Image.load(
            tmp_path / "file"
        )  # an archive of nothing, and one of two links, are root file systems
    else:
        with pytest.raises(ImageError):
            Image.load(tmp_path / "file")
    collect(store)
    assert is_clean(store)


def test_setuid_programs_and_devices_are_out_of_reach(tmp_path, store):
    """No other user can come to what lies in the store."""
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


# -- killed at any moment

LOADING = (
    "import sys; from pytest_sandbox import Image; print('go', flush=True); "
    "Image.load(sys.argv[1], name='killed:1'); print('done', flush=True)"
)
PULLING = (
    "import sys; from pytest_sandbox import Image; print('go', flush=True); "
    "Image.pull(sys.argv[1]); print('done', flush=True)"
)


def heavy() -> Made:
    many = [entry(f"d{n % 7}/f{n}", os.urandom(700)) for n in range(700)]
    return Made([layer(*many), layer(entry("big", os.urandom(2 << 20))), files(top="t")])


def killed_after(code: str, argument: object, seconds: float) -> None:
    """Start a process that works on the store, and kill it so many seconds after it has begun,
    unless it was faster.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(argument)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout
    assert "go\n" == process.stdout.readline()
    pidfd = os.pidfd_open(process.pid)
    select.select([pidfd], [], [], seconds)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    os.close(pidfd)


@pytest.mark.parametrize("how", ["load", "pull"])
@pytest.mark.needs("docker-registry")
def test_a_process_may_be_killed_at_any_moment(tmp_path, store, how):
    """What is in the index is whole, what was begun is gone with the next use, and the next attempt
    succeeds.
    """
    made = heavy()
    with registry(tmp_path / "registry") as server:
        push(server.host, "killed:1", made)
        code, argument = (
            (PULLING, f"{server.host}/killed:1")
            if how == "pull"
            else (LOADING, made.write(tmp_path / "layout"))
        )
        for round_ in range(12):
            killed_after(code, argument, random.uniform(0, 0.5))
            for image in Image.list():
                assert all(os.path.isdir(one) for one in image.lower_directories())
            if round_ % 4 == 3:
                collect(store)
                assert is_clean(store)
                prune(store, every=True)
        image = Image.pull(argument) if how == "pull" else Image.load(argument)
        assert [2 << 20, 1, 700 * 700] == sorted(
            image.layer_sizes(), key=lambda size: (size != 2 << 20, size)
        )
        collect(store)
        assert is_clean(store)


def test_processes_that_load_the_same_image_at_once_make_it_once(tmp_path, store):
    """Two pytest workers wait for each other; each has the image afterwards."""
    where = heavy().write(tmp_path / "layout")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", LOADING, str(where)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    said = [process.communicate() for process in processes]
    assert [("go\ndone\n", "")] * 4 == said
    assert ["killed:1"] == [image.reference for image in Image.list()]
    collect(store)
    assert is_clean(store)


def test_removal_and_loading_side_by_side_lose_nothing(tmp_path, store):
    """Who loads an image has it, whatever others remove meanwhile."""
    where = heavy().write(tmp_path / "layout")
    code = (
        "import sys, os\n"
        "from pytest_sandbox import Image\n"
        "from pytest_sandbox.image.prune import collect\n"
        "from pytest_sandbox.image.store import Store\n"
        "for n in range(8):\n"
        "    image = Image.load(sys.argv[1], name=f'{sys.argv[2]}:1')\n"
        "    assert all(os.path.isdir(one) for one in image.lower_directories()), n\n"
        "    image.remove()\n"
        "    collect(Store())\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(where), name], stderr=subprocess.PIPE, text=True
        )
        for name in ("a", "b", "c")
    ]
    assert [(None, "")] * 3 == [process.communicate() for process in processes]
    collect(store)
    assert is_clean(store)
    assert [] == Image.list()


def test_a_saved_archive_with_a_wrong_layer_is_refused(tmp_path, store):
    """Layers of ``docker save`` have no digest of their own: the diff_id must agree."""
    made = Made([files(a="1")])
    forged = Made([files(a="2")])
    data = docker_archive(made, "x:1").replace(made.layers[0], forged.layers[0])
    (tmp_path / "saved.tar").write_bytes(data)
    with pytest.raises(ImageError, match="its diff_id is"):
        Image.load(tmp_path / "saved.tar")
    collect(store)
    assert is_clean(store)


@pytest.mark.needs("root")
def test_a_full_disk_is_said_and_leaves_nothing(tmp_path, store):
    """No room for a layer: an ImageError that says what makes room."""
    where = heavy().write(tmp_path / "layout")
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


def test_docker_media_types_are_known():
    """Schema 2's own names for the same things."""
    made = Made(
        [files(a="1")], media=f"{DOCKER.replace('distribution', 'image')}.rootfs.diff.tar.gzip"
    )
    from pytest_sandbox.image.manifest import _LAYER

    assert _LAYER.match(made.manifest["layers"][0]["mediaType"])
