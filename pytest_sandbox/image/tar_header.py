"""Headers of tar members: v7, ustar, GNU and pax.

Formats: POSIX.1-2017 (pax), tar(5) of libarchive, "Basic Tar Format" of the GNU tar manual. Errors
are ImageError without the name of the archive, which the caller adds.
"""

from __future__ import annotations

import base64
import binascii
import re
import struct
import zlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Final
from urllib.parse import unquote_to_bytes

from pytest_sandbox.errors import ImageError
from pytest_sandbox.printable import printable as escaped

__all__ = [
    "BLOCK",
    "Member",
    "apply_records",
    "check_sparse",
    "decimal",
    "gnu_sparse_parts",
    "header_size",
    "pax_records",
    "plain_member",
    "printable",
    "to_int",
]

BLOCK: Final = 512
# name, mode + uid + gid, size, mtime, checksum, type, link name, magic, (user and group name),
# device numbers, name prefix
_FIELDS: Final = struct.Struct("100s24s12s12s8sc100s6s66x16s155s12x")
_WITHOUT_CHECKSUM: Final = (slice(None, 148), slice(156, None))
_ADLER_BASE: Final = 65521
_REGULAR: Final = frozenset((b"0", b"\0", b"7", b"S"))
_WITHOUT_DATA: Final = frozenset((b"1", b"2", b"3", b"4", b"5", b"6"))
_OCTAL: Final = re.compile(rb" *([0-7]*)[ \0]*\Z")
_DECIMAL: Final = re.compile(rb"[0-9]{1,20}\Z")
_TIME: Final = re.compile(rb"(-?)([0-9]{1,20})(?:\.([0-9]*))?\Z")
_XATTR_PREFIX: Final = b"SCHILY.xattr."
_LIBARCHIVE_PREFIX: Final = b"LIBARCHIVE.xattr."
_SECOND: Final = 1_000_000_000


def printable(name: bytes) -> str:
    """Return a path for a message: newlines, escape sequences and undecodable bytes are escaped."""
    return escaped(name[:300].decode("utf-8", "backslashreplace"))


@dataclass(slots=True)
class Member:
    """One entry of a tar stream.

    ``kind`` is tar's type flag, with regular files always ``b"0"``; ``size`` is the size the file
    will have in bytes, ``stored`` the bytes in the stream; ``sparse`` lists (offset, length) of the
    parts that are stored, None when the whole file is.
    """

    name: bytes
    kind: bytes
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size: int
    stored: int
    link: bytes = b""
    device: tuple[int, int] = (0, 0)
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    sparse: list[tuple[int, int]] | None = None


def plain_member(header: bytes) -> Member:
    """Read a header of 512 bytes. Raises ImageError for a wrong checksum or field."""
    name, owner, size, mtime, checksum, kind, link, magic, device, prefix = _FIELDS.unpack(header)
    _check_sum(header, checksum)
    name = name.partition(b"\0")[0]
    if prefix[0] and magic == b"ustar\0":
        name = prefix.partition(b"\0")[0] + b"/" + name
    if kind in _REGULAR:  # v7 marks directories by a trailing slash only
        kind = b"5" if name.endswith(b"/") and kind != b"S" else b"0"
    length = 0 if kind in _WITHOUT_DATA else to_int(size, "size")
    member = Member(name, kind, *_owner(owner), _time(mtime), length, length)
    if kind in b"12":
        member.link = link.partition(b"\0")[0]
    elif kind in b"34":
        member.device = (to_int(device[:8], "major"), to_int(device[8:], "minor"))
    return member


def header_size(header: bytes) -> int:
    """Return the length of the data after an extension header, in bytes."""
    _check_sum(header, header[148:156])
    return to_int(header[124:136], "size")


# Most members of a layer have the same few owners, sizes and times.
@lru_cache(maxsize=1024)
def _owner(fields: bytes) -> tuple[int, int, int]:
    """Return mode, uid and gid, whose fields are adjacent."""
    mode = to_int(fields[:8], "mode") & 0o7777
    return mode, to_int(fields[8:16], "uid"), to_int(fields[16:], "gid")


@lru_cache(maxsize=1024)
def _time(text: bytes) -> int:
    return to_int(text, "mtime", signed=True) * _SECOND


@lru_cache(maxsize=4096)
def to_int(text: bytes, what: str, *, signed: bool = False) -> int:
    """Read octal digits, or GNU's base-256 when the first bit is set."""
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
        raise ImageError(f"a header's {what} is not a number")
    return int(match[1] or b"0", 8)


