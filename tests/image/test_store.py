"""The store survives damage, foreign files, other users and newer versions, and says what is
wrong.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from fake_registry import Fake, fake_registry
from tarballs import Made, directory, entry, files, layer

from pytest_sandbox import Image, ImageError
from pytest_sandbox.cli import main
from pytest_sandbox.image import image as image_module
from pytest_sandbox.image import index as index_module
from pytest_sandbox.image.prune import prune
from pytest_sandbox.image.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    """A registry with two images that share a layer."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    with fake_registry() as fake:
        shared = layer(directory("d", mode=0o700), entry("d/shared", b"s"))
        fake.add("a/b:1", Made([shared, files(own="o")], {"Cmd": ["sh"]}))
        fake.add("a/c:1", Made([shared]))
        yield fake


@pytest.fixture
def pulled(server: Fake) -> Image:
    return Image.pull(f"{server.host}/a/b:1")


def contents(image: Image) -> dict[str, bytes]:
    """All files of an image."""
    found = {}
    for lower in reversed(image.lower_directories()):
        for where, _, names in os.walk(lower):
            for name in names:
                path = os.path.join(where, name)
                with open(path, "rb") as file:
                    found[os.path.relpath(path, lower)] = file.read()
    return found


WHOLE = {"d/shared": b"s", "own": b"o"}


def each(pattern: str, do: Callable[[Path], object]) -> Callable[[Path], None]:
    def damage(home: Path) -> None:
        found = list(home.glob(pattern))
        assert found
        for path in found:
            do(path)

    return damage


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "documents flipped": each("documents/*", flipped),
    "documents gone": each("documents/*", os.unlink),
    "layer.json empty": each("layers/*/layer.json", emptied),
    "layer.json nested": each("layers/*/layer.json", lambda path: path.write_text("[" * 200_000)),
    "layer.json of other types": each(
        "layers/*/layer.json", lambda path: path.write_text('{"size": "x"}')
    ),
    "layer.json gone": each("layers/*/layer.json", os.unlink),
    "layer's files gone": each("layers/*/fs", shutil.rmtree),
    "layers gone": each("layers/*", shutil.rmtree),
    "layer is a file": each("layers/*", lambda path: (shutil.rmtree(path), path.touch())),
    "image's lock gone": each("images/*", os.unlink),
    "index.json gone": each("index.json", os.unlink),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_pull_repairs_what_is_damaged_or_missing(server, pulled, store, damage):
    """It does not say that all is well because a name is known; images, rmi and prune go on."""
    damage(Path(store.directory))
    Image.list()
    again = Image.pull(f"{server.host}/a/b:1")
    assert (pulled.id, WHOLE, {"Cmd": ["sh"]}) == (again.id, contents(again), again.config)
    damage(Path(store.directory))
    prune(store)
    for image in Image.list():
        image.remove()
    prune(store, every=True)
    assert [] == Image.list()


def test_one_damaged_document_does_not_fail_the_others(server, pulled, store, capfd):
    """The list names every image, and says on stderr which is damaged."""
    Image.pull(f"{server.host}/a/c:1")
    flipped(_path(store, "documents", pulled.id))
    image_module._document.cache_clear()  # as in another process
    assert 0 == main.main(["images"])
    out, err = capfd.readouterr()
    assert (3, True) == (len(out.splitlines()), f"{server.host}/a/b " in out)
    assert "Pull or load the image again" in err


def _path(store: Store, directory: str, digest: str) -> Path:
    return Path(store.path(directory, digest.removeprefix("sha256:")))


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"images": [], "names": {}, "digests": {}}', "[" * 200_000]
)
def test_a_damaged_index_can_be_moved_away_without_a_loss(server, pulled, store, text):
    """The error says so, and nothing is fetched again afterwards."""
    index = Path(store.path("index.json"))
    index.write_text(text)
    for use in (Image.list, lambda: prune(store), lambda: Image.pull(f"{server.host}/a/b:1")):
        with pytest.raises(ImageError, match="Move this file away"):
            use()
    index.rename(index.with_suffix(".old"))
    server.asked.clear()
    assert WHOLE == contents(Image.pull(f"{server.host}/a/b:1"))
    assert [] == [
        one.path
        for one in server.asked
        if "/blobs/" in one.path and one.path[-64:] not in pulled.id
    ]


