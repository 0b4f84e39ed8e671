"""The contract of the groups, the same on version 1 and version 2: whichever this host has is what
runs.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time

import pytest
from capabilities import disk_of

from pytest_sandbox.client import cleanup
from pytest_sandbox.errors import SetupError, UnsupportedError
from pytest_sandbox.linux import cgroup, file_lock
from pytest_sandbox.linux.cgroup import (
    PREFIX,
    Group,
    Hierarchy,
    Mount,
    Session,
    destroy,
    parse_mounts,
    parse_own,
)
from pytest_sandbox.linux.cgroup_limits import CgroupLimits
from pytest_sandbox.outcome import Stats
from pytest_sandbox.settings import Settings

MB = 1 << 20
EAT = "import sys; held = b'x' * int(sys.argv[1]); print('held')"
SPIN = "while True: pass"
#: Reads or writes 128 KiB in sixteen pieces, without the page cache, and prints how long that took.
PAST_THE_CACHE = """
import mmap, os, sys, time
fd = os.open(sys.argv[1], os.O_RDWR | os.O_DIRECT)
page = mmap.mmap(-1, 8 << 10)
started = time.monotonic()
for number in range(16):
    if "read" in sys.argv[2]:
        os.preadv(fd, [page], number * len(page))
    else:
        os.pwritev(fd, [page], number * len(page))
print(time.monotonic() - started)
"""
BOMB = """
import os
while True:
    try:
        os.fork()
    except BlockingIOError:
        pass
