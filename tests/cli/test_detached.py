"""``run -d`` and the verbs of detached containers."""

from __future__ import annotations

import fcntl
import json
import os
import random
import re
import signal
import socket
import subprocess
import time
import uuid

import pytest
from command_line import COMMAND, output_of, sandbox
from terminals import wait_for

from pytest_sandbox.container import detached, remote

pytestmark = [pytest.mark.needs("containers"), pytest.mark.usefixtures("home")]


def start(*args: str) -> str:
    """Start a detached container and return its id."""
    return output_of("run", "-d", *args).strip()


def shell(script: str, *flags: str) -> str:
    """Start a detached shell and return the container's id."""
    return start(*flags, "host", "sh", "-c", script)


def facts_of(name: str) -> dict[str, object]:
    """Return what `inspect` prints of a container."""
    (found,) = json.loads(output_of("inspect", "--type", "container", name))
    return found


def await_log(name: str, text: str) -> None:
    """Wait until the log has the text."""
    wait_for(lambda: text in sandbox("logs", name).stdout)


def entries(home) -> list[str]:
    return sorted(os.listdir(home / "kept")) if (home / "kept").is_dir() else []


class TestRun:
    """Start and end."""

    @pytest.mark.vm
    def test_the_status_the_log_and_the_files_stay_until_rm(self, home):
        """`run -d` prints the id at once; after the end, `wait`, `logs`, `diff` and `ps -a` work
        until `rm`, which leaves nothing.
        """
        name = shell("echo out; echo error >&2; echo x > /var/tmp/left; exit 7", "--name", "one")
        assert "7\n" == output_of("wait", "one")
        logs = sandbox("logs", name)
        assert ("out\n", "error\n") == (logs.stdout, logs.stderr)
        assert "A /var/tmp/left\n" in output_of("diff", "one")
        assert name not in output_of("ps", "-q").split()
        (line,) = [line for line in output_of("ps", "-a").splitlines() if name in line]
        assert "Exited (7)" in line
        assert "one\n" == output_of("rm", "one")
        assert [] == entries(home)
        assert 125 == sandbox("logs", "one").returncode

    def test_the_caller_does_not_wait(self):
        """A pipe of the caller is closed when `run -d` returns, though the command runs."""
        with subprocess.Popen(
            [*COMMAND, "run", "-d", "host", "sleep", "1000"], stdout=subprocess.PIPE, text=True
        ) as process:
            name = process.communicate(timeout=60)[0].strip()
        assert "Running" in facts_of(name)["State"]
        assert facts_of(name)["State"]["Running"]

    @pytest.mark.parametrize(
        ("command", "status"), [("/nosuch", 127), ("/etc/passwd", 126)], ids=["missing", "data"]
    )
    def test_a_command_that_cannot_be_executed(self, home, command, status):
        """The status is docker's 127 or 126, nothing is printed on stdout, and nothing is left."""
        done = sandbox("run", "-d", "host", command)
        assert (status, "", True) == (done.returncode, done.stdout, command in done.stderr)
        wait_for(lambda: entries(home) == [])

    def test_an_invalid_setting_is_125(self, home):
        """An error before the start is reported by `run -d` itself, with the flag."""
        done = sandbox("run", "-d", "--memory", "lots", "host", "true")
        assert (125, "") == (done.returncode, done.stdout)
        assert "--memory 'lots' is not valid" in done.stderr
        assert [] == entries(home)

    def test_a_port_in_use(self, home):
        """A port that the host uses is an error of `run -d` with the flag; nothing is left."""
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            done = sandbox("run", "-d", "-p", f"{port}:80", "host", "sleep", "1000")
        assert (125, "") == (done.returncode, done.stdout)
        assert re.search(rf"--publish '{port}:80' .*127\.0\.0\.1:{port} is in use", done.stderr)
        assert [] == entries(home)

    def test_rm_removes_it(self, home):
        """With --rm nothing is left; a `wait` that began before has the status."""
        name = shell("read line; exit 5", "-i", "--rm")
        with subprocess.Popen(
            [*COMMAND, "wait", name], stdout=subprocess.PIPE, text=True
        ) as waiting:
            wait_for(lambda: has_opened(waiting.pid, name))
            sandbox("kill", "-s", "INT", name)
            assert "130\n" == waiting.communicate(timeout=60)[0]
        assert [] == entries(home)

    def test_a_terminal(self):
        """With -dt the command has a terminal, whose output is the log."""
        name = start("-dt", "host", "sh", "-c", "tty; exit 2")
        assert "2\n" == output_of("wait", name)
        assert "/dev/pts/0\r\n" == subprocess.check_output([*COMMAND, "logs", name]).decode()

    def test_a_used_name(self):
        """The name of an ended container is in use until `rm`."""
        name = shell("true", "--name", "used")
        output_of("wait", name)
        refused = sandbox("run", "--name", "used", "host", "true")
        assert (125, True) == (refused.returncode, f"rm {name}" in refused.stderr)
        output_of("rm", name)
        assert 0 == sandbox("run", "--name", "used", "host", "true").returncode

    def test_labels_of_a_file(self, tmp_path):
        """--label-file has lines of labels, which --label overrides."""
        (tmp_path / "labels").write_text("# comment\na=file\nb=file two\nalone\n")
        name = shell("true", "--label-file", str(tmp_path / "labels"), "-l", "a=flag")
        labels = facts_of(name)["Config"]["Labels"]
        assert {"a": "flag", "b": "file two", "alone": ""} == labels
        done = sandbox("run", "-d", "--label-file", "/nosuch", "host", "true")
        assert (125, True) == (done.returncode, "--label-file /nosuch: No such" in done.stderr)

    def test_background_processes_end_with_the_command(self):
        """What the command has left running is killed, and its output is in the log."""
        name = shell("(echo late; exec sleep 1000) & wait_for_it() { :; }; sleep 0.2; exit 0")
        assert "0\n" == output_of("wait", name)
        assert "late\n" == output_of("logs", name)

    @pytest.mark.parametrize(
        ("flags", "said"),
        [
            (["--restart", "always"], "--restart needs -d"),
            (["--label", "a"], "--label needs -d"),
            (["-d", "--rm", "--restart", "always"], "contradict"),
            (["-d", "--restart", "sometimes"], "'sometimes' is not valid; accepted: no, on-fail"),
            (["-d", "--label", "=x"], "'=x' is not valid; accepted: KEY or KEY=VALUE"),
        ],
    )
    def test_invalid_flags(self, flags, said):
        """A flag that has no meaning is refused with 125 and what is accepted."""
        done = sandbox("run", *flags, "host", "true")
        assert (125, "", True) == (done.returncode, done.stdout, said in done.stderr)


