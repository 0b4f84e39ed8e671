"""Tar streams as a sequence of members: v7, ustar, GNU and pax headers, read once from front to
back.

The standard library's tarfile is not used: it takes twice the time for a layer, forgets extended
attributes of GNU and libarchive forms and is lenient where a layer must be exact. Formats:
POSIX.1-2017 (pax), tar(5) of libarchive, the GNU tar manual's "Basic Tar Format".
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Final, Protocol, runtime_checkable
from urllib.parse import unquote_to_bytes

from pytest_sandbox.errors import ImageError
from pytest_sandbox.printable import printable as escaped

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pytest_sandbox.image.size_limits import Limits

__all__ = ["BLOCK", "Bytes", "Member", "Source", "TarReader", "printable"]

BLOCK: Final = 512
_ZEROS: Final = bytes(BLOCK)
_REGULAR: Final = frozenset((b"0", b"\0", b"7", b"S"))
_WITHOUT_DATA: Final = frozenset((b"1", b"2", b"3", b"4", b"5", b"6"))
_OCTAL: Final = re.compile(rb" *([0-7]*)[ \0]*\Z")
_DECIMAL: Final = re.compile(rb"[0-9]{1,20}\Z")
_TIME: Final = re.compile(rb"(-?)([0-9]{1,20})(?:\.([0-9]*))?\Z")
_XATTR_PREFIX: Final = b"SCHILY.xattr."
_LIBARCHIVE_PREFIX: Final = b"LIBARCHIVE.xattr."
_SECOND: Final = 1_000_000_000


def printable(name: bytes) -> str:
    """Show a path in a message: no newline, no escape sequence, and no undecodable byte reaches a
    terminal as it is.
    """
    return escaped(name[:300].decode("utf-8", "backslashreplace"))


@runtime_checkable
class Source(Protocol):
    """What a reader needs: :class:`Bytes`, or a file that can skip by seeking."""

    def read(self, size: int) -> bytes: ...
    def views(self, size: int) -> Iterator[memoryview]: ...
    def skip(self, size: int) -> None: ...
    def rest_is_zero(self) -> bool: ...


class Bytes:
    """Exact reads from a stream of pieces, without copying what is large."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self._view = memoryview(b"")
        self._at = 0

    def read(self, size: int) -> bytes:
        """Return ``size`` bytes; fewer only at the end of the stream."""
        end = self._at + size
        if end <= len(self._view):
            data = bytes(self._view[self._at : end])
            self._at = end
            return data
        return b"".join(self.views(size, exact=False))

    def views(self, size: int, *, exact: bool = True) -> Iterator[memoryview]:
        """Yield ``size`` bytes in views; EOFError where the stream ends before (unless not
        ``exact``).
        """
        while size > 0:
            if self._at == len(self._view) and not self._next():
                if exact:
                    raise EOFError
                return
            view = self._view[self._at : self._at + size]
            self._at += len(view)
            size -= len(view)
            yield view

    def skip(self, size: int) -> None:
        end = self._at + size
        if end <= len(self._view):
            self._at = end
            return
        for _ in self.views(size):
            pass

    def rest_is_zero(self) -> bool:
        """Read to the end of the stream; say whether only zeros were left."""
        zero = True
        while True:
            rest = self._view[self._at :]
            zero = zero and not bytes(rest).strip(b"\0")
            self._at = len(self._view)
            if not self._next():
                return zero

    def _next(self) -> bool:
        for piece in self._pieces:
            if piece:
                self._view, self._at = memoryview(piece), 0
                return True
        return False


@dataclass(slots=True)
class Member:
    """One entry of a tar stream.

    ``kind`` is tar's type flag, with regular files always ``b"0"``; ``size`` is the size the file
    will have, ``stored`` the bytes in the stream; ``sparse`` lists (offset, length) of the parts
    that are stored, None when all is.
    """

    name: bytes
    kind: bytes
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size: int
    stored: int
    link: bytes
    device: tuple[int, int] = (0, 0)
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    sparse: list[tuple[int, int]] | None = None