NEWER = {
    "index": ("index.json", lambda data: {**data, "format": index_module.FORMAT + 1}),
    "record": (
        "index.json",
        lambda data: {
            **data,
            "images": {key: {**one, "verity": 1} for key, one in data["images"].items()},
        },
    ),
    "layer": ("layers/*/layer.json", lambda data: {**data, "verity": 1}),
}


@pytest.mark.parametrize(("pattern", "change"), NEWER.values(), ids=NEWER)
def test_a_newer_store_is_named_and_left_alone(server, pulled, store, pattern, change):
    """Nobody is told to remove it, and nothing is fetched over it."""
    assert pulled
    for path in Path(store.directory).glob(pattern):
        path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(ImageError, match="newer pytest-sandbox") as caught:
        Image.pull(f"{server.host}/a/b:1")
    assert "emove" not in str(caught.value)


def test_an_image_of_the_first_format_is_registered_again_without_a_download(server, pulled, store):
    """Its layers were changed by other images: what its directories look like is found anew."""
    index = Path(store.path("index.json"))
    data = json.loads(index.read_text())
    del data["format"]
    for record in data["images"].values():
        del record["format"]
    index.write_text(json.dumps(data))
    server.asked.clear()
    assert (pulled, WHOLE) == (Image.get(pulled.reference), contents(Image.get(pulled.reference)))
    Image.pull(f"{server.host}/a/b:1")
    assert [] == [one.path for one in server.asked if "/blobs/" in one.path]
    assert index_module.FORMAT == store.index().images[pulled.id].format


def test_a_name_of_an_image_that_is_not_there_is_passed_over(pulled, store):
    """As a store has it whose index was edited."""
    index = Path(store.path("index.json"))
    index.write_text(json.dumps({**json.loads(index.read_text()), "images": {}}))
    assert [] == Image.list()
    with pytest.raises(ImageError, match="no stored image"):
        Image.get(pulled.reference)


def test_foreign_files_stay_and_break_nothing(server, pulled, store):
    """Snapshots, editors' files, a lost+found: neither removed nor taken for the store's own."""
    home = Path(store.directory)
    places = ("documents", "layers", "images", "locks", "tmp", ".")
    foreign = [home / place / name for place in places for name in ("x y", ".snap", "lost+found")]
    for path in foreign:
        path.mkdir() if path.name == "lost+found" else path.touch()
    (home / "documents" / ("a" * 64)).mkdir()
    prune(store, every=True)
    Image.pull(f"{server.host}/a/b:1").remove()
    assert pulled
    assert [] == [path for path in foreign if not path.exists()]
    assert [] == Image.list()


@pytest.mark.needs("root")
@pytest.mark.parametrize("use", [Image.list, lambda: Image.get("x"), lambda: prune(Store())])
def test_a_store_of_another_user_is_refused(pulled, store, use):
    """Also for reading, and also by root: that user could change what root starts."""
    assert pulled
    os.chown(store.directory, 1000, 1000)
    with pytest.raises(ImageError, match=r"belongs to another user .uid 1000."):
        use()


@pytest.mark.parametrize("use", [Image.list, lambda: prune(Store())])
def test_a_store_that_is_a_file_is_an_error(store, use):
    """Which names it."""
    Path(store.directory).write_text("x")
    with pytest.raises(ImageError, match="is not a directory"):
        use()


