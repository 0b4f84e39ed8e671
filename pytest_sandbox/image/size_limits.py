"""Limits on images. Without each of them, a small file could fill a disk or memory."""

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
    """Limits for one layer and for an image's documents, in bytes and counts.

    ``layer_bytes`` limits the unpacked size, including holes of sparse files; ``ratio`` limits the
    compression ratio after ``ratio_from`` bytes. Both, and ``entries``, apply to each layer and to
    the sum over the layers of one image. The defaults are far above real images: the largest public
    layers have about 30 GiB and 400,000 entries, and program files compress 2 - 10 times.
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
    """The sum of bytes and entries over the layers of one image, in all threads.

    When ``stopping`` is set, the threads that add to it get an ImageError.
    """

    def __init__(self, limits: Limits, stopping: threading.Event | None = None) -> None:
        self._limits = limits
        self._stopping = stopping or threading.Event()
        self._lock = threading.Lock()
        self._raw = self._plain = self._entries = 0

    def check(self) -> None:
        """Raise ImageError if ``stopping`` is set."""
        if self._stopping.is_set():
            raise ImageError("interrupted")

    def add_bytes(self, raw: int, plain: int) -> None:
        """Add the bytes of a stream before and after decompression. Raises ImageError."""
        self.check()
        limits = self._limits
        with self._lock:
            self._raw += raw
            self._plain += plain
            if self._plain > limits.layer_bytes:
                raise ImageError(
                    f"the image's layers unpack to more than {limits.layer_bytes} bytes. Set "
                    f"{_VARIABLE} to allow more."
                )
            if self._plain > limits.ratio_from and self._plain > limits.ratio * self._raw:
                raise ImageError(
                    f"the image's layers unpack to more than {limits.ratio} times their size "
                    f"({self._raw} bytes to {self._plain}), like a decompression bomb. "
                    f"Set {_VARIABLE} (for example to 16g) to allow it."
                )

    def add_entries(self, count: int) -> None:
        """Add entries of a layer. Raises ImageError."""
        with self._lock:
            self._entries += count
            if self._entries > self._limits.entries:
                raise ImageError(
                    f"the image's layers have more than {self._limits.entries} entries"
                )


def limits_from_environment() -> Limits:
    """Return the defaults, with the unpacked size of a layer from ``$PYTEST_SANDBOX_MAX_LAYER``
    (``512m``, ``100g``, bytes), which also replaces the limit on the compression ratio.
    """
    text = os.environ.get(_VARIABLE, "")
    if not text:
        return DEFAULT_LIMITS
    match = re.fullmatch(r"(\d+)([bkmgt]?)b?", text.strip().lower())
    if not match:
        raise ImageError(
            f"{_VARIABLE}={text!r} is not a size; accepted: bytes, or a number with k, m, g or t, "
            "as in 100g."
        )
    size = int(match[1]) << {"": 0, "b": 0, "k": 10, "m": 20, "g": 30, "t": 40}[match[2]]
    return Limits(layer_bytes=size, ratio_from=size)
