"""The row about networks with their name server: what a container on one costs, and a query."""

from __future__ import annotations

import socket
import statistics
import struct
import time
from typing import TYPE_CHECKING, Any

from bench.table_row import Figure, Row

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.rows import Bench

_SERVER = ("127.0.0.11", 53)
_QUERY = struct.pack("!6H", 7, 0x0100, 1, 0, 0, 0) + b"\x02db\0" + struct.pack("!HH", 1, 1)


def ask_by_udp() -> None:
    """Ask for the address of db, and wait for the answer."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.settimeout(10)
        one.connect(_SERVER)
        one.send(_QUERY)
        assert one.recv(512)[7] == 1


def ask_by_tcp() -> None:
    """Do the same with a connection."""
    with socket.create_connection(_SERVER, timeout=10) as one:
        one.sendall(len(_QUERY).to_bytes(2, "big") + _QUERY)
        assert one.recv(512)[9] == 1


def times_of(ask: Callable[[], None], count: int) -> list[float]:
    """Return the milliseconds of queries."""
    found = []
    for _ in range(count):
        start = time.perf_counter()
        ask()
        found.append((time.perf_counter() - start) * 1e3)
    return found


def _start(**settings: Any) -> float:
    """Return the milliseconds until a container has started; the next one is prewarmed then."""
    from pytest_sandbox import Container

    time.sleep(0.06)
    start = time.perf_counter()
    with Container(**settings):
        return (time.perf_counter() - start) * 1e3


def names(bench: Bench) -> Row:
    """Measure starts with and without a network, in turns, and queries."""
    from pytest_sandbox import Container, Network

    count = bench.scale.blocks * bench.scale.size
    with Network() as net, Container(network=net, hostname="db") as db:
        for warm in ({}, {"network": net}):
            _start(**warm)
        alone, on_it = [], []
        for _ in range(count):
            # Twice each: the prewarmed container of other settings is discarded.
            alone.append([_start(), _start()][1])
            on_it.append([_start(network=net), _start(network=net)][1])
        figures = [
            _figure("start a container without a network", alone),
            _figure("start a container on a network", on_it),
            _figure("a query by UDP", db.call(times_of, ask_by_udp, count)),
            _figure("a query by TCP", db.call(times_of, ask_by_tcp, count)),
        ]
    firsts = []
    for _ in range(count):
        with Network() as net:
            firsts.append(_start(network=net))
    figures.append(_figure("start the first container of a network", firsts))
    note = "The target: a container on a network takes at most 2 ms more than one without."
    return Row("names", "A network and its name server", figures, [note])


def _figure(label: str, times: list[float]) -> Figure:
    return Figure(label, statistics.median(times), p90=sorted(times)[int(len(times) * 0.9)])