"""

V1 = """\
25 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
26 25 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:10 - cgroup cgroup rw,cpu,cpuacct
27 25 0:30 /docker/ab /sys/fs/cgroup/memory ro,nosuid master:3 - cgroup cgroup rw,memory
28 25 0:31 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
29 25 0:32 / /sys/fs/cgroup/uni\\040fied rw - cgroup2 cgroup2 rw,nsdelegate
"""


def test_mounts_are_read_from_mountinfo():
    """Each hierarchy's version, root, place and controllers are found, through escapes, optional
    fields and named hierarchies.
    """
    assert (
        Mount(1, "/", "/sys/fs/cgroup/cpu,cpuacct", frozenset({"cpu", "cpuacct"}), writable=True),
        Mount(1, "/docker/ab", "/sys/fs/cgroup/memory", frozenset({"memory"}), writable=False),
        Mount(1, "/", "/sys/fs/cgroup/systemd", frozenset(), writable=True),
        Mount(2, "/", "/sys/fs/cgroup/uni fied", frozenset(), writable=True),
    ) == parse_mounts(V1.encode())


def test_a_path_may_hold_any_byte_but_a_newline():
    """A mount whose path is not UTF-8, or holds a form feed, hides no hierarchy and is no error."""
    odd = b"40 1 0:40 / /mnt/caf\xe9\x0c rw - tmpfs odd\x0c rw\n"
    hierarchy = b"41 1 0:41 /a\xe9 /cg\x0c rw - cgroup2 cgroup2 rw\n"
    assert (Mount(2, "/a\udce9", "/cg\x0c", frozenset(), writable=True),) == parse_mounts(
        odd + hierarchy
    )


def test_the_name_of_a_group_may_hold_a_form_feed():
    """Nothing but a newline ends a line of /proc/PID/cgroup."""
    assert {"": "/a\x0cb\u2028"} == parse_own("0::/a\x0cb\u2028\n")


def test_own_groups_are_read_by_controller():
    """Joined controllers share a group, and version 2's has the empty name; a colon in a name is
    part of it.
    """
    text = "9:cpu,cpuacct:/user\n8:memory:/odd:name\n1:name=systemd:/init.scope\n0::/session\n"
    assert {
        "cpu": "/user",
        "cpuacct": "/user",
        "memory": "/odd:name",
        "name=systemd": "/init.scope",
        "": "/session",
    } == parse_own(text)


@pytest.mark.parametrize(
    ("root", "group", "directory"),
    [
        ("/", "/", "/sys/fs/cgroup"),
        ("/", "/user.slice/a", "/sys/fs/cgroup/user.slice/a"),
        ("/docker/ab", "/docker/ab", "/sys/fs/cgroup"),
        ("/docker/ab", "/docker/ab/child", "/sys/fs/cgroup/child"),
        ("/docker/ab", "/docker/abc", None),
        ("/docker/ab", "/", None),
        ("/", "/../above", None),
    ],
)
def test_a_group_is_looked_up_below_its_mount(root, group, directory):
    """A group outside of what is mounted has no directory here."""
    assert directory == Mount(2, root, "/sys/fs/cgroup", frozenset(), writable=True).directory(
        group
    )


@pytest.fixture
def nowhere(tmp_path):
    """A host whose mounts show no cgroups."""
    for name in ("mountinfo", "cgroup"):
        (tmp_path / name).write_text("")
    return Hierarchy.find(str(tmp_path / "mountinfo"), str(tmp_path / "cgroup"))


@pytest.mark.vm
def test_a_host_without_groups_refuses_each_limit(nowhere):
    """What is asked for is refused by name with a remedy; what is only a default is left out."""
    nowhere.require(Settings())
    wanted = {
        "memory": "64m",
        "memory_high": "64m",
        "cpus": 1,
        "cpuset": "0",
        "pids_limit": 4096,
        "device_read_bps": ["/dev/sda:1mb"],
    }
    for key, value in wanted.items():
        with pytest.raises(UnsupportedError, match=rf"{key}=.* --privileged"):
            nowhere.require(Settings().replace(**{key: value}))


@pytest.mark.vm
def test_a_host_without_groups_has_groups_that_know_nothing(nowhere):
    """Without limits all goes on, and each figure is None instead of a guess."""
    with contextlib.closing(nowhere.session("x")) as session:
        group = session.create("one")
        group.apply(CgroupLimits.of(Settings()))
        with pytest.raises(UnsupportedError, match=r"pause .* --privileged"):
            group.freeze()
        group.kill()
        group.remove()
    assert (Session, Group, (), -1, (), {}) == (
        type(session),
        type(group),
        group.joins(),
        group.fd(),
        group.pids(),
        nowhere.sessions(),
    )
    assert Stats(*[None] * 10) == group.stats()


@pytest.fixture
def session():
    """A session whose lock is held, or the sweep of whoever starts a container meanwhile would
    remove its empty groups.
    """
    name = f"test-{os.getpid()}-{secrets.token_hex(3)}"
    with open(cleanup.lock_path(name), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made = Hierarchy.find().session(name)
        yield made
        made.close()
        os.unlink(lock.name)


@pytest.fixture
def group(session):
    return session.create("one")


@pytest.fixture
def start(group):
    """Start a program in the group; whatever still runs is killed at the end."""
    started = []

    def starter(*argv, into: Group = group, **keywords) -> subprocess.Popen[str]:
        joins = into.joins()

        def enter() -> None:
            for path in joins:
                fd = os.open(path, os.O_WRONLY)
                os.write(fd, b"0")
                os.close(fd)

        keywords |= {"stdout": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(argv, preexec_fn=enter, **keywords))  # noqa: PLW1509
        return started[-1]

    yield starter
    group.thaw()
    for popen in started:
        popen.kill()
        popen.wait()
        for pipe in filter(None, (popen.stdin, popen.stdout)):
            pipe.close()


def python(code: str, *argv: object) -> tuple[str, ...]:
    return (sys.executable, "-S", "-u", "-c", code, *map(str, argv))


def wait_until(condition, seconds: float = 60) -> None:
    """Look at a figure of the kernel's that no event announces."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it does not come"
        time.sleep(0.01)


limits = [pytest.mark.needs("limits"), pytest.mark.vm]


