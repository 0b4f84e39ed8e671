"""The initramfs: a cpio archive in the "newc" form (the kernel's
Documentation/driver-api/early-userspace/buffer-format.rst).
"""

from __future__ import annotations

import stat


def entry(number: int, name: str, mode: int, content: bytes) -> bytes:
    path = name.encode() + b"\0"
    fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(path), 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields) + path
    return padded(header) + padded(content)


def padded(part: bytes) -> bytes:
    return part + b"\0" * (-len(part) % 4)


def archive(files: dict[str, bytes]) -> bytes:
    """An archive of executable files, by name, all at the top."""
    mode = stat.S_IFREG | 0o755
    entries = [
        entry(number, name, mode, content)
        for number, (name, content) in enumerate(files.items(), 1)
    ]
    return b"".join([*entries, entry(0, "TRAILER!!!", 0, b"")])
