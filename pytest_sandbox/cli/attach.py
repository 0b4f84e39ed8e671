"""A command in a container, joined to this process: its streams, its signals, its status."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_sandbox.cli.door import CANNOT_EXECUTE, NOT_FOUND, complain, status_of

if TYPE_CHECKING:
    from pytest_sandbox.container import Container

__all__ = ["attach"]


def attach(container: Container, command: list[str], *, interactive: bool = False, tty: bool = False) -> int:
    """Run the command with this process's streams, and return its status as a shell would."""
    import subprocess

    del tty
    try:
        popen = container.popen(command, stdin=None if interactive else subprocess.DEVNULL)
    except FileNotFoundError as error:
        complain(error)
        return NOT_FOUND
    except OSError as error:
        complain(error)
        return CANNOT_EXECUTE
    return status_of(popen.wait())
