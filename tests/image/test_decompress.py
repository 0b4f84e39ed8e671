"""Decompression of streams: detection, damage, limits, digests and the thread that reads ahead."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
import os

import pytest

from pytest_sandbox.errors import ImageError
from pytest_sandbox.image.decompress import (
    PlainStream,
    _zstd_module,
    compression_of,
    decompress,
)
from pytest_sandbox.image.size_limits import Limits

LIMITS = Limits()
SMALL = Limits(layer_bytes=1 << 20, ratio=10, ratio_from=1 << 16)


def zstd_with_checksum(data: bytes) -> bytes:
    """Compress with a checksum, as zstd(1) does."""
    zstd = _zstd_module()
    return bytes(zstd.compress(data, options={zstd.CompressionParameter.checksum_flag: 1}))


PACKERS = {
    "gzip": gzip.compress,
    "xz": lzma.compress,
    "bzip2": bz2.compress,
    "zstd": zstd_with_checksum,
    "": bytes,
}


@pytest.mark.parametrize(
    ("kind", "pack"), PACKERS.items(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_compressions_are_detected_by_their_magic_number(kind, pack):
    """Each is decompressed, also in several frames and from pieces of one byte."""
    data = os.urandom(3000) + bytes(3_000_000)
    packed = pack(data)
    assert kind == compression_of(packed)
    assert data == b"".join(decompress([packed]))
    twice = packed + (pack(data) if kind else b"")
    assert data * (2 if kind else 1) == b"".join(
        decompress(twice[at : at + 1] for at in range(len(twice)))
    )


@pytest.mark.parametrize("kind", [kind for kind in PACKERS if kind])
def test_a_damaged_stream_is_an_error(kind):
    """A stream with a missing or changed byte, or with data after it, raises an ImageError."""
    packed = PACKERS[kind](os.urandom(3000))
    for damaged in (
        packed[:-1],
        packed[: len(packed) // 2],
        packed[:7],
        packed + b"garbage",
        packed[:-6] + b"?" + packed[-5:],
    ):
        with pytest.raises(ImageError, match=f"the {kind} stream is damaged"):
            b"".join(decompress([damaged]))


def test_a_decompression_bomb_is_an_error():
    """A stream that exceeds the compression ratio raises an ImageError."""
    bomb = gzip.compress(bytes(1 << 19))
    with pytest.raises(ImageError, match="bomb"), PlainStream([bomb], SMALL) as plain:
        for _ in plain:
            pass


def test_a_stream_has_two_digests():
    """``digest`` is of the compressed bytes, ``diff_id`` of the plain ones."""
    data = bytes(100_000)
    packed = gzip.compress(data)
    with PlainStream([packed[:10], packed[10:]], LIMITS) as plain:
        assert data == b"".join(plain)
    assert (hashlib.sha256(packed).hexdigest(), hashlib.sha256(data).hexdigest()) == (
        plain.digest[7:],
        plain.diff_id[7:],
    )
    assert (len(packed), len(data)) == (plain.raw_bytes, plain.plain_bytes)


def test_a_stream_may_be_read_partially():
    """The thread ends with the context, also if the queue is full."""
    with PlainStream(iter([bytes(1 << 20)] * 50), LIMITS) as plain:
        next(iter(plain))
    assert not plain._thread.is_alive()


def test_exceptions_of_the_source_are_raised_in_the_reader():
    """An exception of the source is raised by the iteration over the stream."""

    def source():
        yield b"x" * 100
        raise ConnectionResetError("gone")

    with pytest.raises(ConnectionResetError, match="gone"), PlainStream(source(), LIMITS) as plain:
        b"".join(plain)


def test_a_source_is_closed_with_the_context():
    """The generator of a download that is not read to its end is closed."""
    closed = []

    def source():
        try:
            yield gzip.compress(b"x")[:-1] + b"?"
            yield b"more"
        finally:
            closed.append(True)

    raw = source()
    with pytest.raises(ImageError, match="damaged"), PlainStream(raw, LIMITS) as plain:
        b"".join(plain)
    assert [True] == closed


@pytest.mark.parametrize(
    "packed",
    [gzip.compress(b""), bz2.compress(b""), lzma.compress(b"")],
    ids=["gzip", "bzip2", "xz"],
)
def test_a_stream_of_empty_members_is_an_error(packed):
    """More than 1000 raise an ImageError; a hundred are skipped."""
    assert b"" == b"".join(decompress([packed * 100]))
    with pytest.raises(ImageError, match="more than 1000 empty members"):
        for _ in decompress([packed * 2000]):
            pass
