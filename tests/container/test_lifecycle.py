"""Start, use and end of a container; its namespaces and settings."""

from __future__ import annotations

import concurrent.futures
import contextlib
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
    """Return what a command prints."""
    return container.run(args, stdout=PIPE, text=True, check=True, **keywords).stdout


def namespaces_of(pid):
    kinds = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")
    return {kind: os.readlink(f"/proc/{pid}/ns/{kind}") for kind in kinds}


@pytest.mark.vm
@pytest.mark.needs("limits")
def test_status():
    """The status is created, running, paused, running and stopped in turn."""
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
    """start() returns the container, and a second close() does nothing."""
    c = Container()
    assert c.start() is c
    c.close()
    c.close()
    assert "stopped" == c.status


def test_close_before_start():
    """A container that was closed before its start cannot be started."""
    c = Container()
    c.close()
    with pytest.raises(ContainerStopped):
        c.start()


def test_a_container_starts_once():
    """A second start() is an error, while running and after close()."""
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
def test_methods_need_a_running_container(use, closed):
    """Before start() and after close(), every method raises ContainerStopped."""
    c = Container()
    if closed:
        c.start().close()
    with pytest.raises(ContainerStopped):
        use(c)


def test_killing_init_stops_the_container():
    """After SIGKILL to init, the status is stopped, methods raise ContainerStopped, and close()
    cleans up.
    """
    with Container() as c:
        os.kill(c.pid, signal.SIGKILL)
        assert process.ended(c.handle.pidfd, 30)
        assert "stopped" == c.status
        with pytest.raises(ContainerStopped):
            c.run(["true"])


def test_a_command_in_a_paused_container_is_refused():
    """A command in a paused container is refused, as by docker, since it would hang."""
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
def test_pause_and_unpause():
    """A paused process does not run, and continues after unpause()."""
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
    """close() does not need unpause()."""
    with Container() as c, c.popen(["sleep", "60"]) as p:
        c.pause()
        c.close()
        assert -signal.SIGKILL == p.wait(30)


def test_kill_ends_all_but_init():
    """kill() ends every process, and the container can be used afterwards."""
    with Container() as c:
        some = [c.popen(["sleep", "60"]) for _ in range(3)]
        c.kill()
        assert [-signal.SIGKILL] * 3 == [p.wait(30) for p in some]
        assert 0 == c.run(["true"]).returncode


def test_kill_with_another_signal():
    """kill(signal) sends that signal."""
    with (
        Container() as c,
        c.popen(
            ["sh", "-c", "trap 'exit 9' TERM; echo; while :; do sleep 0.01; done"], stdout=PIPE
        ) as p,
    ):
        p.stdout.readline()
        c.kill(signal.SIGTERM)
        assert 9 == p.wait(30)


def test_ids_and_host_names():
    """Each container has a unique id, which is its host name unless ``hostname`` is set."""
    with Container() as a, Container() as b, Container(hostname="my.host") as named:
        assert 3 == len({a.id, b.id, named.id})
        assert [f"{a.id}\n", f"{b.id}\n", "my.host\n"] == [
            out(c, "uname", "-n") for c in (a, b, named)
        ]
        assert [a.id, "my.host"] == [a.hostname, named.hostname]
        assert "my.host" == named.call(socket.gethostname)


def test_pid_is_inits_pid_outside(box):
    """The process with the PID ``pid`` has PID 1 inside."""
    with open(f"/proc/{box.pid}/status", encoding="utf-8") as file:
        numbers = next(line.split() for line in file if line.startswith("NSpid:"))
    assert str(box.pid) in numbers
    assert "1" == numbers[-1]


@pytest.mark.vm
def test_errors_before_the_start_say_what_to_do():
    """The error of a container that was not started names start(), and no empty id."""
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


def test_repr_has_id_and_status(box):
    """repr() has id and status."""
    assert f"<Container {box.id} running>" == repr(box)
    assert "<Container (no id yet) created>" == repr(Container())


