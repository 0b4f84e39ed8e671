"""Names of containers: no two that run, or are detached, have the same; arguments that are
several names.
"""

from __future__ import annotations

import os
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pytest_sandbox.cli.exit_status import complain
from pytest_sandbox.errors import SandboxError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = ["claimed", "for_each", "locked_names"]

#: Seconds to wait for another process that chooses a name.
_LOCK_TIMEOUT = 30.0
#: docker's names, which are also path components and host names.
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*")


@contextmanager
def claimed(name: str, flag: str = "--name") -> Iterator[None]:
    """Refuse an invalid name and that of a known container, and keep other processes from choosing
    one during the body. ``flag`` is how messages name the value.

    Raises :class:`SandboxError`.
    """
    if not name:
        yield
        return
    from pytest_sandbox.container import detached

    if not _NAME.fullmatch(name):
        raise SandboxError(
            f"{flag} {name!r} is not valid; accepted: a letter or digit, then letters, digits and "
            "the characters _ . -"
        )
    with locked_names():
        taken = next((one.id for one in detached.list_running() if name in {one.label, one.id}), "")
        if taken:
            raise SandboxError(
                f"{flag} {name}: the container {taken} has this name. Use another one, or wait "
                "until it has ended."
            )
        ended = next((one.id for one in detached.list_detached() if name == one.name), "")
        if ended:
            raise SandboxError(
                f"{flag} {name}: the container {ended} has this name. Use another one, or remove "
                f"that container: pytest-sandbox rm {ended}"
            )
        yield


@contextmanager
def locked_names() -> Iterator[None]:
    """Keep other processes from choosing a name. Raises :class:`SandboxError` after 30 seconds."""
    from pytest_sandbox.client.cleanup import state_directory
    from pytest_sandbox.linux.file_lock import lock_directory

    directory = state_directory()
    try:
        fd = lock_directory(directory, exclusive=True, timeout=_LOCK_TIMEOUT)
    except TimeoutError:
        raise SandboxError(f"another process holds the lock on {directory}. Try again.") from None
    try:
        yield
    finally:
        os.close(fd)


def for_each(names: Iterable[str], do: Callable[[str], None]) -> int:
    """Call ``do`` for each name, also for those after one that fails, as docker; return 0.

    Raises the last :class:`SandboxError`; the others are printed.
    """
    failures: list[SandboxError] = []
    for name in names:
        try:
            do(name)
        except SandboxError as error:
            failures.append(error)
    for failure in failures[:-1]:
        complain(failure)
    if failures:
        raise failures[-1]
    return 0
