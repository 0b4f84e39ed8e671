"""Checks and images for tests of the image store."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tarballs import Made, entry, files, layer

if TYPE_CHECKING:
    from pytest_sandbox.image.store import Store


def is_clean(store: Store) -> bool:
    """Tell whether the store contains only what its index lists."""
    index = store.index()
    expected = {
        "documents": index.documents_in_use() - {""},
        "layers": index.layers_in_use(),
        "images": set(index.images),
        "tmp": set(),
        "locks": index.layers_in_use(),
    }
    found = {name: set(os.listdir(store.path(name))) for name in expected}
    return found == {
        name: {one.removeprefix("sha256:") for one in digests} for name, digests in expected.items()
    }


def large_image() -> Made:
    """Return an image of three layers that takes some time to load."""
    many = [entry(f"d{n % 7}/f{n}", os.urandom(700)) for n in range(700)]
    return Made([layer(*many), layer(entry("big", os.urandom(2 << 20))), files(top="t")])
