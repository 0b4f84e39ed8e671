"""What a hostile payload would try, as functions that need nothing but the standard library; each
says "done", or the errno that stopped it.

None does harm where it succeeds: files are opened and not written, calls get arguments that the
kernel refuses.
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
    """Say "done", or the name of the errno."""
    try:
        action(*arguments)
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))
    return "done"


def called(name, *arguments):
    """Call a function of the C library; raise what errno says."""
    if getattr(libc, name)(*arguments) < 0:
        raise OSError(ctypes.get_errno(), name)


def system_calls(numbers):
    """Make system calls by number, all arguments 0; returns what each one says."""
    found = {}
    for number in numbers:
        ctypes.set_errno(0)
        result = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(0)] * 6)
        found[str(number)] = errno.errorcode.get(ctypes.get_errno(), "?") if result < 0 else "done"
    return found


def system_calls_of_32_bits(numbers):
    """The same through the entry for 32-bit programs (int 0x80), which has numbers of its own."""
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
    """What /proc/self/status says of the payload's power."""
    wanted = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp")
    with open("/proc/self/status", encoding="ascii") as file:
        lines = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
    return {name: lines[name] for name in wanted}


def read(path):
    """Read the beginning of a file, or list a directory; returns the count of what is seen."""
    if os.path.isdir(path):
        return len(os.listdir(path))
    with open(path, "rb") as file:
        return len(file.read(64))


def open_for_writing(path):
    """Open, and write nothing."""
    return outcome(lambda: os.close(os.open(path, os.O_WRONLY)))


def create(path):
    """Make a file and remove it."""

    def make():
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        os.unlink(path)

    return outcome(make)


def mount():
    """Mount a tmpfs."""
    return outcome(called, "mount", b"none", b"/mnt", b"tmpfs", 0, None)


def unmount(path):
    """Take away a mount that hides something."""
    return outcome(called, "umount2", path.encode(), 2)


def remount(path):
    """Make a read-only mount writable."""
    return outcome(called, "mount", None, path.encode(), None, 4096 | 32, None)


def new_user_namespace():
    """Become root of a user namespace of one's own, the first step of many exploits."""
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
    """Enter a namespace of PID 1's."""

    def enter():
        fd = os.open(f"/proc/1/ns/{kind}", os.O_RDONLY)
        called("setns", fd, 0)

    return outcome(enter)


def make_device(number, path):
    """Make a device's node and open it."""

    def make():
        os.mknod(path, stat.S_IFCHR | 0o600, number)
        try:
            os.close(os.open(path, os.O_RDONLY))
        finally:
            os.unlink(path)

    return outcome(make)


def open_by_handle():
    """Open a file by its handle, as the "shocker" exploit does."""
    return outcome(called, "open_by_handle_at", 0, struct.pack("<Iiq", 8, 1, 2), 0)


def open_socket(family, kind=socket.SOCK_STREAM):
    """Open a socket of a family."""
    return outcome(lambda: socket.socket(family, kind).close())


def type_into_terminal(request):
    """Put a character into the input of a terminal, or steer the console: any ioctl(2) that takes a
    character.
    """

    def go():
        leader, terminal = os.openpty()
        try:
            fcntl.ioctl(terminal, request, b"x")
        finally:
            os.close(leader)
            os.close(terminal)

    return outcome(go)


def connect(address):
    """Connect to a Unix socket; an abstract one's name begins with an @."""

    def go():
        with socket.socket(socket.AF_UNIX) as one:
            one.connect("\0" + address[1:] if address.startswith("@") else address)

    return outcome(go)


def trace(pid):
    """Attach to a process, and let go."""
    return outcome(called, "ptrace", PTRACE_ATTACH, pid, None, None)


def write_memory(pid):
    """Write into another process's memory."""
    buffer = ctypes.create_string_buffer(8)
    vector = struct.pack("PN", ctypes.addressof(buffer), 8)
    return outcome(called, "process_vm_writev", pid, vector, 1, vector, 1, 0)


def look_at(pid):
    """Open everything of a process that would give power over it."""
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
    """Send each signal to PID 1, and those that can be survived to all."""
    for number in signal.valid_signals():
        with suppress(OSError):
            os.kill(1, number)
    return "done"


def descriptors():
    """What the descriptors past stderr are."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            if int(name) > 2:
                found.append(os.readlink(f"/proc/self/fd/{name}"))
    return [one for one in found if not one.startswith("/proc/")]


def session_keyring():
    """The number of the session keyring (KEYCTL_GET_KEYRING_ID)."""
    number = {"x86_64": 250, "aarch64": 219}[os.uname().machine]
    result = libc.syscall(ctypes.c_long(number), 0, -3, 0, 0, 0)
    return result if result >= 0 else errno.errorcode[ctypes.get_errno()]


def push_into_terminal():

    return outcome(fcntl.ioctl, 0, TIOCSTI, b"x")


def open_terminal():
    """Open the controlling terminal."""
    return outcome(lambda: os.close(os.open("/dev/tty", os.O_RDWR)))


def break_out_of_chroot():
    """The classic: chroot into a directory while the working directory is above it, go up, and
    look.
    """
    with suppress(FileExistsError):
        os.mkdir("/tmp/jail")
    os.chroot("/tmp/jail")
    for _ in range(100):
        os.chdir("..")
    os.chroot(".")
    return sorted(os.listdir("/"))


def overwrite_stdout():
    """Open the file behind stdout anew, with rights of one's own, and truncate it."""
    return outcome(lambda: os.close(os.open("/proc/self/fd/1", os.O_WRONLY | os.O_TRUNC)))


if __name__ == "__main__":
    import json

    name, arguments = sys.argv[1], json.loads(sys.argv[2])
    sys.stdout.write(json.dumps(globals()[name](*arguments)))
