"""A container's life: created, running, paused, stopped; and what it is made of inside."""

from __future__ import annotations

import concurrent.futures
import gc
import os
import pathlib
import resource
import select
import signal
import socket
import subprocess
import sys
from subprocess import PIPE

import pytest

from pytest_sandbox import Container, ContainerStopped, SettingsError, UnsupportedError
from pytest_sandbox.container.processes import list_processes
from pytest_sandbox.linux import process

pytestmark = pytest.mark.needs("containers")


def out(container, *args, **keywords):
    """What a command prints."""
    return container.run(args, stdout=PIPE, text=True, check=True, **keywords).stdout


def namespaces_of(pid):
    kinds = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")
    return {kind: os.readlink(f"/proc/{pid}/ns/{kind}") for kind in kinds}


@pytest.mark.vm
@pytest.mark.needs("limits")
def test_the_status_follows_the_life():
    """created, running, paused, running, stopped."""
    seen = []
    c = Container()
    seen.append(c.status)
    with c:
        seen.append(c.status)
        c.pause()
        seen.append(c.status)
        c.unpause()
        seen.append(c.status)
    seen.append(c.status)
    assert ["created", "running", "paused", "running", "stopped"] == seen


def test_start_returns_the_container_and_close_may_be_repeated():
    """By hand: start() returns self, close() is idempotent."""
    c = Container()
    assert c.start() is c
    c.close()
    c.close()
    assert "stopped" == c.status


def test_close_before_start():
    """A container that was never started closes, and can then not be started."""
    c = Container()
    c.close()
    with pytest.raises(ContainerStopped):
        c.start()


def test_a_container_starts_once():
    """A second start() is an error, running or stopped."""
    with Container() as c, pytest.raises(ContainerStopped):
        c.start()
    with pytest.raises(ContainerStopped):
        c.start()


@pytest.mark.parametrize(
    "use",
    [
        lambda c: c.run(["true"]),
        lambda c: c.popen(["true"]),
        lambda c: c.call(len, ""),
        lambda c: c.read_bytes("/etc/passwd"),
        lambda c: c.write_text("/x", ""),
        lambda c: c.listdir("/"),
        lambda c: c.stats(),
        lambda c: c.diff(),
        lambda c: c.pause(),
        lambda c: c.unpause(),
        lambda c: c.kill(),
        lambda c: c.pid,
        lambda c: list_processes(c.handle),
    ],
)
@pytest.mark.parametrize("closed", [False, True], ids=["created", "stopped"])
def test_only_a_running_container_is_of_use(use, closed):
    """Before start() and after close() everything says ContainerStopped."""
    c = Container()
    if closed:
        c.start().close()
    with pytest.raises(ContainerStopped):
        use(c)


def test_an_init_that_dies_stops_the_container():
    """SIGKILL to the init from outside: ContainerStopped, status stopped, and close() cleans up."""
    with Container() as c:
        os.kill(c.pid, signal.SIGKILL)
        assert process.ended(c.handle.pidfd, 30)
        assert "stopped" == c.status
        with pytest.raises(ContainerStopped):
            c.run(["true"])


def test_a_command_in_a_paused_container_is_refused():
    """A run would hang until unpause: docker refuses too."""
    with Container() as c:
        c.pause()
        for use in (
            lambda: c.run(["true"]),
            lambda: c.call(len, ""),
            lambda: c.exists("/"),
            c.kill,
        ):
            with pytest.raises(ContainerStopped, match="unpause"):
                use()
        c.unpause()
        assert 0 == c.run(["true"]).returncode


@pytest.mark.vm
@pytest.mark.needs("limits")
def test_pause_stops_and_unpause_goes_on():
    """A paused process makes no step, and loses none."""
    code = "import sys\nfor line in sys.stdin: print(line.strip(), flush=True)"
    with (
        Container() as c,
        c.popen([sys.executable, "-c", code], stdin=PIPE, stdout=PIPE, text=True, bufsize=1) as p,
    ):
        p.stdin.write("1\n")
        assert "1\n" == p.stdout.readline()
        c.pause()
        p.stdin.write("2\n")
        os.set_blocking(p.stdout.fileno(), False)
        with pytest.raises(subprocess.TimeoutExpired):
            p.wait(0.1)
        assert "" == p.stdout.readline()
        c.unpause()
        os.set_blocking(p.stdout.fileno(), True)
        assert "2\n" == p.stdout.readline()
        p.stdin.close()