class TestGroup:
    """What a group does for the processes in it."""

    pytestmark = limits

    def test_who_joins_is_in_the_group(self, group, start):
        """A process that writes 0 to each of the group's files is in it, with all that it
        starts.
        """
        shell = start("sh", "-c", "sleep 1000 & echo; wait")
        shell.stdout.readline()
        assert shell.pid in group.pids()
        assert (2, 2) == (len(group.pids()), group.stats().pids_current)

    @pytest.mark.needs("cgroup_v1")
    def test_the_buffers_of_tcp_sockets_are_bounded_with_the_memory(self, group):
        """Version 1 counts them apart: they may take as much as memory= says, and no limit is left
        when it goes.
        """
        limit = f"{group._path('memory', 'memory.kmem.tcp.limit_in_bytes')}"
        before = cgroup.number(limit)
        group.apply(CgroupLimits.of(Settings(memory=48 * MB)))
        bounded = cgroup.number(limit)
        group.apply(CgroupLimits.of(Settings()))
        assert (48 * MB, before) == (bounded, cgroup.number(limit))

    def test_over_its_memory_it_is_killed(self, group, start):
        """A process over the limit gets SIGKILL, and the group says that it was for memory; within
        it, nothing happens.
        """
        group.apply(CgroupLimits.of(Settings(memory=48 * MB)))
        small, large = start(*python(EAT, 8 * MB)), start(*python(EAT, 96 * MB))
        assert (0, -signal.SIGKILL) == (small.wait(), large.wait())
        assert (1, 1) == (group.oom_kills(), group.stats().oom_kills)
        assert 8 * MB < group.stats().memory_peak <= 48 * MB

    def test_a_kill_by_somebody_is_not_one_for_memory(self, group, start):
        """SIGKILL alone does not count."""
        group.apply(CgroupLimits.of(Settings(memory=48 * MB)))
        sleep = start("sleep", "1000")
        sleep.kill()
        assert (-signal.SIGKILL, 0) == (sleep.wait(), group.oom_kills())

    def test_memory_goes_up_and_down_and_away(self, group):
        """Limits change in any order while the group lives; None takes one away."""
        for memory, swap in [
            (64, None),
            (32, None),
            (128, 256),
            (512, 512),
            (16, 32),
            (None, None),
            (64, 64),
        ]:
            wanted = Settings(memory=memory and memory * MB, memory_swap=swap and swap * MB)
            group.apply(CgroupLimits.of(wanted))
            assert wanted.memory == group.stats().memory_limit

    def test_pages_of_files_are_told_apart(self, group, start, tmp_path):
        """What a tmpfs holds counts as files, as the report of a kill for memory says."""
        code = (
            "open('/dev/shm/' + sys.argv[1], 'wb').write(b'x' * (8 << 20)); print('written'); "
            "sys.stdin.read()"
        )
        name = f"pytest-sandbox-{secrets.token_hex(4)}"
        writer = start(*python(f"import sys; {code}", name), stdin=subprocess.PIPE)
        try:
            writer.stdout.readline()
            assert 8 * MB <= group.files_bytes() <= 40 * MB
        finally:
            os.unlink(f"/dev/shm/{name}")
            writer.stdin.close()

    def test_processes_are_counted(self, group, start):
        """A fork over pids_limit fails inside; ``overhead`` comes on top of it."""
        forks = """
import os
made = 0
try:
    while True:
        if not os.fork():
            os.read(0, 1)
            os._exit(0)
        made += 1
except BlockingIOError:
    print(made)
"""
        for limit, overhead in [(4, 0), (4, 2), (7, 1)]:
            group.apply(CgroupLimits.of(Settings(pids_limit=limit)), overhead=overhead)
            forker = start(*python(forks), stdin=subprocess.PIPE)
            assert limit + overhead - 1 == int(forker.stdout.readline())
            forker.stdin.close()
            forker.wait()
            wait_until(lambda: not group.stats().pids_current)
        assert 8 == group.stats().pids_peak

    def test_cpu_time_is_held_back(self, group, start):
        """A process that wants a whole CPU and may have a tenth is throttled, and its time is
        counted.
        """
        group.apply(CgroupLimits.of(Settings(cpus=0.1)))
        start(*python(SPIN))
        wait_until(lambda: group.stats().cpu_throttled_seconds > 0)
        assert group.stats().cpu_seconds > 0

    def test_without_cpus_nobody_is_held_back(self, group, start):
        """The limit can be taken away again; what is counted then is time, not throttling."""
        group.apply(CgroupLimits.of(Settings(cpus=0.1)))
        group.apply(CgroupLimits.of(Settings()))
        before = group.stats().cpu_throttled_seconds
        one_second = "import resource; resource.setrlimit(resource.RLIMIT_CPU, (1, 1))\n"
        assert start(*python(one_second + SPIN)).wait() in {-signal.SIGXCPU, -signal.SIGKILL}
        assert before == group.stats().cpu_throttled_seconds

    @pytest.mark.needs("cpuset")
    def test_cpus_are_chosen(self, group, start):
        """Processes of the group may run on the cpuset alone, those too that were in it before."""
        code = "import os, sys; sys.stdin.readline(); print(*os.sched_getaffinity(0))"
        early = start(*python(code), stdin=subprocess.PIPE)
        wait_until(lambda: early.pid in group.pids())
        group.apply(CgroupLimits.of(Settings(cpuset="0")))
        late = start(*python(code), stdin=subprocess.PIPE)
        assert ("0\n", "0\n") == (early.communicate("\n")[0], late.communicate("\n")[0])

    @pytest.mark.needs("cpuset")
    def test_a_cpu_that_is_not_there_is_refused(self, group):
        """The error names the CPUs that are."""
        with pytest.raises(UnsupportedError, match=r"cpuset='4000'.*may be used here are 0"):
            group.apply(CgroupLimits.of(Settings(cpuset="4000")))

    @pytest.mark.needs("disk")
    @pytest.mark.parametrize(
        ("key", "rate"),
        [
            ("device_read_bps", 128 << 10),
            ("device_write_bps", 128 << 10),
            ("device_read_iops", 32),
            ("device_write_iops", 32),
        ],
    )
    def test_a_disk_is_used_no_faster_than_that(self, group, start, key, rate):
        """Reading or writing past the page cache takes the time that the rate gives it."""
        disk = disk_of("/var/tmp")
        group.apply(CgroupLimits.of(Settings().replace(**{key: {disk: rate}})))
        with tempfile.NamedTemporaryFile(dir="/var/tmp") as file:
            file.write(bytes(128 << 10))
            file.flush()
            os.fsync(file.fileno())
            spent = float(start(*python(PAST_THE_CACHE, file.name, key)).communicate()[0])
        assert spent > 0.3

    @pytest.mark.needs("disk")
    def test_a_rate_can_be_taken_away(self, group, start):
        """Without its limit a disk is as fast as it was: what would take a day is done."""
        disk = disk_of("/var/tmp")
        group.apply(
            CgroupLimits.of(
                Settings().replace(device_write_bps={disk: 2}, device_write_iops={disk: 2})
            )
        )
        group.apply(CgroupLimits.of(Settings()))
        with tempfile.NamedTemporaryFile(dir="/var/tmp") as file:
            assert start(*python(PAST_THE_CACHE, file.name, "device_write_bps")).communicate()[0]

    @pytest.mark.needs("disk")
    def test_what_is_no_disk_is_refused(self, group):
        """A device that the kernel cannot throttle is an error that names it, and the usual
        mistake.
        """
        with pytest.raises(
            UnsupportedError, match=r'device_read_bps=\["/dev/ptmx:2"\].*name the whole disk'
        ):
            group.apply(CgroupLimits.of(Settings().replace(device_read_bps={"/dev/ptmx": 2})))

    def test_frozen_processes_stand(self, group, start):
        """A frozen group uses no CPU time; thawed, it goes on."""
        start(*python(SPIN))
        wait_until(lambda: group.stats().cpu_seconds > 0)
        group.freeze()
        stood = group.stats().cpu_seconds
        assert stood == group.stats().cpu_seconds
        group.thaw()
        wait_until(lambda: group.stats().cpu_seconds > stood)

    def test_the_frozen_die_too(self, group, start):
        """Killing needs no thaw before it."""
        sleep = start("sleep", "1000")
        wait_until(lambda: sleep.pid in group.pids())
        group.freeze()
        group.kill()
        assert (-signal.SIGKILL, ()) == (sleep.wait(), group.pids())

    def test_no_fork_outruns_the_kill(self, group, start):
        """A tree that forks without pause is gone when ``kill`` returns."""
        group.apply(CgroupLimits.of(Settings(pids_limit=32)))
        bomb = start(*python(BOMB))
        wait_until(lambda: len(group.pids()) > 4)
        group.kill()
        assert () == group.pids()
        assert -signal.SIGKILL == bomb.wait()

    def test_a_group_with_a_process_is_not_removed(self, group, start):
        """Removing waits for the group to be empty, and says so when it does not come to be."""
        sleep = start("sleep", "1000")
        wait_until(lambda: sleep.pid in group.pids())
        with pytest.raises(OSError, match="busy"):
            group.remove(0)
        group.kill()
        sleep.wait()
        group.remove()
        group.remove()
        assert () == group.pids()


