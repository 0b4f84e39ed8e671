"""Cgroups of the version that this host has: v1 and v2 behave the same."""

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
from pytest_sandbox.linux import file_lock
from pytest_sandbox.linux.cgroup import (
    PREFIX,
    Cgroup,
    Hierarchy,
    Session,
    destroy,
    find_hierarchy,
    remove_unowned,
)
from pytest_sandbox.linux.cgroup.directories import kill_pids
from pytest_sandbox.linux.cgroup.interface_files import read_number
from pytest_sandbox.linux.cgroup.limits import CgroupLimits
from pytest_sandbox.outcome import Stats
from pytest_sandbox.settings.settings import Settings

MB = 1 << 20
EAT = "import sys; held = b'x' * int(sys.argv[1]); print('held')"
SPIN = "while True: pass"
#: Reads or writes 128 KiB in 16 pieces with O_DIRECT, and prints how many seconds that took.
DIRECT_IO = """
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


@pytest.fixture
def no_cgroups(tmp_path):
    """The hierarchy of a host without cgroup mounts."""
    for name in ("mountinfo", "cgroup"):
        (tmp_path / name).write_text("")
    return find_hierarchy(str(tmp_path / "mountinfo"), str(tmp_path / "cgroup"))


@pytest.mark.vm
def test_a_host_without_cgroups_rejects_each_limit(no_cgroups):
    """A limit that was requested is rejected with a remedy; defaults are ignored."""
    no_cgroups.require(Settings())
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
            no_cgroups.require(Settings().replace(**{key: value}))


@pytest.mark.vm
def test_a_host_without_cgroups_has_no_usage_figures(no_cgroups):
    """Containers work without cgroups, and every figure is None."""
    with contextlib.closing(no_cgroups.session("x")) as session:
        cgroup = session.create("one")
        cgroup.apply(CgroupLimits.of(Settings()))
        with pytest.raises(UnsupportedError, match=r"pause .* --privileged"):
            cgroup.freeze()
        cgroup.kill()
        cgroup.remove()
    assert (Session, Cgroup, (), -1, (), {}) == (
        type(session),
        type(cgroup),
        cgroup.join_paths(),
        cgroup.fd(),
        cgroup.pids(),
        no_cgroups.sessions(),
    )
    assert Stats(*[None] * 10) == cgroup.stats()


@pytest.fixture
def session():
    """A session whose lock is held, so that cleanup by other processes does not remove it."""
    name = f"test-{os.getpid()}-{secrets.token_hex(3)}"
    with open(cleanup.lock_path(name), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made = find_hierarchy().session(name)
        yield made
        made.close()
        os.unlink(lock.name)


@pytest.fixture
def cgroup(session):
    return session.create("one")


@pytest.fixture
def start(cgroup):
    """Start a program in the cgroup; it is killed at the end of the test."""
    started = []

    def starter(*argv, into: Cgroup = cgroup, **keywords) -> subprocess.Popen[str]:
        joins = into.join_paths()

        def enter() -> None:
            for path in joins:
                fd = os.open(path, os.O_WRONLY)
                os.write(fd, b"0")
                os.close(fd)

        keywords |= {"stdout": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(argv, preexec_fn=enter, **keywords))  # noqa: PLW1509
        return started[-1]

    yield starter
    cgroup.thaw()
    for popen in started:
        popen.kill()
        popen.wait()
        for pipe in filter(None, (popen.stdin, popen.stdout)):
            pipe.close()


def python(code: str, *argv: object) -> tuple[str, ...]:
    return (sys.executable, "-S", "-u", "-c", code, *map(str, argv))


def wait_until(condition, seconds: float = 60) -> None:
    """Poll a condition for which the kernel sends no event."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"still false after {seconds} s"
        time.sleep(0.01)


LIMITS = [pytest.mark.needs("limits"), pytest.mark.vm]


