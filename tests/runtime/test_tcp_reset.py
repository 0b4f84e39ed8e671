"""Resets of TCP connections: frames that containers send are untrusted."""

from __future__ import annotations

from pytest_sandbox.launcher import tcp_reset

_SYN = 2


def test_a_connection_to_itself_is_forgotten_at_a_syn():
    """Its two directions have the same key, which is removed once."""
    key = (b"\x0a\x00\x00\x02", 80, b"\x0a\x00\x00\x02", 80)
    resets = tcp_reset.Resets()
    resets.add(key, 1)
    assert resets.answer(tcp_reset.frame(bytes(12), key, 1, _SYN)) is None
    assert not resets
