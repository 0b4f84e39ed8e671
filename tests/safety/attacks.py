"""Attacks of a hostile payload, as functions that use the standard library only.

Most return "done", or the name of the errno that stopped them. None does harm if it succeeds: files
are opened and not written to, and system calls get invalid arguments.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import signal
import socket
import stat
import struct
import sys
from contextlib import suppress

libc = ctypes.CDLL(None, use_errno=True)
CLONE_NEWUSER = 0x10000000
CLONE_NEWNS = 0x00020000
PTRACE_ATTACH = 16
TIOCSTI = 0x5412


def outcome(action, *arguments):
    """Call ``action``; return "done", or the name of the errno."""
    try:
        action(*arguments)
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))
    return "done"


def called(name, *arguments):
    """Call a function of the C library; raise OSError if it fails."""
    if getattr(libc, name)(*arguments) < 0:
        raise OSError(ctypes.get_errno(), name)


def system_calls(numbers):
    """Make system calls by number with arguments of 0; return the outcome of each."""
    found = {}
    for number in numbers:
        ctypes.set_errno(0)
        result = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(0)] * 6)
        found[str(number)] = errno.errorcode.get(ctypes.get_errno(), "?") if result < 0 else "done"
    return found


def system_calls_of_32_bits(numbers):
    """Make system calls of the i386 ABI (int 0x80) with arguments of 0; return the outcomes."""
    found = {}
    page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    for number in numbers:
        zero = b"\x31\xdb\x31\xc9\x31\xd2\x31\xf6\x31\xff"  # ebx, ecx, edx, esi, edi
        page.seek(0)
        page.write(b"\x53" + b"\xb8" + struct.pack("<I", number) + zero + b"\xcd\x80" + b"\x5b\xc3")
        result = ctypes.CFUNCTYPE(ctypes.c_int)(address)()
        found[str(number)] = errno.errorcode.get(-result, "?") if result < 0 else "done"
    return found


def status():
    """Return the capabilities, no_new_privs and seccomp mode in /proc/self/status."""
    wanted = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp")
    with open("/proc/self/status", encoding="ascii") as file:
        lines = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
    return {name: lines[name] for name in wanted}


def read(path):
    """Read the start of a file, or list a directory; return the count of bytes or entries."""
    if os.path.isdir(path):
        return len(os.listdir(path))
    with open(path, "rb") as file:
        return len(file.read(64))


def open_for_writing(path):
    """Open a file for writing, and write nothing."""
    return outcome(lambda: os.close(os.open(path, os.O_WRONLY)))


def create(path):
    """Create a file and remove it."""

    def make():
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        os.unlink(path)

    return outcome(make)


def mount():
    """Mount a tmpfs."""
    return outcome(called, "mount", b"none", b"/mnt", b"tmpfs", 0, None)


def unmount(path):
    """Unmount a mask."""
    return outcome(called, "umount2", path.encode(), 2)


def remount(path):
    """Remount a read-only bind mount read-write."""
    return outcome(called, "mount", None, path.encode(), None, 4096 | 32, None)


def new_user_namespace():
    """Create a nested user namespace, the first step of many exploits."""
    pid = os.fork()
    if not pid:
        os._exit(
            0
            if outcome(called, "unshare", CLONE_NEWUSER | CLONE_NEWNS) == "done"
            else ctypes.get_errno()
        )
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return errno.errorcode[code] if code else "done"


def join_namespace(kind):
    """Join a namespace of PID 1."""

    def enter():
        fd = os.open(f"/proc/1/ns/{kind}", os.O_RDONLY)
        called("setns", fd, 0)

    return outcome(enter)


def make_device(number, path):
    """Make a device node and open it."""

    def make():
        os.mknod(path, stat.S_IFCHR | 0o600, number)
        try:
            os.close(os.open(path, os.O_RDONLY))
        finally:
            os.unlink(path)

    return outcome(make)


def open_by_handle():
    """Open a file by its handle, like the "shocker" exploit of docker."""
    return outcome(called, "open_by_handle_at", 0, struct.pack("<Iiq", 8, 1, 2), 0)


def open_socket(family, kind=socket.SOCK_STREAM):
    """Open a socket."""
    return outcome(lambda: socket.socket(family, kind).close())


def type_into_terminal(request):
    """Make an ioctl(2) that takes a character, such as TIOCSTI, on a new pseudo-terminal."""

    def go():
        leader, terminal = os.openpty()
        try:
            fcntl.ioctl(terminal, request, b"x")
        finally:
            os.close(leader)
            os.close(terminal)

    return outcome(go)


def connect(address):
    """Connect to a Unix socket; the name of an abstract one starts with @."""

    def go():
        with socket.socket(socket.AF_UNIX) as one:
            one.connect("\0" + address[1:] if address.startswith("@") else address)

    return outcome(go)


def trace(pid):
    """Attach to a process with ptrace(2)."""
    return outcome(called, "ptrace", PTRACE_ATTACH, pid, None, None)


def write_memory(pid):
    """Write into another process's memory."""
    buffer = ctypes.create_string_buffer(8)
    vector = struct.pack("PN", ctypes.addressof(buffer), 8)
    return outcome(called, "process_vm_writev", pid, vector, 1, vector, 1, 0)


