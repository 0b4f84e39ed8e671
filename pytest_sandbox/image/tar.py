"""Tar streams as a sequence of members, read once from front to back.

The standard library's tarfile is not used: it takes twice the time for a layer, drops the extended
attributes of GNU and libarchive, and accepts archives that a layer must not be.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final, Protocol, runtime_checkable

from pytest_sandbox.errors import ImageError
from pytest_sandbox.image.tar_header import (
    BLOCK,
    Member,
    apply_records,
    check_sparse,
    decimal,
    gnu_sparse_parts,
    header_size,
    pax_records,
    plain_member,
    printable,
    to_int,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pytest_sandbox.image.size_limits import Limits

__all__ = ["Bytes", "Source", "TarReader"]

_ZEROS: Final = bytes(BLOCK)
_GNU_SPARSE: Final = ord("S")


@runtime_checkable
class Source(Protocol):
    """The input of a TarReader: :class:`Bytes`, or a seekable file."""

    def read(self, size: int) -> bytes: ...
    def views(self, size: int) -> Iterator[memoryview]: ...
    def skip(self, size: int) -> None: ...
    def rest_is_zero(self) -> bool: ...


class Bytes:
    """Exact reads from a stream of pieces, without copying large pieces."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self._piece = b""
        self._at = 0

    def read(self, size: int) -> bytes:
        """Return ``size`` bytes; fewer only at the end of the stream."""
        end = self._at + size
        if end <= len(self._piece):
            data = self._piece[self._at : end]
            self._at = end
            return data
        return b"".join(self.views(size, exact=False))

    def views(self, size: int, *, exact: bool = True) -> Iterator[memoryview]:
        """Yield ``size`` bytes in views. Raises EOFError if the stream ends before, unless not
        ``exact``.
        """
        while size > 0:
            if self._at == len(self._piece) and not self._next():
                if exact:
                    raise EOFError
                return
            view = memoryview(self._piece)[self._at : self._at + size]
            self._at += len(view)
            size -= len(view)
            yield view

    def skip(self, size: int) -> None:
        end = self._at + size
        if end <= len(self._piece):
            self._at = end
            return
        for _ in self.views(size):
            pass

    def rest_is_zero(self) -> bool:
        """Read to the end of the stream; tell whether only zeros were left."""
        zero = True
        while True:
            zero = zero and not self._piece[self._at :].strip(b"\0")
            self._at = len(self._piece)
            if not self._next():
                return zero

    def _next(self) -> bool:
        for piece in self._pieces:
            if piece:
                self._piece, self._at = piece, 0
                return True
        return False


