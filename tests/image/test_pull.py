"""Images come from a real registry, verified, by as few requests as it takes, over a network that
fails.
"""

from __future__ import annotations

import base64
import json
import os
import socket
import ssl
import stat
import subprocess
import urllib.parse
from typing import TYPE_CHECKING

import pytest
import trustme
from registries import Proxy, Running, TokenServer, proxy, push, push_manifest, registry, reply
from tarballs import DOCKER, OCI, Made, digest_of, entry, files, layer

from pytest_sandbox import Image, ImageError
from pytest_sandbox.image import registry as module
from pytest_sandbox.image import transport
from pytest_sandbox.image.manifest import Platform
from pytest_sandbox.image.prune import collect

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pytest_sandbox.image.store import Store

pytestmark = pytest.mark.needs("docker-registry")

HOST = Platform.of_host()


@pytest.fixture(scope="session")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """An open registry."""
    with registry(tmp_path_factory.mktemp("registry") / "data") as running:
        yield running


@pytest.fixture
def server(backend: Running) -> Iterator[Proxy]:
    """The registry behind a proxy that records."""
    with proxy(backend.host) as one:
        yield one


@pytest.fixture(autouse=True)
def no_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A docker configuration of the test's own, and no pause between tries."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.delenv("REGISTRY_AUTH_FILE", raising=False)
    (tmp_path / "docker").mkdir()
    return tmp_path / "docker/config.json"


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that were asked for, none of which is made."""
    made: list[float] = []
    original = module.Registry.__init__
    monkeypatch.setattr(
        module.Registry, "__init__", lambda self, *args: original(self, *args, pause=made.append)
    )
    return made


def made(name: str = "pulled") -> Made:
    return Made(
        [files(base="b"), files(name=name), layer(entry("big", os.urandom(3 << 20)))],
        {"Cmd": ["sh"]},
    )


def names_in(image: Image) -> set[str]:
    return {name for lower in image.lower_directories() for name in os.listdir(lower)}


def test_an_image_is_pulled_layer_by_layer(backend, server):
    """Manifest, configuration, and each layer once; the image is found by its name afterwards."""
    one = made()
    push(backend.host, "app:1", one)
    image = Image.pull(f"{server.host}/app:1")
    assert (f"{server.host}/app:1", digest_of(json.dumps(one.document).encode())) == (
        image.reference,
        image.id,
    )
    assert {"base", "name", "big"} == names_in(image)
    assert image == Image.get(f"{server.host}/app:1")
    assert 5 == len(server.requests)


def test_a_known_image_is_asked_for_once_more_and_not_fetched(backend, server):
    """A tag that means what is stored costs one request without a body; a digest costs none."""
    described = push(backend.host, "known:1", made())
    first = Image.pull(f"{server.host}/known:1")
    server.requests.clear()
    assert first == Image.pull(f"{server.host}/known:1")
    assert ["HEAD /v2/known/manifests/1"] == server.asked()
    assert first.id == Image.pull(f"{server.host}/known@{described['digest']}").id
    assert 1 == len(server.requests)


def test_a_moved_tag_brings_the_new_image_and_keeps_shared_layers(backend, server):
    """Only what is new is fetched: a manifest, a configuration and one layer."""
    push(backend.host, "moved:1", Made([files(base="b"), files(name="old")]))
    old = Image.pull(f"{server.host}/moved:1")
    push(backend.host, "moved:1", Made([files(base="b"), files(name="new")]))
    server.requests.clear()
    new = Image.pull(f"{server.host}/moved:1")
    assert new.id != old.id
    assert 2 == len(server.asked("blobs"))


@pytest.mark.parametrize("media", [f"{OCI}.index.v1+json", f"{DOCKER}.manifest.list.v2+json"])
def test_of_an_index_this_machines_manifest_is_pulled(backend, server, media):
    """Other platforms' manifests, and attestations, are not fetched."""
    one, other = made("right"), made("wrong")
    listed = [
        push(backend.host, "multi:s390x", other)
        | {"platform": {"os": "linux", "architecture": "s390x"}},
        push(backend.host, "multi:own", one)
        | {"platform": {"os": "linux", "architecture": HOST.architecture}},
    ]
    index = push_manifest(
        backend.host, "multi", "1", {"schemaVersion": 2, "mediaType": media, "manifests": listed}
    )
    image = Image.pull(f"{server.host}/multi:1")
    assert digest_of(json.dumps(one.document).encode()) == image.id
    server.requests.clear()
    assert image.id == Image.pull(f"{server.host}/multi@{index['digest']}").id
    assert [] == server.requests