def look_at(pid):
    """Open the files of a process in /proc that give access to it; return the outcomes."""
    names = (
        "exe",
        "root",
        "cwd",
        "mem",
        "environ",
        "maps",
        "fd/0",
        "ns/mnt",
        "auxv",
        "syscall",
        "stack",
        "map_files",
    )
    return {name: outcome(_look, f"/proc/{pid}/{name}") for name in names}


def _look(path):
    fd = os.open(path, os.O_RDONLY)
    try:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            os.listdir(path)
        elif stat.S_ISREG(os.fstat(fd).st_mode):
            os.read(fd, 1)
    finally:
        os.close(fd)


def signal_everybody():
    """Send every signal to PID 1."""
    for number in signal.valid_signals():
        with suppress(OSError):
            os.kill(1, number)
    return "done"


def descriptors():
    """Return what the descriptors above stderr refer to."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            if int(name) > 2:
                found.append(os.readlink(f"/proc/self/fd/{name}"))
    return [one for one in found if not one.startswith("/proc/")]


def session_keyring():
    """Return the ID of the session keyring (KEYCTL_GET_KEYRING_ID), or an errno's name."""
    number = {"x86_64": 250, "aarch64": 219}[os.uname().machine]
    result = libc.syscall(ctypes.c_long(number), 0, -3, 0, 0, 0)
    return result if result >= 0 else errno.errorcode[ctypes.get_errno()]


def push_into_terminal():
    """Put a character into the input of stdin's terminal (TIOCSTI)."""
    return outcome(fcntl.ioctl, 0, TIOCSTI, b"x")


def open_terminal():
    """Open the controlling terminal."""
    return outcome(lambda: os.close(os.open("/dev/tty", os.O_RDWR)))


def break_out_of_chroot():
    """Change the root to a directory below the working directory, go up, and list the root
    (chroot(2), NOTES).
    """
    with suppress(FileExistsError):
        os.mkdir("/tmp/jail")
    os.chroot("/tmp/jail")
    for _ in range(100):
        os.chdir("..")
    os.chroot(".")
    return sorted(os.listdir("/"))


def overwrite_stdout():
    """Reopen the file of stdout for writing, and truncate it."""
    return outcome(lambda: os.close(os.open("/proc/self/fd/1", os.O_WRONLY | os.O_TRUNC)))


if __name__ == "__main__":
    import json

    name, arguments = sys.argv[1], json.loads(sys.argv[2])
    sys.stdout.write(json.dumps(globals()[name](*arguments)))