def test_a_paused_container_closes():
    """close() needs no unpause()."""
    with Container() as c, c.popen(["sleep", "60"]) as p:
        c.pause()
        c.close()
        assert -signal.SIGKILL == p.wait(30)


def test_kill_reaches_all_but_init():
    """kill() ends every process, and the container serves on."""
    with Container() as c:
        some = [c.popen(["sleep", "60"]) for _ in range(3)]
        c.kill()
        assert [-signal.SIGKILL] * 3 == [p.wait(30) for p in some]
        assert 0 == c.run(["true"]).returncode


def test_kill_with_another_signal():
    """kill(signal) sends that one."""
    with (
        Container() as c,
        c.popen(
            ["sh", "-c", "trap 'exit 9' TERM; echo; while :; do sleep 0.01; done"], stdout=PIPE
        ) as p,
    ):
        p.stdout.readline()
        c.kill(signal.SIGTERM)
        assert 9 == p.wait(30)


def test_ids_are_unique_and_hostnames():
    """Each container has an id of its own, which is its host name unless one is given."""
    with Container() as a, Container() as b, Container(hostname="my.host") as named:
        assert 3 == len({a.id, b.id, named.id})
        assert [f"{a.id}\n", f"{b.id}\n", "my.host\n"] == [
            out(c, "uname", "-n") for c in (a, b, named)
        ]
        assert [a.id, "my.host"] == [a.hostname, named.hostname]
        assert "my.host" == named.call(socket.gethostname)


def test_pid_is_the_init_outside(box):
    """``pid`` is PID 1 inside."""
    with open(f"/proc/{box.pid}/status", encoding="utf-8") as file:
        numbers = next(line.split() for line in file if line.startswith("NSpid:"))
    assert str(box.pid) in numbers
    assert "1" == numbers[-1]


@pytest.mark.vm
def test_a_container_that_has_not_been_started_says_so():
    """What needs a running container names what to do, and no id where there is none yet."""
    container = Container()
    with pytest.raises(
        ContainerStopped,
        match=r"^the container has not been started\. Use it in a `with` statement, or call "
        r"start\(\) first\.$",
    ):
        container.run(["true"])
    container.close()
    with pytest.raises(ContainerStopped, match=r"^the container is stopped: make a new one\.$"):
        container.run(["true"])
    with pytest.raises(ContainerStopped, match=r"^the container is stopped: it starts once"):
        container.start()


def test_repr_says_which_and_how(box):
    """Repr has id and status."""
    assert f"<Container {box.id} running>" == repr(box)
    assert "<Container (no id yet) created>" == repr(Container())


@pytest.mark.parametrize("how", ["run", "call"])
def test_namespaces_are_the_containers_own(box, how):
    """No namespace is shared with the host, and none with another container; commands and calls are
    in the same ones.
    """
    with Container() as other:
        code = (
            "import os, json; print(json.dumps({k: os.readlink(f'/proc/self/ns/{k}') for k in "
            "('cgroup','ipc','mnt','net','pid','user','uts')}))"
        )
        if how == "run":
            import json

            inside = json.loads(out(box, sys.executable, "-c", code))
        else:
            inside = box.call(namespaces_of, "self")
        outside, others = namespaces_of("self"), other.call(namespaces_of, "self")
    assert [] == [kind for kind in outside if inside[kind] == outside[kind]]
    # The payloads' user namespace is one for all containers of a session.
    assert ["user"] == [kind for kind in outside if inside[kind] == others[kind]]


