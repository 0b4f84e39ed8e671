"""One measured process of the rows about images: ``python -m bench.image_worker OPERATION DIRECTORY
[ARGUMENT...]``, as bench.worker.

DIRECTORY is a tmpfs with the sample of :mod:`bench.images`. Every round starts with a new store,
and its cleanup is not measured.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from bench.worker import clocked, limited, repeat

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pytest_sandbox import Container

    Round = Callable[[], float]


def fresh(directory: str, name: str) -> str:
    """Return a new path, as podman remembers a storage by its path, of less than 50 characters,
    podman's limit.
    """
    return os.path.join(directory, f"{name[0]}{time.monotonic_ns() % 10**10}")


def program(*argv: str) -> None:
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@contextmanager
def tar(directory: str) -> Iterator[Round]:
    """GNU tar with gzip."""

    def once() -> float:
        target = fresh(directory, "tar")
        os.mkdir(target)
        took = clocked(partial(program, "tar", "-C", target, "-xzf", f"{directory}/layer.tar.gz"))
        shutil.rmtree(target)
        return took

    yield once


@contextmanager
def load(directory: str) -> Iterator[Round]:
    """``Image.load`` of an OCI layout into an empty store: verified, extracted, in the index."""
    from pytest_sandbox import Image

    def once() -> float:
        os.environ["PYTEST_SANDBOX_HOME"] = target = fresh(directory, "home")
        took = clocked(partial(Image.load, f"{directory}/layout"))
        shutil.rmtree(target)
        return took

    yield once


@contextmanager
def umoci(directory: str) -> Iterator[Round]:
    """``umoci unpack`` of the same layout."""

    def once() -> float:
        target = fresh(directory, "umoci")
        took = clocked(
            partial(program, "umoci", "unpack", "--image", f"{directory}/layout:latest", target)
        )
        shutil.rmtree(target)
        return took

    yield once


@contextmanager
def podman(directory: str) -> Iterator[Round]:
    """``podman load`` of the same image as an archive, into an empty storage."""

    def once() -> float:
        target = fresh(directory, "podman")
        storage = (
            "podman",
            "--root",
            f"{target}/root",
            "--runroot",
            f"{target}/run",
            "--storage-driver",
            "overlay",
        )
        took = clocked(partial(program, *storage, "load", "-q", "-i", f"{directory}/layout.tar"))
        program("sh", "-c", f"umount {target}/root/overlay 2>/dev/null; rm -rf {target}")
        return took

    yield once


@contextmanager
def pull(directory: str, reference: str) -> Iterator[Round]:
    """``Image.pull`` from a registry on loopback into an empty store."""
    from pytest_sandbox import Image

    def once() -> float:
        os.environ["PYTEST_SANDBOX_HOME"] = target = fresh(directory, "home")
        took = clocked(partial(Image.pull, reference))
        shutil.rmtree(target)
        return took

    yield once


@contextmanager
def skopeo(directory: str, reference: str) -> Iterator[Round]:
    """``skopeo copy`` of the same image to a layout, then ``umoci unpack``."""
    copy = (
        "skopeo",
        "--insecure-policy",
        "copy",
        "-q",
        "--src-tls-verify=false",
        f"docker://{reference}",
    )

    def fetch(target: str) -> None:
        program(*copy, f"oci:{target}/layout:latest")
        program("umoci", "unpack", "--image", f"{target}/layout:latest", f"{target}/bundle")

    def once() -> float:
        target = fresh(directory, "skopeo")
        os.mkdir(target)
        took = clocked(partial(fetch, target))
        shutil.rmtree(target)
        return took

    yield once


@contextmanager
def start(directory: str, image: str) -> Iterator[Round]:
    """A container on an image (or on the host's root): created, ``true`` run in it, closed."""
    os.environ["PYTEST_SANDBOX_HOME"] = f"{directory}/store"

    def once() -> None:
        with limited(image=image) as container:
            container.run(["true"], check=True)

    yield partial(clocked, once)


@contextmanager
def commit(directory: str) -> Iterator[Round]:
    """``commit()`` after 1,000 files were written, and a container from it: created, ``true`` run
    in it, closed.
    """

    def commit_and_start(container: Container) -> None:
        with limited(image=container.commit()) as clone:
            clone.run(["true"], check=True)

    def once() -> float:
        with limited() as container:
            container.run(
                [
                    "sh",
                    "-c",
                    f"mkdir {directory}/many && cd {directory}/many && seq 1000 | xargs touch",
                ],
                check=True,
            )
            return clocked(partial(commit_and_start, container))

    yield once


@contextmanager
def memory(directory: str) -> Iterator[Round]:
    """The maximum resident memory while an image is loaded, in kilobytes instead of
    milliseconds.
    """
    from pytest_sandbox import Image

    def once() -> float:
        os.environ["PYTEST_SANDBOX_HOME"] = target = fresh(directory, "home")
        Image.load(f"{directory}/layout")
        shutil.rmtree(target)
        # Not ru_maxrss, which includes the process before its execve(2).
        return float(
            next(
                line.split()[1]
                for line in Path("/proc/self/status").read_text().splitlines()
                if line.startswith("VmHWM:")
            )
        )

    yield once


OPERATIONS = {
    one.__name__: one for one in (tar, load, umoci, podman, pull, skopeo, start, commit, memory)
}

if __name__ == "__main__":
    repeat(OPERATIONS[sys.argv[1]], *sys.argv[2:])
