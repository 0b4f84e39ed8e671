"""The errors of a network."""

from __future__ import annotations

import errno
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pytest_sandbox.errors import ContainerStopped, SetupError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["explained"]


@contextmanager
def explained(step: str) -> Iterator[None]:
    """Convert an OSError into an error with a remedy."""
    try:
        yield
    except ProcessLookupError as error:
        raise ContainerStopped.ended() from error
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            from pytest_sandbox import host

            host.require("bridge", "a Network")
        raise SetupError(step, str(error.strerror)) from error
