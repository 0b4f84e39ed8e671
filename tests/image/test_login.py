"""Credentials are sent to one origin only, and never along a redirect."""

from __future__ import annotations

import base64
import json
import os
from typing import TYPE_CHECKING

import pytest
from fake_registry import Fake, challenge, fake_registry, on
from registries import reply
from tarballs import Made, files

from pytest_sandbox import Image, ImageError
from pytest_sandbox.image.credentials import Credentials, credentials_for
from pytest_sandbox.image.login import parse_challenge
from pytest_sandbox.image.reference import parse_reference
from pytest_sandbox.image.transport import parse_address

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SECRET = "S3CRETpass"
AUTH = base64.b64encode(f"me:{SECRET}".encode()).decode()
TOKEN = b'{"token": "T"}'


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The path of docker's configuration for this test."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.delenv("REGISTRY_AUTH_FILE", raising=False)
    return tmp_path / "config.json"


@pytest.fixture
def elsewhere() -> Iterator[Fake]:
    """Another server, which accepts any credentials."""
    with fake_registry(lambda handler: reply(handler, 200, TOKEN)) as fake:
        yield fake


@pytest.fixture
def server(config: Path) -> Iterator[Fake]:
    """A registry with an image, for which there are credentials."""
    with fake_registry() as fake:
        fake.add("a/b:1", Made([files(a="1")], {"Cmd": ["sh"]}))
        config.write_text(json.dumps({"auths": {fake.host: {"auth": AUTH}}}))
        yield fake


def leaked(fake: Fake) -> list[str]:
    """Return the requests that contain credentials or tokens."""
    secrets = (SECRET, AUTH, "IDENTITY", "Bearer")
    return [
        f"{one.method} {one.path}" for one in fake.asked if any(part in one for part in secrets)
    ]


@pytest.mark.parametrize(
    "realm",
    [
        "http://{evil}\\\\@127.0.0.1/t",
        "http://127.0.0.1@{evil}/t",
        "http://me:x@{evil}/t",
        "http://{evil}\t@127.0.0.1/t",
        "http://10.9.9.10/t",
        "http://[::1/t",
        "http://[::ffff:10.9.9.10]/t",
        "http://a\u00bcb/t",
        "http://127.0.0.1:99999/t",
        "file:///etc/passwd",
        "//{evil}/t",
        "https://",
        "",
    ],
)
def test_an_ambiguous_or_unencrypted_realm_gets_no_credentials(server, elsewhere, realm):
    """The error contains no secret, and no request is sent."""
    server.hooks.append(
        challenge(f'Bearer realm="{realm.format(evil=elsewhere.host)}",service="s"')
    )
    with pytest.raises(ImageError) as caught:
        Image.pull(f"{server.host}/a/b:1")
    assert ([], False) == (elsewhere.asked, SECRET in str(caught.value))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("kind", ["password", "identity token"])
def test_token_requests_do_not_follow_redirects(server, elsewhere, config, code, kind):
    """Neither those with a password nor those with an identity token."""
    if kind == "identity token":
        entry = {"identitytoken": "IDENTITY"}
        config.write_text(json.dumps({"auths": {server.host: entry}}))
    server.hooks += [
        on("/token", code, Location=f"http://{elsewhere.host}/t"),
        challenge(f'Bearer realm="http://{server.host}/token"'),
    ]
    with pytest.raises(ImageError, match="redirects the login"):
        Image.pull(f"{server.host}/a/b:1")
    assert [] == elsewhere.asked


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_a_redirect_to_another_port_gets_no_credentials(server, elsewhere, code):
    """Another port is another origin."""
    elsewhere.hooks.clear()
    elsewhere.images = server.images
    server.hooks += [
        challenge('Basic realm="r"'),
        lambda handler: (
            "/blobs/" in handler.path
            and reply(handler, code, Location=f"http://{elsewhere.host}{handler.path}")
        ),
    ]
    Image.pull(f"{server.host}/a/b:1")
    assert (2, []) == (len(elsewhere.asked), leaked(elsewhere))


