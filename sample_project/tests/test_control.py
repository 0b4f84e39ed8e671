"""Stopping by name would stop everybody's guest books; here there is only this test's."""

from __future__ import annotations

from guestbook import control


def test_nothing_runs_where_nobody_serves():
    assert control.running() == []


def test_the_one_server_is_found(server):
    assert [server.pid] == control.running()


def test_stop_ends_the_one_server(server):
    assert control.stop() == 1
    server.wait()
    assert control.running() == []
