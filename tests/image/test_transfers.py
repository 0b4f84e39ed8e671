"""Transfers from a registry have limits of size and time, and end on an interrupt."""

from __future__ import annotations

import gzip
import json
import os
import select
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest
from fake_registry import Fake, challenge, dripping, endless, fake_registry, on
from registries import reply
from tarballs import Made, entry, files, layer

from pytest_sandbox import Image, ImageError
from pytest_sandbox.image import registry as registry_module
from pytest_sandbox.image import size_limits as limits_module
from pytest_sandbox.image import transport
from pytest_sandbox.image.size_limits import Limits

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_sandbox.image.store import Store

DEADLINE = 30


@pytest.fixture(autouse=True)
def no_login(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds of the pauses between attempts, which are skipped."""
    made: list[float] = []
    original = registry_module.Registry.__init__

    def without_pauses(self, *args):
        original(self, *args, pause=made.append)

    monkeypatch.setattr(registry_module.Registry, "__init__", without_pauses)
    return made


@pytest.fixture
def server() -> Iterator[Fake]:
    with fake_registry() as fake:
        fake.add("a/b:1", Made([files(a="1"), layer(entry("big", os.urandom(1 << 20)))]))
        yield fake


def is_empty(store: Store) -> bool:
    """Tell whether the store is empty, without a collection."""
    names = ("layers", "tmp", "documents", "images", "locks")
    return not any(
        os.listdir(store.path(name)) for name in names if os.path.isdir(store.path(name))
    )


@pytest.mark.parametrize("status", [200, 401, 404])
def test_an_endless_body_is_an_error(server, store, status):
    """A manifest has a maximum size; the body of an error is not read."""
    server.hooks.append(endless(status))
    with pytest.raises(ImageError, match=r"more than 8388608|denies access|has no"):
        Image.pull(f"{server.host}/a/b:1")
    assert is_empty(store)


def test_an_endless_body_of_a_redirect_is_not_read(server):
    """The redirect is followed."""
    server.hooks.append(endless(307, Location="/v2/x"))
    with pytest.raises(ImageError, match="redirects more than"):
        Image.pull(f"{server.host}/a/b:1")


def test_an_endless_token_is_an_error(server):
    """The response of a token server has a maximum size."""
    server.hooks += [
        challenge(f'Bearer realm="http://{server.host}/token"'),
        lambda handler: handler.path.startswith("/token") and endless(200)(handler),
    ]
    with pytest.raises(ImageError, match="more than 1048576 bytes"):
        Image.pull(f"{server.host}/a/b:1")


def test_a_compressed_token_is_not_decompressed(server):
    """It could be a decompression bomb; no Content-Encoding was requested."""
    bomb = gzip.compress(bytes(64 << 20), 9)
    server.hooks += [
        challenge(f'Bearer realm="http://{server.host}/token"'),
        on("/token", 200, bomb, Content_Encoding="gzip"),
    ]
    with pytest.raises(ImageError, match="sent no token"):
        Image.pull(f"{server.host}/a/b:1")


@pytest.mark.parametrize(
    "wait", ["\u00b2", "-5", "1.5", "nan", "Wed, 21 Oct 2099 07:28:00 GMT", "9" * 5000]
)
def test_an_invalid_retry_after_is_ignored(server, pauses, wait):
    """The pause is the default, which is at most 60 s."""
    answers = iter([wait])
    server.hooks.append(
        lambda handler: (text := next(answers, None)) and reply(handler, 429, Retry_After=text)
    )
    Image.pull(f"{server.host}/a/b:1")
    assert (1, True) == (len(pauses), 0 < pauses[0] <= 60)


def test_a_slow_blob_is_an_error(server, store, monkeypatch):
    """Each read has a deadline for all of its bytes, not only for the next one."""
    monkeypatch.setattr(transport, "_GRACE_SECONDS", 0.2)
    monkeypatch.setattr(transport, "_LEAST_RATE", 1 << 20)
    server.hooks.append(dripping(bytes(100_000)))
    with pytest.raises(ImageError, match="too slow"):
        Image.pull(f"{server.host}/a/b:1")
    assert is_empty(store)


def test_a_slow_response_header_is_an_error(server, monkeypatch):
    """The header of a response has a deadline."""
    monkeypatch.setattr(transport, "_HEAD_SECONDS", 0.5)
    asked = threading.Event()

    def never(handler) -> bool:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
        while not asked.wait(0.05):
            handler.wfile.write(b"x")
        return True

    server.hooks.append(never)
    try:
        with pytest.raises(ImageError, match="did not respond within"):
            Image.pull(f"{server.host}/a/b:1")
    finally:
        asked.set()


def test_a_download_that_is_interrupted_repeatedly_is_an_error(server):
    """One byte in each request does not count as progress."""
    blob = max(server.images["a/b:1"].blobs.values(), key=len)

    def cut(handler) -> bool:
        if "/blobs/" not in handler.path:
            return False
        start = int(handler.headers.get("Range", "bytes=0-")[6:-1])
        handler.send_response(206 if start else 200)
        handler.send_header("Content-Length", str(len(blob) - start))
        handler.end_headers()
        handler.wfile.write(blob[start : start + 1])
        handler.close_connection = True
        return True

    server.hooks.append(cut)
    with pytest.raises(ImageError, match=r"failed 6 times in a row: .*interrupted"):
        Image.pull(f"{server.host}/a/b:1")


def test_the_layers_of_an_image_have_a_size_limit_together(server, store, monkeypatch):
    """Several layers below the limit raise an ImageError together."""
    made = Made([layer(entry(f"zeros{number}", bytes(900_000))) for number in range(3)])
    small = Limits(layer_bytes=4 << 20, ratio=50, ratio_from=1 << 20)
    monkeypatch.setattr(limits_module, "DEFAULT_LIMITS", small)
    with pytest.raises(ImageError, match="the image's layers unpack to more than 50 times"):
        Image.pull(server.add("a/bomb:1", made))
    assert is_empty(store)


def test_the_layers_of_an_image_have_a_limit_of_entries_together(server, monkeypatch):
    """Several layers below the limit raise an ImageError together."""
    made = Made([layer(*(entry(f"{number}-{at}") for at in range(15))) for number in range(3)])
    monkeypatch.setattr(limits_module, "DEFAULT_LIMITS", Limits(entries=40))
    with pytest.raises(ImageError, match="more than 40 entries"):
        Image.pull(server.add("a/many:1", made))


def test_a_failed_pull_leaves_nothing(server, store):
    """The complete layers are removed too."""
    last = server.images["a/b:1"].manifest["layers"][1]["digest"]
    server.hooks.append(on(last, 404))
    with pytest.raises(ImageError, match="has no a/b/blobs"):
        Image.pull(f"{server.host}/a/b:1")
    assert is_empty(store)


PULL = (
    "import sys; from pytest_sandbox import Image; print('go', flush=True); Image.pull(sys.argv[1])"
)


def test_an_interrupt_ends_a_pull(server, store):
    """Also while it waits for data; nothing is left in the store."""
    begun = threading.Event()

    def hold(handler) -> bool:
        if "/blobs/" not in handler.path:
            return False
        handler.send_response(200)
        handler.send_header("Content-Length", "1000000000")
        handler.end_headers()
        handler.wfile.write(b"\x1f\x8b")
        begun.set()
        handler.connection.settimeout(DEADLINE)
        handler.connection.recv(1)  # until the client has gone
        return True

    digest = server.images["a/b:1"].manifest["layers"][1]["digest"]
    server.hooks.append(lambda handler: handler.path.endswith(digest) and hold(handler))
    server.images["a/b:1"].manifest["layers"][1]["size"] = 1_000_000_000
    process = subprocess.Popen(
        [sys.executable, "-c", PULL, f"{server.host}/a/b:1"], stderr=subprocess.PIPE
    )
    try:
        assert begun.wait(DEADLINE)
        process.send_signal(signal.SIGINT)
        pidfd = os.pidfd_open(process.pid)
        assert select.select([pidfd], [], [], DEADLINE)[0]
        os.close(pidfd)
        assert b"KeyboardInterrupt" in process.communicate(timeout=DEADLINE)[1]
    finally:
        process.kill()
        process.communicate()
    assert is_empty(store)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("User", "4294967295", "out of range"),
        ("User", "0:4294967296", "out of range"),
        ("User", "2147483648", "out of range"),
        ("User", "root\n", "is not USER"),
        ("User", "a:b:c", "is not USER"),
        ("Env", ["A=\ud800"], "not valid Unicode"),
        ("Labels", {"\x1b": "\ud800"}, "not valid Unicode"),
        ("Labels", ["x"], "is not an object"),
    ],
)
def test_an_invalid_image_configuration_is_an_error(server, store, key, value, message):
    """Nothing of the image is stored."""
    with pytest.raises(ImageError, match=message) as caught:
        Image.pull(server.add("a/odd:1", Made([files(a="1")], {key: value})))
    assert (True, True) == (str(caught.value).isprintable(), is_empty(store))


def test_the_highest_user_is_accepted(server):
    """UIDs are accepted up to 2147483647, as in docker."""
    image = Image.pull(server.add("a/high:1", Made([files(a="1")], {"User": "2147483647:0"})))
    assert "2147483647:0" == image.config["User"]


def test_platforms_of_an_index_are_shown_escaped(server):
    """Control characters from a registry are not printed."""
    platform = {"os": "\x1b[31mevil\n\u202e", "architecture": "\r"}
    manifest = {"digest": f"sha256:{'0' * 64}", "size": 1, "platform": platform}
    index = {"mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [manifest]}
    server.hooks.append(on("/manifests/", 200, json.dumps(index).encode()))
    with pytest.raises(ImageError, match=r"\\x1b\[31mevil\\x0a\\u202e") as caught:
        Image.pull(f"{server.host}/a/b:1")
    assert str(caught.value).isprintable()