class TestCgroup:
    """A cgroup with processes."""

    pytestmark = LIMITS

    def test_join_paths(self, cgroup, start):
        """A process that writes 0 to each path is in the cgroup, and so are its children."""
        shell = start("sh", "-c", "sleep 1000 & echo; wait")
        shell.stdout.readline()
        assert shell.pid in cgroup.pids()
        assert (2, 2) == (len(cgroup.pids()), cgroup.stats().pids_current)

    @pytest.mark.needs("cgroup_v1")
    def test_tcp_buffers_have_the_memory_limit(self, cgroup):
        """On v1, which counts TCP buffers separately, they have the same limit as memory."""
        limit = f"{cgroup._path('memory', 'memory.kmem.tcp.limit_in_bytes')}"
        before = read_number(limit)
        cgroup.apply(CgroupLimits.of(Settings(memory=48 * MB)))
        bounded = read_number(limit)
        cgroup.apply(CgroupLimits.of(Settings()))
        assert (48 * MB, before) == (bounded, read_number(limit))

    def test_a_process_over_the_memory_limit_is_killed(self, cgroup, start):
        """A process over the limit gets SIGKILL and is counted in oom_kills; a smaller one runs."""
        cgroup.apply(CgroupLimits.of(Settings(memory=48 * MB)))
        small, large = start(*python(EAT, 8 * MB)), start(*python(EAT, 96 * MB))
        assert (0, -signal.SIGKILL) == (small.wait(), large.wait())
        assert (1, 1) == (cgroup.oom_kills(), cgroup.stats().oom_kills)
        assert 8 * MB < cgroup.stats().memory_peak <= 48 * MB

    def test_other_kills_are_not_oom_kills(self, cgroup, start):
        """A process killed by a signal is not counted in oom_kills."""
        cgroup.apply(CgroupLimits.of(Settings(memory=48 * MB)))
        sleep = start("sleep", "1000")
        sleep.kill()
        assert (-signal.SIGKILL, 0) == (sleep.wait(), cgroup.oom_kills())

    def test_memory_limits_change_in_any_order(self, cgroup):
        """Memory and swap limits can be raised, lowered and removed in any order."""
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
            cgroup.apply(CgroupLimits.of(wanted))
            assert wanted.memory == cgroup.stats().memory_limit

    def test_page_cache_includes_tmpfs(self, cgroup, start, tmp_path):
        """Files in a tmpfs are counted as page cache."""
        code = (
            "open('/dev/shm/' + sys.argv[1], 'wb').write(b'x' * (8 << 20)); print('written'); "
            "sys.stdin.read()"
        )
        name = f"pytest-sandbox-{secrets.token_hex(4)}"
        writer = start(*python(f"import sys; {code}", name), stdin=subprocess.PIPE)
        try:
            writer.stdout.readline()
            assert 8 * MB <= cgroup.page_cache_bytes() <= 40 * MB
        finally:
            os.unlink(f"/dev/shm/{name}")
            writer.stdin.close()

    def test_pids_limit(self, cgroup, start):
        """A fork over pids_limit fails; ``overhead`` is added to the limit."""
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
            cgroup.apply(CgroupLimits.of(Settings(pids_limit=limit)), overhead=overhead)
            forker = start(*python(forks), stdin=subprocess.PIPE)
            assert limit + overhead - 1 == int(forker.stdout.readline())
            forker.stdin.close()
            forker.wait()
            wait_until(lambda: not cgroup.stats().pids_current)
        assert 8 == cgroup.stats().pids_peak

    def test_cpu_time_is_throttled(self, cgroup, start):
        """A busy process with a tenth of a CPU is throttled, and its CPU time is counted."""
        cgroup.apply(CgroupLimits.of(Settings(cpus=0.1)))
        start(*python(SPIN))
        wait_until(lambda: cgroup.stats().cpu_throttled_seconds > 0)
        assert cgroup.stats().cpu_seconds > 0

    def test_removing_the_cpu_limit_ends_throttling(self, cgroup, start):
        """After the limit was removed, CPU time is used without throttling."""
        cgroup.apply(CgroupLimits.of(Settings(cpus=0.1)))
        cgroup.apply(CgroupLimits.of(Settings()))
        before = cgroup.stats().cpu_throttled_seconds
        one_second = "import resource; resource.setrlimit(resource.RLIMIT_CPU, (1, 1))\n"
        assert start(*python(one_second + SPIN)).wait() in {-signal.SIGXCPU, -signal.SIGKILL}
        assert before == cgroup.stats().cpu_throttled_seconds

    @pytest.mark.needs("cpuset")
    def test_cpuset(self, cgroup, start):
        """Processes run on the CPUs of the cpuset only, also those that joined before."""
        code = "import os, sys; sys.stdin.readline(); print(*os.sched_getaffinity(0))"
        early = start(*python(code), stdin=subprocess.PIPE)
        wait_until(lambda: early.pid in cgroup.pids())
        cgroup.apply(CgroupLimits.of(Settings(cpuset="0")))
        late = start(*python(code), stdin=subprocess.PIPE)
        assert ("0\n", "0\n") == (early.communicate("\n")[0], late.communicate("\n")[0])

    @pytest.mark.needs("cpuset")
    def test_a_cpuset_with_an_absent_cpu_is_rejected(self, cgroup):
        """The error names the CPUs that may be used."""
        with pytest.raises(UnsupportedError, match=r"cpuset='4000'.*may be used here are 0"):
            cgroup.apply(CgroupLimits.of(Settings(cpuset="4000")))

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
    def test_device_rates(self, cgroup, start, key, rate):
        """Direct I/O takes as long as the rate requires."""
        disk = disk_of("/var/tmp")
        cgroup.apply(CgroupLimits.of(Settings().replace(**{key: {disk: rate}})))
        with tempfile.NamedTemporaryFile(dir="/var/tmp") as file:
            file.write(bytes(128 << 10))
            file.flush()
            os.fsync(file.fileno())
            spent = float(start(*python(DIRECT_IO, file.name, key)).communicate()[0])
        assert spent > 0.3

    @pytest.mark.needs("disk")
    def test_a_device_rate_can_be_removed(self, cgroup, start):
        """After a rate of 2 bytes per second was removed, I/O is fast again."""
        disk = disk_of("/var/tmp")
        cgroup.apply(
            CgroupLimits.of(
                Settings().replace(device_write_bps={disk: 2}, device_write_iops={disk: 2})
            )
        )
        cgroup.apply(CgroupLimits.of(Settings()))
        with tempfile.NamedTemporaryFile(dir="/var/tmp") as file:
            assert start(*python(DIRECT_IO, file.name, "device_write_bps")).communicate()[0]

    @pytest.mark.needs("disk")
    def test_a_rate_for_a_character_device_is_rejected(self, cgroup):
        """The error names the device and the usual mistake."""
        with pytest.raises(
            UnsupportedError, match=r'device_read_bps=\["/dev/ptmx:2"\].*name the whole disk'
        ):
            cgroup.apply(CgroupLimits.of(Settings().replace(device_read_bps={"/dev/ptmx": 2})))

    def test_freeze_and_thaw(self, cgroup, start):
        """Frozen processes use no CPU time; after thawing they do."""
        start(*python(SPIN))
        wait_until(lambda: cgroup.stats().cpu_seconds > 0)
        cgroup.freeze()
        stood = cgroup.stats().cpu_seconds
        assert stood == cgroup.stats().cpu_seconds
        cgroup.thaw()
        wait_until(lambda: cgroup.stats().cpu_seconds > stood)

    def test_kill_frozen_processes(self, cgroup, start):
        """Frozen processes can be killed without thawing them first."""
        sleep = start("sleep", "1000")
        wait_until(lambda: sleep.pid in cgroup.pids())
        cgroup.freeze()
        cgroup.kill()
        assert (-signal.SIGKILL, ()) == (sleep.wait(), cgroup.pids())

    def test_kill_a_fork_bomb(self, cgroup, start):
        """Processes that keep forking are all dead when ``kill`` returns."""
        cgroup.apply(CgroupLimits.of(Settings(pids_limit=32)))
        bomb = start(*python(BOMB))
        wait_until(lambda: len(cgroup.pids()) > 4)
        cgroup.kill()
        assert () == cgroup.pids()
        assert -signal.SIGKILL == bomb.wait()

    def test_remove_waits_for_an_empty_cgroup(self, cgroup, start):
        """remove() raises EBUSY while a process is left, and works twice afterwards."""
        sleep = start("sleep", "1000")
        wait_until(lambda: sleep.pid in cgroup.pids())
        with pytest.raises(OSError, match="busy"):
            cgroup.remove(0)
        cgroup.kill()
        sleep.wait()
        cgroup.remove()
        cgroup.remove()
        assert () == cgroup.pids()


