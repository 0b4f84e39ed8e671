"""Layers that are kept: what a container wrote, copied out of it before it goes, to look at
afterwards.

::

    HOME/kept/ID/kept.json   id, label, time, settings (as Settings.raw()), points: where each
    overlay lies, by its number ("0": the root)
    HOME/kept/ID/N/upper     what overlay N held, in overlayfs's own language
    (Documentation/filesystems/overlayfs.rst)
    HOME/kept/ID.PID/        one that process PID is copying and holds by a lock (flock(2)), or left
    unfinished when it was killed

HOME is the image store's. :func:`start` makes a container that begins where the kept one ended: the
kept directories lie below its writable layer, so what is done in it changes nothing that is kept.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from pytest_sandbox.container.build_spec import plain
from pytest_sandbox.container.fork import as_builder
from pytest_sandbox.errors import SandboxError
from pytest_sandbox.linux.copying import copy_tree
from pytest_sandbox.linux.removal import remove_tree
from pytest_sandbox.paths import images
from pytest_sandbox.runtime import storage
from pytest_sandbox.runtime.protocol import close_all

if TYPE_CHECKING:
    from pytest_sandbox.container.container import Container

__all__ = ["Kept", "keep", "kept", "start"]

_FACTS = "kept.json"


@dataclass(frozen=True, slots=True)
class Kept:
    """One kept layer: ``directory`` holds it.

    ``settings`` are those of its container, as :meth:`Settings.of` reads them.
    """

    id: str
    label: str
    time: float
    settings: dict[str, Any] = field(default_factory=dict)
    points: dict[str, str] = field(default_factory=dict)

    @property
    def directory(self) -> str:
        """The directory that holds it."""
        return os.path.join(_home(), self.id)

    @property
    def layers(self) -> dict[str, str]:
        """Where each overlay lay, and the directory that holds what it held."""
        return {point: f"{self.directory}/{number}/upper" for number, point in self.points.items()}

    def remove(self) -> None:
        """Remove it from disk. Raises OSError where that is not possible."""
        doomed = f"{self.directory}.{os.getpid()}"
        try:
            os.rename(
                self.directory, doomed
            )  # what is left of it after a crash is removed as an unfinished copy is
        except FileNotFoundError:
            return
        remove_tree(doomed)


_ELSEWHERE = (
    "Set PYTEST_SANDBOX_HOME to a directory with room that is not on an overlay, as "
    "docker's own root is: a volume, or below /dev/shm."
)


def _home() -> str:
    return os.path.join(images(), "kept")


def _made_home() -> str:
    """Return the directory of what is kept, created and closed to other users.

    Layers hold their set-user-ID programs and secrets.
    """
    home = _home()
    os.makedirs(home, exist_ok=True)
    os.chmod(home, 0o700)
    return home


def keep(container: Container) -> Kept:
    """Copy the writable layer of a running container out, and return what it is known by from now
    on.

    Raises SandboxError where it cannot be copied; nothing is left then.
    """
    layer, places = container.layer()
    try:
        points = {number: point for number, (point, _lower) in places.items()}
        made = Kept(container.id, container.label, time.time(), plain(container.settings), points)
        with suppress(OSError):
            storage.remove_unfinished(_made_home())
        unfinished, lock = storage.make_unfinished(made.directory)
        try:
            _fill(unfinished, made, layer, container.user_namespaces()[1])
        except BaseException:
            with suppress(OSError):  # the next session's cleanup removes it
                remove_tree(unfinished)
            raise
        finally:
            os.close(lock)
    except OSError as error:
        raise SandboxError(
            f"the layer of {container.id} cannot be kept in {_home()}: {error}. {_ELSEWHERE}"
        ) from error
    finally:
        close_all([layer])
    return made


def _fill(unfinished: str, made: Kept, layer: int, builder: int) -> None:
    """Copy the layer to ``unfinished``, and give that its name."""
    for number in made.points:
        os.mkdir(f"{unfinished}/{number}")
        copy = partial(
            _copy, layer, f"{number}/upper", f"{unfinished}/{number}/upper", owners=builder < 0
        )
        as_builder(builder, copy)
    facts = {
        "id": made.id,
        "label": made.label,
        "time": made.time,
        "settings": made.settings,
        "points": made.points,
    }
    with open(f"{unfinished}/{_FACTS}", "x", encoding="utf-8") as file:
        json.dump(facts, file, default=str)
    os.rename(unfinished, made.directory)


def _copy(layer: int, name: str, target: str, *, owners: bool) -> None:
    upper = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=layer)
    try:
        copy_tree(upper, target, owners=owners)
    finally:
        os.close(upper)


def kept(name: str = "") -> list[Kept]:
    """Return what is kept, oldest first; with a ``name``, that one alone.

    What is not finished or is damaged is left out.

    Raises SandboxError where nothing is kept under that name.
    """
    names = [name] if name else os.listdir(_home()) if os.path.isdir(_home()) else []
    found = [one for one in map(_read, names) if one is not None]
    if name and not found:
        raise SandboxError(
            f"no layer is kept as {name!r} in {_home()}. Run pytest with --sandbox-keep=failed to "
            "keep some."
        )
    return sorted(found, key=lambda one: one.time)


def _read(name: str) -> Kept | None:
    if "." in name or "/" in name:
        return None
    try:
        with open(os.path.join(_home(), name, _FACTS), encoding="utf-8") as file:
            return Kept(**json.load(file))
    except (OSError, ValueError, TypeError):
        return None


def start(name: str) -> Container:
    """Start a container that begins where the kept one ended.

    Raises :class:`SandboxError` where there is no such one.
    """
    from pytest_sandbox.container.container import Container

    (found,) = kept(name)
    made = Container(**{**found.settings, "timeout": None})
    made.label = found.label
    made.kept = found.layers
    return made.start()