@pytest.mark.vm
def test_the_loopback_is_up_and_alone(box):
    """Loopback serves, on IPv4 and IPv6, and there is no other interface."""

    def talk():
        said = []
        for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            server = socket.create_server((address, 0), family=family)
            client = socket.create_connection(server.getsockname()[:2], timeout=10)
            accepted, _ = server.accept()
            accepted.sendall(b"hello")
            said.append(client.recv(10))
        return said, [
            name
            for _number, name in socket.if_nameindex()
            if not name.startswith(
                ("tunl", "sit", "ip6tnl", "gre", "erspan", "ip_vti", "ip6_vti", "ip6gre")
            )
        ]

    assert ([b"hello", b"hello"], ["lo"]) == box.call(talk)


@pytest.mark.needs("root")
def test_low_ports_are_free_for_anybody(box):
    """A daemon may listen on port 80, as user too, as in docker."""

    def listen():
        os.setuid(1234)
        with socket.create_server(("127.0.0.1", 80)) as server:
            return server.getsockname()[1]

    assert 80 == box.call(listen)


def test_a_hosts_server_is_out_of_reach(box):
    """What listens on the host's loopback cannot be reached with network="none", and can with
    "host".
    """

    def connect(port):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
        except OSError as error:
            return type(error).__name__
        return "connected"

    with socket.create_server(("127.0.0.1", 0)) as server, Container(network="host") as open_one:
        port = server.getsockname()[1]
        assert ("ConnectionRefusedError", "connected") == (
            box.call(connect, port),
            open_one.call(connect, port),
        )


def test_the_clock_of_ids_does_not_leak(box):
    """Processes inside see themselves and PID 1, nobody of the host."""
    pids = box.call(lambda: sorted(int(name) for name in os.listdir("/proc") if name.isdigit()))
    assert (1, 2) == (pids[0], len(pids))


def test_ipc_objects_stay_inside(box):
    """System V shared memory and message queues of POSIX are the container's."""
    made = out(box, "sh", "-c", "ipcmk -M 4096 >/dev/null && ipcs -m | grep -c 0x")
    assert "1\n" == made
    with Container() as other:
        assert (
            "0\n" == other.run(["sh", "-c", "ipcs -m | grep -c 0x"], stdout=PIPE, text=True).stdout
        )
        assert ["queue"] == box.call(
            lambda: (open("/dev/mqueue/queue", "w").close(), os.listdir("/dev/mqueue"))[1]
        )
        assert [] == other.listdir("/dev/mqueue")


@pytest.mark.parametrize("how", ["run", "call"])
def test_workdir(how):
    """Workdir is where commands start; without it, the caller's directory."""
    with Container(workdir="/usr/share") as c:
        assert "/usr/share" == (out(c, "pwd").strip() if how == "run" else c.call(os.getcwd))
    with Container() as c:
        assert os.getcwd() == (out(c, "pwd").strip() if how == "run" else c.call(os.getcwd))


def test_a_workdir_that_is_not_there_is_made():
    """As docker does: a missing workdir is created."""
    with Container(workdir="/made/for/this") as c:
        assert "/made/for/this\n" == out(c, "pwd")