class TestSession:
    """The parent of all cgroups of one launcher."""

    pytestmark = LIMITS

    def test_sessions_are_listed_by_name(self, session):
        """A session is listed with its directories until it is closed."""
        assert set(session.directories) == set(find_hierarchy().sessions()[session.name])
        session.close()
        assert session.name not in find_hierarchy().sessions()

    def test_close_kills_and_removes_everything(self, session, cgroup, start):
        """Closing kills frozen processes, and removes nested directories too."""
        sleep = start("sleep", "1000")
        wait_until(lambda: sleep.pid in cgroup.pids())
        inner = [os.path.dirname(path) + "/inner" for path in cgroup.join_paths()]
        for directory in inner:
            os.mkdir(directory)
        cgroup.freeze()
        session.close()
        assert -signal.SIGKILL == sleep.wait()
        assert [] == [
            directory for directory in [*session.directories, *inner] if os.path.exists(directory)
        ]

    def test_attach_to_a_session(self, session, start):
        """A client limits, reads, kills and removes a cgroup that the launcher has created."""
        other = find_hierarchy().attach(session.name)
        made, handle = session.create("both"), other.cgroup("both")
        handle.apply(CgroupLimits.of(Settings(pids_limit=1)))
        sleep = start("sleep", "1000", into=made)
        wait_until(lambda: sleep.pid in handle.pids())
        assert 1 == handle.stats().pids_current
        handle.kill()
        handle.remove()

    def test_sessions_are_independent(self, session, start):
        """Closing a session does not change another one or its limits."""
        cgroup = session.create("mine")
        with contextlib.closing(find_hierarchy().session(session.name + "-2")) as other:
            start("sleep", "1000", into=other.create("theirs"))
        cgroup.apply(CgroupLimits.of(Settings(memory=64 * MB, cpus=0.5, pids_limit=8)))
        assert 64 * MB == cgroup.stats().memory_limit

    def test_a_duplicate_cgroup_name_is_rejected(self, session, cgroup):
        """Creating a cgroup twice is an error, and the first one still works."""
        with pytest.raises(FileExistsError):
            session.create("one")
        cgroup.apply(CgroupLimits.of(Settings(pids_limit=8)))

    def test_destroy_ignores_removed_directories(self, session):
        """Destroying a session twice is not an error."""
        session.close()
        destroy(session.directories)
        assert [] == [directory for directory in session.directories if os.path.exists(directory)]