@pytest.mark.parametrize("how", ["run", "call"])
def test_namespaces_are_not_shared(box, how):
    """No namespace is shared with the host or with another container; commands and functions are in
    the same ones.
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
    # All containers of a session share the user namespace of their commands.
    assert ["user"] == [kind for kind in outside if inside[kind] == others[kind]]


@pytest.mark.vm
def test_loopback_is_the_only_interface(box):
    """The loopback interface is up, with IPv4 and IPv6, and is the only one."""

    def talk():
        message = []
        for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            server = socket.create_server((address, 0), family=family)
            client = socket.create_connection(server.getsockname()[:2], timeout=10)
            accepted, _ = server.accept()
            accepted.sendall(b"hello")
            message.append(client.recv(10))
        return message, [
            name
            for _number, name in socket.if_nameindex()
            if not name.startswith(
                ("tunl", "sit", "ip6tnl", "gre", "erspan", "ip_vti", "ip6_vti", "ip6gre")
            )
        ]

    assert ([b"hello", b"hello"], ["lo"]) == box.call(talk)


@pytest.mark.needs("root")
def test_low_ports_need_no_capability(box):
    """A user may listen on port 80, as in docker."""

    def listen():
        os.setuid(1234)
        with socket.create_server(("127.0.0.1", 80)) as server:
            return server.getsockname()[1]

    assert 80 == box.call(listen)


def test_a_server_of_the_host_is_not_reachable(box):
    """A server on the host's loopback cannot be reached with network="none", and can with
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


def test_processes_of_the_host_are_not_seen(box):
    """Processes inside see init and each other, and no process of the host."""
    pids = box.call(lambda: sorted(int(name) for name in os.listdir("/proc") if name.isdigit()))
    assert (1, 2) == (pids[0], len(pids))


def test_ipc_objects_stay_inside(box):
    """System V shared memory and POSIX message queues are not shared with the host."""
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
    """Commands start in ``workdir``; without it, in the caller's directory."""
    with Container(workdir="/usr/share") as c:
        assert "/usr/share" == (out(c, "pwd").strip() if how == "run" else c.call(os.getcwd))
    with Container() as c:
        assert os.getcwd() == (out(c, "pwd").strip() if how == "run" else c.call(os.getcwd))


def test_a_missing_workdir_is_created():
    """A missing workdir is created, as by docker."""
    with Container(workdir="/made/for/this") as c:
        assert "/made/for/this\n" == out(c, "pwd")


@pytest.mark.parametrize("how", ["run", "call"])
def test_ulimits(how):
    """Soft and hard ulimits apply to commands and functions."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1] - 10
    with Container(ulimits={"nofile": (123, hard), "core": 0, "stack": -1, "locks": 99}) as c:
        code = (
            "import resource as r; print(r.getrlimit(r.RLIMIT_NOFILE), "
            "r.getrlimit(r.RLIMIT_CORE), r.getrlimit(r.RLIMIT_STACK))"
        )
        names = (resource.RLIMIT_NOFILE, resource.RLIMIT_CORE, resource.RLIMIT_STACK)
        message = (
            out(c, sys.executable, "-c", code).strip()
            if how == "run"
            else " ".join(str(c.call(resource.getrlimit, n)) for n in names)
        )
    assert f"(123, {hard}) (0, 0) (-1, -1)" == message


@pytest.mark.vm
def test_shm_size():
    """/dev/shm has the given size, and writes beyond it fail."""
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


def test_timeout_of_the_settings_limits_call():
    """The setting ``timeout`` is the default of call(), as of run()."""
    import time

    with Container(timeout=0.2) as c, pytest.raises(TimeoutError):
        c.call(time.sleep, 60)


def test_stats():
    """stats() counts what the processes of the container used, without init."""
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


def test_an_unreferenced_container_is_closed():
    """A container ends with the last reference to it."""
    c = Container().start()
    pidfd = os.pidfd_open(c.pid)
    del c
    gc.collect()
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    assert [pidfd] == [fd for fd, _event in poll.poll(10_000)]
    os.close(pidfd)


def test_a_ulimit_above_the_callers_is_refused():
    """A hard limit that the kernel does not grant is an UnsupportedError with limit and remedy."""
    with pytest.raises(
        UnsupportedError, match=r"nofile=1073741825 is over the hard limit .*\(ulimit -H\)"
    ):
        Container(ulimits={"nofile": (1 << 30) + 1}).start()


def test_containers_from_several_threads():
    """Threads start containers with different settings at the same time."""

    def one(number):
        with Container(hostname=f"host{number}", memory=f"{64 + number % 3}m") as c:
            return out(c, "uname", "-n")

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert [f"host{n}\n" for n in range(40)] == list(pool.map(one, range(40)))


def test_a_fork_has_its_own_launcher(box):
    """After os.fork(), the child starts containers with its own launcher, and its end does not
    affect the parent's.
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