@pytest.mark.parametrize("asks", [True, False], ids=["login", "anonymous"])
def test_a_challenge_from_the_target_of_a_redirect_is_ignored(server, elsewhere, asks):
    """A 401 from another host gets no credentials, for any realm."""
    realm = f'Bearer realm="http://{elsewhere.host}/t"'
    elsewhere.hooks.insert(0, on("/v2/", 401, WWW_Authenticate=realm))
    if asks:
        server.hooks.append(challenge('Basic realm="r"'))
    server.hooks.append(
        lambda handler: (
            "/blobs/" in handler.path
            and reply(handler, 307, Location=f"http://{elsewhere.host}{handler.path}")
        )
    )
    with pytest.raises(ImageError, match="responds with HTTP status 401"):
        Image.pull(f"{server.host}/a/b:1")
    assert ([], []) == (leaked(elsewhere), [one for one in elsewhere.asked if one.path == "/t"])


def test_an_unencrypted_redirect_is_an_error(server):
    """Plain HTTP is accepted on loopback only."""
    server.hooks.append(on("/blobs/", 307, Location="http://10.9.9.10/blob?signature=x"))
    with pytest.raises(ImageError, match=r"redirects to http://10\.9\.9\.10:80, which is not enc"):
        Image.pull(f"{server.host}/a/b:1")


def test_a_redirect_loop_is_an_error(server):
    """Five redirects are followed."""
    server.hooks.append(lambda handler: reply(handler, 307, Location=handler.path))
    with pytest.raises(ImageError, match="redirects more than 5 times"):
        Image.pull(f"{server.host}/a/b:1")
    assert 6 == len(server.asked)


def test_the_second_realm_of_a_registry_gets_no_credentials(server, elsewhere):
    """Credentials are sent to one origin, also if the registry names another one later."""
    places = iter([server.host, elsewhere.host, elsewhere.host])
    server.hooks += [
        lambda handler: handler.path.startswith("/token") and reply(handler, 200, TOKEN),
        lambda handler: reply(
            handler, 401, WWW_Authenticate=f'Bearer realm="http://{next(places)}/token"'
        ),
    ]
    with pytest.raises(ImageError, match="to one only"):
        Image.pull(f"{server.host}/a/b:1")
    assert [] == elsewhere.asked


@pytest.mark.parametrize("token", ["\u20ac", "\ud800", "a\nb", "", "x" * 70_000, 7, None, ["x"]])
def test_a_token_that_is_not_valid_in_a_header_is_an_error(server, token):
    """Invalid responses of a token server raise only ImageErrors."""
    answer = json.dumps({"token": token}).encode()
    server.hooks += [
        on("/token", 200, answer),
        challenge(f'Bearer realm="http://{server.host}/token"'),
    ]
    with pytest.raises(ImageError, match="sent no token"):
        Image.pull(f"{server.host}/a/b:1")


@pytest.mark.parametrize(
    "text", ["a" * 60_000, 'a="' + "\\" * 60_000, 'a="b",' * 20_000, ",= ,=" * 9000]
)
def test_a_long_challenge_is_parsed_in_linear_time(text):
    """No header causes backtracking."""
    scheme, parameters = parse_challenge({"WWW-Authenticate": f"Bearer {text}"})
    assert ("bearer", True) == (scheme, len(parameters) <= 1)


def test_the_parameters_of_a_challenge_are_parsed():
    """Values may be quoted, with escapes."""
    header = 'Bearer realm="http://x/a\\"b", service=s ,scope="a,b"'
    expected = ("bearer", {"realm": 'http://x/a"b', "service": "s", "scope": "a,b"})
    assert expected == parse_challenge({"WWW-Authenticate": header})


def test_an_address_is_parsed_once():
    """Its scheme, host, port and target are those that are connected to."""
    address = parse_address("HTTPS://Registry.Example:5000/v2/x?y=z")
    assert ("https", "registry.example", 5000, "/v2/x?y=z") == (*address.origin, address.target)
    assert address.origin == address.join("/other").origin == address.join("more").origin
    assert "/v2/more" == address.join("more").target
    assert ("https", "b", 443) == address.join("//b/c").origin


def test_the_error_of_a_reference_does_not_contain_its_password():
    """USER:PASSWORD@ is replaced by ***."""
    with pytest.raises(ImageError, match=r"'\*\*\*@host:1/a:1' is not") as caught:
        parse_reference(f"me:{SECRET}@host:1/a:1")
    assert SECRET not in str(caught.value)


