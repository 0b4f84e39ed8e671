"""Inside a container, search /proc of every other process for texts: ``SECONDS TEXT...``.

The texts are reversed, so that the program does not find its own command line. Prints "on" first,
and at the end a JSON list of what was found.
"""

from __future__ import annotations

import json
import os
import sys
import time

READ = ("cmdline", "environ", "maps", "mountinfo", "net/unix", "auxv", "status", "cgroup", "limits")


def look(pid: str, wanted: list[bytes]) -> list[str]:
    """Return what this process finds in another one, and "mem" if it can write to its memory."""
    found = []
    for name in READ:
        text = content(f"/proc/{pid}/{name}")
        found += [f"{name}: {text_.decode()}" for text_ in wanted if text_ in text]
    for fd in listed(f"/proc/{pid}/fd"):
        target = link(f"/proc/{pid}/fd/{fd}")
        found += [f"fd: {target}" for text_ in wanted if text_.decode() in target]
    if is_ours(pid):
        return found
    if not can_read_memory(pid):
        return found
    # A process that has executed its program is a payload like this one; one that has ended has no
    # name.
    executed = content(f"/proc/{pid}/comm") != b"pytest-sandbox\n"
    return found if executed else [*found, "mem"]


def can_read_memory(pid: str) -> bool:
    """Return whether the memory of a process can be opened; one that is ending has none."""
    try:
        fd = os.open(f"/proc/{pid}/mem", os.O_RDWR)
    except OSError:
        return False
    try:
        return os.pread(fd, 1, 0x1000) != b""
    except OSError:  # there is memory, though not at this address
        return True
    finally:
        os.close(fd)


def is_ours(pid: str) -> bool:
    return pid in {"self", str(os.getpid())}


def content(path: str) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read(1 << 16) or b""
    except OSError:
        return b""


def listed(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except OSError:
        return []


def link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> None:
    end = time.monotonic() + float(sys.argv[1])
    wanted = [text[::-1].encode() for text in sys.argv[2:]]
    newest, found = os.getpid(), set()
    say("on")
    while time.monotonic() < end and not os.path.exists("/dev/shm/stop"):
        for pid in range(newest + 1, newest + 40):
            if os.path.exists(f"/proc/{pid}"):
                newest = max(newest, pid - 2)
                found |= {*look(str(pid), wanted)}
    say(json.dumps(sorted(found)))


if __name__ == "__main__":
    main()