@pytest.mark.needs("skopeo", "umoci")
@pytest.mark.parametrize(
    "flags",
    [
        ["--format", "v2s2"],
        ["--format", "oci"],
        ["--dest-compress", "--dest-compress-format", "zstd", "--format", "oci"],
    ],
)
def test_what_skopeo_pushes_is_pulled(backend, umoci_image, flags, tmp_path):
    """Docker's schema 2, OCI, and layers compressed by zstd."""
    target = f"docker://{backend.host}/skopeo:{len(flags)}{flags[1]}"
    environment = os.environ | {
        "HOME": str(tmp_path),
        "XDG_DATA_HOME": str(tmp_path / "no-blob-cache"),
    }
    command = [
        "skopeo",
        "--insecure-policy",
        "copy",
        "-q",
        "--dest-tls-verify=false",
        *flags,
        f"oci:{umoci_image}:latest",
        target,
    ]
    subprocess.run(command, check=True, env=environment)
    assert {"bin", "etc"} == names_in(Image.pull(target.removeprefix("docker://")))


# -- a network that fails


def cut_after(count: int):
    """A fault: the first answer to each blob of at least twice the length ends after *count*
    bytes.
    """
    seen: set[str] = set()

    def fault(handler) -> bool:
        if "/blobs/" not in handler.path or handler.path in seen or handler.headers.get("Range"):
            return False
        with __import__("urllib.request").request.urlopen(
            f"http://{handler.server.upstream}{handler.path}"
        ) as answer:
            data = answer.read()
        if len(data) < 2 * count:
            return False
        seen.add(handler.path)
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data[:count])
        handler.wfile.flush()
        handler.connection.shutdown(socket.SHUT_RDWR)
        handler.close_connection = True
        return True

    return fault


def test_a_download_goes_on_where_it_broke_off(backend, server, pauses):
    """The second request asks for the rest only, and the whole is verified."""
    push(backend.host, "broken:1", made())

    def cut(handler) -> bool:
        handler.server.upstream = backend.host
        return cutting(handler)

    cutting = cut_after(1 << 20)
    server.faults.append(cut)
    image = Image.pull(f"{server.host}/broken:1")
    assert {"base", "name", "big"} == names_in(image)
    ranges = [headers["Range"] for _, _, headers in server.requests if "Range" in headers]
    assert 1 == len(ranges)
    assert 0 < int(ranges[0].removeprefix("bytes=").removesuffix("-")) <= 1 << 20
    assert 1 == len(pauses)


def test_a_server_without_ranges_begins_anew(backend, server):
    """What was had already is skipped."""
    push(backend.host, "rangeless:1", made())

    def cut(handler) -> bool:
        handler.server.upstream = backend.host
        if handler.headers.get("Range"):
            del handler.headers["Range"]
            return False
        return cutting(handler)

    cutting = cut_after(1 << 20)
    server.faults.append(cut)
    assert {"base", "name", "big"} == names_in(Image.pull(f"{server.host}/rangeless:1"))


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_server_that_is_busy_is_asked_again(backend, server, pauses, status):
    """With growing pauses, or with those that it asks for."""
    push(backend.host, "busy:1", made())
    answers = iter([{}, {"Retry_After": "7"}])
    server.faults.append(
        lambda handler: (
            (headers := next(answers, None)) is not None and reply(handler, status, **headers)
        )
    )
    Image.pull(f"{server.host}/busy:1")
    assert 2 == len(pauses)
    assert 7.0 == pauses[1]


def test_a_server_that_stays_busy_is_given_up(server, pauses):
    """The error names the registry and what it said; the pauses have grown."""
    server.faults.append(lambda handler: reply(handler, 503))
    with pytest.raises(
        ImageError, match=rf"{server.host} failed 6 times in a row: HTTP status 503"
    ):
        Image.pull(f"{server.host}/x:1")
    assert 5 == len(pauses)
    assert pauses[-1] > 3 * pauses[0]