def _check_sum(header: bytes, field: bytes) -> None:
    """Raise ImageError unless ``field`` is the sum of the header's bytes, where the field itself
    counts as eight spaces.

    The low half of Adler-32 is 1 + the sum of the bytes modulo 65521 (RFC 1950, 2.2), which takes a
    tenth of the time of sum().
    """
    expected = to_int(field, "checksum") - 8 * 0x20
    before, after = _WITHOUT_CHECKSUM
    if (zlib.adler32(header[after], zlib.adler32(header[before])) & 0xFFFF) == (
        expected + 1
    ) % _ADLER_BASE:
        return
    rest = header[before] + header[after]
    if expected != sum(rest) - 256 * sum(byte > 127 for byte in rest):  # old tars sum signed bytes
        raise ImageError(
            "this is not a tar archive, or it is damaged: a header's checksum is wrong"
        )


def apply_records(member: Member, records: dict[bytes, bytes]) -> None:  # noqa: C901 - per key
    """Apply the records of extension headers to a member."""
    xattrs: dict[bytes, bytes] = {}
    for key, value in records.items():
        if key == b"path":
            member.name = value
        elif key == b"linkpath":
            member.link = value
        elif key == b"size":
            if member.kind not in _WITHOUT_DATA:
                member.stored = member.size = decimal(value, "size")
        elif key == b"uid":
            member.uid = decimal(value, "uid")
        elif key == b"gid":
            member.gid = decimal(value, "gid")
        elif key == b"mtime":
            member.mtime_ns = _nanoseconds(value)
        elif key.startswith(_XATTR_PREFIX):
            xattrs[key[len(_XATTR_PREFIX) :]] = value
        elif key.startswith(_LIBARCHIVE_PREFIX):
            xattrs.setdefault(unquote_to_bytes(key[len(_LIBARCHIVE_PREFIX) :]), _base64(value))
    member.xattrs = tuple(xattrs.items())
    for text in (member.name, member.link, *xattrs):
        if b"\0" in text:
            raise ImageError(f"{printable(text)}: a name holds a NUL byte")


def pax_records(data: bytes) -> dict[bytes, bytes]:
    r"""Read ``LENGTH KEY=VALUE\\n`` records (POSIX pax, "Extended Header").

    The last record of a key wins. The parts of a sparse file in version 0.0 are returned in the
    form of version 0.1, ``GNU.sparse.map``.
    """
    records: dict[bytes, bytes] = {}
    parts: list[bytes] = []
    at = 0
    while at < len(data) and data[at]:
        space = data.find(b" ", at, at + 21)
        length = decimal(data[at:space], "record length") if space > 0 else 0
        record = data[space + 1 : at + length]
        key, equals, value = record[:-1].partition(b"=")
        if not equals or at + length > len(data) or record[-1:] != b"\n":
            raise ImageError("a pax header is damaged")
        if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):  # repeated for each part
            parts.append(value)
        records[key] = value
        at += length
    if parts:
        records.setdefault(b"GNU.sparse.map", b",".join(parts))
    return records


def gnu_sparse_parts(table: bytes) -> list[tuple[int, int]]:
    """Read the offsets and lengths of a GNU sparse table."""
    parts = [
        (table[at : at + 12], table[at + 12 : at + 24]) for at in range(0, len(table) - 23, 24)
    ]
    return [
        (to_int(offset, "sparse offset"), to_int(length, "sparse length"))
        for offset, length in parts
        if offset.strip(b"\0 ")
    ]


def check_sparse(member: Member) -> None:
    """Raise ImageError for a sparse map that is not sorted, overlaps, exceeds the file, or does not
    agree with the stored bytes.
    """
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


def decimal(text: bytes, what: str) -> int:
    """Read the decimal number of a pax record; ``what`` names it in the error."""
    if not _DECIMAL.match(text) or (number := int(text)) >> 63:
        raise ImageError(f"a pax header's {what} is not a number, or out of range")
    return number


def _nanoseconds(text: bytes) -> int:
    match = _TIME.match(text)
    if not match:
        raise ImageError("a pax header's mtime is not a number")
    value = int(match[2]) * _SECOND + int((match[3] or b"0")[:9].ljust(9, b"0"))
    return -value if match[1] else value


def _base64(text: bytes) -> bytes:
    try:
        return base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except binascii.Error:
        raise ImageError("a pax header's extended attribute is not in base64") from None
