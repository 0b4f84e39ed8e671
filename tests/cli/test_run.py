"""``pytest-sandbox run``: docker's flags, streams, signals and statuses."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from typing import TYPE_CHECKING

import pytest
from terminals import wait_for

from pytest_sandbox.container import remote

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.needs("containers")
root = pytest.mark.needs("root")

COMMAND = [sys.executable, "-m", "pytest_sandbox", "run"]


def run(*words: str, **keywords: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *words], capture_output=True, text=True, check=False, **keywords
    )


def said(*words: str, **keywords: object) -> str:
    """What a command printed that went well."""
    done = run(*words, **keywords)
    assert 0 == done.returncode, done.stderr
    return done.stdout


@pytest.mark.vm
@pytest.mark.parametrize(
    ("command", "status"),
    [
        (["true"], 0),
        (["sh", "-c", "exit 7"], 7),
        (["sh", "-c", "kill -9 $$"], 137),
        (["sh", "-c", "kill -15 $$"], 143),
        (["no-such-command"], 127),
        (["/etc/passwd"], 126),
        (["/etc"], 126),
    ],
    ids=str,
)
def test_the_status_is_the_commands_own(command, status):
    """A shell script cannot tell the container from the command; 126 and 127 are what a shell
    says.
    """
    assert status == run("host", *command).returncode


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("-m", "5x", "host", "true"), "--memory '5x' is not valid; accepted: bytes"),
        (("--network", "bridge", "host", "true"), "--network 'bridge'"),
        (
            ("-v", "nowhere:/x", "host", "true"),
            "--volume 'nowhere:/x' is not valid; accepted: a path",
        ),
        (("-v", "/no/such/directory:/x", "host", "true"), "--volume '/no/such/directory'"),
        (("-v", "/:/x", "-v", "/:/y:rx", "host", "true"), "--volume '/:/y:rx'"),
        (
            ("--device-read-bps", "/dev/no-disk:1mb", "host", "true"),
            "--device-read-bps '/dev/no-disk'",
        ),
        (("-h", "a_b", "host", "true"), "--hostname 'a_b'"),
        (("--cap-add", "FLY", "host", "true"), "--cap-add 'FLY'"),
        (("--ulimit", "nofile=5:1", "host", "true"), "--ulimit 'nofile=5:1'"),
        (("--security-opt", "apparmor=x", "host", "true"), "--security-opt 'apparmor=x'"),
        (("--timeout", "never", "host", "true"), "--timeout 'never'"),
        (("-e", "=x", "host", "true"), "a variable needs a name"),
        (("--env-file", "/no/such/file", "host", "true"), "--env-file /no/such/file"),
        (("-u", "nobody-of-that-name", "host", "true"), "--user 'nobody-of-that-name'"),
        (("/no/such/directory", "true"), "/no/such/directory"),
        (("--pull", "never", "no/such:image", "true"), "no/such:image"),
        (("host",), "no command"),
        (("-d", "host", "true"), "Put & behind it"),
        (("--sig-proxy=perhaps", "host", "true"), "--sig-proxy"),
    ],
    ids=str,
)
def test_an_error_of_ours_is_125_and_names_what_was_wrong(words, text):
    """A wrong flag, value, directory or image ends with 125 and a line that names it; the command
    never starts.
    """
    done = run(*words)
    assert (125, "") == (done.returncode, done.stdout)
    assert text in done.stderr
    assert "Traceback" not in done.stderr


@root
@pytest.mark.needs("cpuset")
def test_a_limit_that_cannot_be_held_names_the_flag():
    """What this host refuses is called as it was typed."""
    assert (
        "--cpuset-cpus '4000' is not supported here"
        in run("--cpuset-cpus", "4000", "host", "true").stderr
    )


def test_a_name_that_is_taken_is_refused():
    """Two living containers never have the same --name; the error says who has it, and a name is
    free when its container has ended.
    """
    name = f"box-{uuid.uuid4().hex}"
    with subprocess.Popen(
        [*COMMAND, "-i", "--name", name, "host", "cat"], stdin=subprocess.PIPE
    ) as first:
        wait_for(lambda: name in [one.label for one in remote.list_containers()])
        (holder,) = [one.id for one in remote.list_containers() if one.label == name]
        second = run("--name", name, "host", "true")
        assert (125, True) == (
            second.returncode,
            f"--name {name}: the container {holder} has this name" in second.stderr,
        )
        first.stdin.close()
    assert 0 == run("--name", name, "host", "true").returncode


def test_of_many_that_ask_for_a_name_one_gets_it():
    """The name is looked up and taken in one step."""
    name = f"box-{uuid.uuid4().hex}"
    started = [
        subprocess.Popen(
            [*COMMAND, "--name", name, "host", "sleep", "1000"], stderr=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    wait_for(lambda: 3 == len([one for one in started if one.poll() == 125]), 60)
    (winner,) = [one for one in started if one.poll() is None]
    wait_for(lambda: name in [one.label for one in remote.list_containers()])
    winner.terminate()
    assert [125, 125, 125, 143] == sorted(one.wait() for one in started)
    for one in started:
        one.stderr.close()


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize(
    ("words", "status"),
    [
        ("run host echo hi", 0),
        ("run -i host cat", 0),
        ("run host sh -c 'exit 7'", 7),
        ("run -m 5x host true", 125),
        ("run host no-such-command", 127),
        ("run", 125),
        ("ps -a", 0),
        ("stats --no-stream", 0),
        ("exec no-such-container true", 125),
        ("diff no-such-container", 125),
        ("rm no-such-container", 125),
        ("images", 0),
        ("--help", 0),
        ("bogus", 125),
    ],
)
def test_a_closed_stream_changes_no_status(words, status, closed, monkeypatch, tmp_path):
    """With standard input, output or error closed a verb ends as it does with all open."""
    monkeypatch.setenv("PYTEST_SANDBOX_HOME", str(tmp_path))
    shell = f"exec </dev/null; {sys.executable} -m pytest_sandbox {words} {closed}"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=False)
    assert (status, False) == (done.returncode, "Traceback" in done.stderr), done.stderr


def test_the_output_goes_where_ours_goes():
    """Standard output and error stay apart, and nothing of ours is among them."""
    done = run("host", "sh", "-c", "echo out; echo err >&2")
    assert ("out\n", "err\n") == (done.stdout, done.stderr)


def test_files_as_streams(tmp_path: Path):
    """Standard streams may be files: read to their end, written whole."""
    (tmp_path / "in").write_text("line\n" * 100_000)
    with (tmp_path / "in").open() as source, (tmp_path / "out").open("w") as target:
        subprocess.run([*COMMAND, "-i", "host", "cat"], stdin=source, stdout=target, check=True)
    assert "line\n" * 100_000 == (tmp_path / "out").read_text()


def test_without_i_the_input_is_not_the_commands():
    """Without -i the command has an empty standard input, and ours stays unread."""
    done = subprocess.run(
        ["sh", "-c", f"{' '.join(COMMAND)} host cat; cat"],
        input="kept",
        capture_output=True,
        text=True,
        check=True,
    )
    assert "kept" == done.stdout


def test_with_i_the_input_is_the_commands():
    """With -i the command reads our standard input to its end, a megabyte as well as a line."""
    text = "x" * 1_000_000
    assert text == said("-i", "host", "cat", input=text)


def test_a_command_that_leaves_its_input_ends_at_once():
    """The end of the command is the end, although more input could come."""
    reader, writer = os.pipe()
    try:
        assert (
            3
            == subprocess.run(
                [*COMMAND, "-i", "host", "sh", "-c", "exit 3"],
                stdin=reader,
                check=False,
                timeout=60,
            ).returncode
        )
    finally:
        os.close(reader)
        os.close(writer)


class TestFlags:
    """Each flag reaches what it is named for."""

    def test_variables(self, tmp_path: Path):
        """-e beats --env-file; a name alone takes this process's value, and none where there is
        none.
        """
        (tmp_path / "env").write_text("# comment\n\nA=file\nB=file two\nFROM_US\nNOT_THERE\n")
        environment = {**os.environ, "FROM_US": "ours", "ALSO": "too"}
        environment.pop("NOT_THERE", None)
        script = "echo $A,$B,$FROM_US,$ALSO,${NOT_THERE-unset}"
        words = (
            "-e",
            "A=flag",
            "-e",
            "ALSO",
            "--env-file",
            str(tmp_path / "env"),
            "host",
            "sh",
            "-c",
            script,
        )
        assert "flag,file two,ours,too,unset\n" == said(*words, env=environment)

    def test_volumes(self, tmp_path: Path):
        """-v shows a host directory inside, and keeps what is written there; :ro does not let it be
        written.
        """
        (tmp_path / "in").write_text("seen")
        assert "seen" == said(
            "-v", f"{tmp_path}:/data", "host", "sh", "-c", "cat /data/in; echo kept > /data/out"
        )
        assert "kept\n" == (tmp_path / "out").read_text()
        assert 0 != run("-v", f"{tmp_path}:/data:ro", "host", "touch", "/data/more").returncode

    def test_mounts(self, tmp_path: Path):
        """--mount type=bind is --volume in other words; other types and fields are refused."""
        (tmp_path / "in").write_text("read")
        for form in ("type=bind,source={},target=/x,readonly", "type=bind,src={},dst=/x,ro=true"):
            assert "read\n" == said(
                "--mount",
                form.format(tmp_path),
                "host",
                "sh",
                "-c",
                "cat /x/in; touch /x/out 2>&- ; echo",
            )
        assert ["in"] == os.listdir(tmp_path)
        said("--mount", f"type=bind,destination=/x,source={tmp_path}", "host", "touch", "/x/out")
        assert ["in", "out"] == sorted(os.listdir(tmp_path))
        for wrong in (
            "type=tmpfs,target=/x",
            "type=bind,source=/,target=",
            "type=bind,source=/,target=/x,mode=7",
            "/a:/b",
        ):
            refused = run("--mount", wrong, "host", "true")
            assert (125, True) == (refused.returncode, f"{wrong!r} is not valid" in refused.stderr)

    def test_init_is_accepted(self):
        """--init changes nothing."""
        assert "hi\n" == said("--init", "host", "echo", "hi")

    def test_all_else_is_thrown_away(self, tmp_path: Path):
        """What the command writes elsewhere is gone with its container."""
        assert "x\n" == said("host", "sh", "-c", f"echo x > {tmp_path}/gone; cat {tmp_path}/gone")
        assert [] == list(tmp_path.iterdir())

    @root
    def test_who_and_where(self):
        """-u, -w and -h are the command's user, directory and host name; a directory that is not
        there is made.
        """
        assert "1000:2000 /made/here box\n" == said(
            "-u",
            "1000:2000",
            "-w",
            "/made/here",
            "-h",
            "box",
            "host",
            "sh",
            "-c",
            "echo $(id -u):$(id -g) $(pwd) $(hostname)",
        )

    @root
    def test_the_network(self):
        """--network none has loopback alone; host has ours."""
        ours = sorted(os.listdir("/sys/class/net"))
        assert "lo\n" == said("host", "ls", "/sys/class/net")
        assert ours == said("--network", "host", "host", "ls", "/sys/class/net").split()

    def test_a_disks_rates(self):
        """--device-read-bps and its kin are the settings of their names; what is no disk is refused
        with the form that is.
        """
        refused = run("--device-write-iops", "/etc/passwd:10", "host", "true")
        assert (125, True) == (
            refused.returncode,
            "--device-write-iops '/etc/passwd' is not valid; accepted: a block device"
            in refused.stderr,
        )
        wrong = [
            run(f"--device-{name}", "/dev/sda", "host", "true")
            for name in ("read-bps", "write-bps", "read-iops", "write-iops")
        ]
        assert [125] * 4 == [done.returncode for done in wrong]
        assert [] == [done.stderr for done in wrong if "PATH:RATE" not in done.stderr]

    @pytest.mark.needs("limits")
    def test_limits(self):
        """-m, --cpus and --pids-limit are the cgroup's."""
        with_name = uuid.uuid4().hex
        command = [
            *COMMAND,
            "--name",
            with_name,
            "-m",
            "64m",
            "--cpus",
            "1.5",
            "--pids-limit",
            "50",
            "host",
            "sleep",
            "1000",
        ]
        with subprocess.Popen(command) as process:
            try:
                (one,) = wait_for(
                    lambda: [
                        one for one in remote.list_containers(stats=True) if one.label == with_name
                    ]
                )
                assert (64 << 20, 1.5, 50) == (
                    one.settings.memory,
                    one.settings.cpus,
                    one.settings.pids_limit,
                )
                assert 64 << 20 == one.stats.memory_limit
            finally:
                process.kill()

    @pytest.mark.needs("memory")
    def test_a_kill_for_memory_is_told(self):
        """Over -m the command ends with 137, and a line says why."""
        done = run("-m", "20m", "host", sys.executable, "-c", "x = b'x' * 200_000_000")
        assert (137, True) == (done.returncode, "killed for memory" in done.stderr)

    def test_an_overrun_is_told(self):
        """Over --timeout the command and all below it end with 137, and a line says why."""
        done = run("--timeout", "0.3", "host", "sh", "-c", "sleep 1000 & sleep 1000")
        assert (137, True) == (done.returncode, "longer than --timeout 0.3 seconds" in done.stderr)

    def test_ulimits_and_shm(self):
        """--ulimit and --shm-size are the command's."""
        script = "ulimit -Sn; ulimit -Hn; df -k /dev/shm | tail -1 | awk '{print $2}'"
        assert "64\n128\n2048\n" == said(
            "--ulimit", "nofile=64:128", "--shm-size", "2m", "host", "sh", "-c", script
        )

    @root
    def test_capabilities(self):
        """--cap-drop takes a capability away, --cap-add gives one."""
        effective = "grep CapEff /proc/self/status | cut -f2"
        assert "0000000000000000\n" == said("--cap-drop", "ALL", "host", "sh", "-c", effective)
        assert 1 << 25 == int(
            said("--cap-drop", "ALL", "--cap-add", "SYS_TIME", "host", "sh", "-c", effective), 16
        )

    @root
    def test_security_options_and_privileged(self):
        """--security-opt and --privileged lift what they name."""
        script = "grep -E '^(NoNewPrivs|Seccomp):' /proc/self/status | cut -f2 | tr '\\n' ' '"
        assert "1 2 " == said("host", "sh", "-c", script)
        assert "1 0 " == said("--security-opt", "seccomp=unconfined", "host", "sh", "-c", script)
        assert "0 0 " == said("--privileged", "host", "sh", "-c", script)

    def test_read_only(self):
        """--read-only lets nothing be written."""
        assert 0 != run("--read-only", "host", "touch", "/etc/x").returncode

    def test_disk(self):
        """--disk ends writing with ENOSPC."""
        assert (
            "No space left"
            in run(
                "--disk", "1m", "host", "dd", "if=/dev/zero", "of=/etc/big", "bs=1M", "count=2"
            ).stderr
        )

    def test_rm_is_accepted(self):
        """--rm, which docker's users write, changes nothing."""
        assert "hi\n" == said("--rm", "host", "echo", "hi")

    def test_the_commands_own_options(self):
        """What follows the image is the command's, also where we have a flag of that name, and
        after --.
        """
        assert "-m --rm -- -it\n" == said("host", "echo", "-m", "--rm", "--", "-it")
        assert "x\n" == said("--", "host", "echo", "x")

    def test_an_entrypoint(self):
        """--entrypoint is put before the command."""
        assert "a b\n" == said("--entrypoint", "/bin/echo", "host", "a", "b")