def has_opened(pid: int, name: str) -> bool:
    """Return whether a process has opened the exit status of a container."""
    fds = f"/proc/{pid}/fd"
    return any(
        name in os.readlink(f"{fds}/{fd}") and os.readlink(f"{fds}/{fd}").endswith("/status")
        for fd in os.listdir(fds)
        if os.path.lexists(f"{fds}/{fd}")
    )


class TestRestart:
    """--restart."""

    def test_on_failure(self):
        """on-failure:2 restarts twice with the same files; then the container has ended."""
        name = shell("echo x >> /tmp/runs; cat /tmp/runs | wc -l; exit 4", "--restart=on-failure:2")
        assert "4\n" == output_of("wait", name)
        assert "1\n2\n3\n" == output_of("logs", name)
        assert 2 == facts_of(name)["RestartCount"]

    def test_on_failure_does_not_restart_after_success(self):
        """A command that exits with 0 is not restarted by on-failure."""
        name = shell("echo x", "--restart", "on-failure")
        assert "0\n" == output_of("wait", name)
        assert "x\n" == output_of("logs", name)

    def test_stop_ends_restarts(self):
        """`stop` ends a container that restarts always, also during a pause between two runs."""
        name = shell("echo x", "--restart", "always")
        await_log(name, "x\nx\nx\n")
        output_of("stop", name, timeout=60)
        assert "exited" == facts_of(name)["State"]["Status"]

    def test_a_kill_is_not_a_failure_to_restart(self):
        """`kill` ends a container that restarts always."""
        name = shell("echo x; exec sleep 1000", "--restart", "always")
        await_log(name, "x")
        output_of("kill", name)
        assert "137\n" == output_of("wait", name)
        assert "x\n" == output_of("logs", name)


