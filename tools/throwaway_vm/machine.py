"""One run of the machine: the initramfs, the command line of the kernel, and the streams."""

from __future__ import annotations

import os
import secrets
import selectors
import shlex
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from throwaway_vm.archive import archive
from throwaway_vm.packages import SHIM, VMError, call, filled_cache

GUEST_SCRIPTS = Path(__file__).with_name("guest")
DISK, DISK_SIZE = "disk", 4 << 30
OUT, ERR, STATUS, CONSOLE = range(4)


@dataclass(frozen=True)
class Order:
    """A request for a machine.

    ``run_as`` is root, delegated (a user with a delegated cgroup), plain (a user without one) or
    managed (a user with a systemd manager).
    """

    command: tuple[str, ...]
    run_as: str = "root"
    memory: str = "2G"
    timeout: float | None = None
    cwd: Path = field(default_factory=Path.cwd)
    writable: tuple[Path, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    verbose: bool = False


def parents_of(path: Path) -> list[str]:
    """Return the directories of a path, before and after resolving symbolic links."""
    return [
        str(parent)
        for start in (path, path.resolve())
        for parent in (start, *start.parents)
        if parent.is_dir()
    ]


def traversed(order: Order) -> list[str]:
    """Return the directories that an unprivileged user must be able to search: those of the working
    directory and of PATH.
    """
    starts = [
        order.cwd,
        *(Path(directory) for directory in os.environ.get("PATH", "").split(":") if directory),
    ]
    starts += [python.resolve() for start in starts if (python := start / "python3").exists()]
    return sorted({directory for start in starts for directory in parents_of(start)} - {"/"})


def variables(order: Order, guest: Path, mark: str) -> str:
    """Return the file with the settings of the guest's scripts."""
    values = {
        "GUEST": str(guest),
        "GUEST_USER": "tester",
        "RUN_AS": order.run_as,
        "SYSTEMD": "1" if order.run_as == "managed" else "",
        "MARK": mark,
        "SHOWN": str(order.cwd),
        "WRITABLE": " ".join(map(str, order.writable)),
        "TRAVERSED": " ".join(traversed(order)),
    }
    return "".join(f"{key}={shlex.quote(value)}\n" for key, value in values.items())


def script(order: Order) -> str:
    """Return a shell script that runs the command in its directory with its environment."""
    path = os.environ.get("PATH", "/usr/bin:/bin") + ":/usr/sbin:/sbin"
    exported = {"PATH": path, "LANG": "C.UTF-8", "TERM": "dumb", **order.environment}
    lines = [f"export {key}={shlex.quote(value)}" for key, value in exported.items()]
    return "\n".join(
        [*lines, f"cd {shlex.quote(str(order.cwd))}", f"exec {shlex.join(order.command)}", ""]
    )


def initramfs(order: Order, cache: Path, mark: str) -> bytes:
    """Return the archive that the kernel boots from."""
    files = {name: (cache / name).read_bytes() for name in ("busybox", "overlay.ko")}
    files |= {path.name: path.read_bytes() for path in GUEST_SCRIPTS.iterdir()}
    files["init"] = files.pop("init.sh")
    files["run.env"] = variables(order, cache / "guest", mark).encode()
    files["command"] = script(order).encode()
    return archive(files)


def kernel(order: Order, cache: Path, scratch: Path, streams: list[int]) -> list[str]:
    """Return the command line of the kernel, which runs as a program on the host.

    Its serial lines and its console are inherited descriptors.
    """
    lines = [f"ssl{line}=null,fd:{streams[line]}" for line in (OUT, ERR, STATUS)]
    preload = ["env", f"LD_PRELOAD={cache / SHIM}"] if (cache / SHIM).exists() else []
    return [
        *preload,
        str(cache / "linux"),
        f"mem={order.memory}",
        f"initrd={scratch / 'initramfs'}",
        "root=/dev/ram0",
        "con=null",
        f"con0=null,fd:{streams[CONSOLE]}",
        "ssl=null",
        *lines,
        f"ubd0={scratch / DISK}",
        f"uml_dir={scratch}/",
        "umid=vm",
        *([] if order.verbose else ["quiet"]),
    ]


def confined(argv: list[str], scratch: Path, writable: tuple[Path, ...]) -> list[str]:
    """Return the command of the kernel with the host's root read-only, in a PID namespace that
    ends with it.

    Without root the command is returned as it is.
    """
    if os.geteuid():
        return argv
    binds = "".join(
        f"mount --bind {shlex.quote(str(path))} {shlex.quote(str(path))}; "
        for path in (scratch, *writable)
    )
    steps = f"{binds}mount -o remount,bind,ro /; {shlex.join(argv)}; :"
    unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    return [*unshare, "sh", "-c", steps]


class Stream:
    """An output stream of the command, which is copied to ``target`` until the mark of its end."""

    def __init__(self, target: int, mark: str) -> None:
        self.target = target
        self.end = mark.encode() + b"\n"
        self.held = b""
        self.ended = False

    def feed(self, data: bytes) -> None:
        """Copy data, and hold back what can be the beginning of the mark."""
        self.held += data
        self.ended = self.held.endswith(self.end)
        keep = 0 if self.ended else self.possible_mark()
        ready = self.held.removesuffix(self.end)
        ready, self.held = (
            ready[: len(ready) - keep],
            self.held[len(self.held) - keep :] if keep else b"",
        )
        while ready:
            ready = ready[os.write(self.target, ready) :]

    def possible_mark(self) -> int:
        """Return how many of the last bytes can be the beginning of the mark."""
        longest = min(len(self.end), len(self.held))
        return next(
            (size for size in range(longest, 0, -1) if self.end.startswith(self.held[-size:])), 0
        )


def make_disk(path: Path) -> None:
    """Create the sparse file system of the user's home and of /var/tmp."""
    with path.open("wb") as disk:
        disk.truncate(DISK_SIZE)
    path_with_sbin = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    maker = shutil.which("mke2fs", path=path_with_sbin)
    if maker is None:
        raise VMError("mke2fs is missing: install the package e2fsprogs")
    options = ["-O", "^has_journal", "-E", "lazy_itable_init=1,nodiscard"]
    call(maker, "-q", "-F", "-t", "ext4", *options, path)


class Machine:
    """A running machine; :meth:`wait` copies its streams and returns the command's exit status."""

    def __init__(self, order: Order, cache: Path, scratch: Path) -> None:
        mark = secrets.token_hex(16)
        (scratch / "initramfs").write_bytes(initramfs(order, cache, mark))
        make_disk(scratch / DISK)
        pipes = [os.pipe() for _ in range(4)]
        ends = [write for _, write in pipes]
        argv = confined(kernel(order, cache, scratch, ends), scratch, order.writable)
        # User Mode Linux keeps the guest's memory in a file there, which must not be on a disk.
        environment = {**os.environ, "TMPDIR": "/dev/shm"}
        self.process = subprocess.Popen(
            argv,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=ends[CONSOLE],
            stderr=ends[CONSOLE],
            pass_fds=ends,
        )
        for end in ends:
            os.close(end)
        self.streams = {OUT: Stream(1, mark), ERR: Stream(2, mark)}
        self.status = b""
        self.console = b""
        self.verbose = order.verbose
        self.selector = selectors.DefaultSelector()
        for number, (read, _) in enumerate(pipes):
            self.selector.register(read, selectors.EVENT_READ, number)

    def wait(self, timeout: float | None) -> int:
        """Return the command's exit status, or 124 after ``timeout`` seconds.

        Raises :class:`VMError` if the machine died.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self.finished():
            events = self.selector.select(
                None if deadline is None else max(0.0, deadline - time.monotonic())
            )
            if not events:
                return 124
            for key, _ in events:
                self.take(key)
            if not self.selector.get_map():
                raise VMError(
                    "the machine died; the end of its console output:\n"
                    + self.console.decode(errors="replace")[-4000:]
                )
        return int(self.status)

    def finished(self) -> bool:
        """Whether the status and all output have arrived."""
        return self.status.endswith(b"\n") and all(stream.ended for stream in self.streams.values())

    def take(self, key: selectors.SelectorKey) -> None:
        """Read from a stream that is ready."""
        data = os.read(key.fd, 1 << 16)
        if not data:
            self.selector.unregister(key.fd)
            os.close(key.fd)
        elif key.data == STATUS:
            self.status += data
        elif key.data == CONSOLE:
            self.console = (self.console + data)[-100_000:]
            if self.verbose:
                os.write(2, data)
        else:
            self.streams[key.data].feed(data)

    def close(self) -> None:
        """Kill the machine."""
        self.process.kill()
        self.process.wait()


def run(order: Order) -> int:
    """Run the command of ``order`` in a new machine, and return its exit status."""
    with filled_cache() as cache, tempfile.TemporaryDirectory(prefix="throwaway-vm-") as scratch:
        machine = Machine(order, cache, Path(scratch))
        try:
            return machine.wait(order.timeout)
        finally:
            machine.close()
