"""The commands ``images`` and ``history``."""

from __future__ import annotations

import fnmatch
import re
import time
from datetime import datetime
from typing import TYPE_CHECKING, Any

from pytest_sandbox.cli import output, times
from pytest_sandbox.cli.exit_status import complain
from pytest_sandbox.cli.filters import Condition, add_filter, has_label, matching
from pytest_sandbox.cli.filters import condition as parsed
from pytest_sandbox.cli.format import Listing, add_format
from pytest_sandbox.cli.verb import Verb
from pytest_sandbox.errors import ImageError
from pytest_sandbox.units import decimal_size, duration

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

    from pytest_sandbox.image.image import Image

__all__ = ["VERBS"]

_SHORT_ID = 12
_COMMAND_WIDTH = 44
_IMAGES = Listing(
    {
        "Repository": "REPOSITORY",
        "Tag": "TAG",
        "ID": "IMAGE ID",
        "CreatedSince": "CREATED",
        "Size": "SIZE",
        "CreatedAt": "CREATED AT",
        "Digest": "DIGEST",
    },
    ("Repository", "Tag", "ID", "CreatedSince", "Size"),
)
_HISTORY = Listing(
    {
        "ID": "IMAGE",
        "CreatedSince": "CREATED",
        "CreatedBy": "CREATED BY",
        "Size": "SIZE",
        "Comment": "COMMENT",
        "CreatedAt": "CREATED AT",
    },
    ("ID", "CreatedSince", "CreatedBy", "Size", "Comment"),
)
_FILTERS = ("dangling", "label", "before", "since", "reference")


# -- images


def _images_arguments(parser: argparse.ArgumentParser) -> None:
    add_format(parser, _IMAGES.headers)
    parser.add_argument("--no-trunc", action="store_true", help="print whole ids")
    parser.add_argument("-q", "--quiet", action="store_true", help="print ids only")
    add_filter(
        parser,
        _condition,
        "only images that match: dangling=true|false, label=KEY[=VALUE], before=IMAGE, "
        "since=IMAGE, reference=PATTERN",
    )
    parser.add_argument("name", nargs="?", metavar="NAME[:TAG]", help="only images of this name")


def _condition(text: str) -> Condition:
    return parsed(text, _FILTERS, {"dangling": ("true", "false")})


def _images(found: argparse.Namespace) -> int:
    ones = _selected(found.name, found.filter)
    whole = found.no_trunc
    if found.quiet:
        ids = dict.fromkeys(_id(image, whole=whole) for image in ones)
        print("".join(f"{one}\n" for one in ids), end="")
    elif found.format.word == "json":
        output.print_json([_as_json(image) for image in ones])
    else:
        found.format.print([_row(image, whole=whole) for image in ones], _IMAGES)
    return 0


def _selected(name: str | None, only: Sequence[Condition]) -> list[Image]:
    """Return the images of a name that match the conditions."""
    from pytest_sandbox.image.image import Image

    ones = Image.list()
    tests = _tests(only)
    return [
        image
        for image in ones
        if (not name or name in (image.reference, _split(image)[0]))
        and matching(image, only, tests)
    ]


def _tests(only: Sequence[Condition]) -> dict[str, Callable[[Image, str], bool]]:
    """Return the test of each key. Raises :class:`ImageError` for an unknown image."""
    from pytest_sandbox.image.image import Image

    created = {value: _time(Image.get(value)) for key, value in only if key in {"before", "since"}}
    return {
        "dangling": lambda image, value: (image.reference == image.id) == (value == "true"),
        "label": lambda image, value: has_label(image.config.get("Labels") or {}, value),
        "before": lambda image, value: _time(image) < created[value],
        "since": lambda image, value: _time(image) > created[value],
        "reference": lambda image, value: any(
            fnmatch.fnmatchcase(text, value) for text in (image.reference, _split(image)[0])
        ),
    }


def _row(image: Image, *, whole: bool) -> dict[str, Any]:
    repository, tag = _split(image)
    created = _created(image)
    digests = image.repository_digests
    return {
        "ID": _id(image, whole=whole),
        "Repository": repository,
        "Tag": tag,
        "Digest": digests[0].rpartition("@")[2] if digests else "<none>",
        "CreatedSince": _age(created),
        "CreatedAt": _date(created),
        "Size": decimal_size(image.size),
    }


