"""Packet sockets: the frames of network devices (packet(7))."""

from __future__ import annotations

import socket
import struct
from array import array
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["OUTGOING", "VNET_HEADER", "attach_filter", "configure", "dropped", "protocol"]

# <linux/if_packet.h>, <linux/if_ether.h>, <asm-generic/socket.h>
_SOL_PACKET = 263
_PACKET_STATISTICS, _PACKET_VNET_HDR = 6, 15
_ETH_P_ALL = 0x0003
_SO_RCVBUFFORCE = 33
_SO_ATTACH_FILTER = 26
#: The type of a frame that this host sends.
OUTGOING = 4
#: Bytes of struct virtio_net_hdr (<linux/virtio_net.h>).
VNET_HEADER = 10
_STATISTICS = struct.Struct("=II")  # struct tpacket_stats: packets, drops
#: A receive buffer holds a burst of some thousand frames.
_RECEIVE_BUFFER = 8 << 20


def protocol(device: str) -> int:
    """Return the protocol for socket(2): a socket that is bound later receives nothing before."""
    return 0 if device else socket.htons(_ETH_P_ALL)


def configure(one: socket.socket, device: str) -> None:
    """Make a packet socket receive the frames of a device, with struct virtio_net_hdr before each,
    so that checksums are completed after it; or those of all devices (""), without.
    """
    if device:
        one.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
    try:
        one.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER)
    except PermissionError:  # without CAP_NET_ADMIN on the host, net.core.rmem_max is the limit
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
    if device:
        one.bind((device, _ETH_P_ALL))


def dropped(one: socket.socket) -> int:
    """Return how many frames the kernel has dropped since the last call, as its buffer was full."""
    data = one.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, _STATISTICS.size)
    return int(_STATISTICS.unpack(data)[1])


def attach_filter(one: socket.socket, code: Sequence[tuple[int, int, int, int]]) -> None:
    """Receive only what a program of classic BPF accepts (struct sock_filter, bpf(4))."""
    program = array("B", b"".join(struct.pack("=HBBI", *instruction) for instruction in code))
    pointer = struct.pack("@HP", len(code), program.buffer_info()[0])  # struct sock_fprog
    one.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, pointer)
