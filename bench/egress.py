"""The row about outgoing connections through the forwarder: a host with an internet of its own."""

from __future__ import annotations

import json
import statistics
import subprocess
from typing import TYPE_CHECKING

from bench.table_row import Figure, Row

if TYPE_CHECKING:
    from bench.rows import Bench

#: Runs inside: the milliseconds of connections to a name until the first byte, the first one apart,
#: and the gigabits a second of a download.
CLIENT = """
import json, socket, sys, time

def first_byte():
    start = time.perf_counter()
    with socket.create_connection(("pypi.test", 443)) as connection:
        connection.sendall(b"x")
        connection.recv(1)
    return (time.perf_counter() - start) * 1e3

def rate(size):
    with socket.create_connection(("pypi.test", 80)) as connection:
        start = time.perf_counter()
        connection.sendall(b"%d\\\\n" % size)
        buffer, left = bytearray(1 << 20), size
        while left > 0:
            left -= connection.recv_into(buffer)
    return size * 8 / (time.perf_counter() - start) / 1e9

times = [first_byte() for _ in range(int(sys.argv[1]))]
print(json.dumps([times[0], times[1:], rate(int(sys.argv[2]))]))
"""
PROGRAM = """
import json, time

def start(**settings):
    begin = time.perf_counter()
    with Container(**settings):
        return (time.perf_counter() - begin) * 1e3

allowed = ["pypi.test:443", "pypi.test:80"]
starts = [(start(), start(network=allowed)) for _ in range({rounds})]
with Container(network=allowed) as container:
    command = [sys.executable, "-SEc", {client!r}, "{connections}", "{size}"]
    done = container.run(command, capture_output=True, text=True, check=True)
print(json.dumps([starts, *json.loads(done.stdout)]))
"""


def egress(bench: Bench) -> Row:
    from tests import egress_world

    rounds = bench.scale.blocks * bench.scale.size
    program = PROGRAM.format(
        rounds=rounds,
        client=CLIENT.replace("\\\\", "\\"),
        connections=rounds + 1,
        size=2_000_000_000,
    )
    title = "Outgoing connections by name, to a server in another network namespace"
    try:
        starts, first, others, rate = json.loads(egress_world.run(program, timeout=300))
    except (AssertionError, FileNotFoundError, subprocess.TimeoutExpired) as error:
        return Row("egress", title, [], [f"It cannot be measured here: {str(error)[:200]}"])
    plain, limited = (statistics.median(times) for times in zip(*starts, strict=True))
    figures = [
        Figure("start a container, without a network", plain),
        Figure("start a container, with a list of destinations", limited),
        Figure("first byte of the first connection", first),
        Figure("first byte of the next connections", statistics.median(others)),
        Figure("a download of 2 GB", rate, unit="Gbit/s"),
    ]
    note = "The targets: 1.5 ms until the first byte of the second connection, and 5 Gbit/s."
    return Row("egress", title, figures, [note])