def _created(image: Image) -> object:
    """Return the creation time of an image. If its configuration is damaged, print an error and
    return None, so that the other images are listed.
    """
    try:
        return image.document.get("created")
    except ImageError as error:
        complain(f"{image.reference}: {error}")
        return None


def _as_json(image: Image) -> dict[str, object]:
    repository, tag = _split(image)
    created = _created(image)
    return {
        "id": image.id,
        "repository": repository,
        "tag": tag,
        "created": created,
        "size": image.size,
    }


def _split(image: Image) -> tuple[str, str]:
    if image.reference == image.id:
        return "<none>", "<none>"
    name, at, _digest = image.reference.partition("@")
    if at:
        return name, "<none>"
    repository, _, tag = name.rpartition(":")
    return repository, tag


def _id(image: Image, *, whole: bool) -> str:
    return image.id if whole else image.id.removeprefix("sha256:")[:_SHORT_ID]


def _time(image: Image) -> float:
    return _seconds(_created(image)) or 0.0


def _seconds(created: object) -> float | None:
    """Return a configuration's time (RFC 3339) in seconds since the epoch; None without one."""
    if not isinstance(created, str):
        return None
    text = re.sub(r"(\.\d{1,6})\d*", r"\1", created.replace("Z", "+00:00"))
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        return None


def _age(created: object) -> str:
    """Return the age as docker prints it."""
    when = _seconds(created)
    return "N/A" if when is None else f"{duration(max(0.0, time.time() - when))} ago"


def _date(created: object) -> str:
    """Return the time as docker prints it, in UTC."""
    when = _seconds(created)
    try:
        return "N/A" if when is None else times.date(when)
    except (ValueError, OverflowError):
        return "N/A"


# -- history


def _history_arguments(parser: argparse.ArgumentParser) -> None:
    add_format(parser, _HISTORY.headers)
    parser.add_argument("--no-trunc", action="store_true", help="print whole commands and ids")
    parser.add_argument("-q", "--quiet", action="store_true", help="print ids only")
    parser.add_argument("image", metavar="IMAGE", help="name, id, or prefix of an id")


def _history(found: argparse.Namespace) -> int:
    from pytest_sandbox.image.image import Image

    image = Image.get(found.image)
    steps = _steps(image)
    rows = [
        _history_row(image, step, is_top=not number, whole=found.no_trunc)
        for number, step in enumerate(steps)
    ]
    if found.quiet:
        print("".join(f"{row['ID']}\n" for row in rows), end="")
    elif found.format.word == "json":
        output.print_json(steps)
    else:
        found.format.print(rows, _HISTORY)
    return 0


def _history_row(
    image: Image, step: dict[str, Any], *, is_top: bool, whole: bool
) -> dict[str, Any]:
    command = str(step["CreatedBy"]).replace("\t", " ").replace("\n", " ")
    if not whole and len(command) > _COMMAND_WIDTH:
        command = command[: _COMMAND_WIDTH - 1] + "…"
    return {
        "ID": _id(image, whole=whole) if is_top else "<missing>",
        "CreatedSince": _age(step["Created"]),
        "CreatedAt": _date(step["Created"]),
        "CreatedBy": command,
        "Size": decimal_size(step["Size"]),
        "Comment": step["Comment"],
    }


def _steps(image: Image) -> list[dict[str, Any]]:
    """Return the steps of the history, newest first, with the sizes of their layers."""
    sizes = iter(image.layer_sizes())
    steps = [
        {
            "Created": entry.get("created"),
            "CreatedBy": str(entry.get("created_by", "")),
            "Size": 0 if entry.get("empty_layer") else next(sizes, 0),
            "Comment": str(entry.get("comment", "")),
        }
        for entry in image.history
    ]
    return steps[::-1]


VERBS = (
    Verb(
        name="images",
        usage="[OPTIONS] [NAME[:TAG]]",
        summary="List the stored images",
        arguments=_images_arguments,
        run=_images,
    ),
    Verb(
        name="history",
        usage="[OPTIONS] IMAGE",
        summary="Show the history of an image",
        arguments=_history_arguments,
        run=_history,
    ),
)
