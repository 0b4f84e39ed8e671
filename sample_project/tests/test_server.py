"""Every test has a server with an empty book on the same port, also in parallel."""

from __future__ import annotations

import json
from http.client import HTTPConnection

import pytest

pytestmark = pytest.mark.usefixtures("server")


def ask(method: str, path: str, body: str | None = None) -> object:
    connection = HTTPConnection("127.0.0.1", 8080)
    connection.request(method, path, body)
    return json.loads(connection.getresponse().read())


def test_a_new_book_is_empty():
    assert ask("GET", "/") == []


@pytest.mark.parametrize("name", ["Ada", "Bob", "Cleo", "Dan"])
def test_a_visitor_finds_only_their_own_signature(name):
    assert ask("POST", f"/{name}", "Hello!") == "thank you"
    assert [{"name": name, "words": "Hello!"}] == ask("GET", "/")
