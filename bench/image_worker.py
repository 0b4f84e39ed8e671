"""One measured process of the rows about images: ``python -m bench.image_worker OPERATION FOLDER [ARGUMENT...]``, as bench.worker.

FOLDER is a tmpfs that holds the sample of :mod:`bench.images`; every round begins without a store, or with one that is known, and tidies up unmeasured.
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


def fresh(folder: str, name: str) -> str:
    """Return a path that nothing has (podman remembers a storage by its path) and that is short (podman takes no more than 50 characters)."""
    return os.path.join(folder, f"{name[0]}{time.monotonic_ns() % 10**10}")


def program(*argv: str) -> None:
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@contextmanager
def tar(folder: str) -> Iterator[Round]:
    """GNU tar, with gzip as its filter."""

    def once() -> float:
        target = fresh(folder, "tar")
        os.mkdir(target)
        took = clocked(partial(program, "tar", "-C", target, "-xzf", f"{folder}/layer.tar.gz"))
        shutil.rmtree(target)
        return took

    yield once


@contextmanager
def load(folder: str) -> Iterator[Round]:
    """``Image.load`` of an OCI layout into an empty store: verified, unpacked, in the index."""
    from pytest_sandbox import Image

    def once() -> float:
        os.environ["PYTEST_SANDBOX_HOME"] = target = fresh(folder, "home")
        took = clocked(partial(Image.load, f"{folder}/layout"))
        shutil.rmtree(target)
        return took

    yield once


@contextmanager
def umoci(folder: str) -> Iterator[Round]:
    """``umoci unpack`` of the same layout."""

    def once() -> float:
        target = fresh(folder, "umoci")
        took = clocked(partial(program, "umoci", "unpack", "--image", f"{folder}/layout:latest", target))
        shutil.rmtree(target)
        return took

    yield once


@contextmanager
def podman(folder: str) -> Iterator[Round]:
    """``podman load`` of the same image as an archive, into an empty storage."""

    def once() -> float:
        target = fresh(folder, "podman")
        storage = ("podman", "--root", f"{target}/root", "--runroot", f"{target}/run", "--storage-driver", "overlay")
        took = clocked(partial(program, *storage, "load", "-q", "-i", f"{folder}/layout.tar"))
        program("sh", "-c", f"umount {target}/root/overlay 2>/dev/null; rm -rf {target}")
        return took

    yield once


@contextmanager
def pull(folder: str, reference: str) -> Iterator[Round]:
    """``Image.pull`` from a registry on loopback into an empty store."""
    from pytest_sandbox import Image

    def once() -> float:
        os.environ["PYTEST_SANDBOX_HOME"] = target = fresh(folder, "home")
        took = clocked(partial(Image.pull, reference))
        shutil.rmtree(target)
        return took

    yield once


@contextmanager
def skopeo(folder: str, reference: str) -> Iterator[Round]:
    """``skopeo copy`` of the same image to a layout, then ``umoci unpack``."""
    copy = ("skopeo", "--insecure-policy", "copy", "-q", "--src-tls-verify=false", f"docker://{reference}")

    def fetch(target: str) -> None:
        program(*copy, f"oci:{target}/layout:latest")
        program("umoci", "unpack", "--image", f"{target}/layout:latest", f"{target}/bundle")

    def once() -> float:
        target = fresh(folder, "skopeo")
        os.mkdir(target)
        took = clocked(partial(fetch, target))
        shutil.rmtree(target)
        return took

    yield once


@contextmanager
def start(folder: str, image: str) -> Iterator[Round]:
    """A container on an image (or on the host's root): created, ``true`` run in it, closed."""
    os.environ["PYTEST_SANDBOX_HOME"] = f"{folder}/store"

    def once() -> None:
        with limited(image=image) as container:
            container.run(["true"], check=True)

    yield partial(clocked, once)


@contextmanager
def commit(folder: str) -> Iterator[Round]:
    """``commit()`` after 1,000 files were written, and a container from it: created, ``true`` run in it, closed."""

    def commit_and_start(container: Container) -> None:
        with limited(image=container.commit()) as clone:
            clone.run(["true"], check=True)

    def once() -> float:
        with limited() as container:
            container.run(["sh", "-c", f"mkdir {folder}/many && cd {folder}/many && seq 1000 | xargs touch"], check=True)
            return clocked(partial(commit_and_start, container))

    yield once


@contextmanager
def memory(folder: str) -> Iterator[Round]:
    """The most memory that a process had while it loaded the image: "milliseconds" are kilobytes here."""
    from pytest_sandbox import Image

    def once() -> float:
        os.environ["PYTEST_SANDBOX_HOME"] = target = fresh(folder, "home")
        Image.load(f"{folder}/layout")
        shutil.rmtree(target)
        # Not ru_maxrss: that remembers what the process was before its exec.
        return float(next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")))

    yield once


OPERATIONS = {one.__name__: one for one in (tar, load, umoci, podman, pull, skopeo, start, commit, memory)}

if __name__ == "__main__":
    repeat(OPERATIONS[sys.argv[1]], *sys.argv[2:])
