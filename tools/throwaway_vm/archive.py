"""The initramfs: a cpio archive in the "newc" format (buffer-format.rst in the kernel's
Documentation/driver-api/early-userspace).
"""

from __future__ import annotations

import stat


def entry(number: int, name: str, mode: int, content: bytes) -> bytes:
    """Return an entry; ``number`` is its inode."""
    path = name.encode() + b"\0"
    fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(path), 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields) + path
    return padded(header) + padded(content)


def padded(part: bytes) -> bytes:
    """Return a part, padded to a multiple of four bytes."""
    return part + b"\0" * (-len(part) % 4)


def archive(files: dict[str, bytes]) -> bytes:
    """Return an archive of executable files in the top directory."""
    mode = stat.S_IFREG | 0o755
    entries = [
        entry(number, name, mode, content)
        for number, (name, content) in enumerate(files.items(), 1)
    ]
    return b"".join([*entries, entry(0, "TRAILER!!!", 0, b"")])
