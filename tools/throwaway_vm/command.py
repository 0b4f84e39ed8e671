"""Run a command in a throw-away virtual machine that shows this machine's files, with unified
cgroup v2.

The guest is User Mode Linux: a kernel that runs as a program, so that neither KVM nor root is
needed. It sees the host's root below a writable layer in memory; what the command changes is gone
at the end. It computes at native speed, but a system call or a fork costs several times what it
costs outside: nothing that is timed belongs in there. One CPU; no cpuset controller, no Landlock,
no nftables.

The first use downloads about 20 MB of packages with apt-get and unpacks them below
~/.cache/pytest-sandbox-vm; nothing is installed. Exit status: the command's own; 124 after
--timeout; 125 when the machine did not start or died, with its console on stderr.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

from throwaway_vm.machine import Order, run
from throwaway_vm.packages import VMError


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="tools/vm", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument(
        "--uml",
        action="store_true",
        help="User Mode Linux (the default, and for now the only engine)",
    )
    made.add_argument(
        "--user",
        action="store_true",
        help="as an unprivileged user, in a cgroup that is delegated to it",
    )
    made.add_argument(
        "--no-delegate", action="store_true", help="with --user: in a cgroup that belongs to root"
    )
    made.add_argument(
        "--systemd", action="store_true", help="with --user: beside a systemd manager of the user"
    )
    made.add_argument(
        "--mem", default="2G", metavar="SIZE", help="the guest's memory, its layer included (2G)"
    )
    made.add_argument(
        "--timeout", type=float, metavar="SECONDS", help="end the machine after so long"
    )
    made.add_argument(
        "--cwd",
        type=Path,
        default=Path.cwd(),
        metavar="DIR",
        help="the command's directory (this one)",
    )
    made.add_argument(
        "--rw",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="what is written to DIR stays (repeatable)",
    )
    made.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="KEY[=VALUE]",
        help="set, or pass on, a variable (repeatable)",
    )
    made.add_argument("--verbose", action="store_true", help="show the kernel's console")
    made.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND...")
    return made


def environment(pairs: list[str]) -> dict[str, str]:
    split = (pair.partition("=") for pair in pairs)
    return {key: value if given else os.environ.get(key, "") for key, given, value in split}


def order(options: argparse.Namespace) -> Order:
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
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    made = parser()
    options = made.parse_args()
    if options.command in ([], ["--"]):
        made.error("which command?")
    try:
        return run(order(options))
    except VMError as error:
        print(f"vm: {error}", file=sys.stderr)
        return 125
    except KeyboardInterrupt:
        return 130
