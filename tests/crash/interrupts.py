"""Raise exceptions from a signal handler at random moments: ``interrupts.py ROUNDS SEED
OPERATION...``.

Prints one line for each fault: a limit that is not the requested one; descriptors, processes and
cgroups that are left. The last line is "done".
"""

from __future__ import annotations

import faulthandler
import gc
import os
import random
import signal
import sys
import time

from crash import leftovers

from pytest_sandbox import Container
from pytest_sandbox.client import session
from pytest_sandbox.container.entrance import entrance_of
from pytest_sandbox.linux import cgroup


class Interrupt(BaseException):
    """What the handler raises."""


class Alarm:
    """Whether the handler raises: only during an operation."""

    is_set = False


def interrupt(*_arguments: object) -> None:
    if Alarm.is_set:
        raise Interrupt


def kernel_limit(container: Container) -> int:
    """Return the kernel's limit on the memory of a container's init."""
    hierarchy = container.handle.launcher.hierarchy
    own = cgroup.parse_own(cgroup.read(f"/proc/{container.pid}/cgroup"))
    if hierarchy.version == 1:
        mount, path, name = hierarchy.mounts["memory"], own["memory"], "memory.limit_in_bytes"
    else:
        mount, path, name = hierarchy.mount, own[""], "memory.max"
    return int(cgroup.read(f"{mount.directory(path)}/{name}"))


def start(_held: Container, number: int) -> None:
    Container(memory=(64 + number % 64) << 20).start().close()


def close(_held: Container, _number: int) -> None:
    container = Container(memory=64 << 20).start()
    interrupted(container.close)


def run(held: Container, _number: int) -> None:
    held.run(["true"])


def call(held: Container, _number: int) -> None:
    held.call(len, "four")


def commit(held: Container, _number: int) -> None:
    held.commit()
    # The next use of a committed container gives it a new layer and a new init.
    entrance_of(held.handle)


def diff(held: Container, _number: int) -> None:
    held.diff()


def interrupted(operation: object, *arguments: object) -> bool:
    """Call something with a timer of a random time; return whether it was interrupted."""
    signal.setitimer(signal.ITIMER_REAL, random.uniform(0.00005, 0.006))
    try:
        Alarm.is_set = True
        operation(*arguments)
    except Interrupt:
        return True
    finally:
        Alarm.is_set = False
    return False


def check(number: int) -> list[str]:
    """Return the faults of the next container."""
    asked = (128 + number % 128) << 20
    with Container(memory=asked) as container:
        found = kernel_limit(container)
        status = container.run(["true"]).returncode
    return (
        []
        if (asked, 0) == (found, status)
        else [f"round {number}: asked for {asked}, the limit is {found}, status {status}"]
    )


def say(*lines: str) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()


def figures() -> dict[str, int]:
    gc.collect()
    with Container():
        pass
    counts = []
    # The launcher prewarms the next container, and removes the last one, in the background.
    while len(counts) < 5 or counts[-5:] != [counts[-1]] * 5:
        time.sleep(0.05)
        counts.append(count())
    return counts[-1]


def count() -> dict[str, int]:
    launcher = session.current()
    groups = sum(1 for directory in launcher.session.directories for path in cgroup.walk(directory))
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "descriptors of the launcher": len(launcher_files(launcher.process.pid)),
        "children": len(leftovers.children_of(os.getpid())),
        "processes": len(leftovers.processes(os.getpid())),
        "cgroups": groups,
    }


def launcher_files(pid: int) -> list[str]:
    """Return what the launcher's descriptors refer to, without network namespaces that wait for
    their next container: launcher/networks.py limits their number.
    """
    with os.scandir(f"/proc/{pid}/fd") as entries:
        links = [os.readlink(entry.path) for entry in entries]
    return [link for link in links if not link.startswith("net:") and "/net/" not in link]


def open_files() -> list[str]:
    """Return what the descriptors of this process refer to."""
    with os.scandir("/proc/self/fd") as entries:
        return [os.readlink(entry.path) for entry in entries]


def await_figures(before: dict[str, int]) -> dict[str, tuple[int, int]]:
    """Return the figures that are higher than before, after waiting for what the launcher releases
    in the background.
    """
    deadline = time.monotonic() + 20
    while True:
        more = {
            name: (before[name], count) for name, count in figures().items() if count > before[name]
        }
        if not more or time.monotonic() > deadline:
            return more
        time.sleep(0.05)


def main() -> None:
    rounds, seed, *names = sys.argv[1:]
    faulthandler.dump_traceback_later(30 + int(rounds) // 2, exit=True)
    random.seed(int(seed))
    signal.signal(signal.SIGALRM, interrupt)
    operations = [globals()[name] for name in names]
    held = Container(memory=96 << 20).start()
    for operation in operations:  # the first use imports modules and opens descriptors
        operation(held, 0)
    held.commit()
    held.close()
    before = figures()
    interrupts = 0
    held = Container(memory=96 << 20).start()
    for number in range(int(rounds)):
        if number % 20 == 19:
            held.close()
            held = Container(memory=96 << 20).start()
        was_interrupted = interrupted(random.choice(operations), held, number)
        interrupts += was_interrupted
        if was_interrupted:
            say(*check(number))
    held.close()
    del held
    for name, (count, now) in await_figures(before).items():
        say(f"{name}: {count} before, {now} after {rounds} rounds, with {open_files()}")
    say("done" if interrupts > int(rounds) // 10 else f"interrupted only {interrupts} times")


if __name__ == "__main__":
    main()