class TarReader:
    """Iterate over the members of a plain tar stream; :meth:`data` yields the content of the
    current member.

    Errors are ImageError without the name of the archive, which the caller adds. ``complete`` tells
    whether the end marker was seen.
    """

    def __init__(self, pieces: Iterable[bytes] | Source, limits: Limits) -> None:
        self.complete = False
        self._bytes: Source = pieces if isinstance(pieces, Source) else Bytes(pieces)
        self._limits = limits
        self._left = 0
        self._padding = 0

    def __iter__(self) -> Iterator[Member]:
        try:
            while (header := self._header()) is not None:
                yield self._member(header)
                if self._left or self._padding:
                    self._finish()
        except EOFError:
            raise ImageError("the archive is cut off before its end") from None
        if not self._bytes.rest_is_zero():
            raise ImageError("other data follows the end of the archive")

    def data(self) -> Iterator[memoryview]:
        """Yield the stored bytes of the current member."""
        left, self._left = self._left, 0
        return self._bytes.views(left)

    def _finish(self) -> None:
        self._bytes.skip(self._left)
        with contextlib.suppress(EOFError):  # `umoci insert` ends without padding and end marker
            self._bytes.skip(self._padding)
        self._left = self._padding = 0

    def _header(self) -> bytes | None:
        header = self._bytes.read(BLOCK)
        if header == _ZEROS:
            self.complete = True
            return None
        if not header:
            return None
        if len(header) < BLOCK:
            raise EOFError
        return header

    def _member(self, header: bytes) -> Member:
        """Read the extension headers of a member, and the member."""
        if header[156] not in b"xgLK":
            return self._read_member(header, {})
        extended: dict[bytes, bytes] = {}
        total = 0
        while (kind := header[156:157]) in (b"x", b"g", b"L", b"K"):
            size = header_size(header)
            total += size + BLOCK
            if total > self._limits.header_bytes:
                raise ImageError(
                    f"extension headers of {total} bytes for one entry are more than "
                    f"{self._limits.header_bytes}"
                )
            data = b"".join(self._bytes.views(size))
            self._bytes.skip(-size % BLOCK)
            if kind == b"x":
                extended.update(pax_records(data))
            elif kind != b"g":
                extended[b"path" if kind == b"L" else b"linkpath"] = data.partition(b"\0")[0]
            following = self._header()
            if following is None:
                raise EOFError
            header = following
        return self._read_member(header, extended)

    def _read_member(self, header: bytes, extended: dict[bytes, bytes]) -> Member:
        member = plain_member(header)
        if extended:
            apply_records(member, extended)
        self._left = member.stored
        self._padding = -self._left % BLOCK
        if header[156] == _GNU_SPARSE:
            member.sparse = self._gnu_sparse(header)
            member.size = to_int(header[483:495], "real size")
        elif b"GNU.sparse.major" in extended or b"GNU.sparse.map" in extended:
            self._pax_sparse(member, extended)
        if member.sparse is not None:
            check_sparse(member)
        return member

    def _gnu_sparse(self, header: bytes) -> list[tuple[int, int]]:
        """Read the old GNU format: four parts in the header, 21 in each extension block."""
        parts = gnu_sparse_parts(header[386:482])
        more = header[482]
        while more:
            block = self._bytes.read(BLOCK)
            if len(block) < BLOCK:
                raise EOFError
            parts += gnu_sparse_parts(block[:504])
            self._check_parts(len(parts))
            more = block[504]
        return parts

    def _pax_sparse(self, member: Member, extended: dict[bytes, bytes]) -> None:
        """Read pax version 0.1 (the map in the header) or 1.0 (the map before the data)."""
        member.name = extended.get(b"GNU.sparse.name", member.name)
        member.size = decimal(
            extended.get(b"GNU.sparse.realsize", extended.get(b"GNU.sparse.size", b"")),
            "sparse size",
        )
        if b"GNU.sparse.map" in extended:
            numbers = [
                decimal(text, "sparse map")
                for text in extended[b"GNU.sparse.map"].split(b",")
                if text
            ]
            self._check_parts(len(numbers) // 2)
        else:
            numbers = self._sparse_map()
        if len(numbers) % 2:
            raise ImageError(
                f"{printable(member.name)}: the sparse map has an odd number of entries"
            )
        member.sparse = list(zip(numbers[::2], numbers[1::2], strict=True))
        member.stored = self._left

    def _sparse_map(self) -> list[int]:
        numbers: list[int] = []
        wanted: int | None = None
        rest = b""
        while wanted is None or len(numbers) < wanted:
            if self._left < BLOCK:
                raise ImageError("a sparse map is cut off")
            block = b"".join(self._bytes.views(BLOCK))
            self._left -= BLOCK
            *lines, rest = (rest + block).split(b"\n")
            numbers += [
                decimal(line, "sparse map")
                for line in lines[: None if wanted is None else wanted - len(numbers)]
                if line.strip(b"\0")
            ]
            if wanted is None and numbers:
                wanted = numbers.pop(0) * 2
                self._check_parts(wanted // 2)
                del numbers[wanted:]
        return numbers

    def _check_parts(self, count: int) -> None:
        if count > self._limits.sparse_parts:
            raise ImageError(f"a sparse file of more than {self._limits.sparse_parts} parts")