@pytest.mark.needs("root", "busybox", "containers")
def test_containers_start_from_a_store_that_is_read_only(busybox, store):
    """An image on a mounted disk can be used, though not changed."""
    from pytest_sandbox import Container

    image = busybox()
    subprocess.run(["mount", "--bind", store.directory, store.directory], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", store.directory], check=True)
        with Container(image=image) as container:
            done = container.run(["echo", "hi"], capture_output=True, text=True)
        assert "hi\n" == done.stdout
    finally:
        subprocess.run(["umount", store.directory], check=True)


def test_a_damaged_layer_under_a_container_is_not_replaced(server, pulled, store):
    """The error says what to close; when it is closed, the layer is repaired."""
    held = pulled.hold()
    each("layers/*/layer.json", emptied)(_path(store, ".", "."))
    with pytest.raises(ImageError, match="a container lives on it"):
        Image.pull(f"{server.host}/a/b:1")
    os.close(held)
    assert WHOLE == contents(Image.pull(f"{server.host}/a/b:1"))


def test_files_are_on_the_disk_before_they_have_their_names(server, store, monkeypatch):
    """A power loss leaves the old file or the new one, never an empty one."""
    synced: list[int] = []
    placed: list[tuple[int, bool]] = []
    sync, replace = os.fsync, os.replace

    def noted(source, target):
        placed.append((os.stat(source).st_ino, os.stat(source).st_ino in synced))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.fstat(fd).st_ino), sync(fd))[1])
    monkeypatch.setattr(os, "replace", noted)
    Image.pull(f"{server.host}/a/b:1")
    assert (3, True) == (len(placed), all(known for _, known in placed))
    facts = [_path(store, "layers", key) / "layer.json" for key in store.index().layers_in_use()]
    assert {path.stat().st_ino for path in facts} <= set(synced)


PULL_AND_PRUNE = """
import sys
from pytest_sandbox import Image
from pytest_sandbox.image.prune import prune
from pytest_sandbox.image.store import Store, UnknownImage
for _ in range(15):
    try:
        Image.pull(sys.argv[1]) if sys.argv[2] == "pull" else prune(Store(), every=True)
        Image.list()
    except UnknownImage:
        pass
"""


def run_all(arguments: list[list[str]], code: str) -> list[tuple[int, str]]:
    """Start processes at the same time; return their exit statuses and what they said."""
    processes = [
        subprocess.Popen([sys.executable, "-c", code, *words], stderr=subprocess.PIPE, text=True)
        for words in arguments
    ]
    try:
        said = [process.communicate(timeout=120)[1] for process in processes]
        return [(process.returncode, text) for process, text in zip(processes, said, strict=True)]
    finally:
        for process in processes:
            process.kill()


def test_prune_may_meet_pull(server):
    """Who pulls has the image, or is told that somebody has removed it."""
    reference = f"{server.host}/a/b:1"
    found = run_all([[reference, what] for what in ("pull", "pull", "prune")], PULL_AND_PRUNE)
    assert [(0, "")] * 3 == found


PULL_AT_ONCE = """
import os, shutil, sys
from pytest_sandbox import Image
for number in range(int(sys.argv[3])):
    os.environ["PYTEST_SANDBOX_HOME"] = f"{sys.argv[2]}/{number}"
    Image.pull(sys.argv[1])
"""


def test_parallel_pulls_do_not_wait_for_each_other_for_ever(tmp_path, monkeypatch):
    """Workers that pull the same layers in different orders, one of them twice in one image."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    layers = [files(**{f"f{number}": str(number)}) for number in range(4)]
    with fake_registry() as fake:
        names = [
            fake.add("a/b:1", Made([*layers, layers[0], layers[0]])),
            fake.add("a/c:1", Made([*layers[::-1]], {"Cmd": ["x"]})),
        ]
        words = [[names[number % 2], str(tmp_path / "homes"), "10"] for number in range(4)]
        assert [(0, "")] * 4 == run_all(words, PULL_AT_ONCE)


def test_a_layer_that_is_named_twice_is_made_once(server):
    """And fetched once."""
    twice = files(twice="2")
    Image.pull(server.add("a/twice:1", made := Made([twice, twice, twice])))
    digest = made.manifest["layers"][0]["digest"]
    assert 1 == len([one for one in server.asked if one.path.endswith(digest)])
