"""For each line of stdin, fork a client that creates and uses containers, or with the argument
``services`` services, until its stdin, a pipe, ends.

The client writes "ok" to the file that the line names if its last container worked, else a
traceback.
"""

from __future__ import annotations

import faulthandler
import os
import random
import select
import signal
import socket
import subprocess
import sys
import threading
import traceback
from contextlib import suppress

from pytest_sandbox import Container, Network, SandboxError
from pytest_sandbox.services import Log, Service
from pytest_sandbox.services.ahead import StartedAhead


def use(container: Container) -> None:
    """Start processes and write files, to be left behind."""
    container.run(["/bin/sh", "-c", "sleep 1000 & (sleep 1000 &) ; echo > /dev/shm/x"])
    container.popen(["/bin/sh", "-c", "while :; do :; done & exec sleep 1000"])
    container.call(os.getpid)
    container.write_text("/dev/shm/y", "x" * 10_000)
    if random.random() < 0.2:
        container.pause()


KINDS = (
    {},
    {"memory": "128m", "cpus": 1},
    {"storage": "disk"},
    {"hostname": "x", "pids_limit": 50},
    {"read_only": True},
    {"network": "host"},
)


def one() -> None:
    if random.random() < 0.2:
        with (
            Network() as net,
            Container(network=net, hostname="a"),
            Container(network=net, hostname="b") as container,
        ):
            use(container)
            container.run(["getent", "hosts", "a"], check=True, capture_output=True)
        return
    with Container(**random.choice(KINDS)) as container:
        use(container)
        container.close()


def services() -> None:
    """Start a service with a published port, one that is cloned while it is used, and a container
    that may connect to a name.
    """
    command = ["sh", "-c", "sleep 1000 & echo up; exec sleep 1000"]
    app = Service(command, ready=Log("up"), publish=["8000"], stop_timeout=0.1)
    ahead = StartedAhead(app.begin)
    ahead.begin(None)
    try:
        with (
            app.start() as service,
            Network() as net,
            Container(network=net) as peer,
            Container(network=["example.org:443"]) as limited,
        ):
            with suppress(OSError):
                socket.create_connection((service.host, service.port), 1).close()
            peer.popen(["sleep", "1000"])
            limited.run(["getent", "hosts", "example.com"], capture_output=True)
            taken = ahead.take(None)
            if taken is not None:
                taken.close()
    finally:
        ahead.close()


def ended() -> bool:
    return bool(select.select([0], [], [], 0)[0])


def survive() -> None:
    """Create containers until stdin ends; a killed process may cause no other exceptions."""
    while not ended():
        with suppress(SandboxError, subprocess.SubprocessError, OSError):
            if random.random() < 0.3:
                threads = [threading.Thread(target=quietly) for _ in range(3)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
            use_once()


def quietly() -> None:
    with suppress(SandboxError, OSError):
        use_once()


def client() -> str:
    try:
        survive()
        for _ in range(2):  # a process of this container may be the one that is killed
            with suppress(SandboxError), Container() as container:
                return f"ok {container.run(['true']).returncode}"
        with Container() as container:
            return f"ok {container.run(['true']).returncode}"
    except BaseException:  # noqa: BLE001 - it is told
        return traceback.format_exc()


use_once = services if sys.argv[1:] == ["services"] else one


def tell(number: int) -> None:
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


def start() -> None:
    """Fork clients: print the PID of each; the next line ends it, and its status is printed."""
    for line in sys.stdin:
        result = line.strip()
        reader, writer = os.pipe()
        pid = os.fork()
        if not pid:
            os.dup2(reader, 0)
            faulthandler.register(signal.SIGUSR1, all_threads=True)
            os.closerange(3, 100)
            text = client()
            with open(result, "w", encoding="utf-8") as file:
                file.write(text)
            from pytest_sandbox.client import session

            session._close_at_exit()
            os._exit(0)
        os.close(reader)
        tell(pid)
        sys.stdin.readline()  # the request to end it
        os.close(writer)
        tell(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


if __name__ == "__main__":
    start()
