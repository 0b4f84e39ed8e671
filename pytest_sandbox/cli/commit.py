"""``commit``: an image of what was written in a detached container, or in a kept one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_sandbox.cli import ended
from pytest_sandbox.cli.verb import Verb
from pytest_sandbox.container import detached

if TYPE_CHECKING:
    import argparse

    from pytest_sandbox.container.detached import Detached
    from pytest_sandbox.container.saved_layers import SavedLayer
    from pytest_sandbox.container.store_commit import Details

__all__ = ["VERBS"]


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-m", "--message", default="", metavar="TEXT", help="a comment")
    parser.add_argument("-a", "--author", default="", metavar="NAME", help="the author")
    parser.add_argument(
        "-c",
        "--change",
        action="append",
        default=[],
        metavar="INSTRUCTION",
        help="change the image's configuration: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, "
        "USER, VOLUME or WORKDIR, as in a Dockerfile",
    )
    parser.add_argument(
        "-p",
        "--pause",
        action="store_true",
        help="no effect: what runs in the container is always paused meanwhile",
    )
    parser.add_argument("id", metavar="CONTAINER", help="its id, the beginning of it, or its name")
    parser.add_argument("name", metavar="NAME[:TAG]", nargs="?", help="the name of the image")


def _commit(found: argparse.Namespace) -> int:
    from pytest_sandbox.container.store_commit import Details, commit_saved

    details = Details.read(
        found.name, message=found.message, author=found.author, changes=found.change
    )
    record = detached.find(found.id, detached.list_detached())
    if record is not None and record.is_running:
        print(_ask(record, details))
        return 0
    saved, image = _ended(found.id)
    print(commit_saved(saved, image, details).id)
    return 0


def _ask(one: Detached, details: Details) -> str:
    """Have the supervisor commit its container; return the id of the image."""
    from dataclasses import asdict

    from pytest_sandbox.cli.supervisor_requests import ask

    return str(ask(one, {"op": "commit", **asdict(details)})["image"])


def _ended(name: str) -> tuple[SavedLayer, str]:
    """Return the layer of an ended container, and what it was based on.

    Raises :class:`SandboxError` for an unknown one, for one that is not detached, and without a
    layer.
    """
    layers = ended.list_ended()
    ids = ended.ids_of(name, layers)
    if not ids:
        detached.find_detached(name)  # raises the error
    chosen = ended.one_of(name, ids)
    record = detached.find(chosen, detached.list_detached())
    saved = next(one for one in layers if one.id == chosen)
    ended.require_layer(saved, record)
    image = record.facts.image_id if record and record.facts.image_id else ""
    return saved, image or str(saved.settings.get("image", "host"))


VERBS = (
    Verb(
        name="commit",
        usage="[OPTIONS] CONTAINER [NAME[:TAG]]",
        summary="Create an image from what was written in a detached container, and print its id",
        arguments=_arguments,
        run=_commit,
    ),
)
