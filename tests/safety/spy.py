"""Run inside a container: look into /proc of every other process, and print what must not be there.

Arguments: the seconds to go on, and the texts to look for. It prints "on" first, and at the end a
JSON list of what was found.
"""

from __future__ import annotations

import json
import os
import sys
import time

READ = ("cmdline", "environ", "maps", "mountinfo", "net/unix", "auxv", "status", "cgroup", "limits")


def look(pid: str, wanted: list[bytes]) -> list[str]:
    """Return what this process can learn about, or do to, another one."""
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
    # What has executed its program is a payload as this one is; what has ended says nothing.
    executed = content(f"/proc/{pid}/comm") != b"pytest-sandbox\n"
    return found if executed else [*found, "mem"]


def can_read_memory(pid: str) -> bool:
    """Tell whether a process has memory, and shows it: one that is ending can be opened and has
    none.
    """
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
    wanted = [
        text[::-1].encode() for text in sys.argv[2:]
    ]  # reversed, or it would find its own command line
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
