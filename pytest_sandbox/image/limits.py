"""What an image may claim before it is refused: every figure here is a way to fill a disk or a memory with a small file."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from pytest_sandbox.errors import ImageError

__all__ = ["DEFAULT_LIMITS", "Limits", "limits_from_environment"]

_GIB = 1 << 30
_VARIABLE = "PYTEST_SANDBOX_MAX_LAYER"


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds for one layer and for the documents around it, in bytes and counts.

    ``layer_bytes`` bounds the unpacked size (holes of sparse files count); ``ratio`` is looked at once ``ratio_from`` bytes came out of a
    compressed stream. Defaults lie far above what real images do: the largest public layers have some 30 GiB and 400,000 entries, and
    program files compress 2 - 10 times.
    """

    layer_bytes: int = 64 * _GIB
    entries: int = 2_000_000
    directories: int = 500_000
    ratio: int = 200
    ratio_from: int = _GIB
    path_bytes: int = 4096
    path_depth: int = 256
    header_bytes: int = 1 << 20
    sparse_parts: int = 100_000
    document_bytes: int = 8 << 20
    index_depth: int = 4
    index_manifests: int = 1000
    layers: int = 2000


DEFAULT_LIMITS = Limits()


def limits_from_environment() -> Limits:
    """The defaults, with the unpacked size of a layer from ``$PYTEST_SANDBOX_MAX_LAYER`` (``512m``, ``100g``, bytes).

    Naming a size there is a decision: it lifts the bound on the compression ratio too.
    """
    text = os.environ.get(_VARIABLE, "")
    if not text:
        return DEFAULT_LIMITS
    match = re.fullmatch(r"(\d+)([bkmgt]?)b?", text.strip().lower())
    if not match:
        raise ImageError(f"{_VARIABLE}={text!r} is no size; accepted: bytes, or a number with k, m, g or t, as in 100g.")
    size = int(match[1]) << {"": 0, "b": 0, "k": 10, "m": 20, "g": 30, "t": 40}[match[2]]
    return Limits(layer_bytes=size, ratio_from=size)
