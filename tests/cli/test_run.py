"""``pytest-sandbox run``: exit statuses, errors, names, streams and signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from typing import TYPE_CHECKING

import pytest
from command_line import COMMAND, output_of, sandbox
from terminals import wait_for

from pytest_sandbox.container import remote

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.needs("containers")
root = pytest.mark.needs("root")

RUN = [*COMMAND, "run"]
SIGNALS = [
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
]


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
    """The exit status is that of the command, or 126 or 127, as in a shell."""
    assert status == sandbox("run", "host", *command).returncode


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (("-m", "5x", "host", "true"), "--memory '5x' is not valid; accepted: bytes"),
        (
            ("--network", "shared", "host", "true"),
            "--network 'shared' is not valid; accepted: none, bridge, host, the name of a network",
        ),
        (
            ("--network", "pypi.org", "host", "true"),
            (
                "--network 'pypi.org' is not valid; accepted: NAME:PORT or ADDRESS:PORT; did you "
                'mean "pypi.org:443"?\n'
            ),
        ),
        (("-m", "64m", "--memory-swap", "32m", "host", "true"), "--memory-swap '32m' is not valid"),
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
        (("-e", "=x", "host", "true"), "the name is missing"),
        (("--env-file", "/no/such/file", "host", "true"), "--env-file /no/such/file"),
        (("-u", "nobody-of-that-name", "host", "true"), "--user 'nobody-of-that-name'"),
        (("/no/such/directory", "true"), "/no/such/directory"),
        (("--pull", "never", "no/such:image", "true"), "no/such:image"),
        (("host",), "the command is missing"),
        (("-d", "host"), "the command is missing"),
        (("--sig-proxy=perhaps", "host", "true"), "--sig-proxy"),
    ],
    ids=str,
)
def test_an_error_is_125_and_names_the_flag(args, text):
    """An invalid flag, directory or image is an error with the status 125 that names it."""
    done = sandbox("run", *args)
    assert (125, "") == (done.returncode, done.stdout)
    assert text in done.stderr
    assert "Traceback" not in done.stderr


@root
@pytest.mark.needs("cpuset")
def test_the_error_for_an_unsupported_limit_names_the_flag():
    """A limit that this host cannot enforce is named as the user typed it."""
    done = sandbox("run", "--cpuset-cpus", "4000", "host", "true")
    assert "--cpuset-cpus '4000' is not supported here" in done.stderr


def test_a_used_name_is_refused():
    """--name refuses the name of a running container, and accepts it when that has ended."""
    name = f"box-{uuid.uuid4().hex}"
    with subprocess.Popen(
        [*RUN, "-i", "--name", name, "host", "cat"], stdin=subprocess.PIPE
    ) as first:
        wait_for(lambda: name in [one.label for one in remote.list_containers()])
        (holder,) = [one.id for one in remote.list_containers() if one.label == name]
        second = sandbox("run", "--name", name, "host", "true")
        assert (125, True) == (
            second.returncode,
            f"--name {name}: the container {holder} has this name" in second.stderr,
        )
        first.stdin.close()
    assert 0 == sandbox("run", "--name", name, "host", "true").returncode


def test_concurrent_runs_cannot_have_the_same_name():
    """Of four concurrent runs with one name, one starts, and three fail."""
    name = f"box-{uuid.uuid4().hex}"
    started = [
        subprocess.Popen(
            [*RUN, "--name", name, "host", "sleep", "1000"], stderr=subprocess.PIPE, text=True
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
    ("args", "status"),
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
def test_a_closed_stream_does_not_change_the_status(args, status, closed, monkeypatch, tmp_path):
    """A verb has the same status with standard input, output or error closed."""
    monkeypatch.setenv("PYTEST_SANDBOX_HOME", str(tmp_path))
    shell = f"exec </dev/null; {sys.executable} -m pytest_sandbox {args} {closed}"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=False)
    assert (status, False) == (done.returncode, "Traceback" in done.stderr), done.stderr


def test_output_and_errors_are_separate():
    """Standard output and error of the command are those of the command line."""
    done = sandbox("run", "host", "sh", "-c", "echo out; echo err >&2")
    assert ("out\n", "err\n") == (done.stdout, done.stderr)


def test_files_as_streams(tmp_path: Path):
    """Standard input and output can be files, which are read and written completely."""
    (tmp_path / "in").write_text("line\n" * 100_000)
    with (tmp_path / "in").open() as source, (tmp_path / "out").open("w") as target:
        subprocess.run([*RUN, "-i", "host", "cat"], stdin=source, stdout=target, check=True)
    assert "line\n" * 100_000 == (tmp_path / "out").read_text()


def test_without_i_standard_input_is_empty():
    """Without -i the command has an empty standard input, and ours is not read."""
    done = subprocess.run(
        ["sh", "-c", f"{' '.join(RUN)} host cat; cat"],
        input="kept",
        capture_output=True,
        text=True,
        check=True,
    )
    assert "kept" == done.stdout


def test_with_i_the_command_reads_standard_input():
    """With -i the command reads a megabyte from standard input."""
    text = "x" * 1_000_000
    assert text == output_of("run", "-i", "host", "cat", input=text)


def test_open_input_does_not_delay_the_end():
    """The command line ends with the command, although its input is still open."""
    reader, writer = os.pipe()
    try:
        assert (
            3
            == subprocess.run(
                [*RUN, "-i", "host", "sh", "-c", "exit 3"],
                stdin=reader,
                check=False,
                timeout=60,
            ).returncode
        )
    finally:
        os.close(reader)
        os.close(writer)


class TestSignals:
    """Signals that are forwarded to the command, as by docker's --sig-proxy."""

    CODE = (
        "import signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 32)); "
        "print('ready', flush=True); "
        "print(signal.sigwait({int(n) for n in sys.argv[1:]}))"
    )

    def start(self, *flags: str, **keywords: object) -> subprocess.Popen[str]:
        """Start a command that prints the number of the first signal that it receives."""
        numbers = [str(int(one)) for one in SIGNALS]
        process = subprocess.Popen(
            [*RUN, *flags, "host", sys.executable, "-c", self.CODE, *numbers],
            stdout=subprocess.PIPE,
            text=True,
            **keywords,
        )
        assert "ready\n" == process.stdout.readline()
        return process

    @pytest.mark.parametrize("number", SIGNALS)
    def test_a_signal_is_forwarded(self, number):
        """The command receives the signal, and its status is that of the command line."""
        with self.start() as process:
            process.send_signal(number)
            assert (f"{int(number)}\n", 0) == (process.stdout.read(), process.wait(60))

    def test_without_the_proxy_a_signal_ends_the_container(self):
        """With --sig-proxy=false SIGTERM ends the command line and the container."""
        with self.start("--sig-proxy=false") as process:
            process.terminate()
            assert ("", -signal.SIGTERM) == (process.stdout.read(), process.wait(60))

    def test_an_ignored_signal_is_not_forwarded(self):
        """Under nohup, SIGHUP affects neither the command line nor the command."""
        with self.start(preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)) as process:
            process.send_signal(signal.SIGHUP)
            process.send_signal(signal.SIGUSR1)
            assert f"{int(signal.SIGUSR1)}\n" == process.stdout.read()

    def test_sigkill_ends_the_container(self):
        """SIGKILL to the command line ends the container."""
        name = uuid.uuid4().hex
        with self.start("--name", name) as process:
            (one,) = [one for one in remote.list_containers() if one.label == name]
            process.kill()
            process.wait()
        wait_for(lambda: not os.path.exists(f"/proc/{one.pid}"))


@root
def test_a_directory_is_an_image(tmp_path: Path):
    """IMAGE can be a directory with a root file system."""
    from boxes import make_busybox_root

    root = make_busybox_root(tmp_path / "root")
    assert "ann\n" == output_of("run", "-u", "ann", str(root), "id", "-un")