@pytest.mark.parametrize("how", ["run", "call"])
def test_ulimits(how):
    """Ulimits hold for commands and calls, soft and hard."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1] - 10
    with Container(ulimits={"nofile": (123, hard), "core": 0, "stack": -1, "locks": 99}) as c:
        code = (
            "import resource as r; print(r.getrlimit(r.RLIMIT_NOFILE), "
            "r.getrlimit(r.RLIMIT_CORE), r.getrlimit(r.RLIMIT_STACK))"
        )
        names = (resource.RLIMIT_NOFILE, resource.RLIMIT_CORE, resource.RLIMIT_STACK)
        said = (
            out(c, sys.executable, "-c", code).strip()
            if how == "run"
            else " ".join(str(c.call(resource.getrlimit, n)) for n in names)
        )
    assert f"(123, {hard}) (0, 0) (-1, -1)" == said


@pytest.mark.vm
def test_shm_size():
    """/dev/shm has the given size, and writes past it fail."""
    with Container(shm_size="1m") as c:
        assert 1 << 20 == c.call(
            lambda: os.statvfs("/dev/shm").f_blocks * os.statvfs("/dev/shm").f_frsize
        )
        assert (
            1
            == c.run(
                ["dd", "if=/dev/zero", "of=/dev/shm/x", "bs=1k", "count=1025"], stderr=PIPE
            ).returncode
        )
    with Container() as c:
        assert 64 << 20 == c.call(
            lambda: os.statvfs("/dev/shm").f_blocks * os.statvfs("/dev/shm").f_frsize
        )


def test_timeout_of_the_settings_ends_a_call():
    """Timeout is wall time, for call as for run."""
    import time

    with Container(timeout=0.2) as c, pytest.raises(TimeoutError):
        c.call(time.sleep, 60)


def test_stats_are_of_the_container():
    """stats() counts what its processes used, init not among them."""
    with Container(memory="256m") as c:
        before = c.stats()
        with c.popen(
            [
                sys.executable,
                "-c",
                "x = b'x' * (64 << 20); sum(range(3_000_000)); print(flush=True); input()",
            ],
            stdin=PIPE,
            stdout=PIPE,
        ) as p:
            p.stdout.readline()
            during = c.stats()
            p.communicate(b"\n")
        after = c.stats()
    assert (256 << 20, 0, 1) == (during.memory_limit, before.pids_current, during.pids_current)
    assert during.memory_current >= before.memory_current + (60 << 20)
    assert after.memory_peak >= during.memory_current - (8 << 20)
    assert after.cpu_seconds > before.cpu_seconds
    assert 0 == after.oom_kills


def test_a_forgotten_container_is_closed():
    """When the last reference goes, so does the container."""
    c = Container().start()
    pidfd = os.pidfd_open(c.pid)
    del c
    gc.collect()
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    assert [pidfd] == [fd for fd, _event in poll.poll(10_000)]
    os.close(pidfd)


def test_a_ulimit_past_what_may_be_had_is_refused():
    """A hard limit that the kernel does not grant is an UnsupportedError that names limit and
    remedy, not a weaker limit.
    """
    with pytest.raises(
        UnsupportedError, match=r"nofile=1073741825 is over the hard limit .*\(ulimit -H\)"
    ):
        Container(ulimits={"nofile": (1 << 30) + 1}).start()


def test_many_containers_at_once_from_threads():
    """Threads make containers of several kinds at the same time."""

    def one(number):
        with Container(hostname=f"host{number}", memory=f"{64 + number % 3}m") as c:
            return out(c, "uname", "-n")

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert [f"host{n}\n" for n in range(40)] == list(pool.map(one, range(40)))


def test_a_fork_of_the_client_has_a_launcher_of_its_own(box):
    """After os.fork(), the child makes containers through its own launcher, and its end leaves the
    parent's alone.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            with Container() as c:
                os.write(writer, f"{c.id} {c.run(['true']).returncode}".encode())
            from pytest_sandbox.client import session

            session._close_at_exit()
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, encoding="ascii") as file:
        identity, status = file.read().split()
    os.waitpid(pid, 0)
    assert (True, "0") == (identity.split("-")[0] != box.id.split("-")[0], status)
    assert 0 == box.run(["true"]).returncode


def test_inside_is_no_place_to_make_containers(box):
    """Within a call, the outer containers are out of reach, and that is said."""

    def nested(container):
        try:
            container.run(["true"])
        except ContainerStopped as error:
            return type(error).__name__
        return "ran"

    assert "ContainerStopped" == box.call(nested, box)


@pytest.fixture
def dying():
    """The descriptor of a process that has lost its namespaces already, and has not ended: its
    first thread has, another lives.
    """
    code = (
        "import ctypes, threading, time\nthreading.Thread(target=time.sleep, "
        "args=(60,)).start()\nctypes.CDLL(None).pthread_exit(None)"
    )
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        while "Z" != pathlib.Path(f"/proc/{process.pid}/stat").read_text().rpartition(") ")[2][0]:
            os.sched_yield()
        pidfd = os.pidfd_open(process.pid)
        yield pidfd
        os.close(pidfd)
        process.kill()


