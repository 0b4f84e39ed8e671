"""What an image may claim before it is refused: every figure here is a way to fill a disk or a
memory with a small file.
"""

from __future__ import annotations

import os
import re
import threading
from dataclasses import dataclass

from pytest_sandbox.errors import ImageError

__all__ = ["DEFAULT_LIMITS", "Budget", "Limits", "limits_from_environment"]

_GIB = 1 << 30
_VARIABLE = "PYTEST_SANDBOX_MAX_LAYER"


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds for one layer and for the documents around it, in bytes and counts.

    ``layer_bytes`` bounds the unpacked size (holes of sparse files count); ``ratio`` is looked at
    once ``ratio_from`` bytes came out of a compressed stream. Both, and ``entries``, hold for one
    layer and for the sum over the layers of one image. Defaults lie far above what real images do:
    the largest public layers have some 30 GiB and 400,000 entries, and program files compress 2 -
    10 times.
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


class Budget:
    """What the layers of one image have brought so far, in all threads: many small bombs are one.

    ``stopping`` is set when nobody wants the image any more: whoever adds to it is told.
    """

    def __init__(self, limits: Limits, stopping: threading.Event | None = None) -> None:
        self._limits = limits
        self._stopping = stopping or threading.Event()
        self._lock = threading.Lock()
        self._raw = self._plain = self._entries = 0

    def check(self) -> None:
        """Raise ImageError where nobody wants the image any more."""
        if self._stopping.is_set():
            raise ImageError("interrupted")

    def add_bytes(self, raw: int, plain: int) -> None:
        """Count bytes of a stream before and after it was decompressed. Raises ImageError."""
        self.check()
        limits = self._limits
        with self._lock:
            self._raw += raw
            self._plain += plain
            if self._plain > limits.layer_bytes:
                raise ImageError(
                    f"the image's layers unpack to more than {limits.layer_bytes} bytes. Set "
                    f"{_VARIABLE} if that is meant."
                )
            if self._plain > limits.ratio_from and self._plain > limits.ratio * self._raw:
                raise ImageError(
                    f"the image's layers unpack to more than {limits.ratio} times their size "
                    f"({self._raw} bytes made {self._plain}), as only a decompression bomb does. "
                    f"Set {_VARIABLE} (for example 16g) if that is meant."
                )

    def add_entries(self, count: int) -> None:
        """Count entries of a layer. Raises ImageError."""
        with self._lock:
            self._entries += count
            if self._entries > self._limits.entries:
                raise ImageError(
                    f"the image's layers have more than {self._limits.entries} entries"
                )


def limits_from_environment() -> Limits:
    """The defaults, with the unpacked size of a layer from ``$PYTEST_SANDBOX_MAX_LAYER`` (``512m``,
    ``100g``, bytes).

    Naming a size there is a decision: it lifts the bound on the compression ratio too.
    """
    text = os.environ.get(_VARIABLE, "")
    if not text:
        return DEFAULT_LIMITS
    match = re.fullmatch(r"(\d+)([bkmgt]?)b?", text.strip().lower())
    if not match:
        raise ImageError(
            f"{_VARIABLE}={text!r} is no size; accepted: bytes, or a number with k, m, g or t, as "
            "in 100g."
        )
    size = int(match[1]) << {"": 0, "b": 0, "k": 10, "m": 20, "g": 30, "t": 40}[match[2]]
    return Limits(layer_bytes=size, ratio_from=size)
