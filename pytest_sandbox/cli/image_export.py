"""The commands ``save`` and ``tag``."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from pytest_sandbox.cli.verb import Verb
from pytest_sandbox.errors import SandboxError

if TYPE_CHECKING:
    import argparse

    from pytest_sandbox.image.image import Image

__all__ = ["VERBS"]


def _save_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="write to a file, instead of standard output"
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="name, id, or prefix of an id")


def _save(found: argparse.Namespace) -> int:
    from pytest_sandbox.image.image import Image, save_images
    from pytest_sandbox.image.save import open_archive

    images = [_as_given(Image.get(name), name) for name in found.images]
    if found.output:
        with open_archive(found.output) as file:
            save_images(images, file)
        return 0
    if sys.stdout.isatty():
        raise SandboxError("an archive is not written to a terminal: use -o FILE, or redirect")
    save_images(images, sys.stdout.buffer)
    return 0


def _as_given(image: Image, name: str) -> Image:
    """Return the image without a name if it was given by its id, as docker saves it."""
    is_id = image.id.removeprefix("sha256:").startswith(name.removeprefix("sha256:"))
    return replace(image, reference=image.id) if is_id and name not in image.names else image


def _tag_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", metavar="IMAGE", help="name, id, or prefix of an id")
    parser.add_argument("name", metavar="NAME[:TAG]", help="its further name")


def _tag(found: argparse.Namespace) -> int:
    from pytest_sandbox.image.image import Image

    Image.get(found.image).tag(found.name)
    return 0


VERBS = (
    Verb(
        name="save",
        usage="[-o FILE] IMAGE...",
        summary="Write images to an archive, which `load`, docker and podman read",
        arguments=_save_arguments,
        run=_save,
    ),
    Verb(
        name="tag",
        usage="IMAGE NAME[:TAG]",
        summary="Give an image a further name",
        arguments=_tag_arguments,
        run=_tag,
    ),
)