@pytest.mark.needs("limits")
@pytest.mark.vm
def test_require_accepts_available_limits():
    """A host with all controllers accepts the usual limits."""
    find_hierarchy().require(Settings(memory=64 * MB, memory_swap=64 * MB, cpus=1.0, pids_limit=8))


@pytest.mark.vm
def test_sessions_are_found_by_their_prefix(tmp_path):
    """Only directories with the prefix are sessions, at any depth."""
    for name in ("a/other", f"a/{PREFIX}s1/c1", f"{PREFIX}s2"):
        (tmp_path / name).mkdir(parents=True)
    made = Hierarchy()
    made.roots = lambda: (str(tmp_path),)
    assert {"s1": (f"{tmp_path}/a/{PREFIX}s1",), "s2": (f"{tmp_path}/{PREFIX}s2",)} == dict(
        made.sessions()
    )


def test_kill_timeout_names_the_processes():
    """If processes do not die in time, the error has their PIDs."""
    with pytest.raises(TimeoutError, match=rf"processes \[{os.getpid()}\] do not die"):
        kill_pids(lambda: [os.getpid()], timeout=-1)


@pytest.mark.needs("root", "limits")
def test_a_session_removed_before_it_is_locked_is_created_again(monkeypatch):
    """If cleanup removes a new cgroup before it is locked, it is created again."""
    made, lock_directory = [], file_lock.lock_directory

    def remove_first(directory):
        if not made:
            os.rmdir(directory)
        made.append(directory)
        return lock_directory(directory)

    monkeypatch.setattr(file_lock, "lock_directory", remove_first)
    with contextlib.closing(find_hierarchy().session(f"removed-{os.getpid():x}")) as session:
        assert made[0] == made[1]
        assert [] == [
            directory for directory in session.directories if not os.path.isdir(directory)
        ]
        assert not remove_unowned(session.directories)


@pytest.mark.needs("root", "limits")
@pytest.mark.vm
def test_a_duplicate_session_is_rejected():
    """Creating a session twice is an error, and the first one stays."""
    with (
        contextlib.closing(find_hierarchy().session(f"twice-{os.getpid():x}")) as session,
        pytest.raises((FileExistsError, SetupError)),
    ):
        find_hierarchy().session(session.name)
    with contextlib.closing(find_hierarchy().session(f"twice-{os.getpid():x}")) as session:
        with contextlib.suppress(FileExistsError, SetupError):
            find_hierarchy().session(session.name)
        assert [] == [
            directory for directory in session.directories if not os.path.isdir(directory)
        ]


@pytest.mark.needs("cgroup_v1", "limits")
def test_memory_high_is_rejected_on_v1():
    """The error says what to use instead."""
    with pytest.raises(UnsupportedError, match=r"memory_high=.*boot with cgroup v2.*memory= alone"):
        find_hierarchy().require(Settings(memory_high=64 * MB))