class TestStopAndKill:
    """Signals."""

    def test_stop_sends_the_stop_signal(self):
        """`stop` sends SIGTERM, and the status is the command's own."""
        name = shell("trap 'echo bye; exit 3' TERM; echo hi; while :; do sleep 0.01; done")
        await_log(name, "hi")
        assert f"{name}\n" == output_of("stop", name)
        assert ("3\n", "hi\nbye\n") == (output_of("wait", name), output_of("logs", name))

    def test_stop_kills_after_the_timeout(self):
        """A command that ignores SIGTERM is killed after -t seconds."""
        name = shell("trap '' TERM; echo hi; while :; do sleep 0.01; done")
        await_log(name, "hi")
        output_of("stop", "-t", "1", name)
        assert "137\n" == output_of("wait", name)

    def test_stop_of_an_ended_container(self):
        """`stop` of an ended container succeeds, and `kill` fails, as with docker."""
        name = shell("true")
        output_of("wait", name)
        assert f"{name}\n" == output_of("stop", name)
        done = sandbox("kill", name)
        assert (125, True) == (done.returncode, "is not running" in done.stderr)

    def test_another_signal(self):
        """`kill -s USR1` reaches the command, which goes on."""
        name = shell("trap 'echo got' USR1; echo hi; while :; do sleep 0.01; done")
        await_log(name, "hi")
        output_of("kill", "-s", "usr1", name)
        await_log(name, "got")
        assert facts_of(name)["State"]["Running"]

    @pytest.mark.parametrize(
        "args",
        [["kill", "-s", "NONE", "x"], ["kill", "-s", "4000", "x"], ["stop", "-t", "-1", "x"]],
    )
    def test_invalid_values(self, args):
        """An invalid signal or time is refused with the accepted form."""
        done = sandbox(*args)
        assert (125, True) == (done.returncode, "is not valid; accepted:" in done.stderr)

    def test_containers_of_others_are_refused(self):
        """A container that was not started with -d is not stopped: its owner would not know."""
        with subprocess.Popen(
            [*COMMAND, "run", "-i", "--name", "foreground", "host", "cat"], stdin=subprocess.PIPE
        ) as process:
            wait_for(lambda: "foreground" in [one.label for one in remote.list_containers()])
            for verb in ("stop", "kill", "logs", "wait", "port"):
                done = sandbox(verb, "foreground")
                assert (125, True) == (done.returncode, "not started with `run -d`" in done.stderr)
            process.stdin.close()


