"""The row of network faults: how precisely a latency is kept."""

from __future__ import annotations

import socket
import statistics
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from bench.table_row import Figure, Row

if TYPE_CHECKING:
    from bench.rows import Bench

_SERVER = """
import socket
with socket.create_server(("", 7)) as server:
    print("up", flush=True)
    while True:
        with server.accept()[0] as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while data := connection.recv(100):
                connection.sendall(data)
"""


def round_trips(count: int) -> list[float]:
    """Return the times of round trips to the server, in milliseconds."""
    found = []
    with socket.create_connection(("db", 7)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(count):
            start = time.perf_counter()
            connection.sendall(b"x")
            connection.recv(1)
            found.append((time.perf_counter() - start) * 1e3)
    return found


def _figure(label: str, times: list[float], at_most: float | None = None) -> Figure:
    p90 = sorted(times)[int(len(times) * 0.9)]
    return Figure(label, statistics.median(times), p90=p90, at_most=at_most)


def faults(bench: Bench) -> Row:
    """Measure round trips with and without a latency of 50 ms each way."""
    from pytest_sandbox import Container, Network

    count = bench.scale.blocks * bench.scale.size
    with (
        Network() as net,
        Container(network=net, hostname="db") as db,
        Container(network=net, hostname="app") as app,
        db.popen([sys.executable, "-c", _SERVER], stdout=subprocess.PIPE) as server,
    ):
        assert server.stdout is not None
        server.stdout.readline()
        figures = [_figure("no fault", app.call(round_trips, count))]
        with net.fault("db", latency="50ms", seed=1):
            times = app.call(round_trips, count)
            figures.append(_figure('latency="50ms", each way', times, at_most=103.0))
        server.kill()
    return Row("faults", "A round trip on a network with a fault", figures)