class TarReader:
    """Iterate over the members of a plain tar stream; :meth:`data` gives the content of the member
    that was yielded last.

    Errors are ImageError without the layer's name: who knows it adds it. ``complete`` says whether
    the end marker was seen.
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
                self._finish()
        except EOFError:
            raise ImageError("the archive is cut off before its end") from None
        if not self._bytes.rest_is_zero():
            raise ImageError("other data follows the end of the archive")

    def data(self) -> Iterator[memoryview]:
        """Yield what is stored of the current member."""
        left, self._left = self._left, 0
        return self._bytes.views(left)

    def _finish(self) -> None:
        self._bytes.skip(self._left)
        with contextlib.suppress(
            EOFError
        ):  # `umoci insert` ends without padding, and with no end marker after it
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
        _check_sum(header)
        return header

    def _member(self, header: bytes) -> Member:
        """Read the extension headers that come before a member, then the member."""
        extended: dict[bytes, bytes] = {}
        total = 0
        while (kind := header[156:157]) in b"xgLK" and kind:
            size = _number(header[124:136], "size")
            total += size + BLOCK
            if total > self._limits.header_bytes:
                raise ImageError(
                    f"extension headers of {total} bytes for one entry are more than "
                    f"{self._limits.header_bytes}"
                )
            data = b"".join(self._bytes.views(size))
            self._bytes.skip(-size % BLOCK)
            if kind == b"x":
                extended.update(_pax_records(data))
            elif kind != b"g":
                extended[b"path" if kind == b"L" else b"linkpath"] = data.partition(b"\0")[0]
            following = self._header()
            if following is None:
                raise EOFError
            header = following
        return self._described(header, extended)

    def _described(self, header: bytes, extended: dict[bytes, bytes]) -> Member:
        member = _plain_member(header)
        self._left = member.stored
        if extended:
            _extend(member, extended)
            self._left = member.stored
        self._padding = -self._left % BLOCK
        if header[156:157] == b"S":
            member.sparse = self._gnu_sparse(header)
            member.size = _number(header[483:495], "real size")
        elif b"GNU.sparse.major" in extended or b"GNU.sparse.map" in extended:
            self._pax_sparse(member, extended)
        elif member.kind == b"0":
            member.size = member.stored
        if member.sparse is not None:
            _check_sparse(member)
        return member

    def _gnu_sparse(self, header: bytes) -> list[tuple[int, int]]:
        """Read the old GNU form: four parts in the header, 21 in each extension block."""
        parts = _gnu_parts(header[386:482])
        more = header[482]
        while more:
            block = self._bytes.read(BLOCK)
            if len(block) < BLOCK:
                raise EOFError
            parts += _gnu_parts(block[:504])
            self._check_parts(len(parts))
            more = block[504]
        return parts

    def _pax_sparse(self, member: Member, extended: dict[bytes, bytes]) -> None:
        """Read the pax forms 0.1 (the map in the header) and 1.0 (the map before the data)."""
        member.name = extended.get(b"GNU.sparse.name", member.name)
        member.size = _decimal(
            extended.get(b"GNU.sparse.realsize", extended.get(b"GNU.sparse.size", b"")),
            "sparse size",
        )
        if b"GNU.sparse.map" in extended:
            numbers = [
                _decimal(text, "sparse map")
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
                _decimal(line, "sparse map")
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


def _plain_member(header: bytes) -> Member:
    kind = header[156:157]
    name = header[:100].partition(b"\0")[0]
    if header[257:263] == b"ustar\0" and header[345]:
        name = header[345:500].partition(b"\0")[0] + b"/" + name
    if kind in _REGULAR:
        kind = (
            b"5" if name.endswith(b"/") and kind != b"S" else b"0"
        )  # v7 marks directories by a slash only
    size = 0 if kind in _WITHOUT_DATA else _number(header[124:136], "size")
    mode, uid, gid = _owner_of(header[100:124])
    return Member(
        name=name,
        kind=kind,
        mode=mode,
        uid=uid,
        gid=gid,
        mtime_ns=_time_of(header[136:148]),
        size=size,
        stored=size,
        link=header[157:257].partition(b"\0")[0] if kind in b"12" else b"",
        device=(_number(header[329:337], "major"), _number(header[337:345], "minor"))
        if kind in b"34"
        else (0, 0),
    )


@lru_cache(maxsize=1024)  # most entries of a layer have the same few
def _owner_of(fields: bytes) -> tuple[int, int, int]:
    """Read mode, uid and gid, which lie side by side."""
    mode = _number(fields[:8], "mode") & 0o7777
    return mode, _number(fields[8:16], "uid"), _number(fields[16:], "gid")


@lru_cache(maxsize=1024)
def _time_of(text: bytes) -> int:
    return _number(text, "mtime", signed=True) * _SECOND


def _extend(member: Member, records: dict[bytes, bytes]) -> None:  # noqa: C901 - one branch a key
    for key, value in records.items():
        if key == b"path":
            member.name = value
        elif key == b"linkpath":
            member.link = value
        elif key == b"size":
            if member.kind not in _WITHOUT_DATA:
                member.stored = member.size = _decimal(value, "size")
        elif key == b"uid":
            member.uid = _decimal(value, "uid")
        elif key == b"gid":
            member.gid = _decimal(value, "gid")
        elif key == b"mtime":
            member.mtime_ns = _nanoseconds(value)
        elif key.startswith(_XATTR_PREFIX):
            member.xattrs[key[len(_XATTR_PREFIX) :]] = value
        elif key.startswith(_LIBARCHIVE_PREFIX):
            member.xattrs.setdefault(
                unquote_to_bytes(key[len(_LIBARCHIVE_PREFIX) :]), _base64(value)
            )
    for text in (member.name, member.link, *member.xattrs):
        if b"\0" in text:
            raise ImageError(f"{printable(text)}: a name holds a NUL byte")


def _pax_records(data: bytes) -> dict[bytes, bytes]:
    r"""Read ``LENGTH KEY=VALUE\\n`` records (POSIX pax, "Extended Header"); the last of a key
    wins.
    """
    records: dict[bytes, bytes] = {}
    parts: list[bytes] = []
    at = 0
    while at < len(data) and data[at]:
        space = data.find(b" ", at, at + 21)
        length = _decimal(data[at:space], "record length") if space > 0 else 0
        record = data[space + 1 : at + length]
        key, equals, value = record[:-1].partition(b"=")
        if not equals or at + length > len(data) or record[-1:] != b"\n":
            raise ImageError("a pax header is damaged")
        if key in (
            b"GNU.sparse.offset",
            b"GNU.sparse.numbytes",
        ):  # form 0.0 repeats a pair for each part
            parts.append(value)
        records[key] = value
        at += length
    if parts:
        records.setdefault(b"GNU.sparse.map", b",".join(parts))
    return records


def _gnu_parts(table: bytes) -> list[tuple[int, int]]:
    parts = [
        (table[at : at + 12], table[at + 12 : at + 24]) for at in range(0, len(table) - 23, 24)
    ]
    return [
        (_number(offset, "sparse offset"), _number(length, "sparse length"))
        for offset, length in parts
        if offset.strip(b"\0 ")
    ]


def _check_sparse(member: Member) -> None:
    """Refuse maps that go backwards, overlap, leave the file, or hold other than what is stored."""
    end = 0
    for offset, length in member.sparse or ():
        if offset < end or offset + length > member.size:
            raise ImageError(
                f"{printable(member.name)}: the sparse map is not in order, or leaves the file"
            )
        end = offset + length
    if sum(length for _, length in member.sparse or ()) != member.stored:
        raise ImageError(
            f"{printable(member.name)}: the sparse map does not agree with what is stored"
        )


def _check_sum(header: bytes) -> None:
    said = _number(header[148:156], "checksum")
    found = sum(header) - sum(header[148:156]) + 256
    if said == found:
        return
    if said != found - 256 * sum(
        byte > 127 for byte in header[:148] + header[156:]
    ):  # some old tars summed signed bytes
        raise ImageError("this is no tar archive, or it is damaged: a header's checksum is wrong")


def _number(text: bytes, what: str, *, signed: bool = False) -> int:
    """Read octal digits, or GNU's base-256 where the first bit is set."""
    if text[0] & 0x80:
        negative = text[0] == 0xFF
        number = (
            int.from_bytes(text, "big", signed=True)
            if negative
            else int.from_bytes(bytes((text[0] & 0x7F,)) + text[1:], "big")
        )
        if (negative and not signed) or abs(number) >> 63:
            raise ImageError(f"a header's {what} is out of range")
        return number
    match = _OCTAL.match(text.partition(b"\0")[0])
    if not match:
        raise ImageError(f"a header's {what} is no number")
    return int(match[1] or b"0", 8)


def _decimal(text: bytes, what: str) -> int:
    if not _DECIMAL.match(text) or (number := int(text)) >> 63:
        raise ImageError(f"a pax header's {what} is no number, or out of range")
    return number


def _nanoseconds(text: bytes) -> int:
    match = _TIME.match(text)
    if not match:
        raise ImageError("a pax header's mtime is no number")
    value = int(match[2]) * _SECOND + int((match[3] or b"0")[:9].ljust(9, b"0"))
    return -value if match[1] else value


def _base64(text: bytes) -> bytes:
    try:
        return base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except binascii.Error:
        raise ImageError("a pax header's extended attribute is not in base64") from None
