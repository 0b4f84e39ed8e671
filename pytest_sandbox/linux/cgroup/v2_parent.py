"""The cgroup v2 directory below which sessions are created.

A cgroup other than the root has either processes or controllers enabled for its children ("No
Internal Process Constraint" in cgroup-v2.rst). If the parent has processes of its own, they are
moved into a leaf before the first session is created, and back after the last one was removed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from typing import TYPE_CHECKING

from pytest_sandbox.errors import SetupError
from pytest_sandbox.linux import file_lock
from pytest_sandbox.linux.cgroup.base import PREFIX
from pytest_sandbox.linux.cgroup.directories import TIMEOUT, make_owned, read_pids
from pytest_sandbox.linux.cgroup.interface_files import read, write

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["ALWAYS", "LEAF", "Parent", "enable_controllers"]

#: The cgroup to which the processes of a populated parent are moved.
LEAF = "pytest-sandbox.leaf"
#: Controllers enabled for every session; cpuset is enabled when a container asks for it.
ALWAYS = ("memory", "cpu", "pids", "io")
_USED = frozenset({*ALWAYS, "cpuset"})


class Parent:
    """A cgroup below which sessions are created.

    ``populated`` means that its own processes have to be moved into a leaf first.
    """

    def __init__(self, directory: str, *, populated: bool = False) -> None:
        self.directory = directory
        self.populated = populated
        self.controllers = _read_words(f"{directory}/cgroup.controllers") & _USED

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Lock the directory in a ``with`` block: pytest-xdist workers share a parent."""
        try:
            fd = file_lock.lock_directory(self.directory, exclusive=True)
        except TimeoutError as error:
            raise SetupError(
                "lock the parent of all cgroups", f"{self.directory} is locked by another process"
            ) from error
        try:
            yield
        finally:
            os.close(fd)

    def add(self, session: str) -> int:
        """Create a session's directory and enable controllers for it; return its lock."""
        with self._locked():
            if self.populated:
                self._move_processes_to_leaf()
            else:
                enable_controllers(self.directory, ALWAYS)
            lock = make_owned(session)
            enable_controllers(session, ALWAYS)
            return lock

    def _move_processes_to_leaf(self, timeout: float = TIMEOUT) -> None:
        deadline = time.monotonic() + timeout
        with contextlib.suppress(FileExistsError):
            os.mkdir(f"{self.directory}/{LEAF}")
        while True:
            _move(self.directory, f"{self.directory}/{LEAF}")
            try:
                return enable_controllers(self.directory, ALWAYS)
            except OSError as error:  # EBUSY: a process was forked meanwhile, or cannot be moved
                if error.errno != errno.EBUSY or time.monotonic() > deadline:
                    raise

    def drop(self) -> None:
        """Move the processes back from the leaf if no session is left."""
        with self._locked():
            entries = os.listdir(self.directory)
            if LEAF in entries and not any(entry.startswith(PREFIX) for entry in entries):
                control = f"{self.directory}/cgroup.subtree_control"
                write(control, " ".join(f"-{name}" for name in _read_words(control)))
                self._remove_leaf()

    def _remove_leaf(self, timeout: float = TIMEOUT) -> None:
        deadline = time.monotonic() + timeout
        while True:
            _move(f"{self.directory}/{LEAF}", self.directory)
            try:
                return os.rmdir(f"{self.directory}/{LEAF}")
            except OSError as error:
                if error.errno != errno.EBUSY or time.monotonic() > deadline:
                    raise


def _read_words(path: str) -> frozenset[str]:
    return frozenset(read(path).split())


def enable_controllers(directory: str, controllers: tuple[str, ...]) -> None:
    """Enable those of ``controllers`` for the children of a cgroup that it has itself."""
    control = f"{directory}/cgroup.subtree_control"
    available = _read_words(f"{directory}/cgroup.controllers") & set(controllers)
    if missing := available - _read_words(control):
        write(control, " ".join(f"+{name}" for name in sorted(missing)))


def _move(source: str, target: str) -> None:
    for pid in read_pids(source):
        with contextlib.suppress(ProcessLookupError):
            write(f"{target}/cgroup.procs", pid)
