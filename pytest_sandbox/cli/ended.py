"""Ended containers: detached ones, and saved layers of tests. The verb ``rm``."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pytest_sandbox.cli.names import for_each
from pytest_sandbox.cli.verb import Verb
from pytest_sandbox.container import detached, remote, saved_layers
from pytest_sandbox.errors import ContainerStopped, SandboxError

if TYPE_CHECKING:
    import argparse

    from pytest_sandbox.container.container import Container
    from pytest_sandbox.container.detached import Detached
    from pytest_sandbox.container.saved_layers import SavedLayer

__all__ = ["VERBS", "ids_of", "list_ended", "one_of", "require_layer", "start"]


def list_ended() -> list[SavedLayer]:
    """Return the saved layers, with the names that `rename` has given."""
    names = {one.id: one.name for one in detached.list_detached()}
    return [replace(one, label=names.get(one.id, one.label)) for one in saved_layers.list_saved()]


def start(name: str, layers: list[SavedLayer]) -> Container | None:
    """Start a container with the content of an ended one; return None if there is none.

    Raises :class:`SandboxError` for several, and for one whose layer could not be saved.
    """
    from pytest_sandbox.container.container import start_saved

    found = ids_of(name, layers)
    if not found:
        return None
    chosen = one_of(name, found)
    record = detached.find(chosen, detached.list_detached())
    require_layer(next(one for one in layers if one.id == chosen), record)
    return start_saved(chosen)


def ids_of(name: str, layers: list[SavedLayer]) -> list[str]:
    """Return the ids of the ended containers that ``name`` may mean."""
    return remote.matching(name, [one.id for one in layers], [one.label for one in layers])


def require_layer(saved: SavedLayer, record: Detached | None) -> None:
    """Raise :class:`ContainerStopped` if the layer could not be saved."""
    if record is not None and record.facts.error and not saved.points:
        raise ContainerStopped(f"the container {saved.id} has no layer: {record.facts.error}")


def one_of(name: str, ids: list[str]) -> str:
    """Return the only id. Raises :class:`SandboxError` for none and for several."""
    if len(ids) == 1:
        return ids[0]
    problem = f"{name!r} is ambiguous: {', '.join(ids)}" if ids else f"No such container: {name}"
    raise SandboxError(f"{problem}. `pytest-sandbox ps -a` lists them.")


def _rm_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-f",
        "--force",
        action="store_true",
        help="kill detached containers that run; no error for an unknown one",
    )
    parser.add_argument(
        "ids", metavar="CONTAINER", nargs="+", help="id, beginning of an id, or name"
    )


def _rm(found: argparse.Namespace) -> int:
    def remove(name: str) -> None:
        if _remove(name, force=found.force):
            print(name)

    return for_each(found.ids, remove)


def _remove(name: str, *, force: bool) -> bool:
    """Remove an ended container; with ``force``, a running one too.

    Return whether there was one, which is an error without ``force``.
    """
    from pytest_sandbox.cli.background import end

    record = detached.find(name, detached.list_detached())
    if record is not None and record.is_running:
        if not force:
            raise SandboxError(
                f"cannot remove container {name}: container is running: stop the container before "
                "removing or force remove (rm -f)"
            )
        end(record, 0)
        name = record.id
    layers = list_ended()
    ids = ids_of(name, layers)
    if ids or not force:
        chosen = one_of(name, ids)
        next(one for one in layers if one.id == chosen).remove()
    return bool(ids)


VERBS = (
    Verb(
        name="rm",
        usage="[-f] CONTAINER...",
        summary="Remove ended containers: detached ones, and kept layers of tests",
        arguments=_rm_arguments,
        run=_rm,
    ),
)