def test_outer_containers_cannot_be_used_inside(box):
    """A function inside that uses a container of its caller gets an error that says so."""

    def nested(container):
        try:
            container.run(["true"])
        except ContainerStopped as error:
            return type(error).__name__
        return "ran"

    assert "ContainerStopped" == box.call(nested, box)


@pytest.fixture
def dying():
    """Yield a pidfd of a process that has lost its namespaces but not ended: its first thread has
    ended, another runs.
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


def test_an_image_directory_that_does_not_exist_is_refused():
    """The error names a directory that does not exist."""
    from pytest_sandbox import ImageError

    with pytest.raises(ImageError, match="/no/such/root"):
        Container(image="/no/such/root").start()


@pytest.mark.parametrize(
    ("raw", "message"),
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
def test_an_invalid_setting_is_refused(raw, message):
    """Container(...) raises SettingsError with key, value and accepted form."""
    with pytest.raises(SettingsError) as caught:
        Container(**raw)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"volumes": ["/no/such/source:/data"]}, "volumes='/no/such/source' is not valid"),
        ({"user": "nobody-such"}, "user='nobody-such' is not valid"),
        ({"user": "root:nobody-such"}, "user='root:nobody-such' is not valid"),
    ],
)
def test_settings_that_depend_on_files_are_checked_at_the_start(raw, message):
    """A value that depends on files of the host or the image is checked by start() or the first
    command.
    """
    with pytest.raises(SettingsError) as caught, Container(**raw) as c:
        c.run(["true"])
    assert message in str(caught.value)


@pytest.mark.needs("cpuset")
def test_a_cpuset_with_missing_cpus_is_refused():
    """A cpuset with a CPU that does not exist is refused, and nothing is left running."""
    from pytest_sandbox import SandboxError

    with pytest.raises(SandboxError, match="cpuset"):
        Container(cpuset="4000").start()


@pytest.mark.needs("root")
def test_a_prepared_container_serves_any_host_name():
    """Containers that differ by host name only have the same spec, so a prepared one serves; the
    name stays after a commit.
    """
    with Container(hostname="ann") as ann, Container(hostname="bob") as bob, Container() as unnamed:
        assert ann.handle.spec == bob.handle.spec == unnamed.handle.spec
        assert ["ann", "bob", unnamed.id] == [
            one.call(socket.gethostname) for one in (ann, bob, unnamed)
        ]
        ann.commit()
        assert "ann\n" == ann.run(["hostname"], stdout=PIPE, text=True).stdout


@pytest.mark.needs("root")
def test_init_does_not_free_the_files_of_its_container():
    """The launcher holds a container's mount namespace, which is freed after init has ended."""
    with Container() as container:
        launcher = container.handle.launcher.process.pid
        held = []
        for path in pathlib.Path(f"/proc/{launcher}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # the launcher closes others meanwhile
                held.append(os.readlink(path))
        assert 1 == held.count(os.readlink(f"/proc/{container.pid}/ns/mnt"))
