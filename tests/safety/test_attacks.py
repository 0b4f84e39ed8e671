"""Attacks of a hostile payload: each fails by default, and succeeds without the protection."""

from __future__ import annotations

import errno
import json
import os
import pty
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from safety import attacks
from safety.ways import attack

from pytest_sandbox import Container
from pytest_sandbox.container.processes import list_processes
from pytest_sandbox.linux import capabilities, mounts, seccomp, syscall_numbers
from pytest_sandbox.linux.seccomp import profile

pytestmark = pytest.mark.needs("root")

#: Docker's fourteen (moby, daemon/pkg/oci/caps/defaults.go): a80425fb.
DOCKER = "00000000a80425fb"
NONE = "0000000000000000"


@pytest.mark.vm
def test_the_capabilities_of_a_payload(inside):
    """A payload has docker's capabilities, none of them inheritable or ambient, no_new_privs and a
    seccomp filter.
    """
    expected = {
        "CapInh": NONE, "CapPrm": DOCKER, "CapEff": DOCKER, "CapBnd": DOCKER, "CapAmb": NONE,
        "NoNewPrivs": "1", "Seccomp": "2",
    }  # fmt: skip
    assert expected == inside("status")


def test_the_capabilities_of_a_privileged_payload(without):
    """A privileged payload has all capabilities of the host, and no filter."""
    found = without({}, "status", privileged=True)
    every = f"{capabilities.supported() & host_bounding():016x}"
    assert (every, "0", "0") == (found["CapEff"], found["NoNewPrivs"], found["Seccomp"])


def host_bounding():
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1], 16) for line in file if line.startswith("CapBnd"))


@pytest.mark.parametrize("how", ["run", "call"])
@pytest.mark.parametrize(
    ("settings", "effective", "bounding"),
    [
        ({"cap_drop": ["ALL"]}, NONE, NONE),
        ({"cap_drop": ["ALL"], "cap_add": ["CHOWN"]}, "0000000000000001", "0000000000000001"),
        ({"cap_drop": ["NET_RAW", "MKNOD"]}, "00000000a00405fb", "00000000a00405fb"),
        ({"cap_add": ["NET_ADMIN"]}, "00000000a80435fb", "00000000a80435fb"),
        ({"user": "1234"}, NONE, DOCKER),
        ({"user": "daemon", "cap_drop": ["ALL"]}, NONE, NONE),
    ],
    ids=str,
)
def test_capabilities_by_settings(how, settings, effective, bounding):
    """cap_add, cap_drop and user have the same effect as in docker."""
    with Container(**settings) as c:
        found = (
            attack(c, how, "status")
            if settings.get("user") is None or how == "call"
            else status_as_user(c)
        )
    assert (effective, effective, bounding, NONE, NONE) == tuple(
        found[key] for key in ("CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb")
    )


