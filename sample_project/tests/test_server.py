"""The same port in every test, also when several run at once; every server is a clean one."""

from __future__ import annotations

import json
from http.client import HTTPConnection

import pytest

pytestmark = pytest.mark.usefixtures("server")


def ask(method: str, path: str, body: str | None = None) -> object:
    connection = HTTPConnection("127.0.0.1", 8080)
    connection.request(method, path, body)
    return json.loads(connection.getresponse().read())


def test_a_visitor_finds_an_empty_book():
    assert ask("GET", "/") == []


@pytest.mark.parametrize("name", ["Ada", "Bob", "Cleo", "Dan"])
def test_a_visitor_finds_the_own_signature_and_no_other(name):
    assert ask("POST", f"/{name}", "Hello!") == "thank you"
    assert [{"name": name, "words": "Hello!"}] == ask("GET", "/")