class TestSession:
    """What holds all groups of one launcher."""

    pytestmark = limits

    def test_a_session_is_found_by_its_name(self, session):
        """A sweep sees the session while it lives, with the directories that it has to remove."""
        assert set(session.directories) == set(Hierarchy.find().sessions()[session.name])
        session.close()
        assert session.name not in Hierarchy.find().sessions()

    def test_closing_kills_and_removes_what_is_left(self, session, group, start):
        """Processes die, frozen ones too, and directories go, those too that were made inside."""
        sleep = start("sleep", "1000")
        wait_until(lambda: sleep.pid in group.pids())
        inner = [os.path.dirname(path) + "/inner" for path in group.joins()]
        for directory in inner:
            os.mkdir(directory)
        group.freeze()
        session.close()
        assert -signal.SIGKILL == sleep.wait()
        assert [] == [
            directory for directory in [*session.directories, *inner] if os.path.exists(directory)
        ]

    def test_a_session_has_two_ends(self, session, start):
        """The client's end limits and reads the group that the launcher's end made."""
        other = Hierarchy.find().attach(session.name)
        made, handle = session.create("both"), other.group("both")
        handle.apply(CgroupLimits.of(Settings(pids_limit=1)))
        sleep = start("sleep", "1000", into=made)
        wait_until(lambda: sleep.pid in handle.pids())
        assert 1 == handle.stats().pids_current
        handle.kill()
        handle.remove()

    def test_sessions_stand_side_by_side(self, session, start):
        """Closing one leaves the other and its limits as they were."""
        group = session.create("mine")
        with contextlib.closing(Hierarchy.find().session(session.name + "-2")) as other:
            start("sleep", "1000", into=other.create("theirs"))
        group.apply(CgroupLimits.of(Settings(memory=64 * MB, cpus=0.5, pids_limit=8)))
        assert 64 * MB == group.stats().memory_limit

    def test_two_groups_of_one_name_do_not_pass_for_one(self, session, group):
        """A second group of an id is an error, and takes nothing from the first."""
        with pytest.raises(FileExistsError):
            session.create("one")
        group.apply(CgroupLimits.of(Settings(pids_limit=8)))

    def test_destroying_what_is_gone_is_no_error(self, session):
        """Two sweeps of one session do not disturb one another."""
        session.close()
        destroy(session.directories)
        assert [] == [directory for directory in session.directories if os.path.exists(directory)]


