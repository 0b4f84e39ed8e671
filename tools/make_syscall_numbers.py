"""Write pytest_sandbox/linux/syscall_numbers.py from the kernel's own headers.

The headers of all architectures stand in Debian's package linux-libc-dev (Debian 13 or newer)::

    apt-get download linux-libc-dev && dpkg -x linux-libc-dev_*.deb headers
    python tools/make_syscall_numbers.py headers > pytest_sandbox/linux/syscall_numbers.py
"""

from __future__ import annotations

import re
import sys
import textwrap
from pathlib import Path

HEADERS = {
    "X86_64": ("x86/asm/unistd_64.h",),
    "X32": ("x86/asm/unistd_x32.h",),
    "I386": ("x86/asm/unistd_32.h",),
    "AARCH64": ("arm64/asm/unistd_64.h",),
    "ARM": ("arm/asm/unistd-eabi.h", "arm/asm/unistd.h"),
}
# The headers give some numbers as an offset from one of these. The x32 bit is kept out of the
# table: the filter strips it first.
BASES = {"__X32_SYSCALL_BIT": 0, "__NR_SYSCALL_BASE": 0, "__ARM_NR_BASE": 0x0F0000}
NUMBER = re.compile(
    r"^#define __(?:ARM_)?NR_(?P<name>(?!SYSCALL_)\w+)\s+\(?(?:(?P<base>__\w+)\s*\+\s*)?(?P<number>\d+)\)?$",
    re.MULTILINE,
)
VERSION = re.compile(r"^#define LINUX_VERSION_(?:MAJOR|PATCHLEVEL|SUBLEVEL) (\d+)$", re.MULTILINE)

PREFACE = '''\
"""Numbers of the system calls, by architecture: written by tools/make_syscall_numbers.py, not by hand.

Each line is a number followed by the names that count up from it.
"""

from __future__ import annotations

__all__ = ["AARCH64", "ARM", "I386", "SOURCE", "X32", "X86_64"]
'''


def numbers(headers: Path, names: tuple[str, ...]) -> dict[int, str]:
    """Read the numbers that some header files define, the lowest first."""
    found: dict[int, str] = {}
    for name in names:
        for match in NUMBER.finditer((headers / "usr/lib/linux/uapi" / name).read_text()):
            found[int(match["number"]) + BASES.get(match["base"], 0)] = match["name"]
    return dict(sorted(found.items()))


def runs(table: dict[int, str]) -> list[str]:
    """Write a table as lines of consecutive names, each led by the number of its first."""
    lines: list[list[str]] = []
    previous = -2
    for number, name in table.items():
        if number != previous + 1:
            lines.append([str(number)])
        lines[-1].append(name)
        previous = number
    return [piece for line in lines for piece in wrap(line)]


def wrap(line: list[str]) -> list[str]:
    """Break one run so that each piece is again a number and its names."""
    first, names = int(line[0]), line[1:]
    pieces = []
    while names:
        taken = len(textwrap.wrap(" ".join([str(first), *names]), 130)[0].split()) - 1
        pieces.append(" ".join([str(first), *names[:taken]]))
        first, names = first + taken, names[taken:]
    return pieces


def main(headers: Path) -> None:
    """Print the module."""
    version = ".".join(VERSION.findall((headers / "usr/include/linux/version.h").read_text()))
    print(PREFACE)
    print(f'SOURCE = "UAPI headers of Linux {version}"')
    for constant, names in HEADERS.items():
        print(f'\n{constant} = """')
        print("\n".join(runs(numbers(headers, names))))
        print('"""')


if __name__ == "__main__":
    main(Path(sys.argv[1]))
