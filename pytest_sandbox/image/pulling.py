"""From a reference to a stored image: what is asked of the registry, and what need not be."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_sandbox.errors import ImageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_sandbox.image.store import Store

__all__ = ["pull"]


def pull(reference: str, store: Store, progress: Callable[[str, str, int, int], None] | None) -> str:
    """Fetch an image; returns its id."""
    raise ImageError(f"{reference}: {store.folder} has no such image, and there is no registry client yet {progress}")