class TestLogs:
    """logs."""

    def test_follow_ends_with_the_container(self):
        """`logs -f` prints output as it is written, and ends with the container."""
        name = shell("echo first; read line; echo last", "-i")
        with subprocess.Popen(
            [*COMMAND, "logs", "-f", name], stdout=subprocess.PIPE, text=True
        ) as following:
            assert "first\n" == following.stdout.readline()
            output_of("kill", "-s", "HUP", name)
            assert "" == following.communicate(timeout=60)[0]
            assert 0 == following.returncode

    def test_tail_and_timestamps(self):
        """-n prints the last lines, -t the time of each."""
        name = shell("seq 5; printf end")
        output_of("wait", name)
        assert "4\n5\nend" == output_of("logs", "-n", "3", name)
        assert "" == output_of("logs", "-n", "0", name)
        stamp, rest = output_of("logs", "-t", "--tail=1", name).split(" ")
        assert (time.strftime("%Y", time.gmtime()), "end") == (stamp[:4], rest)

    def test_tail_counts_a_long_line_as_one(self):
        """Also if it is written to the log in several parts."""
        name = shell("echo first; head -c 300000 /dev/zero | tr '\\0' x; echo; echo last")
        output_of("wait", name)
        assert "x" * 300_000 + "\nlast\n" == output_of("logs", "-n", "2", name)
        assert "last\n" == output_of("logs", "-n", "1", name)

    def test_bytes_are_unchanged(self):
        """Output that is not UTF-8, and 3 MB of it, are printed as they were written."""
        name = shell(r"printf '\377\0\r\n'; head -c 3000000 /dev/zero")
        output_of("wait", name)
        logs = subprocess.run([*COMMAND, "logs", name], check=True, capture_output=True)
        assert b"\xff\0\r\n" + bytes(3_000_000) == logs.stdout

    def test_the_command_never_waits_for_a_reader(self):
        """A command that writes more than a pipe holds ends though nobody reads."""
        name = shell("head -c 10000000 /dev/zero; exit 6")
        assert "6\n" == output_of("wait", name, timeout=120)


