"""``run -it``, ``exec -it`` and ``shell`` on a pseudo-terminal."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from terminals import Terminal, wait_for

from pytest_sandbox import Container
from pytest_sandbox.container import remote
from pytest_sandbox.container.processes import list_processes

pytestmark = pytest.mark.needs("root")

SHELL = ("run", "-it", "host", "/bin/sh")
#: A program that prints when it can be interrupted (a shell that has just forked can lose a key),
#: and when it was continued.
WAIT = (
    "import os, signal, time; "
    # os.write(): the signal may come while print() is at work, which is not reentrant.
    'signal.signal(signal.SIGCONT, lambda *_: os.write(1, b"con" + b"tinued\\n")); '
    'os.write(1, b"st" + b"arted\\n"); time.sleep(1000)'
)
HOLD = f"{sys.executable} -c '{WAIT}'"


def process_state(pid: int) -> str:
    """Return the state in /proc/PID/stat: T for stopped."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def named(name: str) -> list[remote.RemoteContainer]:
    return [one for one in remote.list_containers() if one.label == name]


def test_the_command_has_a_terminal_of_the_container():
    """The command has a controlling terminal of the container with the size of the user's."""
    with Terminal(
        "run",
        "-it",
        "host",
        "sh",
        "-c",
        "tty; stty size; echo here > /dev/tty; ls /dev/pts",
        rows=33,
        columns=77,
    ) as screen:
        assert "/dev/pts/0\r\n33 77\r\nhere\r\n0\r\nptmx\r\n" == screen.rest().replace(
            "0  ptmx", "0\r\nptmx"
        )
        assert 0 == screen.wait()


def test_an_interactive_shell():
    """Input is echoed once, and the exit status is that of the shell."""
    with Terminal(*SHELL) as screen:
        screen.read(r"# |\$ ")
        screen.type("echo $((6 * 7))\n")
        assert 1 == screen.read(r"\r\n42\r\n").count("echo $((6 * 7))")
        screen.type("exit 7\n")
        assert 7 == screen.wait()
        assert screen.is_as_it_was()


def test_ctrl_d():
    """Ctrl-D ends the shell inside."""
    with Terminal(*SHELL) as screen:
        screen.read(r"# |\$ ")
        screen.type("\x04")
        assert 0 == screen.wait()


def test_ctrl_c_in_a_shell():
    """Ctrl-C interrupts the foreground job inside, and not the shell."""
    with Terminal(*SHELL) as screen:
        screen.read(r"# |\$ ")
        screen.type(f"{HOLD}\n")
        screen.read("started")
        screen.type("\x03")
        screen.read(r"# |\$ ")
        screen.type("echo still-$((1 + 1))\n")
        screen.read("still-2")
        screen.type("exit 0\n")
        assert 0 == screen.wait()


def test_ctrl_c_to_the_command():
    """Ctrl-C ends a command with the status 130, and the terminal is restored."""
    with Terminal("run", "-it", "host", sys.executable, "-c", WAIT) as screen:
        screen.read("started")
        assert screen.is_raw()
        screen.type("\x03")
        assert (130, True) == (screen.wait(), screen.is_as_it_was())


@pytest.mark.needs("bash")
def test_ctrl_z_in_a_shell():
    """Ctrl-Z stops the foreground job inside, and not the command line; `fg` continues it."""
    with Terminal("run", "-it", "host", "bash", "--norc", "-i") as screen:
        screen.read(r"\$ ")
        screen.type(f"{HOLD}\n")
        screen.read("started")
        screen.type("\x1a")
        screen.read("Stopped")
        screen.read(r"\$ ")
        assert "T" != process_state(screen.process.pid)
        screen.type("fg\n")
        screen.read("continued")
        screen.type("\x03")
        screen.read(r"\$ ")
        screen.type("exit 5\n")
        assert 5 == screen.wait()


def test_a_resized_window():
    """The terminal inside is resized with the user's, and programs get SIGWINCH."""
    code = (
        "import signal, os; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGWINCH]); "
        "print('ready', flush=True); "
        "signal.sigwait([signal.SIGWINCH]); print(os.get_terminal_size())"
    )
    with Terminal("run", "-it", "host", sys.executable, "-c", code, rows=30, columns=90) as screen:
        screen.read("ready")
        screen.resize(11, 55)
        screen.read(r"columns=55, lines=11")
        assert 0 == screen.wait()


@pytest.mark.parametrize(
    ("args", "status"),
    [
        (("run", "-it", "host", "no-such-command"), 127),
        (("run", "-it", "host", "/etc"), 126),
        (("run", "-it", "-m", "1", "host", "true"), 125),
        (("run", "-it", "host", "sh", "-c", "stty raw -echo; kill -9 $$"), 137),
    ],
    ids=str,
)
def test_the_terminal_is_restored(args, status):
    """The settings of the user's terminal are restored after every kind of end."""
    with Terminal(*args) as screen:
        assert (status, True) == (screen.wait(), screen.is_as_it_was())


