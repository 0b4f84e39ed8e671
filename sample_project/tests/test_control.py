"""stop() would stop all servers of a machine; inside there is only the server of the test."""

from __future__ import annotations

from guestbook import control


def test_no_server_is_running():
    assert control.running() == []


def test_the_server_is_found(server):
    assert [server.pid] == control.running()


def test_stop_ends_the_server(server):
    assert control.stop() == 1
    server.wait()
    assert control.running() == []
