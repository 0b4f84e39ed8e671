"""Run a command in a throw-away virtual machine with the files of this machine and cgroup v2.

The guest is User Mode Linux, a kernel that runs as a program, which needs neither KVM nor root. Its
root is an overlay of the host's root, and all changes are discarded. Computations have native
speed, but system calls and forks are several times slower, so that measurements are meaningless. It
has one CPU, and no cpuset controller, Landlock or nftables.

The first use downloads about 20 MB of packages with apt-get and unpacks them below
~/.cache/pytest-sandbox-vm; nothing is installed. Exit status: that of the command; 124 after
--timeout; 125 if the machine did not start or died, with its console on stderr.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path
from typing import Any

from throwaway_vm.machine import Order, run
from throwaway_vm.packages import VMError


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(
        prog="tools/vm", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_switch(made, "--uml", "User Mode Linux (the default, and for now the only engine)")
    add_switch(made, "--user", "as an unprivileged user, in a cgroup that is delegated to it")
    add_switch(made, "--no-delegate", "with --user: in a cgroup that belongs to root")
    add_switch(made, "--systemd", "with --user: beside a systemd manager of the user")
    add_switch(made, "--verbose", "show the kernel's console")
    add_value(made, "--mem", "SIZE", "memory of the guest, with its writable layer", default="2G")
    add_value(made, "--timeout", "SECONDS", "end the machine after this time", type=float)
    add_value(
        made, "--cwd", "DIR", "working directory of the command", type=Path, default=Path.cwd()
    )
    add_list(made, "--rw", "DIR", "keep what the command writes to DIR", type=Path)
    add_list(made, "--env", "KEY[=VALUE]", "set a variable, or pass it on")
    made.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND...")
    return made


def add_switch(parser: argparse.ArgumentParser, name: str, text: str) -> None:
    """Add a flag without a value."""
    parser.add_argument(name, action="store_true", help=text)


def add_value(
    parser: argparse.ArgumentParser, name: str, metavar: str, text: str, **more: Any
) -> None:
    """Add a flag with one value, and tell its default in the help."""
    default = f" (default: {more['default']})" if "default" in more else ""
    parser.add_argument(name, metavar=metavar, help=text + default, **more)


def add_list(
    parser: argparse.ArgumentParser, name: str, metavar: str, text: str, **more: Any
) -> None:
    """Add a flag that can be given several times."""
    parser.add_argument(
        name, metavar=metavar, action="append", default=[], help=f"{text} (repeatable)", **more
    )


def environment(pairs: list[str]) -> dict[str, str]:
    """Return the variables of ``--env``."""
    split = (pair.partition("=") for pair in pairs)
    return {key: value if given else os.environ.get(key, "") for key, given, value in split}


def order(options: argparse.Namespace) -> Order:
    """Return the request for the machine."""
    user = "managed" if options.systemd else "plain" if options.no_delegate else "delegated"
    return Order(
        command=tuple(options.command[1:] if options.command[0] == "--" else options.command),
        run_as=user if options.user or options.no_delegate or options.systemd else "root",
        memory=options.mem,
        timeout=options.timeout,
        cwd=options.cwd.absolute(),
        writable=tuple(path.resolve() for path in options.rw),
        environment=environment(options.env),
        verbose=options.verbose,
    )


def main() -> int:
    """Run the command line, and return its exit status."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    made = parser()
    options = made.parse_args()
    if options.command in ([], ["--"]):
        made.error("the command is missing")
    try:
        return run(order(options))
    except VMError as error:
        print(f"vm: {error}", file=sys.stderr)
        return 125
    except KeyboardInterrupt:
        return 130
