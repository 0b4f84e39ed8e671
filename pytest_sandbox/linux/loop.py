"""Loop devices: a file as a block device, which ends with the last that holds it (loop(4))."""

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
_CONFIG = struct.Struct(
    "=II 52x I 240x 64x"
)  # struct loop_config: fd, block size, loop_info64 (lo_flags at its 52nd byte), reserved
_TRIES = 100  # the free one may be somebody else's a moment later


def attach(image: str) -> tuple[str, int]:
    """Return a device's path and a descriptor of it; once the descriptor is closed and nothing of
    it is mounted, the device is free again.
    """
    backing = os.open(image, os.O_RDWR | os.O_CLOEXEC)
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(_TRIES):
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
        raise OSError(errno.EBUSY, "no loop device stays free", "/dev/loop-control")
    finally:
        os.close(control)
        os.close(backing)