def test_the_terminal_is_restored_after_the_end_of_the_container():
    """If the container is killed, the status is 137 and the terminal is restored."""
    name = uuid.uuid4().hex
    with Terminal("run", "--name", name, "-it", "host", sys.executable, "-c", WAIT) as screen:
        screen.read("started")
        (one,) = named(name)
        os.kill(one.pid, signal.SIGKILL)
        assert (137, True) == (screen.wait(), screen.is_as_it_was())


def test_the_terminal_is_restored_after_sigterm():
    """SIGTERM ends the command with the status 143, and the terminal is restored."""
    with Terminal("run", "-it", "host", sys.executable, "-c", WAIT) as screen:
        screen.read("started")
        screen.signal(signal.SIGTERM)
        assert (143, True) == (screen.wait(), screen.is_as_it_was())


def test_a_closed_window_ends_the_container():
    """When the terminal hangs up, the command line and the container end."""
    name = uuid.uuid4().hex
    with Terminal(
        "run",
        "--name",
        name,
        "-it",
        "host",
        "sh",
        "-c",
        "trap '' HUP; echo started; while :; do sleep 1000; done",
    ) as screen:
        screen.read("started")
        (one,) = named(name)
        screen.hang_up()
        assert 129 == screen.process.wait(60)
        assert [] == named(name)
        assert not os.path.exists(f"/proc/{one.pid}")


def test_the_terminal_is_restored_while_stopped():
    """SIGTSTP restores the terminal and stops the command line; SIGCONT sets raw mode."""
    with Terminal(*SHELL) as screen:
        screen.read(r"# |\$ ")
        screen.signal(signal.SIGTSTP)
        wait_for(lambda: process_state(screen.process.pid) == "T")
        assert screen.is_as_it_was()
        screen.resize(12, 34)
        screen.signal(signal.SIGCONT)
        wait_for(screen.is_raw)
        screen.type("stty size\n")
        screen.read("12 34")
        screen.type("exit\n")
        assert (0, True) == (screen.wait(), screen.is_as_it_was())


def test_long_output_is_complete():
    """50,000 lines of output are shown up to the last one."""
    with Terminal("run", "-it", "host", "seq", "1", "50000") as screen:
        lines = screen.rest().split()
        assert [str(number) for number in range(1, 50001)] == lines


def test_a_long_paste_does_not_deadlock():
    """A command that writes much before it reads gets a long paste without a deadlock."""
    code = (
        "import os, sys, tty; tty.setraw(0); print('ready', flush=True); sys.stdout.write('y' * "
        "300_000 + '\\n'); sys.stdout.flush(); "
        "n = 0\nwhile n < 200_000: n += len(os.read(0, 65536))\nprint('got', n)"
    )
    with Terminal("run", "-it", "host", sys.executable, "-c", code) as screen:
        screen.read("ready")
        left = b"x" * 200_000
        os.set_blocking(screen.master, False)

        def paste_and_read() -> bool:
            nonlocal left
            with contextlib.suppress(BlockingIOError):
                left = left[os.write(screen.master, left) :]
            screen._take()
            return "got 200000" in screen.seen

        wait_for(paste_and_read)
        assert 300_000 == screen.seen.count("y")


def test_t_without_i():
    """-t without -i gives the command a terminal without input, also if ours is not a terminal."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest_sandbox", "run", "-t", "host", "sh", "-c", "tty; exit 3"],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.PIPE,
    )
    assert (3, "/dev/pts/0\n") == (done.returncode, done.stdout)


def test_it_with_a_pipe_is_refused():
    """-it with a pipe as standard input is an error."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest_sandbox", *SHELL],
        capture_output=True,
        text=True,
        check=False,
        input="",
    )
    assert (125, True) == (done.returncode, "-it needs a terminal" in done.stderr)


def test_without_t_the_command_has_no_terminal():
    """Without -t the command has pipes, although the user has a terminal."""
    with Terminal(
        "run", "-i", "host", "sh", "-c", "for fd in 0 1 2; do test -t $fd || echo $fd; done; cat"
    ) as screen:
        screen.read("0\r\n1\r\n2\r\n")
        screen.type("typed\n")
        screen.read("typed\r\ntyped\r\n")
        screen.type("\x04")
        assert 0 == screen.wait()


def test_output_and_errors_are_in_order():
    """Without -t standard output and error are shown on a terminal in the order of the writes."""
    with Terminal(
        "run", "host", "sh", "-c", "for i in 1 2 3 4 5; do echo out$i; echo err$i >&2; done"
    ) as screen:
        assert "".join(f"out{i}\r\nerr{i}\r\n" for i in range(1, 6)) == screen.rest()


def test_ctrl_c_without_t():
    """Without -t Ctrl-C interrupts a shell and its foreground job."""
    with Terminal("run", "host", "sh", "-c", f"{HOLD}; echo never") as screen:
        screen.read("started")
        screen.type("\x03")
        assert (130, False) == (screen.wait(), "never" in screen.rest())