class TestLists:
    """ps, inspect, port, rename."""

    def test_filters(self):
        """--filter selects by label, name, status and id; several keys must all hold."""
        one = shell("sleep 1000", "--name", "alpha", "--label", "tier=web", "--label", "x")
        two = shell("true", "--name", "beta", "--label", "tier=db")
        output_of("wait", two)
        assert one == output_of("ps", "-aq", "--filter", "label=tier=web").strip()
        assert one == output_of("ps", "-aq", "--filter", "label=x").strip()
        assert two == output_of("ps", "-q", "-f", "status=exited").strip()
        assert {one, two} == set(
            output_of("ps", "-aq", "-f", "name=alpha", "-f", "name=beta").split()
        )
        assert "" == output_of("ps", "-aq", "-f", "name=alpha", "-f", "label=tier=db")
        refused = sandbox("ps", "--filter", "colour=red")
        assert (125, True) == (
            refused.returncode,
            "accepted: KEY=VALUE with a KEY" in refused.stderr,
        )

    def test_names_are_filtered_by_an_expression(self):
        """--filter name= takes a regular expression, also with docker's slash before the name."""
        name = f"w{uuid.uuid4().hex[:8]}"  # `ps` also lists those of other sessions
        one = shell("sleep 1000", "--name", f"{name}a")
        both = {one, shell("sleep 1000", "--name", f"{name}ab")}
        patterns = (
            (name, both),
            (f"^{name}a$", {one}),
            (f"^/{name}a$", {one}),
            (f"{name}.$", {one}),
        )
        for pattern, expected in patterns:
            assert expected == set(output_of("ps", "-qf", f"name={pattern}").split()), pattern
        refused = sandbox("ps", "-f", "name=[")
        assert (125, True) == (refused.returncode, "accepted: name= with a" in refused.stderr)

    @pytest.mark.parametrize("name", ["a b", ".a", "-a", "a/b", "a:b", "é", "a\n"])
    def test_an_invalid_name(self, home, name):
        """What is no name for docker is refused by `run` and `rename`."""
        one = shell("sleep 1000")
        for args in (["run", f"--name={name}", "host", "true"], ["rename", "--", one, name]):
            done = sandbox(*args)
            assert (125, "", True) == (done.returncode, done.stdout, "accepted: a l" in done.stderr)

    def test_several_names(self):
        """A name that is unknown does not keep `wait`, `stop`, `kill` and `rm` from the others;
        the error of each is printed.
        """
        shell("exit 3", "--name", "one")
        shell("exit 4", "--name", "two")
        for verb, expected in (
            ("wait", "3\n4\n"),
            ("stop", "one\ntwo\n"),
            ("kill", ""),
            ("rm", "one\ntwo\n"),
            ("rm -f", ""),
        ):
            done = sandbox(*verb.split(), "nosuch", "one", "other", "two")
            failed = {"rm -f": 0, "kill": 4}.get(verb, 2)
            assert (expected, failed) == (done.stdout, done.stderr.count("\n")), verb
            assert (125 if failed else 0) == done.returncode, verb

    def test_port_of_an_ended_container(self):
        """An ended container has no published ports: `port` prints nothing."""
        name = start("-p", "80", "host", "true")
        output_of("wait", name)
        assert "" == output_of("port", name)
        assert 125 == sandbox("port", name, "80").returncode

    def test_inspect(self):
        """`inspect` prints docker's keys."""
        flags = ("--name", "seen", "-l", "a=b", "-w", "/tmp", "-e", "K=V", "--restart", "no")
        name = shell("exit 9", *flags)
        output_of("wait", name)
        found = facts_of("seen")
        assert (name, "sh", ["-c", "exit 9"], "/seen", {"a": "b"}, "/tmp") == (
            found["Id"],
            found["Path"],
            found["Args"],
            found["Name"],
            found["Config"]["Labels"],
            found["Config"]["WorkingDir"],
        )
        state = found["State"]
        assert ("exited", False, 9, 0) == (
            state["Status"],
            state["Running"],
            state["ExitCode"],
            state["Pid"],
        )
        assert state["StartedAt"] < state["FinishedAt"]

    def test_inspect_of_an_unknown_name(self):
        """An unknown container is an error."""
        done = sandbox("inspect", "--type", "container", "nosuch")
        assert (125, True) == (done.returncode, "No such container: nosuch" in done.stderr)

    @pytest.mark.needs("python3")
    def test_port(self):
        """`port` prints the addresses of the host, at which the container answers."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        script = (
            "import socket; s = socket.create_server(('127.0.0.1', 80)); print('up', flush=True);"
            "s.accept()[0].send(b'hello')"
        )
        name = start("-p", f"{port}:80", "host", "python3", "-c", script)
        await_log(name, "up")
        lines = output_of("port", name).splitlines()
        assert f"80/tcp -> 127.0.0.1:{port}" == lines[0]
        assert f"127.0.0.1:{port}" == output_of("port", name, "80").splitlines()[0]
        with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
            assert b"hello" == client.recv(5)
        done = sandbox("port", name, "81/udp")
        assert 125 == done.returncode

    def test_rename(self):
        """A running container is found by its new name, by every verb, and not by the old one."""
        name = shell("echo hi; sleep 1000", "--name", "old")
        output_of("rename", "old", "new")
        assert "inside\n" == output_of("exec", "new", "echo", "inside")
        assert 125 == sandbox("exec", "old", "true").returncode
        assert name == output_of("ps", "-q", "-f", "name=new").strip()
        shell("true", "--name", "old")
        refused = sandbox("rename", "old", "new")
        assert (125, True) == (refused.returncode, f"{name} has this name" in refused.stderr)

    def test_rm_of_a_running_container(self, home):
        """`rm` refuses a running container as docker does; `rm -f` kills and removes it."""
        name = shell("sleep 1000")
        refused = sandbox("rm", name)
        assert (125, True) == (refused.returncode, "container is running" in refused.stderr)
        output_of("rm", "-f", name)
        assert [] == entries(home)
        assert name not in [one.id for one in remote.list_containers()]
        assert 0 == sandbox("rm", "-f", name).returncode


def test_descriptors_of_the_caller_are_closed():
    """What the caller has open, such as a lock, does not stay open as long as the container."""
    reader, writer = os.pipe()
    with open(reader, "rb") as pipe:
        start_args = ["run", "-d", "host", "sleep", "60"]
        done = sandbox(*start_args, pass_fds=[writer], stdin=subprocess.DEVNULL, timeout=60)
        os.close(writer)
        assert 0 == done.returncode, done.stderr
        assert b"" == pipe.read()  # its end
    assert "running" == facts_of(done.stdout.strip())["State"]["Status"]


@pytest.fixture
def forged(home):
    """Yield a process, and the directory of another user that names it as a supervisor."""
    with subprocess.Popen(["sleep", "60"]) as victim:
        directory = home / "kept" / f"forged.{victim.pid}"
        directory.mkdir(parents=True)
        facts = detached.Facts(id="forged", image="host", command=["x"], created=1.0)
        detached.write_facts(str(directory), facts)
        detached.write_name(str(directory), "web")
        detached.write_status(str(directory), "")
        for path in (home / "kept", directory, *directory.iterdir()):
            os.chown(path, 1234, 1234)
        fd = os.open(directory, os.O_RDONLY)
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield victim, directory, fd
        os.close(fd)
        victim.kill()
    os.chown(home / "kept", os.geteuid(), os.getegid())


@pytest.mark.needs("root")
def test_a_container_that_another_user_has_forged_is_unknown(forged):
    """Another user who has made the directory first cannot name a process that gets signals."""
    victim, _directory, _fd = forged
    for verb in ("stop", "kill", "logs", "inspect", "rm"):
        done = sandbox(verb, "forged")
        assert 0 != done.returncode, verb
    assert "forged" not in output_of("ps", "-a", "--format", "json")
    assert victim.poll() is None
    refused = sandbox("run", "-d", "host", "true")
    assert 0 != refused.returncode
    assert "UID 1234" in refused.stderr


@pytest.mark.needs("root")
def test_a_cleanup_leaves_the_directory_of_another_user(forged):
    """The next session removes nothing from it: another user may have linked it to any place."""
    _victim, directory, fd = forged
    fcntl.flock(fd, fcntl.LOCK_UN)
    output_of("run", "host", "true")
    assert directory.is_dir()


@pytest.mark.parametrize("seed", range(12))
def test_a_killed_supervisor_leaves_nothing(home, seed):
    """SIGKILL of the supervisor at a random moment ends the container, and the next start of a
    container removes its directory; one that ended before is complete.
    """
    script = "echo x > /etc/left; sleep 0.2; exit 3"
    name = shell(script, "--name", f"victim-{os.getpid()}")  # other workers run this test, too
    (one,) = detached.list_detached()
    pid = one.supervisor or 0
    time.sleep(random.Random(seed).uniform(0, 0.4))  # the moment of the kill is random
    pidfd = open_own_supervisor(one)
    if pidfd is not None:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)
    wait_for(lambda: not pid or not os.path.exists(f"/proc/{pid}"))
    wait_for(lambda: name not in [one.id for one in remote.list_containers()])
    output_of("run", "host", "true")
    assert entries(home) in ([], [name])
    if entries(home):
        assert "3\n" == output_of("wait", name)
        assert "A /etc/left\n" in output_of("diff", name)
        output_of("rm", name)


def test_wait_reports_a_killed_supervisor():
    """A `wait` ends with an error when the supervisor is killed: the exit status is not known."""
    name = shell("sleep 1000")
    (one,) = detached.list_detached()
    with subprocess.Popen(
        [*COMMAND, "wait", name], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as waiting:
        wait_for(lambda: has_opened(waiting.pid, name))
        one.signal_supervisor(signal.SIGKILL)
        out, error = waiting.communicate(timeout=60)
    assert (125, "", True) == (waiting.returncode, out, "supervisor" in error)


def open_own_supervisor(one: detached.Detached) -> int | None:
    """Return a pidfd of a supervisor that still runs, else None."""
    try:
        pidfd = os.pidfd_open(one.supervisor)
    except (OSError, ValueError):
        return None
    if any(other.id == one.id and other.is_running for other in detached.list_detached()):
        return pidfd
    os.close(pidfd)
    return None