def test_a_server_that_is_not_there_is_given_up_at_once(pauses):
    """Nobody listens: waiting would not help."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with pytest.raises(ImageError, match="Can it be reached"):
            Image.pull(f"127.0.0.1:{free.getsockname()[1]}/x:1")
    assert [] == pauses


# -- what is not as it should be


def test_an_unknown_image_is_said_to_be_unknown(server):
    """By its name and tag."""
    with pytest.raises(ImageError, match="has no nothing/manifests/1"):
        Image.pull(f"{server.host}/nothing:1")


def is_empty(store: Store) -> bool:
    collect(store)
    return not any(
        os.listdir(store.path(name)) for name in ("layers", "tmp", "documents", "images", "locks")
    )


@pytest.mark.parametrize("change", ["first byte", "last byte", "cut", "longer", "other"])
def test_a_corrupted_layer_is_refused(backend, store, change, tmp_path):
    """Whatever was changed in the registry's own storage, nothing of the image is left in the
    store.
    """
    one = made(change)
    push(backend.host, "corrupt:1", one)
    path = backend.blob(one.manifest["layers"][2]["digest"])
    good = path.read_bytes()
    path.write_bytes(
        {
            "first byte": b"x" + good[1:],
            "last byte": good[:-1] + bytes([good[-1] ^ 1]),
            "cut": good[:-100],
            "longer": good + b"x",
            "other": Made.compress(files(evil="e")).ljust(len(good), b"\0"),
        }[change]
    )
    with pytest.raises(ImageError, match=one.manifest["layers"][2]["digest"]):
        Image.pull(f"{backend.host}/corrupt:1")
    assert [] == Image.list()
    assert is_empty(store)


def test_a_forged_manifest_is_refused(backend, server):
    """What is asked for by digest is what comes, or nothing."""
    described = push(backend.host, "forged:1", made())
    server.faults.append(
        lambda handler: (
            "/manifests/" in handler.path and reply(handler, 200, b'{"schemaVersion": 2}')
        )
    )
    with pytest.raises(ImageError, match="damaged or forged"):
        Image.pull(f"{server.host}/forged@{described['digest']}")


def test_a_layer_whose_diff_id_is_wrong_is_refused(backend, store):
    """The configuration must agree with what the layer unpacks to."""
    one = made()
    one.document["rootfs"]["diff_ids"][0] = digest_of(b"something else")
    one.reseal()
    push(backend.host, "diff:1", one)
    with pytest.raises(ImageError, match="its diff_id is"):
        Image.pull(f"{backend.host}/diff:1")
    assert is_empty(store)


# -- logging in


@pytest.fixture(scope="session")
def filled(backend: Running) -> Running:
    """The registry with an image, whose storage the registries behind a login share."""
    push(backend.host, "private:1", made())
    return backend


@pytest.fixture
def basic(filled: Running, tmp_path: Path) -> Iterator[Running]:
    """A registry for the user me with the password a:b (bcrypt, made by htpasswd -nbB)."""
    (tmp_path / "htpasswd").write_text(
        "me:$2b$05$abcdefghijklmnopqrstuuHmWBvP7qEGtE3QR9nVB9.XCJgT5GrRi\n"
    )
    with registry(
        filled.directory, auth={"htpasswd": {"realm": "r", "path": str(tmp_path / "htpasswd")}}
    ) as running:
        yield running


def log_in(config: Path, host: str, user: str = "me", password: str = "a:b") -> None:
    config.write_text(
        json.dumps(
            {"auths": {host: {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}}}
        )
    )


def test_a_password_is_taken_from_dockers_configuration(basic, no_login):
    """As docker login wrote it."""
    log_in(no_login, basic.host)
    assert "base" in names_in(Image.pull(f"{basic.host}/private:1"))


@pytest.mark.parametrize("where", ["run/containers/auth.json", "given.json"])
def test_podmans_logins_are_taken_too(basic, tmp_path, monkeypatch, where):
    """From its own place, or from where $REGISTRY_AUTH_FILE says."""
    (tmp_path / where).parent.mkdir(parents=True, exist_ok=True)
    log_in(tmp_path / where, basic.host)
    if where == "given.json":
        monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / where))
    assert "base" in names_in(Image.pull(f"{basic.host}/private:1"))


@pytest.mark.parametrize("password", [None, "wrong"])
def test_without_the_right_password_the_remedy_is_said(basic, no_login, password, pauses):
    """Docker login, and no retries."""
    if password:
        log_in(no_login, basic.host, password=password)
    with pytest.raises(ImageError, match=f"docker login {basic.host}"):
        Image.pull(f"{basic.host}/private:1")
    assert [] == pauses


@pytest.mark.parametrize("where", ["credHelpers", "credsStore"])
def test_a_credential_helper_is_asked(basic, no_login, tmp_path, monkeypatch, where):
    """For one registry, or for all."""
    helper = tmp_path / "docker-credential-test"
    helper.write_text(
        f"#!/bin/sh\nread server\n[ \"$1 $server\" = 'get {basic.host}' ] && echo "
        f'\'{{"Username": "me", "Secret": "a:b"}}\'\n'
    )
    helper.chmod(helper.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    no_login.write_text(
        json.dumps({where: {basic.host: "test"} if where == "credHelpers" else "test"})
    )
    assert "base" in names_in(Image.pull(f"{basic.host}/private:1"))


def test_a_helper_that_is_missing_is_named(basic, no_login):
    """What cannot be run is said, not passed over."""
    no_login.write_text(json.dumps({"credsStore": "nowhere"}))
    with pytest.raises(ImageError, match="docker-credential-nowhere"):
        Image.pull(f"{basic.host}/private:1")


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.mark.parametrize("user", ["", "me"])
def test_a_token_is_asked_for(filled, authority, no_login, user):
    """By anybody or with a name and password, once for a repository."""
    tokens = TokenServer(authority, user=user, password="a:b")
    with (
        tokens.running() as realm,
        registry(filled.directory, auth=tokens.section(realm, filled.directory)) as running,
    ):
        if user:
            log_in(no_login, running.host)
        assert "base" in names_in(Image.pull(f"{running.host}/private:1"))
    query = urllib.parse.parse_qs(urllib.parse.urlsplit(tokens.asked[0]).query)
    assert ({"service": ["here"], "scope": ["repository:private:pull"]}, 1) == (
        query,
        len(tokens.asked),
    )


def test_an_identity_token_is_exchanged(filled, authority, no_login):
    """What `docker login` against some clouds stores instead of a password."""
    tokens = TokenServer(authority)
    with (
        tokens.running() as realm,
        registry(filled.directory, auth=tokens.section(realm, filled.directory)) as running,
    ):
        no_login.write_text(json.dumps({"auths": {running.host: {"identitytoken": "secret"}}}))
        assert "base" in names_in(Image.pull(f"{running.host}/private:1"))
    assert ["POST refresh_token secret"] == tokens.asked


def test_a_refused_token_says_the_remedy(filled, authority, no_login):
    """A wrong password at the token server."""
    tokens = TokenServer(authority, user="me", password="right")
    with (
        tokens.running() as realm,
        registry(filled.directory, auth=tokens.section(realm, filled.directory)) as running,
    ):
        log_in(no_login, running.host)
        with pytest.raises(ImageError, match="not accepted by"):
            Image.pull(f"{running.host}/private:1")


def test_a_password_is_never_sent_in_the_clear_to_others(server, no_login):
    """A registry that sends logins to a plain address elsewhere gets none."""
    log_in(no_login, server.host)
    challenge = 'Bearer realm="http://registry.example/token",service="x"'
    server.faults.append(lambda handler: reply(handler, 401, WWW_Authenticate=challenge))
    with pytest.raises(ImageError, match="not encrypted"):
        Image.pull(f"{server.host}/x:1")


def test_a_redirect_does_not_carry_the_login(backend, server, no_login, basic):
    """Blobs that lie elsewhere are fetched there without our password."""
    log_in(no_login, server.host)
    server.upstream = basic.host
    with proxy(backend.host) as elsewhere:
        server.faults.append(
            lambda handler: (
                "/blobs/" in handler.path
                and "Authorization" in handler.headers
                and reply(handler, 307, Location=f"http://{elsewhere.host}{handler.path}")
            )
        )
        assert "base" in names_in(Image.pull(f"{server.host}/private:1"))
        assert 4 == len(elsewhere.requests)
        assert [] == [headers for _, _, headers in elsewhere.requests if "Authorization" in headers]


# -- TLS


@pytest.fixture
def encrypted(filled: Running, authority: trustme.CA, tmp_path: Path) -> Iterator[Running]:
    leaf = authority.issue_cert("127.0.0.1")
    leaf.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    for part in leaf.cert_chain_pems:
        part.write_to_path(str(tmp_path / "cert.pem"), append=True)
    http = {"tls": {"certificate": str(tmp_path / "cert.pem"), "key": str(tmp_path / "key.pem")}}
    with registry(filled.directory, http=http) as running:
        yield running


def test_tls_is_spoken_where_the_authority_is_trusted(encrypted, authority, tmp_path, monkeypatch):
    """$SSL_CERT_FILE says whom to trust, as for every other program."""
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    assert "base" in names_in(Image.pull(f"{encrypted.host}/private:1"))


def test_dockers_own_directory_of_authorities_is_read(encrypted, authority, tmp_path, monkeypatch):
    """What docker was told to trust for a registry is trusted here."""
    (tmp_path / "certs.d" / encrypted.host).mkdir(parents=True)
    authority.cert_pem.write_to_path(str(tmp_path / "certs.d" / encrypted.host / "ca.crt"))
    monkeypatch.setattr(transport, "_CERTIFICATES", (str(tmp_path / "certs.d"),))
    assert "base" in names_in(Image.pull(f"{encrypted.host}/private:1"))


def test_an_unknown_authority_is_an_error_at_once(encrypted, pauses):
    """Never a silent step down, and no retries."""
    with pytest.raises(ImageError, match=r"(?i)certificate"):
        Image.pull(f"{encrypted.host}/private:1")
    assert [] == pauses


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost:5000", True),
        ("127.1.2.3", True),
        ("[::1]:5", True),
        ("localhost.example", False),
        ("10.0.0.1", False),
    ],
)
def test_plain_http_is_for_loopback_alone(host, expected):
    """No other registry is ever asked without encryption."""
    assert expected == transport.is_loopback(host)


# -- other places


def test_a_mirror_is_asked_first(backend, server, monkeypatch):
    """Images of the hub come from it, below its prefix; the name stays the hub's."""
    push(backend.host, "cache/library/app:1", made())
    monkeypatch.setenv("PYTEST_SANDBOX_MIRRORS", f"{server.host}/cache")
    image = Image.pull("app:1")
    assert ("app:1", "GET /v2/cache/library/app/manifests/1") == (
        image.reference,
        server.asked()[0],
    )
    server.requests.clear()
    assert image == Image.pull("app:1")
    assert ["HEAD /v2/cache/library/app/manifests/1"] == server.asked()


