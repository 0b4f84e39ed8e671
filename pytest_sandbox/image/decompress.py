"""Decompression and hashing of a stream: gzip, zstd, xz, bzip2 or none, by its magic number.

Reading, decompressing and hashing run in a thread of their own, ahead of the thread that writes the
files. zlib, isal, zstd, lzma and hashlib release the GIL for a chunk, so that two processors are
used.
"""

from __future__ import annotations

import contextlib
import hashlib
import queue
import threading
import zlib
from collections.abc import Generator
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Protocol, Self

from pytest_sandbox.errors import ImageError
from pytest_sandbox.image.size_limits import Budget

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from pytest_sandbox.image.size_limits import Limits

__all__ = ["PlainStream", "compression_of", "decompress", "read_chunks"]

_READ: Final = 256 << 10
_CHUNK: Final = 1 << 20
_AHEAD: Final = 4
_MOST_EMPTY: Final = 1000  # bgzip writes one at the end; skippable frames of zstd count too
_MAGIC: Final = (
    (b"\x1f\x8b", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\xfd7zXZ\0", "xz"),
    (b"BZh", "bzip2"),
)
# A zstd stream may begin with a skippable frame (RFC 8878, 3.1.2): 0x184D2A50 - 0x184D2A5F,
# little-endian.
_ZSTD_SKIPPABLE: Final = (b"\x2a\x4d\x18",)
_LONGEST_MAGIC: Final = 6
_XZ_MEMORY: Final = 80 << 20
_ZSTD_WINDOW_LOG: Final = 27


class _Frame(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


def compression_of(start: bytes) -> str:
    """Return the compression whose magic number ``start`` begins with, ``""`` for none."""
    if start[1:4] in _ZSTD_SKIPPABLE and 0x50 <= start[0] <= 0x5F:
        return "zstd"
    return next((name for magic, name in _MAGIC if start.startswith(magic)), "")


def read_chunks(file: BinaryIO, length: int | None = None) -> Iterator[bytes]:
    """Yield chunks of ``file`` from its current position, at most ``length`` bytes."""
    left = length
    while left is None or left > 0:
        data = file.read(_READ if left is None else min(_READ, left))
        if not data:
            return
        if left is not None:
            left -= len(data)
        yield data


def decompress(raw: Iterable[bytes]) -> Generator[bytes]:
    """Decompress a stream, in pieces of at most 1 MiB.

    Raises ImageError for damaged or truncated data, and for other data after its end.
    """
    stream = iter(raw)
    first = b""
    for data in stream:
        first += data
        if len(first) >= _LONGEST_MAGIC:
            break
    kind = compression_of(first)
    if not kind:
        yield from _pieces(first, stream)
        return
    try:
        yield from (
            _gzip(first, stream) if kind == "gzip" else _frames(_opener(kind), kind, first, stream)
        )
    except _errors_of(kind) as error:
        raise ImageError(
            f"the {kind} stream is damaged: {str(error) or type(error).__name__}"
        ) from error


def _pieces(first: bytes, stream: Iterator[bytes]) -> Iterator[bytes]:
    if first:
        yield first
    yield from stream


def _zlib_module() -> Any:
    """Return isal's replacement of zlib if it is installed (2 - 4 times as fast), else zlib."""
    with contextlib.suppress(ImportError):
        from isal import isal_zlib

        return isal_zlib
    return zlib


def _gzip(data: bytes, stream: Iterator[bytes]) -> Iterator[bytes]:
    """Decompress gzip members (pigz and eStargz write many); zeros may follow the last one."""
    module = _zlib_module()
    empty = 0
    try:
        while data:
            member = module.decompressobj(wbits=31)
            unused, has_content = yield from _gzip_member(member, data, stream)
            empty = _checked_count(empty + (not has_content))
            data = _next_frame("gzip", unused, stream)
    except module.error as error:
        raise ValueError(str(error)) from error


def _checked_count(empty: int) -> int:
    """Raise ValueError for streams of many empty members, which take time and yield nothing."""
    if empty > _MOST_EMPTY:
        raise ValueError(f"it has more than {_MOST_EMPTY} empty members")
    return empty


def _gzip_member(
    member: Any, data: bytes, stream: Iterator[bytes]
) -> Generator[bytes, None, tuple[bytes, bool]]:
    has_content = False
    while not member.eof:
        plain = member.decompress(data, _CHUNK)
        data = member.unconsumed_tail
        if plain:
            has_content = True
            yield plain
        if not data and not member.eof and len(plain) < _CHUNK:
            data = next(stream, b"")
            if not data:
                raise EOFError("it is truncated")
    return bytes(member.unused_data), has_content


def _frames(
    new: Callable[[], _Frame], kind: str, data: bytes, stream: Iterator[bytes]
) -> Iterator[bytes]:
    """Decompress frames of zstd, xz or bzip2."""
    empty = 0
    while data:
        frame = new()
        has_content = False
        while not frame.eof:
            plain = frame.decompress(data, _CHUNK)
            data = b""
            if plain:
                has_content = True
                yield plain
            if frame.needs_input and not frame.eof:
                data = next(stream, b"")
                if not data:
                    raise EOFError("it is truncated")
        empty = _checked_count(empty + (not has_content))
        data = _next_frame(kind, frame.unused_data, stream)


def _next_frame(kind: str, data: bytes, stream: Iterator[bytes]) -> bytes:
    """Return the start of the next member, b"" if only zeros follow."""
    data = data.lstrip(b"\0")
    while len(data) < _LONGEST_MAGIC and (more := next(stream, b"")):
        data = (data + more).lstrip(b"\0")
    if data and compression_of(data) != kind:
        raise ValueError("other data follows the end of the compressed stream")
    return data


def _opener(kind: str) -> Callable[[], _Frame]:
    if kind == "xz":
        import lzma

        return lambda: lzma.LZMADecompressor(memlimit=_XZ_MEMORY)
    if kind == "bzip2":
        import bz2

        return bz2.BZ2Decompressor
    zstd = _zstd_module()
    return lambda: zstd.ZstdDecompressor(
        options={zstd.DecompressionParameter.window_log_max: _ZSTD_WINDOW_LOG}
    )  # type: ignore[no-any-return, unused-ignore]


def _zstd_module() -> Any:
    with contextlib.suppress(ImportError):
        from compression import zstd  # type: ignore[import-not-found, unused-ignore]

        return zstd
    with contextlib.suppress(ImportError):
        from backports import zstd as backport

        return backport
    raise ImageError(
        "this layer is compressed with zstd, which Python supports since 3.14. Run: pip install "
        "'pytest-sandbox[images]'"
    )


def _errors_of(kind: str) -> tuple[type[Exception], ...]:
    """Return what a decompressor raises for damaged data."""
    common = (EOFError, OSError, ValueError, MemoryError, zlib.error)
    if kind == "xz":
        import lzma

        return (*common, lzma.LZMAError)
    if kind == "zstd":
        return (*common, _zstd_module().ZstdError)
    return common


class PlainStream:
    """An iterator over the decompressed pieces of a stream, which a thread reads ahead. The end
    of the context ends the thread.

    After the last piece, ``digest`` and ``diff_id`` ("sha256:...") and ``raw_bytes`` and
    ``plain_bytes`` are those of the whole stream. Raises ImageError if the stream is damaged or
    exceeds ``limits``.
    """

    def __init__(self, raw: Iterable[bytes], limits: Limits, budget: Budget | None = None) -> None:
        self.raw_bytes = 0
        self.plain_bytes = 0
        self._budget = budget or Budget(limits)
        self._counted = 0
        self._raw = raw
        self._limits = limits
        self._raw_hash = hashlib.sha256()
        self._plain_hash = hashlib.sha256()
        self._queue: queue.Queue[bytes | BaseException | None] = queue.Queue(_AHEAD)
        self._stopped = threading.Event()
        self._thread = threading.Thread(
            target=self._produce, name="pytest-sandbox-decompress", daemon=True
        )

    @property
    def digest(self) -> str:
        return f"sha256:{self._raw_hash.hexdigest()}"

    @property
    def diff_id(self) -> str:
        return f"sha256:{self._plain_hash.hexdigest()}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopped.set()
        while self._thread.is_alive():
            with contextlib.suppress(queue.Empty):
                self._queue.get(timeout=0.02)
        self._thread.join()

    def __iter__(self) -> Iterator[bytes]:
        while (item := self._queue.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item

    def _produce(self) -> None:
        try:
            for plain in decompress(self._hashed()):
                self._plain_hash.update(plain)
                self.plain_bytes += len(plain)
                self._check(len(plain))
                self._queue.put(plain)
                if self._stopped.is_set():
                    return
            self._queue.put(None)
        except BaseException as error:  # noqa: BLE001 - raised in the thread that reads the queue
            self._queue.put(error)
        finally:
            # Close the connection of an unfinished download now, not in a garbage collection.
            if isinstance(self._raw, Generator):
                self._raw.close()

    def _hashed(self) -> Iterator[bytes]:
        for data in self._raw:
            self._raw_hash.update(data)
            self.raw_bytes += len(data)
            self._budget.check()  # also for data that decompresses to nothing
            yield data

    def _check(self, plain: int) -> None:
        limits = self._limits
        raw, self._counted = self.raw_bytes - self._counted, self.raw_bytes
        if self.plain_bytes > limits.layer_bytes:
            raise ImageError(
                f"it unpacks to more than {limits.layer_bytes} bytes. Set "
                "PYTEST_SANDBOX_MAX_LAYER to allow more."
            )
        if (
            self.plain_bytes > limits.ratio_from
            and self.plain_bytes > limits.ratio * self.raw_bytes
        ):
            raise ImageError(
                f"it unpacks to more than {limits.ratio} times its size ({self.raw_bytes} bytes to "
                f"{self.plain_bytes}), like a decompression bomb. Set PYTEST_SANDBOX_MAX_LAYER "
                "(for example to 16g) to allow it."
            )
        self._budget.add_bytes(raw, plain)