def test_the_user_owns_the_terminal():
    """The user of -u owns the terminal, and can open it by name."""
    with Terminal(
        "run",
        "-it",
        "-u",
        "1000",
        "host",
        "sh",
        "-c",
        "id -u; echo named > $(tty); stat -c %u $(tty)",
    ) as screen:
        assert "1000\r\nnamed\r\n1000\r\n" == screen.rest()


def test_term_in_an_image(tmp_path):
    """In an image TERM is xterm, as with docker, unless -e sets it."""
    program = shutil.which("busybox") or pytest.skip("needs busybox (Debian: busybox-static)")
    (tmp_path / "bin").mkdir()
    shutil.copy(program, tmp_path / "bin/busybox")
    for flags, said in (([], "xterm"), (["-e", "TERM=vt100"], "vt100")):
        with Terminal(
            "run", "-it", *flags, str(tmp_path), "/bin/busybox", "sh", "-c", "echo $TERM"
        ) as screen:
            assert f"{said}\r\n" == screen.rest()


class TestExec:
    """A command in a container of another process."""

    def test_a_shell_in_a_running_container(self):
        """`exec -it` has a terminal of the container, which keeps running after the end."""
        with Container() as container, Terminal("exec", "-it", container.id, "/bin/sh") as screen:
            screen.read(r"# |\$ ")
            screen.type("tty; hostname; exit 9\n")
            screen.read(rf"/dev/pts/0\r\n{container.hostname}\r\n")
            assert (9, True, 0) == (
                screen.wait(),
                screen.is_as_it_was(),
                container.run(["true"]).returncode,
            )

    def test_a_background_process_does_not_delay_the_end(self):
        """The command line ends although a background process has the terminal open."""
        with (
            Container() as container,
            Terminal(
                "exec", "-it", container.id, "sh", "-c", "sleep 1000 & echo left; exit 0"
            ) as screen,
        ):
            assert (0, True) == (screen.wait(), "left" in screen.rest())

    def test_a_closed_window_does_not_end_the_container(self):
        """When the terminal hangs up, the command gets SIGHUP, and the container keeps running."""
        with Container() as container:
            with Terminal("exec", "-it", container.id, sys.executable, "-c", WAIT) as screen:
                screen.read("started")
                screen.hang_up()
                assert 129 == screen.process.wait(60)
            wait_for(lambda: not list_processes(container.handle))
            assert 0 == container.run(["true"]).returncode

    def test_the_end_of_the_container_is_137(self):
        """When the owner closes the container, the status is 137 and the terminal is restored."""
        container = Container().start()
        with Terminal("exec", "-it", container.id, sys.executable, "-c", WAIT) as screen:
            screen.read("started")
            container.close()
            assert (137, True) == (screen.wait(), screen.is_as_it_was())

    def test_shell(self):
        """`shell` starts an interactive shell with a terminal, and has its exit status."""
        with Container() as container, Terminal("shell", container.id) as screen:
            screen.type("test -t 0 && hostname; exit 6\n")
            screen.read(rf"{container.hostname}\r\n")
            assert 6 == screen.wait()


@pytest.mark.needs("tmux")
def test_in_tmux(tmp_path):
    """In tmux, the prompt, resizing, Ctrl-C and exit work, and the outer shell continues."""
    socket = str(tmp_path / "tmux")
    tmux = ["tmux", "-S", socket, "-f", "/dev/null"]
    environment = {
        name: value for name, value in os.environ.items() if name not in {"TMUX", "PS1"}
    } | {"TERM": "xterm"}

    def shown() -> str:
        return subprocess.run(
            [*tmux, "capture-pane", "-p", "-t", "0.0"], capture_output=True, text=True, check=True
        ).stdout

    def keys(*names: str) -> None:
        subprocess.run([*tmux, "send-keys", "-t", "0.0", *names], check=True)

    command = f"{sys.executable} -m pytest_sandbox run -it -e PS1=inner% host /bin/sh"
    subprocess.run(
        [*tmux, "new-session", "-d", "-x", "100", "-y", "40", "/bin/sh"],
        check=True,
        env=environment,
    )
    try:
        keys(command, "Enter")
        wait_for(lambda: "inner%" in shown().replace(command, ""))
        keys("stty size", "Enter")
        wait_for(lambda: "40 100" in shown() or "39 100" in shown())
        subprocess.run([*tmux, "split-window", "-v", "-t", "0.0", "sleep 1000"], check=True)
        keys("clear; stty size", "Enter")
        wait_for(lambda: any(f"{rows} 100" in shown() for rows in (19, 20)))
        keys(HOLD, "Enter")
        wait_for(lambda: "started" in shown())
        keys("C-c")
        keys("echo in$((1))terrupted; exit 3", "Enter")
        wait_for(lambda: "in1terrupted" in shown() and shown().split()[-1] in {"#", "$"})
        keys("echo status=$?", "Enter")
        wait_for(lambda: "status=3" in shown())
    finally:
        subprocess.run([*tmux, "kill-server"], check=False)
