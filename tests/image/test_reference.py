"""References are read as docker reads them."""

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
    "": "made of lower-case",
    "Debian": "made of lower-case",
    "debian:": "a tag is",
    "debian:a b": "a tag is",
    "debian:-x": "a tag is",
    "debian:" + "t" * 129: "a tag is",
    "debian@sha256:12": "the digest must be",
    f"debian@{DIGEST.upper()}": "the digest must be",
    f"debian@{DIGEST}\n": "the digest must be",
    "debian\n": "made of lower-case",
    "a//b": "made of lower-case",
    "/a": "made of lower-case",
    "a/": "made of lower-case",
    "../a": "no registry",
    "a.b/../c": "made of lower-case",
    "a..b/c": "no registry",
    "x:port/y": "no registry",
    "a___b": "made of lower-case",
    "https://registry.example/a": "no registry",
    "a.example/" + "b" * 250: "longer than 255",
}


@pytest.mark.parametrize(("text", "parts"), READ.items())
def test_a_reference_is_read_as_docker_reads_it(text, parts):
    """Registry, repository, tag and digest, with docker's defaults."""
    assert Reference(*parts) == parse_reference(text)


@pytest.mark.parametrize("text", READ)
def test_the_short_form_means_the_same(text):
    """What is printed can be read again."""
    assert parse_reference(text) == parse_reference(str(parse_reference(text)))


def test_the_short_form_is_dockers():
    """The default registry and its library are not shown, the tag is."""
    assert "debian:latest" == str(parse_reference("docker.io/library/debian"))
    assert "localhost:5000/x:1" == str(parse_reference("localhost:5000/x:1"))


@pytest.mark.parametrize(("text", "said"), WRONG.items())
def test_what_is_no_reference_is_refused_with_the_reason(text, said):
    """The error says which part is wrong, and shows a right one."""
    with pytest.raises(ImageError, match=said) as caught:
        parse_reference(text)
    assert "debian:12" in str(caught.value)
