"""Repeat what fails because of the network, until a deadline."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


def retry(
    action: Callable[[], T], errors: type[Exception], *, seconds: float, pause: float = 0.05
) -> T:
    """Return what ``action`` returns; after ``seconds`` of failures, raise the last one."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return action()
        except errors as error:
            if time.monotonic() > deadline:
                raise
            print(f"trying again after: {error}", flush=True)
        time.sleep(pause)
        pause = min(pause * 2, 1)