def test_the_error_of_a_mirror_does_not_contain_its_password(server, monkeypatch):
    """Credentials in the address of a mirror are an error."""
    monkeypatch.setenv("PYTEST_SANDBOX_MIRRORS", f"{server.host}=https://me:{SECRET}@{server.host}")
    with pytest.raises(ImageError, match="read from docker's configuration") as caught:
        Image.pull(f"{server.host}/a/b:1")
    assert SECRET not in str(caught.value)


# -- docker's configuration

HOST = "registry.example"
ODD = {
    "no JSON": os.urandom(500),
    "empty": b"",
    "nested": b"[" * 200_000,
    "too large": b'{"x":"' + b"a" * (5 << 20) + b'"}',
    "no colon": json.dumps({"auths": {HOST: {"auth": base64.b64encode(SECRET.encode()).decode()}}}),
    "no base64": json.dumps({"auths": {HOST: {"auth": f"!!{SECRET}!!"}}}),
    "no UTF-8": json.dumps({"auths": {HOST: {"auth": base64.b64encode(b"u:\xff").decode()}}}),
    "no ASCII": json.dumps({"auths": {HOST: {"auth": "\u20ac"}}}),
    "half of a pair": json.dumps({"auths": {HOST: {"identitytoken": "\ud800"}}}),
    "helper elsewhere": json.dumps({"credHelpers": {HOST: "../../evil"}}),
    "helper with NUL": json.dumps({"credHelpers": {HOST: "a\0b"}}),
    "helper with escapes": json.dumps({"credsStore": "\x1b[31mx"}),
    "helper list": json.dumps({"credsStore": ["x"]}),
}


@pytest.mark.parametrize("text", ODD.values(), ids=ODD)
def test_an_invalid_configuration_is_an_error_without_secrets(config, text):
    """It is one line with the path of the file, but not its content."""
    config.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ImageError, match=r"config\.json") as caught:
        credentials_for(HOST)
    assert (False, True) == (SECRET in str(caught.value), str(caught.value).isprintable())


@pytest.mark.parametrize(
    "found", [[], {"auths": []}, {"auths": {HOST: None}}, {"auths": {f"https://{HOST}": ["x"]}}]
)
def test_a_configuration_may_have_no_credentials(config, found):
    """Values of other types are ignored."""
    config.write_text(json.dumps(found))
    assert credentials_for(HOST) is None


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_configuration_that_is_not_a_regular_file_is_an_error(config, make):
    """Opening a FIFO does not block."""
    make(config)
    with pytest.raises(ImageError, match=r"config\.json"):
        credentials_for(HOST)


@pytest.fixture
def helper(tmp_path, config, monkeypatch):
    """Write a credential helper and docker's configuration with its name."""

    def write(script: str) -> None:
        path = tmp_path / "docker-credential-x"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
        config.write_text(json.dumps({"credsStore": "x"}))

    return write


ANSWER = f'{{"Username": "u", "Secret": "{SECRET}"}}'


@pytest.mark.parametrize("before", ["cat >/dev/null", "exec <&-"])
def test_the_output_of_a_helper_is_used(helper, before):
    """Also if it does not read its stdin."""
    helper(f"{before}; echo '{ANSWER}'")
    assert Credentials("u", SECRET) == credentials_for(HOST)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (f"echo '{ANSWER}'; exit 1", "failed .exit status 1."),
        ("printf '\\377'", "did not print"),
        ("echo '[]'", "did not print"),
        ("head -c 300000 /dev/zero | tr '\\0' '['", "did not print"),
        ("cat /dev/zero", "printed more than"),
    ],
)
def test_a_helper_that_fails_is_an_error_without_secrets(helper, script, message):
    """Its output has a maximum size and is not in the message."""
    helper(script)
    with pytest.raises(ImageError, match=message) as caught:
        credentials_for(HOST)
    assert SECRET not in str(caught.value)


def test_a_helper_whose_child_keeps_the_pipe_open_is_killed(helper, monkeypatch):
    """Its children are killed with it."""
    monkeypatch.setattr("pytest_sandbox.image.credentials._HELPER_SECONDS", 0.5)
    helper("sleep 1000 & exec sleep 1000")
    with pytest.raises(ImageError, match="took more than"):
        credentials_for(HOST)
