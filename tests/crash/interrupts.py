"""Raises exceptions from a signal handler at random moments of a container's life: ``interrupts.py
ROUNDS SEED OPERATION...``.

Prints what was wrong, one line each: a limit of the kernel's that is not the one that was asked
for, descriptors that are left open, processes and cgroups that are left. Ends with "done".
"""

from __future__ import annotations

import faulthandler
import gc
import os
import random
import signal
import sys
import time

from crash import remains

from pytest_sandbox import Container
from pytest_sandbox.client import session
from pytest_sandbox.container.entrance import entrance_of
from pytest_sandbox.linux import cgroup


class Interrupt(BaseException):
    """What the handler raises."""


class Alarm:
    """Whether the handler raises: not while this program itself is at work."""

    is_set = False


def interrupt(*_arguments: object) -> None:
    if Alarm.is_set:
        raise Interrupt


def kernel_limit(container: Container) -> int:
    """Return the limit on the memory of a container's init, from the kernel."""
    stats = container.handle.launcher.hierarchy
    own = cgroup.parse_own(cgroup.read(f"/proc/{container.pid}/cgroup"))
    if stats.version == 1:
        mount = stats.mounts["memory"]
        return int(
            cgroup.read(
                f"{mount.point}{own['memory'].removeprefix(mount.root.rstrip('/'))}/memory.limit_in_bytes"
            )
        )
    return int(
        cgroup.read(
            f"{stats.mount.point}{own[''].removeprefix(stats.mount.root.rstrip('/'))}/memory.max"
        )
    )


def start(_held: Container, number: int) -> None:
    Container(memory=(64 + number % 64) << 20).start().close()


def close(_held: Container, _number: int) -> None:
    made = Container(memory=64 << 20).start()
    again(made.close)


def run(held: Container, _number: int) -> None:
    held.run(["true"])


def call(held: Container, _number: int) -> None:
    held.call(len, "four")


def commit(held: Container, _number: int) -> None:
    held.commit()
    # a committed container gets a new layer and a new init with the first thing that is done in it
    entrance_of(held.handle)


def diff(held: Container, _number: int) -> None:
    held.diff()


def again(operation: object, *arguments: object) -> bool:
    """Do something that is interrupted at a random moment, or not; return whether it was."""
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
    """Return what is wrong with the next container."""
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
    seen = []
    while (
        len(seen) < 5 or seen[-5:] != [seen[-1]] * 5
    ):  # the next container is made, and the last one is removed
        time.sleep(0.05)
        seen.append(count())
    return seen[-1]


def count() -> dict[str, int]:
    launcher = session.current()
    groups = sum(1 for directory in launcher.session.directories for path in cgroup.walk(directory))
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "descriptors of the launcher": len(os.listdir(f"/proc/{launcher.process.pid}/fd")),
        "children": len(remains._read(f"/proc/{os.getpid()}/task/{os.getpid()}/children").split()),
        "processes": len(remains.processes(os.getpid())),
        "groups": groups,
    }


def open_files() -> list[str]:
    """Return what the descriptors of this process refer to."""
    with os.scandir("/proc/self/fd") as entries:
        return [os.readlink(entry.path) for entry in entries]


def settled(before: dict[str, int]) -> dict[str, tuple[int, int]]:
    """Return what there is more of than before, once it does not become less: the launcher lets go
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
    for operation in operations:  # what is loaded and opened at the first use
        operation(held, 0)
    held.commit()
    held.close()
    before = figures()
    interrupted = 0
    held = Container(memory=96 << 20).start()
    for number in range(int(rounds)):
        if number % 20 == 19:
            held.close()
            held = Container(memory=96 << 20).start()
        was = again(random.choice(operations), held, number)
        interrupted += was
        if was:
            say(*check(number))
    held.close()
    del held
    for name, (count, now) in settled(before).items():
        say(f"{name}: {count} before, {now} after {rounds} rounds, with {open_files()}")
    say("done" if interrupted > int(rounds) // 10 else f"interrupted only {interrupted} times")


if __name__ == "__main__":
    main()