def status_as_user(container):
    """Read the status with a program that any user may execute."""
    lines = container.run(
        ["cat", "/proc/self/status"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


# -- system calls


def denied(answer):
    """Return the names of the system calls with this answer of the policy, by their numbers."""
    table = {"x86_64": "X86_64", "aarch64": "AARCH64"}[os.uname().machine]
    every = seccomp.numbers(table)
    newest = next(number for number, name in every.items() if name == profile.NEWEST)
    # No filter sees the system calls of the kernel's own uprobe trampolines (seccomp(2), NOTES).
    known = {
        number: name
        for number, name in every.items()
        if number <= newest and name not in {"uprobe", "uretprobe"}
    }
    return {
        number: name
        for number, name in known.items()
        if seccomp.decide(name, capabilities.DOCKER_DEFAULT) == answer
    }


@pytest.mark.vm
def test_every_denied_system_call_is_denied(inside):
    """Each system call that docker's policy denies fails with EPERM."""
    numbers = denied("refuse")
    assert {
        "mount",
        "unshare",
        "setns",
        "bpf",
        "keyctl",
        "add_key",
        "userfaultfd",
        "io_uring_setup",
        "kexec_load",
        "init_module",
        "reboot",
        "open_by_handle_at",
        "perf_event_open",
        "move_mount",
        "pivot_root",
        "swapon",
    } <= set(numbers.values())
    found = inside("system_calls", sorted(numbers))
    assert {} == {numbers[int(number)]: said for number, said in found.items() if said != "EPERM"}


def test_denied_system_calls_that_look_missing(inside):
    """clone3 and calls newer than the policy fail with ENOSYS, so that libraries fall back."""
    assert {"ENOSYS"} == set(inside("system_calls", [*denied("missing"), 900]).values())


def test_without_the_filter_the_kernel_answers(without):
    """With seccomp=unconfined most of the same calls do not fail with EPERM."""
    numbers = {name: number for number, name in denied("refuse").items()}
    asked = {
        name: numbers[name]
        for name in (
            "unshare",
            "setns",
            "keyctl",
            "userfaultfd",
            "io_uring_setup",
            "get_mempolicy",
            "bpf",
        )
    }
    found = without({}, "system_calls", list(asked.values()), security_opt=["seccomp=unconfined"])
    answers = {name: found[str(number)] for name, number in asked.items()}
    assert {"unshare": "done", "setns": "EINVAL"} == {
        name: answers[name] for name in ("unshare", "setns")
    }
    assert len([said for said in answers.values() if said != "EPERM"]) >= 5


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="only x86_64 has the x32 and i386 ABIs")
def test_other_abis_do_not_bypass_the_filter(inside):
    """The x32 ABI and the i386 ABI, which has numbers of its own, deny the same calls."""
    numbers = {name: number for number, name in denied("refuse").items()}
    x32 = inside(
        "system_calls",
        [numbers[name] | 0x40000000 for name in ("mount", "unshare", "keyctl", "bpf")],
    )
    assert set(x32.values()) <= {"EPERM", "ENOSYS"}
    i386 = {name: number for number, name in seccomp.numbers("I386").items()}
    found = inside(
        "system_calls_of_32_bits",
        [i386[name] for name in ("mount", "unshare", "keyctl", "add_key", "bpf", "setns")],
    )
    assert {"EPERM"} == set(found.values())


def test_every_call_of_the_policy_has_a_number():
    """Each name in the policy is in a table of system calls, so it is not misspelt."""
    policy = profile
    known = {
        name
        for table in ("X86_64", "I386", "AARCH64", "ARM", "X32")
        for name in seccomp.numbers(table).values()
    }
    named = {
        *policy.ALWAYS.split(),
        *policy.BY_ARGUMENT,
        *policy.REFUSED_AS_MISSING,
        *(" ".join(policy.WITH_CAPABILITY.values())).split(),
    }
    assert len(named - known) <= 5, named - known
    assert hasattr(syscall_numbers, "X86_64")


@pytest.mark.parametrize(
    ("family", "kind"),
    [(38, socket.SOCK_SEQPACKET), (40, socket.SOCK_STREAM)],
    ids=["AF_ALG", "AF_VSOCK"],
)
def test_sockets_that_reach_the_host(inside, family, kind):
    """AF_VSOCK has no namespace, and AF_ALG is attack surface: both are denied."""
    assert "EPERM" == inside("open_socket", family, kind)


def test_sockets_that_reach_the_host_without_the_filter(without):
    """Only the filter denies AF_ALG."""
    assert "EPERM" != without(
        {}, "open_socket", 38, socket.SOCK_SEQPACKET, security_opt=["seccomp=unconfined"]
    )


@pytest.mark.parametrize(
    ("family", "kind"),
    [(socket.AF_PACKET, socket.SOCK_RAW), (socket.AF_INET, 10)],
    ids=["AF_PACKET", "SOCK_PACKET"],
)
def test_packet_sockets_take_a_capability_by_name(inside, without, family, kind):
    """No cgroup accounts for the memory of their rings, so they take cap_add=["NET_RAW"], and
    docker's default set is not enough.
    """
    assert "EPERM" == inside("open_socket", int(family), kind)
    assert "done" == without({}, "open_socket", int(family), kind, cap_add=["NET_RAW"])


@pytest.mark.parametrize("request_", [0x5412, 0x541C], ids=["TIOCSTI", "TIOCLINUX"])
def test_nothing_can_be_typed_into_a_terminal(inside, without, request_):
    """The filter denies these requests on every terminal, and no others (here TIOCMGET, which a
    pseudo-terminal lacks).
    """
    assert ["EPERM", "ENOTTY"] == [inside("type_into_terminal", one) for one in (request_, 0x5415)]
    unfiltered = without({}, "type_into_terminal", request_, security_opt=["seccomp=unconfined"])
    assert request_ == 0x5412 or "ENOTTY" == unfiltered


@pytest.mark.vm
def test_usual_sockets_can_be_opened(inside):
    """TCP, UDP, Unix and raw netlink sockets can be opened."""
    usual = [(socket.AF_INET, 1), (socket.AF_INET6, 2), (socket.AF_UNIX, 1), (socket.AF_NETLINK, 3)]
    assert ["done"] * 4 == [inside("open_socket", int(family), kind) for family, kind in usual]


# -- mounts and namespaces


@pytest.mark.parametrize("name", ["null", "zero", "full", "random", "urandom", "tty"])
@pytest.mark.parametrize("settings", [{}, {"network": "host"}], ids=str)
def test_the_hosts_device_nodes_cannot_be_changed(name, settings):
    """Root inside cannot change the mode, owner or times of the host's /dev/null, and can write to
    it.
    """
    script = (
        f"for do in 'chmod 666' 'chown 0:0' 'touch -c'; do $do /dev/{name} 2>&1; done; echo "
        "> /dev/null && echo written"
    )
    with Container(**settings) as c:
        found = c.run(
            ["sh", "-c", script], capture_output=True, text=True, check=True
        ).stdout.split("\n")
    assert (3, ["written", ""]) == (
        sum("Read-only file system" in line for line in found),
        found[-2:],
    )


def test_nothing_can_be_mounted(inside):
    """mount, umount of a mask and a read-write remount are denied."""
    assert ["EPERM"] * 4 == [
        inside("mount"),
        inside("unmount", "/proc/keys"),
        inside("remount", "/proc/sys"),
        inside("remount", "/sys"),
    ]


def test_nothing_can_be_mounted_with_the_user_namespace_alone(without):
    """Without the filter, and with SYS_ADMIN, the payload's user namespace does not own the
    mounts.
    """
    changes = {"seccomp": False, "capabilities": capabilities.ALL & capabilities.supported()}
    assert "EPERM" == without(changes, "mount")


def test_everything_can_be_mounted_when_privileged(without):
    """A privileged payload may mount."""
    assert "done" == without({}, "mount", privileged=True)


def test_no_namespace_of_its_own(inside):
    """A nested user namespace, the start of most kernel exploits, is denied, and no namespace of
    PID 1 can be joined.
    """
    assert ("EPERM", {"EACCES"}) == (
        inside("new_user_namespace"),
        {inside("join_namespace", kind) for kind in ("mnt", "net", "user", "pid")},
    )


def test_a_namespace_of_its_own_without_the_filter(without):
    """Without the filter a nested user namespace is allowed."""
    assert "done" == without({}, "new_user_namespace", security_opt=["seccomp=unconfined"])


@pytest.mark.parametrize("path", mounts.MASKED_PATHS)
def test_masked_paths_show_nothing(inside, path):
    """Files and directories about the machine are empty."""
    if os.path.exists(path):
        assert 0 == inside("read", path)


def test_masked_paths_show_something_without_the_mask(without):
    """In a privileged container the same paths have content."""
    assert 0 < without({}, "read", "/proc/timer_list", privileged=True) + without(
        {}, "read", "/proc/interrupts", privileged=True
    )


KERNEL_SETTINGS = [
    "/proc/irq/default_smp_affinity",
    "/proc/sys/fs/file-max",
    "/proc/sys/kernel/core_pattern",
    "/proc/sys/kernel/hostname",
    "/proc/sys/kernel/modprobe",
    "/proc/sys/net/ipv4/ip_forward",
    "/proc/sys/vm/overcommit_memory",
    "/proc/sysrq-trigger",
    "/sys/kernel/uevent_helper",
    "/sys/module/kernel/parameters/panic",
    "/sys/power/state",
]


@pytest.mark.vm
@pytest.mark.parametrize("path", KERNEL_SETTINGS)
def test_kernel_settings_are_read_only(inside, path):
    """No setting of the kernel can be opened for writing, although UID 0 is mapped to itself."""
    if os.path.exists(path):
        assert inside("open_for_writing", path) in {"EROFS", "EACCES", "ENOENT"}


def test_kernel_settings_without_the_protection(without):
    """A privileged payload can open them for writing: only the read-only mounts deny it."""
    paths = ("/proc/sys/kernel/core_pattern", "/proc/sys/vm/overcommit_memory")
    assert ["done", "done"] == [
        without({}, "open_for_writing", path, privileged=True) for path in paths
    ]


def test_the_user_namespace_alone_does_not_guard_proc(without):
    """Without the read-only mounts, UID 0 of the user namespace may write to /proc/sys."""
    assert "done" == without(
        {"protected": False}, "open_for_writing", "/proc/sys/kernel/core_pattern"
    )


def cgroup_files():
    """Return the files of cgroups that attackers write to, by both versions."""
    names = ("cgroup.procs", "release_agent", "notify_on_release", "memory.limit_in_bytes")
    directories = ("", *(f"/{name}" for name in ("memory", "cpu", "pids", "cpuset", "blkio")))
    found = [f"/sys/fs/cgroup{where}/{name}" for where in directories for name in names]
    return ["/sys/fs/cgroup/memory.max", *found]


def test_no_cgroup_can_be_changed(inside):
    """Cgroups inside are read-only, so a payload can change no limit, leave no cgroup, and
    name no program that the host executes (release_agent).
    """
    for path in cgroup_files():
        assert inside("open_for_writing", path) in {"EROFS", "EACCES", "ENOENT"}
        beside = os.path.join(os.path.dirname(path), "x")
        assert inside("create", beside) in {"EROFS", "EACCES", "ENOENT"}


def test_devices_made_inside_are_inert(inside, without):
    """A device made inside cannot be opened; with the user namespace mknod is denied."""
    assert inside("make_device", os.makedev(1, 5), "/tmp/zero") == "EPERM"
    assert (
        without({"user_namespace": False}, "make_device", os.makedev(1, 5), "/tmp/zero") == "EACCES"
    )
    assert (
        without({"user_namespace": False}, "make_device", os.makedev(1, 5), "/dev/shm/zero")
        == "EACCES"
    )
    assert (
        without({"user_namespace": False}, "make_device", os.makedev(1, 5), "/dev/zero2")
        == "EACCES"
    )


def test_no_file_by_its_handle(inside):
    """open_by_handle_at, which could open any file of the host's file system, is denied."""
    assert "EPERM" == inside("open_by_handle")


# -- the container's init, and payloads that join


@pytest.mark.vm
def test_init_cannot_be_looked_at(inside):
    """A payload can open nothing in /proc/1: no exe (CVE-2019-5736), root, memory or descriptor."""
    found = inside("look_at", 1)
    assert set(found.values()) <= {"EACCES", "EPERM", "ENOENT"}, found


def test_init_cannot_be_traced_or_written(inside):
    """Init cannot be traced, and process_vm_writev to it is denied."""
    assert {"EPERM"} == {inside("trace", 1), inside("write_memory", 1)}


def test_other_payloads_can_be_looked_at(inside):
    """A payload can open its own files in /proc, as docker allows ptrace, too."""
    found = inside("look_at", "self")
    assert ["done"] * 4 == [found[name] for name in ("exe", "root", "maps", "environ")]


@pytest.mark.vm
@pytest.mark.parametrize("how", ["run", "call"])
def test_init_survives_every_signal(how):
    """No signal from inside ends or stops init."""
    with Container() as c:
        assert "done" == attack(c, how, "signal_everybody")
        assert (0, "running") == (c.run(["true"]).returncode, c.status)


def test_a_payload_that_kills_everything_kills_itself_only(box):
    """A kill of -1 inside ends processes of this container only."""
    assert -signal.SIGKILL == box.run(["/bin/sh", "-c", "kill -9 -1; kill -9 $$"]).returncode
    assert 0 == box.run(["true"]).returncode


def test_no_descriptor_is_inherited(box):
    """A command has stdin, stdout and stderr only, also if the caller's descriptors are
    inheritable.
    """
    leaks = [os.open("/", os.O_RDONLY), os.open(os.devnull, os.O_RDONLY)]
    try:
        for fd in leaks:
            os.set_inheritable(fd, True)
        with Container() as late:
            assert ([], []) == (
                attack(box, "run", "descriptors"),
                attack(late, "run", "descriptors"),
            )
    finally:
        for fd in leaks:
            os.close(fd)


def test_no_descriptor_of_the_library_is_in_a_call(box):
    """A function inside has the socket for its result, and no descriptor of the launcher or of a
    container.
    """
    with Container():
        found = attack(box, "call", "descriptors")
    own = [
        os.readlink(f"/proc/self/fd/{name}")
        for name in os.listdir("/proc/self/fd")
        if int(name) > 2 and os.path.lexists(f"/proc/self/fd/{name}")
    ]
    assert 1 == len([one for one in found if one.startswith("socket:")]), found
    assert [] == [
        one
        for one in found
        if "pidfd" in one or "mnt:" in one or "user:" in one or "pytest-sandbox" in one
    ]
    assert set(found) - set(own) <= {one for one in found if one.startswith("socket:")}


@pytest.mark.parametrize("how", ["run", "call"])
def test_the_session_keyring_is_new(how):
    """The session keyring inside is not the caller's (keyctl is allowed in this test)."""
    with Container(security_opt=["seccomp=unconfined"]) as c:
        outer, inner = attacks.session_keyring(), attack(c, how, "session_keyring")
    assert isinstance(inner, int)
    assert outer != inner


def test_a_terminal_as_stdin_cannot_be_typed_into(box):
    """TIOCSTI on a terminal that was passed as stdin is denied."""
    main, terminal = pty.openpty()
    try:
        command = [sys.executable, attacks.__file__, "push_into_terminal", "[]"]
        done = box.run(command, stdin=terminal, capture_output=True, check=True)
        assert json.loads(done.stdout) in {"EPERM", "EIO"}
    finally:
        os.close(main)
        os.close(terminal)


def test_no_controlling_terminal(inside):
    """/dev/tty cannot be opened."""
    assert "ENXIO" == inside("open_terminal")


def test_a_file_as_stdout_cannot_be_reopened(box, tmp_path):
    """A payload cannot truncate the caller's stdout file by /proc/self/fd/1, which is a pipe."""
    for run, unchanged in ((box.run, True), (subprocess.run, False)):
        file = tmp_path / f"out-{unchanged}"
        file.write_text("before\n")
        with file.open("a") as out:
            run(
                [sys.executable, attacks.__file__, "overwrite_stdout", "[]"], stdout=out, check=True
            )
        assert unchanged == file.read_text().startswith("before\n")


# -- the root


@pytest.fixture(scope="module")
def other(busybox_root):
    with Container(image=busybox_root) as c:
        yield c


def test_a_chroot_broken_out_of_is_the_container(other):
    """The classic way out of a chroot ends at the container's root."""
    assert sorted(other.listdir("/")) == [
        name for name in other.call(attacks.break_out_of_chroot) if name != "jail"
    ]


def test_the_working_directory_is_inside(other):
    """No working directory of a payload leads outside (CVE-2024-21626)."""
    assert "/\n" == other.run(["sh", "-c", "cd .; pwd -P"], capture_output=True, text=True).stdout
    for cwd in ("/proc/self/fd/7", "/proc/1/fd/3", "/proc/self/fd/8/../../.."):
        with pytest.raises(OSError, match=r"No such file|Permission denied|Not a directory"):
            other.run(["pwd"], cwd=cwd)


def test_abstract_sockets_of_the_host(inside, without):
    """An abstract socket of the host is in another network namespace, except with
    network="host".
    """
    name = f"@pytest-sandbox-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("\0" + name[1:])
        server.listen()
        assert "ECONNREFUSED" == inside("connect", name)
        assert "done" == without({}, "connect", name, network="host")


def mapped_devices(pid):
    """Return the devices of the files that a process has mapped, such as libraries."""
    lines = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8").splitlines()
    return {
        line.split()[3]
        for line in lines
        if len(line.split()) > 5 and line.split()[5].startswith("/")
    }


def test_nothing_of_a_hostile_root_is_loaded(busybox_root, tmp_path):
    """Name service libraries and Python modules of a root file system are not loaded into our
    processes.
    """
    root = hostile_root(busybox_root, tmp_path)
    with Container(image=root, user="ann", hostname="some.host") as c:
        for args in (["id"], ["sh", "-c", "echo ü"], ["no-such-command"]):
            try:
                c.run(args, capture_output=True, encoding="utf-8")
            except FileNotFoundError:
                continue
        c.read_text("/etc/passwd", encoding="latin-1")
        list_processes(c.handle)
        device = os.stat(f"/proc/{c.pid}/root").st_dev
        assert f"{os.major(device):02x}:{os.minor(device):02x}" not in mapped_devices(c.pid)
        assert [] == [name for name in c.listdir("/tmp") if name.startswith("loaded")]


def hostile_root(busybox_root, tmp_path):
    """Make a root file system whose modules and libraries would leave a file when loaded."""
    from boxes import make_busybox_root

    root = make_busybox_root(tmp_path / "root")
    mark = "open('/tmp/loaded', 'w')\n"
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for directory in (
        f"usr/lib/{version}",
        f"{sys.prefix}/lib/{version}".lstrip("/"),
        f"{sys.base_prefix}/lib/{version}".lstrip("/"),
        "etc",
    ):
        for module in (
            "os.py",
            "codecs.py",
            "encodings/latin_1.py",
            "encodings/idna.py",
            "grp.py",
            "pwd.py",
            "subprocess.py",
            "json/__init__.py",
        ):
            path = root / directory / module
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(mark)
    (root / "etc/nsswitch.conf").write_text("passwd: evil files\ngroup: evil files\nhosts: evil\n")
    for directory in ("lib/x86_64-linux-gnu", "lib64", "usr/lib"):
        (root / directory).mkdir(parents=True, exist_ok=True)
        (root / directory / "libnss_evil.so.2").write_bytes(b"not a library")
    return root


@pytest.mark.parametrize(
    "kind", ["fifo", "endless", "directory", "loop", "dangling", "garbage", "device"]
)
def test_a_hostile_user_file_neither_hangs_nor_fills(tmp_path, kind):
    """With /etc/passwd a FIFO, an endless file or garbage, a name is refused and a UID works."""
    from boxes import make_busybox_root

    root = make_busybox_root(tmp_path / "root")
    for name in ("passwd", "group"):
        path = root / "etc" / name
        path.unlink()
        if kind == "fifo":
            os.mkfifo(path)
        elif kind == "directory":
            path.mkdir()
        elif kind == "garbage":
            path.write_bytes(b"ann:x\nann:x:a:b:c:d:e\n\xff\0::::::\n:::\n" * 1000)
        else:
            path.symlink_to(
                {
                    "endless": "/dev/zero",
                    "loop": name,
                    "dangling": "/nowhere",
                    "device": "/dev/tty",
                }[kind]
            )
    with Container(image=root) as c:
        with pytest.raises(ValueError, match="user='ann' is not valid"):
            c.run(["id"], user="ann", timeout=30)
        assert (
            "77\n"
            == c.run(
                ["stat", "-c", "%u", "/proc/self/"],
                user="77",
                capture_output=True,
                text=True,
                timeout=30,
            ).stdout
        )


@pytest.mark.parametrize("name", ["proc", "sys", "dev"])
@pytest.mark.parametrize("kind", ["link", "file"])
def test_a_root_that_redirects_our_mounts_is_refused(tmp_path, name, kind):
    """A link or file named /proc, /sys or /dev is an error that names it (CVE-2019-19921)."""
    from boxes import make_busybox_root

    from pytest_sandbox import SetupError

    root = make_busybox_root(tmp_path / "root")
    (root / name).symlink_to("/etc") if kind == "link" else (root / name).touch()
    with pytest.raises(SetupError, match=f"/{name}"):
        Container(image=root).start()


def test_errno_names_are_what_the_attacks_say():
    """The names of errors in this file exist."""
    assert {"EPERM", "EACCES", "EROFS", "ENXIO", "ECONNREFUSED", "ENOSYS"} <= set(
        errno.errorcode.values()
    )


# -- privileges by files


@pytest.mark.vm
@pytest.mark.parametrize(
    ("options", "expected"),
    [([], "1234\n"), (["no-new-privileges:false"], "0\n")],
    ids=["default", "off"],
)
def test_a_set_user_id_program_gives_nothing(options, expected):
    """A set-user-ID program of root does not run as root, unless no-new-privileges is off."""
    with Container(security_opt=options) as c:
        c.run(["sh", "-c", "cp /usr/bin/id /tmp/id && chmod 4755 /tmp/id"], check=True)
        assert (
            expected
            == c.run(
                ["/tmp/id", "-u"], user="1234:1234", capture_output=True, text=True, check=True
            ).stdout
        )
