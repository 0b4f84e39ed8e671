"""The commands ``pull``, ``load``, ``rmi`` and ``prune``."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, BinaryIO

from pytest_sandbox.cli.verb import Verb
from pytest_sandbox.errors import ImageError, SandboxError
from pytest_sandbox.printable import printable
from pytest_sandbox.units import decimal_size

if TYPE_CHECKING:
    import argparse

    from pytest_sandbox.image.image import Image

__all__ = ["VERBS", "ensure_image"]

_SPAN = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def ensure_image(reference: str, *, policy: str) -> None:
    """Pull the image of ``run`` according to --pull: ``always``, ``never``, or if ``missing``."""
    from pytest_sandbox.cli.progress import reporting
    from pytest_sandbox.image.image import Image, find
    from pytest_sandbox.image.store import UnknownImage

    if policy != "always":
        try:
            find(reference)
        except UnknownImage:
            if policy == "never":
                raise
            print(f"Unable to find image {printable(reference)!r} locally", file=sys.stderr)
        else:
            return
    with reporting(sys.stderr) as progress:
        Image.pull(reference, progress=progress)


# -- pull and load


def _pull_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-q", "--quiet", action="store_true", help="show no progress")
    parser.add_argument(
        "images", nargs="+", metavar="NAME[:TAG|@DIGEST]", help="in docker's syntax"
    )


def _pull(found: argparse.Namespace) -> int:
    from pytest_sandbox.cli.progress import reporting
    from pytest_sandbox.image.image import Image

    for name in found.images:
        with reporting(sys.stderr, quiet=found.quiet) as progress:
            image = Image.pull(name, progress=progress)
        print(image.reference)
    return 0


def _load_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-q", "--quiet", action="store_true", help="show no progress")
    parser.add_argument("-i", "--input", metavar="FILE", help="the same as PATH, as in docker")
    parser.add_argument(
        "-t",
        "--tag",
        default="",
        metavar="NAME[:TAG]",
        help="the image's name, instead of those in the archive",
    )
    parser.add_argument(
        "path",
        nargs="?",
        metavar="PATH",
        help="a file or directory (default: an archive from stdin)",
    )


def _load(found: argparse.Namespace) -> int:
    from pytest_sandbox.cli.progress import reporting
    from pytest_sandbox.image.image import Image, load_stream

    if found.path and found.input:
        raise SandboxError("PATH and --input are the same: give only one of them")
    path = found.path or found.input
    with reporting(sys.stderr, quiet=found.quiet) as progress:
        if path:
            images = Image.load_all(path, name=found.tag, progress=progress)
        else:
            images = load_stream(_stdin(), name=found.tag, progress=progress)
        for image in images:
            _say_loaded(image, path)
    return 0


def _say_loaded(image: Image, path: str) -> None:
    if image.directory:
        raise ImageError(
            f"{image.directory} is a directory with a root file system, which is used without "
            f"loading. Run: pytest-sandbox run {path} ..."
        )
    named = image.reference != image.id
    print(f"Loaded image: {image.reference}" if named else f"Loaded image ID: {image.id}")


def _stdin() -> BinaryIO:
    if sys.stdin is None or sys.stdin.isatty():
        raise SandboxError(
            "give a file or directory, or an archive on stdin: `pytest-sandbox load PATH`"
        )
    return sys.stdin.buffer


# -- rmi and prune


def _rmi_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-f", "--force", action="store_true", help="no error for an unknown image")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="name, id, or prefix of an id")


def _rmi(found: argparse.Namespace) -> int:
    from pytest_sandbox.image.image import Image
    from pytest_sandbox.image.store import UnknownImage

    failures = []
    for name in found.images:
        try:
            for gone in Image.get(name).remove():
                print(f"Deleted: {gone}" if gone.startswith("sha256:") else f"Untagged: {gone}")
        except UnknownImage as error:
            if not found.force:
                # Without the remedy, which is to pull what the user wants to remove.
                failures.append(str(UnknownImage(error.reference, remedy="")))
        except ImageError as error:
            failures.append(str(error))
    if failures:
        raise ImageError("; ".join(failures))
    return 0


def _prune_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-a",
        "--all",
        action="store_true",
        help="also images with a name, unless a container uses them",
    )
    parser.add_argument(
        "--filter", metavar="until=SPAN", help="only images not used for this long: 24h, 7d, 90m"
    )
    parser.add_argument(
        "--keep-storage",
        metavar="SIZE",
        help="remove the least recently used images until no more than this is left",
    )
    parser.add_argument(
        "-f",
        "--force",
        action="store_true",
        help="ignored, for compatibility with docker: there is no prompt",
    )


def _prune(found: argparse.Namespace) -> int:
    from pytest_sandbox.container import states
    from pytest_sandbox.image.prune import prune
    from pytest_sandbox.image.store import Store
    from pytest_sandbox.settings.settings import parse_size

    keep = parse_size(found.keep_storage) if found.keep_storage else None
    removed, size = prune(Store(), every=found.all, older_than=_span(found.filter), keep_bytes=keep)
    states.remove_stale()
    print("".join(f"Deleted: {one}\n" for one in removed), end="")
    print(f"Total reclaimed space: {decimal_size(size)}")
    return 0


def _span(text: str | None) -> float:
    match = re.fullmatch(r"until=((?:\d+[smhdw])+)", text or "until=0s")
    if not match:
        raise SandboxError(
            f"--filter {text} is not valid; accepted: until= and a time span, as in "
            "until=24h or until=7d"
        )
    return float(
        sum(int(count) * _SPAN[unit] for count, unit in re.findall(r"(\d+)([smhdw])", match[1]))
    )


VERBS = (
    Verb(
        name="pull",
        usage="[-q] NAME[:TAG|@DIGEST]...",
        summary="Fetch images from a registry",
        details="Uses the credentials of docker login (~/.docker/config.json). "
        "PYTEST_SANDBOX_MIRRORS and PYTEST_SANDBOX_REGISTRY_PREFIX: see the docs.",
        arguments=_pull_arguments,
        run=_pull,
    ),
    Verb(
        name="load",
        usage="[-q] [-t NAME[:TAG]] [PATH]",
        summary="Store an image from a file or directory: `docker save`, an OCI layout, the tar "
        "of a root file system",
        arguments=_load_arguments,
        run=_load,
    ),
    Verb(
        name="rmi",
        usage="[-f] IMAGE...",
        summary="Remove images, or their names",
        arguments=_rmi_arguments,
        run=_rmi,
    ),
    Verb(
        name="prune",
        usage="[-a] [--filter until=SPAN] [--keep-storage SIZE]",
        summary="Remove images without a name, such as prepared services, unused layers, and "
        "files of killed processes",
        arguments=_prune_arguments,
        run=_prune,
    ),
)