@pytest.mark.needs("root")
@pytest.mark.parametrize(
    "use",
    [
        lambda c: c.run(["true"]),
        lambda c: c.call(len, ""),
        lambda c: list_processes(c.handle),
        lambda c: c.kill(),
    ],
)
def test_an_init_without_namespaces_is_a_container_that_has_ended(use, dying, monkeypatch):
    """Using a container whose init has lost its namespaces, but has not ended yet, raises
    ContainerStopped.
    """
    with Container() as container:
        monkeypatch.setattr(container.handle, "pidfd", dying)
        with pytest.raises(ContainerStopped, match="has ended"):
            use(container)
        monkeypatch.undo()
        assert 0 == container.run(["true"]).returncode


def test_images_of_nobody_are_refused():
    """A directory that is not there is named."""
    from pytest_sandbox import ImageError

    with pytest.raises(ImageError, match="/no/such/root"):
        Container(image="/no/such/root").start()


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ({"memory": "lots"}, "memory='lots' is not valid; accepted: bytes"),
        ({"memory": "1k"}, "memory='1k' is not valid"),
        ({"cpus": 0}, "cpus=0 is not valid"),
        ({"cpuset": "a"}, "cpuset='a' is not valid"),
        ({"pids_limit": "x"}, "pids_limit='x' is not valid"),
        ({"disk": 0}, "disk=0 is not valid"),
        ({"storage": "tape"}, "storage='tape' is not valid"),
        ({"network": "bridge"}, "network='bridge' is not valid"),
        ({"hostname": "-"}, "hostname='-' is not valid"),
        ({"volumes": ["data:/data"]}, "volumes=['data:/data'] is not valid"),
        ({"volumes": ["/x:y"]}, "volumes=['/x:y'] is not valid"),
        ({"cap_add": ["NET_ADMINN"]}, "did you mean CAP_NET_ADMIN"),
        ({"ulimits": {"nofiles": 1}}, "did you mean nofile"),
        ({"security_opt": ["seccomp=profile.json"]}, "security_opt="),
        ({"privileged": "maybe"}, "privileged='maybe' is not valid; accepted: true or false"),
        ({"timeout": -1}, "timeout=-1 is not valid"),
        ({"workdir": "relative"}, "workdir='relative' is not valid"),
        ({"memori": "1g"}, "memori='1g' is not valid; accepted: did you mean memory?"),
        ({"user": "a b"}, "user='a b' is not valid"),
    ],
)
def test_a_wrong_setting_is_named(raw, said):
    """Container(...) says key, value and accepted form before anything starts."""
    with pytest.raises(SettingsError) as caught:
        Container(**raw)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ({"volumes": ["/no/such/source:/data"]}, "volumes='/no/such/source' is not valid"),
        ({"user": "nobody-such"}, "user='nobody-such' is not valid"),
        ({"user": "root:nobody-such"}, "user='root:nobody-such' is not valid"),
    ],
)
def test_what_only_the_host_or_the_root_knows_is_named_at_the_start(raw, said):
    """A value whose truth lies in files is checked when the container starts, or with the first
    command.
    """
    with pytest.raises(SettingsError) as caught, Container(**raw) as c:
        c.run(["true"])
    assert said in str(caught.value)


@pytest.mark.needs("cpuset")
def test_a_cpu_that_the_host_lacks_is_refused():
    """Cpuset of a CPU that is not there is refused by name, and leaves nothing running."""
    from pytest_sandbox import SandboxError

    with pytest.raises(SandboxError, match="cpuset"):
        Container(cpuset="4000").start()


@pytest.mark.needs("root")
def test_a_host_name_takes_no_container_of_its_own():
    """Containers that differ by name alone are made alike, so that the one that was made ahead
    serves; the name stays when one goes on after a commit.
    """
    with Container(hostname="ann") as ann, Container(hostname="bob") as bob, Container() as nobody:
        assert ann.handle.spec == bob.handle.spec == nobody.handle.spec
        assert ["ann", "bob", nobody.id] == [
            one.call(socket.gethostname) for one in (ann, bob, nobody)
        ]
        ann.commit()
        assert "ann\n" == ann.run(["hostname"], stdout=PIPE, text=True).stdout
