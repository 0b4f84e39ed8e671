"""References have docker's syntax."""

from __future__ import annotations

import pytest

from pytest_sandbox.errors import ImageError
from pytest_sandbox.image.reference import Reference, parse_reference

DIGEST = "sha256:" + "0123456789abcdef" * 4

READ = {
    "debian": ("docker.io", "library/debian", "latest", ""),
    "debian:12": ("docker.io", "library/debian", "12", ""),
    "me/app": ("docker.io", "me/app", "latest", ""),
    "docker.io/debian": ("docker.io", "library/debian", "latest", ""),
    "index.docker.io/library/debian:1": ("docker.io", "library/debian", "1", ""),
    "localhost/x": ("localhost", "x", "latest", ""),
    "localhost:5000/x": ("localhost:5000", "x", "latest", ""),
    "localhost:5000/a/b:T.1_x-y": ("localhost:5000", "a/b", "T.1_x-y", ""),
    "127.0.0.1:5000/x:1": ("127.0.0.1:5000", "x", "1", ""),
    "[::1]:5000/x": ("[::1]:5000", "x", "latest", ""),
    f"registry.example/a/b@{DIGEST}": ("registry.example", "a/b", "", DIGEST),
    f"debian:12@{DIGEST}": ("docker.io", "library/debian", "", DIGEST),
    "a.b/c__d/e---f": ("a.b", "c__d/e---f", "latest", ""),
    "Host/x": ("Host", "x", "latest", ""),
    "x:5000/y": ("x:5000", "y", "latest", ""),
}

WRONG = {
    "": "consists of lower-case",
    "Debian": "consists of lower-case",
    "debian:": "a tag consists",
    "debian:a b": "a tag consists",
    "debian:-x": "a tag consists",
    "debian:" + "t" * 129: "a tag consists",
    "debian@sha256:12": "the digest must be",
    f"debian@{DIGEST.upper()}": "the digest must be",
    f"debian@{DIGEST}\n": "the digest must be",
    "debian\n": "consists of lower-case",
    "a//b": "consists of lower-case",
    "/a": "consists of lower-case",
    "a/": "consists of lower-case",
    "../a": "not a registry",
    "a.b/../c": "consists of lower-case",
    "a..b/c": "not a registry",
    "x:port/y": "not a registry",
    "a___b": "consists of lower-case",
    "https://registry.example/a": "not a registry",
    "a.example/" + "b" * 250: "longer than 255",
}


@pytest.mark.parametrize(("text", "parts"), READ.items())
def test_a_reference_is_parsed_as_in_docker(text, parts):
    """Registry, repository, tag and digest, with docker's defaults."""
    assert Reference(*parts) == parse_reference(text)


@pytest.mark.parametrize("text", READ)
def test_the_short_form_can_be_parsed_again(text):
    """It is the same reference."""
    assert parse_reference(text) == parse_reference(str(parse_reference(text)))


def test_the_short_form_is_that_of_docker():
    """It contains the tag, but not the default registry and "library/"."""
    assert "debian:latest" == str(parse_reference("docker.io/library/debian"))
    assert "localhost:5000/x:1" == str(parse_reference("localhost:5000/x:1"))


@pytest.mark.parametrize(("text", "message"), WRONG.items())
def test_an_invalid_reference_is_an_error(text, message):
    """The error names the invalid part and has an example."""
    with pytest.raises(ImageError, match=message) as caught:
        parse_reference(text)
    assert "debian:12" in str(caught.value)
