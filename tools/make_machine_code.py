"""Assemble tools/machine_code/*.S into pytest_sandbox/linux/machine_code.py: ``python
tools/make_machine_code.py``.

Needs cc for this machine, and for another architecture its cross assembler (Debian:
binutils-aarch64-linux-gnu); ``--check`` compares only what can be assembled here.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

SOURCES = Path(__file__).with_name("machine_code")
TARGET = Path(__file__).parents[1] / "pytest_sandbox/linux/machine_code.py"
MACHINES = ("x86_64", "aarch64")
HEAD = '''"""The only machine code of the project, made by tools/make_machine_code.py from the commented sources in tools/machine_code/.

A test assembles those again and compares.
"""

from __future__ import annotations

__all__ = ["HELPER", "INIT", "RUN"]

'''
COMMENTS = {
    "run": "Makes the system calls of a list.",
    "helper": "Follows RUN in a program whose entry point it is, aligned to 16 bytes.",
    "init": "A container's PID 1.",
}


def tools(machine: str) -> tuple[str, str, str] | None:
    """The assembler, nm and objcopy for a machine, where they are installed."""
    for prefix in ("", f"{machine}-linux-gnu-"):
        names = (f"{prefix}as", f"{prefix}nm", f"{prefix}objcopy")
        if all(map(shutil.which, ("cpp", *names))) and f"{machine}-linux-gnu" in printed(
            names[0], "--version"
        ):
            return names
    return None


def printed(*command: str | Path) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def assembled(machine: str) -> dict[str, bytes] | None:
    """The bytes of ``run``, ``helper`` and ``init``; None where this machine has no assembler for
    the architecture.
    """
    installed = tools(machine)
    if installed is None:
        return None
    assembler, nm, objcopy = installed
    with tempfile.TemporaryDirectory() as directory:
        source, object_, text = (
            Path(directory, name) for name in ("code.s", "code.o", "code.text")
        )
        source.write_text(
            printed("cpp", "-P", "-undef", "-x", "assembler-with-cpp", SOURCES / f"{machine}.S")
        )
        subprocess.run([assembler, "-o", object_, source], check=True)
        subprocess.run([objcopy, "-O", "binary", "-j", ".text", object_, text], check=True)
        places = {
            name: int(place, 16)
            for place, _kind, name in map(str.split, printed(nm, object_).splitlines())
        }
        code = text.read_bytes()
    found = {name: code[places[name] : places[f"{name}_end"]] for name in ("run", "init")}
    return {**found, "helper": code[places["run_end"] : places["helper_end"]]}


def literal(code: bytes) -> str:
    lines = textwrap.wrap(code.hex(), 120)
    return "bytes.fromhex(\n" + "".join(f'        "{line}"\n' for line in lines) + "    )"


def module(codes: dict[str, dict[str, bytes]]) -> str:
    parts = []
    for name, comment in COMMENTS.items():
        part = f"#: {comment}\n{name.upper()} = {{\n"
        part += "".join(
            f'    "{machine}": {literal(code[name])},\n' for machine, code in codes.items()
        )
        parts.append(f"{part}}}\n")
    return HEAD + "\n".join(parts)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    check = parser.parse_args().check
    codes = {machine: code for machine in MACHINES if (code := assembled(machine))}
    if check:
        return int(any(code != known(machine) for machine, code in codes.items()))
    if missing := set(MACHINES) - set(codes):
        sys.exit(f"no assembler for {', '.join(missing)}")
    TARGET.write_text(module(codes))
    return 0


def known(machine: str) -> dict[str, bytes]:
    from pytest_sandbox.linux import machine_code

    return {name: getattr(machine_code, name.upper())[machine] for name in COMMENTS}


if __name__ == "__main__":
    sys.exit(main())