def test_after_a_mirror_that_fails_comes_the_next_place(backend, server, monkeypatch):
    """A mirror for another registry is not asked; where all fail, each is named."""
    push(backend.host, "here/app:1", made())
    with proxy(backend.host) as mirror:
        mirror.faults.append(lambda handler: reply(handler, 404))
        monkeypatch.setenv(
            "PYTEST_SANDBOX_MIRRORS", f"registry.example=127.0.0.1:1, {server.host}={mirror.host}"
        )
        assert "base" in names_in(Image.pull(f"{server.host}/here/app:1"))
        assert 1 == len(mirror.requests)
        with pytest.raises(ImageError, match=f"any of its places.*{mirror.host}.*{server.host}"):
            Image.pull(f"{server.host}/nothing:1")


def test_a_prefix_takes_the_hubs_place(backend, server, monkeypatch):
    """As behind a company's proxy: the hub itself is never asked."""
    push(backend.host, "hub/library/prefixed:1", made())
    monkeypatch.setenv("PYTEST_SANDBOX_REGISTRY_PREFIX", f"{server.host}/hub")
    assert "prefixed:1" == Image.pull("prefixed:1").reference


def test_progress_is_told_for_each_layer(backend):
    """The last word of each layer is that all of it is there."""
    one = made("progress")
    push(backend.host, "progress:1", one)
    told: dict[str, tuple[str, int, int]] = {}
    Image.pull(
        f"{backend.host}/progress:1",
        progress=lambda key, what, done, total: told.update({key: (what, done, total)}),
    )
    assert {
        layer["digest"]: ("downloading", layer["size"], layer["size"])
        for layer in one.manifest["layers"]
    } == told


def test_urllib3_is_loaded_only_by_a_pull():
    """Who loads and lists images pays nothing for the registry client."""
    import sys

    code = (
        "import sys; from pytest_sandbox import Image; Image.list(); print([m for m in "
        "('urllib3', 'filelock', 'ssl') if m in sys.modules])"
    )
    assert (
        "[]\n"
        == subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True
        ).stdout
    )


def test_an_ssl_context_verifies_names():
    """The context is the standard library's strict one."""
    context = transport._trust("registry.example")
    assert (True, ssl.CERT_REQUIRED) == (context.check_hostname, context.verify_mode)
