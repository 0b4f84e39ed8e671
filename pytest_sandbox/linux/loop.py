"""Attach a file to a loop device, which is detached after its last use (loop(4))."""

from __future__ import annotations

import errno
import fcntl
import os
import struct

__all__ = ["attach"]

# <linux/loop.h>
_LOOP_CTL_GET_FREE = 0x4C82
_LOOP_CONFIGURE = 0x4C0A
_LO_FLAGS_AUTOCLEAR = 4
# struct loop_config: fd, block size, loop_info64 (lo_flags is at its byte 52), reserved.
_CONFIG = struct.Struct("=II 52x I 240x 64x")
_ATTEMPTS = 100  # another process may take the free device first


def attach(image: str) -> tuple[str, int]:
    """Attach the file ``image``; return the path of the device and a descriptor of it.

    The kernel detaches it once the descriptor is closed and it is not mounted
    (LO_FLAGS_AUTOCLEAR).
    """
    backing = os.open(image, os.O_RDWR | os.O_CLOEXEC)
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(_ATTEMPTS):
            path = f"/dev/loop{fcntl.ioctl(control, _LOOP_CTL_GET_FREE)}"
            device = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.ioctl(device, _LOOP_CONFIGURE, _CONFIG.pack(backing, 0, _LO_FLAGS_AUTOCLEAR))
            except OSError as error:
                os.close(device)
                if error.errno != errno.EBUSY:
                    raise
            else:
                return path, device
        raise OSError(
            errno.EBUSY,
            f"another process took each free loop device, {_ATTEMPTS} times",
            "/dev/loop-control",
        )
    finally:
        os.close(control)
        os.close(backing)
