"""Images by the key of what they were made from, for services whose files are prepared once.

::

    HOME/states/KEY        the id of the image
    HOME/states/KEY.lock   locked (flock(2)) while a process makes it

HOME is the directory of the image store. The images have no name, so ``pytest-sandbox prune``
removes them; then they are made again.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from pytest_sandbox.errors import ImageError
from pytest_sandbox.image.image import Image
from pytest_sandbox.image.locks import exclusive_lock
from pytest_sandbox.linux.private_directory import make_private, private_ones
from pytest_sandbox.paths import images

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["find_or_make", "remove_stale"]


def _home() -> str:
    return os.path.join(images(), "states")


def find_or_make(key: str, make: Callable[[], Image]) -> Image:
    """Return the image of this key. If there is none, this process makes it while others wait.

    A process that is killed meanwhile releases the lock, and leaves no image.
    """
    path = os.path.join(make_private(_home()), key)
    found = _read(path)
    if found is not None:
        return found
    with exclusive_lock(f"{path}.lock", threading.Event()):
        found = _read(path)  # another process may have made it meanwhile
        if found is None:
            found = make()
            _write(path, found.id)
    return found


def _read(path: str) -> Image | None:
    try:
        with open(path, encoding="utf-8") as file:
            return Image.get(file.read())
    except (OSError, ImageError):
        return None


def _write(path: str, text: str) -> None:
    unfinished = f"{path}.new"  # by the holder of the lock alone
    with open(unfinished, "w", encoding="utf-8") as file:
        file.write(text)
    os.rename(unfinished, path)


def remove_stale() -> None:
    """Remove the keys whose image was removed."""
    for home in private_ones([_home()]):
        for name in os.listdir(home):
            path = os.path.join(home, name)
            if "." not in name and _read(path) is None:
                with suppress(FileNotFoundError):
                    os.unlink(path)