@pytest.mark.needs("limits")
@pytest.mark.vm
def test_what_is_there_is_not_refused():
    """A host with the controllers takes the limits."""
    Hierarchy.find().require(Settings(memory=64 * MB, memory_swap=64 * MB, cpus=1.0, pids_limit=8))


@pytest.mark.vm
def test_a_session_directory_is_known_by_its_prefix(tmp_path):
    """Directories of other names, however deep, belong to others."""
    for name in ("a/other", f"a/{PREFIX}s1/c1", f"{PREFIX}s2"):
        (tmp_path / name).mkdir(parents=True)
    made = Hierarchy()
    made.roots = lambda: (str(tmp_path),)
    assert {"s1": (f"{tmp_path}/a/{PREFIX}s1",), "s2": (f"{tmp_path}/{PREFIX}s2",)} == dict(
        made.sessions()
    )


def test_a_process_that_does_not_die_is_named():
    """Waiting for a death has an end, with the process's number in it."""
    with pytest.raises(TimeoutError, match=rf"processes \[{os.getpid()}\] do not die"):
        cgroup.kill_members(lambda: [os.getpid()], seconds=-1)


@pytest.mark.needs("root", "limits")
def test_a_removal_between_the_cgroups_creation_and_its_lock(monkeypatch):
    """A session whose new cgroup a cleanup removes before it is locked makes it again."""
    made, lock_directory = [], file_lock.lock_directory

    def remove_first(directory):
        if not made:
            os.rmdir(directory)
        made.append(directory)
        return lock_directory(directory)

    monkeypatch.setattr(file_lock, "lock_directory", remove_first)
    with contextlib.closing(Hierarchy.find().session(f"removed-{os.getpid():x}")) as session:
        assert made[0] == made[1]
        assert [] == [
            directory for directory in session.directories if not os.path.isdir(directory)
        ]
        assert not cgroup.remove_unowned(session.directories)


@pytest.mark.needs("root", "limits")
@pytest.mark.vm
def test_a_session_that_is_there_is_not_made_twice():
    """Two sessions of one name do not pass for one."""
    with (
        contextlib.closing(Hierarchy.find().session(f"twice-{os.getpid():x}")) as session,
        pytest.raises((FileExistsError, SetupError)),
    ):
        Hierarchy.find().session(session.name)
    with contextlib.closing(Hierarchy.find().session(f"twice-{os.getpid():x}")) as session:
        with contextlib.suppress(FileExistsError, SetupError):
            Hierarchy.find().session(session.name)
        assert [] == [
            directory for directory in session.directories if not os.path.isdir(directory)
        ]


@pytest.mark.needs("cgroup_v1", "limits")
def test_version_1_has_no_soft_limit_on_memory():
    """memory_high is refused on version 1, with what to do instead."""
    with pytest.raises(UnsupportedError, match=r"memory_high=.*boot with cgroup v2.*memory= alone"):
        Hierarchy.find().require(Settings(memory_high=64 * MB))
