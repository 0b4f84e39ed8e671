"""``logs``, ``wait``, ``stop``, ``kill``, ``port`` and ``rename``: detached containers."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

from pytest_sandbox.cli import times
from pytest_sandbox.cli.exit_status import complain
from pytest_sandbox.cli.names import claimed, for_each
from pytest_sandbox.cli.verb import Verb
from pytest_sandbox.container import detached
from pytest_sandbox.container.detached_log import STDERR, LogReader
from pytest_sandbox.errors import ContainerStopped, SandboxError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pytest_sandbox.container.detached import Detached, Ending
    from pytest_sandbox.container.detached_log import Frame

__all__ = ["VERBS", "end"]

#: Seconds between two looks for new output: nothing announces that a file grows.
_LOOK_AGAIN = 0.05
#: Seconds to kill the command and to save the layer.
_END_TIMEOUT = 120.0
_HELP = "its id, the beginning of its id, or its name"


def _one(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", metavar="CONTAINER", help=_HELP)


def _several(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("ids", metavar="CONTAINER", nargs="+", help=_HELP)


def _running(name: str) -> Detached:
    """Return a running detached container. Raises :class:`SandboxError`."""
    one = detached.find_detached(name)
    if not one.is_running:
        raise ContainerStopped(f"the container {name} is not running.")
    return one


# -- logs


def _logs_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-f", "--follow", action="store_true", help="go on until the container has ended"
    )
    parser.add_argument(
        "-n", "--tail", type=_tail, metavar="N", help="only the last N lines (default: all)"
    )
    parser.add_argument(
        "-t", "--timestamps", action="store_true", help="print when each line was written"
    )
    _one(parser)


def _tail(text: str) -> int | None:
    if text == "all" or (text.startswith("-") and text[1:].isascii() and text[1:].isdigit()):
        return None
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not valid; accepted: a number, or all")
    return int(text)


def _logs(found: argparse.Namespace) -> int:
    one = detached.find_detached(found.id)
    log = LogReader(one.directory, _report_gap)
    try:
        with one.opened() as ending:
            lines = _lines(log.read())
            kept = lines if found.tail is None else _last(lines, found.tail)
            at_start = _print(kept, stamped=found.timestamps, at_start={})
            while found.follow:
                sys.stdout.flush()
                has_ended = ending.has_come()
                at_start = _print(_lines(log.read()), stamped=found.timestamps, at_start=at_start)
                if has_ended:
                    break
                time.sleep(_LOOK_AGAIN)
    finally:
        log.close()
    return 0


def _report_gap() -> None:
    sys.stdout.flush()
    complain("a part of the output is missing: it was removed (--log-opt) before it was printed")


def _lines(frames: Iterable[Frame]) -> Iterator[Frame]:
    """Yield the lines of frames; one that two frames share is in two parts."""
    for frame in frames:
        for line in frame.data.splitlines(keepends=True) if frame.data else ():
            yield frame._replace(data=line)


def _last(parts: Iterable[Frame], count: int) -> Iterator[Frame]:
    """Return the last lines of those of :func:`_lines`."""
    kept: deque[tuple[bool, Frame]] = deque()  # with whether it is the start of a line
    starts, at_start = 0, dict[int, bool]()
    for part in parts:
        kept.append((at_start.get(part.stream, True), part))
        at_start[part.stream] = part.data.endswith(b"\n")
        starts += kept[-1][0]
        while starts > count:
            starts -= kept.popleft()[0]
    while kept and not kept[0][0]:  # the rest of a line before
        kept.popleft()
    return (part for _is_start, part in kept)


def _print(lines: Iterable[Frame], *, stamped: bool, at_start: dict[int, bool]) -> dict[int, bool]:
    """Write lines to the stream that they came from; return which streams are at the start of a
    line.
    """
    for line in lines:
        target = sys.stderr if line.stream == STDERR else sys.stdout
        stamp = b""
        if stamped and at_start.get(line.stream, True):
            stamp = f"{times.rfc3339(line.time)} ".encode()
        target.buffer.write(stamp + line.data)
        target.flush()
        at_start[line.stream] = line.data.endswith(b"\n")
    return at_start


# -- wait, stop, kill


def _wait(found: argparse.Namespace) -> int:
    return for_each(found.ids, _wait_for)


def _wait_for(name: str) -> None:
    """Wait for the end of a container, and print its status. Raises :class:`ContainerStopped`."""
    try:
        with detached.find_detached(name).opened() as ending:
            _print_status(name, ending)
    except FileNotFoundError:
        raise ContainerStopped(f"the container {name} was removed.") from None


def _print_status(name: str, ending: Ending) -> None:
    status = ending.wait()
    if status is None:
        raise ContainerStopped(
            f"the supervisor of {name} was killed, and the container with it: its exit status is "
            "not known."
        )
    print(status, flush=True)


def _stop_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-t",
        "--time",
        "--timeout",
        dest="time",
        type=_seconds,
        default=10,
        metavar="SECONDS",
        help="time between the image's stop signal and SIGKILL (default: 10)",
    )
    _several(parser)


def _seconds(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(
            f"{text!r} is not valid; accepted: whole seconds, as in 10"
        )
    return int(text)


def _stop(found: argparse.Namespace) -> int:
    def stop(name: str) -> None:
        one = detached.find_detached(name)
        if one.is_running:
            end(one, found.time)
        print(name)

    return for_each(found.ids, stop)


def end(one: Detached, timeout: float) -> None:
    """End a container: its stop signal, after ``timeout`` seconds SIGKILL, without it at once.

    Raises :class:`SandboxError` if it has not ended within 2 minutes.
    """
    with suppress(FileNotFoundError), one.opened() as ending:
        if timeout > 0:
            one.signal_supervisor(detached.STOP)
            if ending.has_come(timeout):
                return
        one.signal_supervisor(detached.KILL)
        if not ending.has_come(_END_TIMEOUT):
            raise SandboxError(
                f"the container {one.id} has not ended within {_END_TIMEOUT:g} seconds after "
                f"SIGKILL. Kill its supervisor: kill -KILL {one.supervisor}"
            )


def _kill_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-s",
        "--signal",
        type=_signal,
        default=signal.SIGKILL,
        metavar="SIGNAL",
        help="name or number of the signal (default: KILL)",
    )
    _several(parser)


def _signal(text: str) -> int:
    name = text.upper()
    with suppress(ValueError, KeyError):
        if name.isascii() and name.isdigit():
            return int(signal.Signals(int(name)))
        return int(signal.Signals[name if name.startswith("SIG") else f"SIG{name}"])
    raise argparse.ArgumentTypeError(
        f"{text!r} is not valid; accepted: the name or number of a signal, as in TERM or 15"
    )


def _kill(found: argparse.Namespace) -> int:
    def kill(name: str) -> None:
        one = _running(name)
        if found.signal == signal.SIGKILL:
            one.signal_supervisor(detached.KILL)
        elif found.signal == one.facts.stop_signal:
            one.signal_supervisor(detached.STOP)  # which also prevents a restart
        else:
            one.signal_command(found.signal)
        print(name)

    return for_each(found.ids, kill)


# -- port and rename


def _port_arguments(parser: argparse.ArgumentParser) -> None:
    _one(parser)
    parser.add_argument(
        "port", metavar="PORT[/tcp|/udp]", nargs="?", help="only this port of the container"
    )


def _port(found: argparse.Namespace) -> int:
    one = detached.find_detached(found.id)
    ports = one.facts.ports if one.is_running else []
    wanted = found.port if not found.port or "/" in found.port else f"{found.port}/tcp"
    lines = []
    for key, host, port in ports:
        place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        if wanted is None:
            lines.append(f"{key} -> {place}")
        elif key == wanted:
            lines.append(place)
    if wanted and not lines:
        known = ", ".join(dict.fromkeys(key for key, _host, _port in ports)) or "none"
        raise SandboxError(
            f"no public port {wanted!r} published for {found.id}; its published ports: {known}"
        )
    print("".join(f"{line}\n" for line in lines), end="")
    return 0


def _rename_arguments(parser: argparse.ArgumentParser) -> None:
    _one(parser)
    parser.add_argument("name", metavar="NAME", help="its new name")


def _rename(found: argparse.Namespace) -> int:
    one = detached.find_detached(found.id)
    if not found.name:
        raise SandboxError("NAME '' is not valid; accepted: a text that is not empty")
    with claimed(found.name, "NAME"):
        detached.write_name(one.directory, found.name)
    return 0


VERBS = (
    Verb(
        name="logs",
        usage="[-f] [-n N] [-t] CONTAINER",
        summary="Print the output of a detached container",
        arguments=_logs_arguments,
        run=_logs,
    ),
    Verb(
        name="wait",
        usage="CONTAINER...",
        summary="Wait until detached containers have ended, and print their exit statuses",
        arguments=_several,
        run=_wait,
    ),
    Verb(
        name="stop",
        usage="[-t SECONDS] CONTAINER...",
        summary="Stop detached containers: the image's stop signal, then SIGKILL",
        arguments=_stop_arguments,
        run=_stop,
    ),
    Verb(
        name="kill",
        usage="[-s SIGNAL] CONTAINER...",
        summary="Kill detached containers, or send another signal to their commands",
        arguments=_kill_arguments,
        run=_kill,
    ),
    Verb(
        name="port",
        usage="CONTAINER [PORT[/tcp|/udp]]",
        summary="List the published ports of a detached container",
        arguments=_port_arguments,
        run=_port,
    ),
    Verb(
        name="rename",
        usage="CONTAINER NAME",
        summary="Give a detached container another name",
        arguments=_rename_arguments,
        run=_rename,
    ),
)