class TestSignals:
    """Signals to the command line are the command's, as docker's --sig-proxy."""

    CODE = (
        "import signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 32)); "
        "print('ready', flush=True); "
        "print(signal.sigwait({int(n) for n in sys.argv[1:]}))"
    )

    def start(self, *flags: str, **keywords: object) -> subprocess.Popen[str]:
        numbers = [
            str(int(one))
            for one in (
                signal.SIGHUP,
                signal.SIGINT,
                signal.SIGQUIT,
                signal.SIGTERM,
                signal.SIGUSR1,
                signal.SIGUSR2,
            )
        ]
        process = subprocess.Popen(
            [*COMMAND, *flags, "host", sys.executable, "-c", self.CODE, *numbers],
            stdout=subprocess.PIPE,
            text=True,
            **keywords,
        )
        assert "ready\n" == process.stdout.readline()
        return process

    @pytest.mark.parametrize(
        "number",
        [
            signal.SIGHUP,
            signal.SIGINT,
            signal.SIGQUIT,
            signal.SIGTERM,
            signal.SIGUSR1,
            signal.SIGUSR2,
        ],
    )
    def test_a_signal_is_passed_on(self, number):
        """The command gets the signal and decides; its status is ours."""
        with self.start() as process:
            process.send_signal(number)
            assert (f"{int(number)}\n", 0) == (process.stdout.read(), process.wait(60))

    def test_without_the_proxy_it_is_ours(self):
        """--sig-proxy=false: SIGTERM ends the command line, and the container with it."""
        with self.start("--sig-proxy=false") as process:
            process.terminate()
            assert ("", -signal.SIGTERM) == (process.stdout.read(), process.wait(60))

    def test_what_we_were_started_to_ignore_stays_ignored(self):
        """Under nohup a SIGHUP reaches neither us nor the command."""
        with self.start(preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)) as process:
            process.send_signal(signal.SIGHUP)
            process.send_signal(signal.SIGUSR1)
            assert f"{int(signal.SIGUSR1)}\n" == process.stdout.read()

    def test_a_kill_takes_the_container_along(self):
        """SIGKILL to the command line leaves nothing of the container running."""
        name = uuid.uuid4().hex
        with self.start("--name", name) as process:
            (one,) = [one for one in remote.list_containers() if one.label == name]
            process.kill()
            process.wait()
        wait_for(lambda: not os.path.exists(f"/proc/{one.pid}"))


@root
def test_a_directory_is_an_image(tmp_path: Path):
    """IMAGE may be a directory with a root file system."""
    from boxes import make_busybox_root

    root = make_busybox_root(tmp_path / "root")
    assert "ann\n" == said("-u", "ann", str(root), "id", "-un")
