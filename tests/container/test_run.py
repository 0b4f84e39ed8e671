"""``Container.run`` compared with ``subprocess.run``: equal results and exceptions."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from subprocess import DEVNULL, PIPE, STDOUT

import pytest

from pytest_sandbox import Container, OutOfMemory, SettingsError
from pytest_sandbox.container.processes import list_processes

pytestmark = pytest.mark.needs("containers")

SH = "/bin/sh"
BOTH = [SH, "-c", "echo out; echo err >&2"]
ECHO_ARGS = [SH, "-c", 'printf "%s|" "$0" "$@"', "zero"]


def told(outcome):
    """Return the content of a result or an exception in a form that can be compared."""
    if isinstance(outcome, subprocess.CompletedProcess):
        return ("done", outcome.args, outcome.returncode, outcome.stdout, outcome.stderr)
    kind = type(outcome)
    if isinstance(outcome, OSError):
        return (kind, outcome.errno, outcome.strerror, outcome.filename)
    if isinstance(outcome, subprocess.CalledProcessError):
        return (
            kind,
            outcome.cmd,
            outcome.returncode,
            outcome.output,
            outcome.stdout,
            outcome.stderr,
            str(outcome),
        )
    if isinstance(
        outcome, subprocess.TimeoutExpired
    ):  # without captured output, subprocess.run has the remaining time here
        return (
            kind,
            outcome.cmd,
            round(outcome.timeout, 1),
            outcome.output,
            outcome.stdout,
            outcome.stderr,
        )
    return (kind, str(outcome))


def attempt(run, *args, **keywords):
    try:
        return told(run(*args, **keywords))
    except Exception as error:  # noqa: BLE001 - whatever it is, it is compared
        return told(error)


SAME = {
    "nothing": ([SH, "-c", "exit 0"], {}),
    "status": ([SH, "-c", "exit 7"], {}),
    "status 255": ([SH, "-c", "exit 255"], {}),
    "check": ([SH, "-c", "echo a; echo b >&2; exit 3"], {"check": True, "capture_output": True}),
    "check, nothing captured": ([SH, "-c", "exit 3"], {"check": True}),
    "check of a success": (["true"], {"check": True}),
    "check of a signal": ([SH, "-c", "kill -TERM $$"], {"check": True}),
    "capture": (BOTH, {"capture_output": True}),
    "capture text": (BOTH, {"capture_output": True, "text": True}),
    "universal_newlines": (
        [SH, "-c", r"printf 'a\r\nb\rc\n'"],
        {"capture_output": True, "universal_newlines": True},
    ),
    "text and universal_newlines disagree": (BOTH, {"text": True, "universal_newlines": False}),
    "encoding": ([SH, "-c", r"printf '\344'"], {"stdout": PIPE, "encoding": "latin-1"}),
    "a wrong byte": ([SH, "-c", r"printf '\377'"], {"stdout": PIPE, "encoding": "utf-8"}),
    "errors": (
        [SH, "-c", r"printf '\377'"],
        {"stdout": PIPE, "encoding": "utf-8", "errors": "replace"},
    ),
    "errors alone mean text": (
        [SH, "-c", r"printf '\377'"],
        {"stdout": PIPE, "errors": "backslashreplace"},
    ),
    "unknown encoding": (BOTH, {"stdout": PIPE, "encoding": "none-such"}),
    "stderr to stdout": (BOTH, {"stdout": PIPE, "stderr": STDOUT}),
    "stderr alone": (BOTH, {"stdout": DEVNULL, "stderr": PIPE}),
    "devnull": (["cat"], {"stdin": DEVNULL, "stdout": DEVNULL, "stderr": DEVNULL}),
    "stdin pipe, no input": (["cat"], {"stdin": PIPE, "stdout": PIPE}),
    "input": (["cat"], {"input": b"some\0bytes", "stdout": PIPE}),
    "empty input": (["cat"], {"input": b"", "stdout": PIPE}),
    "input text": (["cat"], {"input": "süß\n", "stdout": PIPE, "text": True}),
    "input text encoded": (
        ["od", "-An", "-tx1"],
        {"input": "ü", "stdout": PIPE, "encoding": "utf-16-le"},
    ),
    "input of another type": (["cat"], {"input": "text", "stdout": PIPE}),
    "input nobody reads": (["true"], {"input": b"x" * 200_000}),
    "input bytearray": (["cat"], {"input": bytearray(b"abc"), "stdout": PIPE}),
    "input memoryview": (["cat"], {"input": memoryview(b"abc"), "stdout": PIPE}),
    "input and stdin": (["cat"], {"input": b"", "stdin": PIPE}),
    "capture and stdout": (["cat"], {"capture_output": True, "stdout": PIPE}),
    "capture and stderr": (["cat"], {"capture_output": True, "stderr": DEVNULL}),
    "stdout=STDOUT": (["true"], {"stdout": STDOUT}),
    "env": ([SH, "-c", "echo $A-$B"], {"env": {"A": "1"}, "stdout": PIPE}),
    "env replaces all": (["/usr/bin/env"], {"env": {"A": "1", "B": "x y"}, "stdout": PIPE}),
    "env of bytes": (["/usr/bin/env"], {"env": {b"A": b"\xff"}, "stdout": PIPE}),
    "env, a name with an equals sign": (["/usr/bin/env"], {"env": {"A=B": "1"}}),
    "env, an empty name": (["/usr/bin/env"], {"env": {"": "1"}, "stdout": PIPE}),
    "env, a null byte": (["/usr/bin/env"], {"env": {"A": "1\0"}}),
    "env of another type": (["/usr/bin/env"], {"env": {"A": 1}}),
    "env PATH is where the command is looked up": (["some-tool"], {"env": {"PATH": "/nowhere"}}),
    "cwd": (["pwd"], {"cwd": "/usr", "stdout": PIPE}),
    "cwd path": (["pwd"], {"cwd": Path("/usr/bin"), "stdout": PIPE}),
    "cwd bytes": (["pwd"], {"cwd": b"/usr", "stdout": PIPE}),
    "cwd missing": (["pwd"], {"cwd": "/no/such/directory"}),
    "cwd missing path": (["pwd"], {"cwd": Path("/no/such/directory")}),
    "cwd a file": (["pwd"], {"cwd": "/etc/passwd"}),
    "cwd with a null byte": (["pwd"], {"cwd": "/a\0b"}),
    "missing command": (["no-such-command", "x"], {}),
    "missing command with a path": (["/no/such/command"], {}),
    "missing command as text": ("no-such-command", {}),
    "missing command as a path": ([Path("/no/such/command")], {}),
    "not executable": (["/etc/passwd"], {}),
    "a directory": (["/usr"], {}),
    "below a file": (["/etc/passwd/x"], {}),
    "an empty command": ([""], {}),
    "no words": ("", {}),
    "null byte": (["echo", "a\0b"], {}),
    "words of another type": (["echo", 3], {}),
    "None": (None, {}),
    "args as text": ("true", {}),
    "args as a tuple": (("echo", "a"), {"stdout": PIPE}),
    "args as a path": (Path("/bin/true"), {}),
    "args as bytes": ([b"echo", b"\xff"], {"stdout": PIPE}),
    "args that have surrogates": (["echo", "\udcff"], {"stdout": PIPE}),
    "args are words, not shell": (["echo", "$HOME; exit 3", "*"], {"stdout": PIPE}),
    "empty word": ([*ECHO_ARGS, "", "b"], {"stdout": PIPE}),
    "long word": (["expr", "length", "x" * 100_000], {"stdout": PIPE}),
    "too long word": (["echo", "x" * 200_000], {}),
    "shell": ("echo $((1 + 2)) | tr 3 4", {"shell": True, "stdout": PIPE}),
    "shell with words": (["echo $0 $1", "a", "b"], {"shell": True, "stdout": PIPE}),
    "shell, missing command": ("no-such-command-here 2>/dev/null", {"shell": True}),
    "executable": (["zero", "-c", "echo $0"], {"executable": SH, "stdout": PIPE}),
    "executable missing": (["echo"], {"executable": "/no/such"}),
    "executable of a shell": (
        "echo $0",
        {"shell": True, "executable": "/bin/bash", "stdout": PIPE},
    ),
    "umask": ([SH, "-c", "umask"], {"umask": 0o027, "stdout": PIPE}),
    "user by number": (["id", "-u"], {"user": 1234, "stdout": PIPE}),
    "user by name": (["id", "-un"], {"user": "daemon", "stdout": PIPE}),
    "user zero": (["id", "-u"], {"user": 0, "stdout": PIPE}),
    "group": (["id", "-g"], {"group": 4321, "stdout": PIPE}),
    "extra_groups": ([SH, "-c", "id -G"], {"group": 1, "extra_groups": [5, 6], "stdout": PIPE}),
    "start_new_session": (["true"], {"start_new_session": True}),
    "process_group": (["true"], {"process_group": 0}),
    "an unknown UID": (["id", "-u"], {"user": 54321, "stdout": PIPE}),
    "cwd relative, missing": (["pwd"], {"cwd": "no-such-directory"}),
    "cwd relative": (["ls"], {"cwd": "usr/share/..", "stdout": PIPE}),
    "command relative to cwd": (["./true"], {"cwd": "/bin"}),
    "a script without an interpreter": (["/no-interpreter"], {}),
    "restore_signals": (
        [SH, "-c", "grep SigIgn /proc/self/status"],
        {"restore_signals": False, "stdout": PIPE},
    ),
    "signals restored": (
        [SH, "-c", "grep SigIgn /proc/self/status"],
        {"restore_signals": True, "stdout": PIPE},
    ),
    "close_fds": (["true"], {"close_fds": True}),
    "bufsize": (["echo", "a"], {"bufsize": 0, "stdout": PIPE}),
    "bufsize 1": (["echo", "a"], {"bufsize": 1, "stdout": PIPE, "text": True}),
    "bufsize of another type": (["true"], {"bufsize": "many"}),
    "pipesize": (["echo", "a"], {"pipesize": 1 << 16, "stdout": PIPE}),
    "pipesize of another type": (["true"], {"pipesize": "many"}),
    "timeout not reached": (["echo", "a"], {"timeout": 30, "stdout": PIPE}),
    "timeout": ([SH, "-c", "echo early; exec sleep 60"], {"timeout": 0.3, "stdout": PIPE}),
    "timeout, text": (
        [SH, "-c", "echo early; exec sleep 60"],
        {"timeout": 0.3, "capture_output": True, "text": True},
    ),
    "timeout, nothing captured": (["sleep", "60"], {"timeout": 0.1}),
    "timeout of zero": (["sleep", "60"], {"timeout": 0}),
    "negative timeout": (["sleep", "60"], {"timeout": -1}),
    "unknown argument": (["true"], {"no_such_argument": 1}),
    "stdin of another type": (["true"], {"stdin": object()}),
    "stdin of a closed descriptor": (["true"], {"stdin": 987}),
    "a number nobody has as stdout": (["true"], {"stdout": 987}),
    "out of a real pipe": (["head", "-c", "300000", "/dev/zero"], {"stdout": PIPE}),
    "SIGPIPE": ([SH, "-c", "yes | head -n 1"], {"stdout": PIPE}),
} | {
    f"signal {number.name}": ([SH, "-c", f"kill -{int(number)} $$"], {})
    for number in (
        signal.SIGHUP,
        signal.SIGINT,
        signal.SIGQUIT,
        signal.SIGABRT,
        signal.SIGKILL,
        signal.SIGSEGV,
        signal.SIGPIPE,
        signal.SIGUSR1,
    )
}


@pytest.mark.parametrize(("args", "keywords"), SAME.values(), ids=SAME.keys())
def test_run_equals_subprocess_run(box, args, keywords, monkeypatch):
    """The same call returns an equal CompletedProcess, or raises an exception of the same type,
    attributes and text.
    """
    # From Python 3.13 on, subprocess may use posix_spawn(3), which ignores other signals and
    # accepts a command as text only.
    monkeypatch.setattr(subprocess, "_USE_POSIX_SPAWN", False)
    assert attempt(subprocess.run, args, **keywords) == attempt(box.run, args, **keywords)


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    """Make relative paths mean the same outside and inside."""
    monkeypatch.chdir("/")


def test_timeout_expired_has_the_given_timeout(box):
    """TimeoutExpired has the caller's value, also without captured output."""
    with pytest.raises(subprocess.TimeoutExpired) as caught:
        box.run(["sleep", "60"], timeout=0.25)
    assert (0.25, ["sleep", "60"]) == (caught.value.timeout, caught.value.cmd)


def test_a_timeout_kills_descendants(box):
    """At the timeout the command and its descendants are killed, so that none keeps a pipe open."""
    with pytest.raises(subprocess.TimeoutExpired):
        box.run([SH, "-c", "sleep 61 & sleep 62 & wait"], timeout=0.3, stdout=PIPE)
    assert [] == [line for _pid, line in list_processes(box.handle) if line.startswith("sleep 6")]


def test_timeout_defaults_to_the_setting():
    """``timeout`` of the settings is used unless run() is given one."""
    with Container(timeout=0.2) as c:
        with pytest.raises(subprocess.TimeoutExpired) as caught:
            c.run(["sleep", "60"])
        assert 0.2 == caught.value.timeout
        assert 0 == c.run(["sleep", "0.3"], timeout=60).returncode


def test_output_to_a_file_starts_at_its_position(box, tmp_path):
    """Output to a regular file starts at its position, or at its end in append mode, and is
    complete when run() returns.
    """
    with open(tmp_path / "out", "wb+") as out:
        out.write(b"before\n")
        out.flush()
        box.run([SH, "-c", "seq 100000"], stdout=out, check=True)
        out.write(b"after\n")
    lines = (tmp_path / "out").read_bytes().split(b"\n")
    assert [b"before", b"1", b"100000", b"after", b""] == [lines[0], lines[1], *lines[-3:]]


def test_input_from_a_file_starts_at_its_position(box, tmp_path):
    """A regular file as stdin is read from its position."""
    (tmp_path / "in").write_bytes(b"0123" * 100_000)
    with open(tmp_path / "in", "rb") as file:
        os.lseek(file.fileno(), 2, os.SEEK_SET)
        done = box.run(["wc", "-c"], stdin=file, stdout=PIPE, check=True)
    assert b"399998\n" == done.stdout


def test_stdout_and_stderr_may_be_one_file(box, tmp_path):
    """With stderr=STDOUT, a file gets both outputs in the order of writing."""
    with open(tmp_path / "out", "wb") as out:
        box.run(
            [SH, "-c", "for i in 1 2 3; do echo o$i; echo e$i >&2; done"],
            stdout=out,
            stderr=STDOUT,
            check=True,
        )
    assert b"o1\ne1\no2\ne2\no3\ne3\n" == (tmp_path / "out").read_bytes()


def test_a_descriptor_of_a_pipe_is_used_directly(box):
    """A descriptor of a pipe serves as stdout, and stays open in the caller."""
    reader, writer = os.pipe()
    with open(reader, "rb") as read:
        with open(writer, "wb") as write:
            box.run(["echo", "through"], stdout=write.fileno(), check=True)
            write.write(b"still mine\n")
        assert b"through\nstill mine\n" == read.read()


def test_a_temporary_file_serves_as_output(box):
    """An unnamed file works as with subprocess."""
    with tempfile.TemporaryFile() as file:
        box.run(["echo", "a"], stdout=file, check=True)
        file.seek(0)
        assert b"a\n" == file.read()


def test_output_defaults_to_the_callers(tmp_path):
    """Without stdout and stderr, a command writes to the caller's own, or to /dev/null if they are
    closed.
    """
    code = (
        "import os, sys; from pytest_sandbox import Container; c = Container().start(); "
        "c.run(['sh', '-c', 'echo out; echo err >&2; cat'], check=True); "
        "os.close(0); os.close(1); c.run(['sh', '-c', 'echo lost; cat'], check=True); c.close()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=b"in\n", capture_output=True, check=True, timeout=60
    )
    assert (b"out\nin\n", b"err\n") == (done.stdout, done.stderr)


def test_the_caller_s_environment_is_inherited(box, monkeypatch):
    """On the host's root, a command gets the caller's current environment, as with subprocess."""
    monkeypatch.setenv("SOME_NEW_NAME", "value")
    assert b"value\n" == box.run(["printenv", "SOME_NEW_NAME"], stdout=PIPE, check=True).stdout


def test_env_of_the_settings_is_added_and_an_argument_replaces_it():
    """``env`` of the settings is added to the environment; ``env`` of run() is the whole
    environment, as in subprocess.
    """
    with Container(env={"A": "settings"}) as c:
        assert b"settings\n" == c.run(["printenv", "A"], stdout=PIPE).stdout
        assert b"B=1\n" == c.run(["/usr/bin/env"], env={"B": "1"}, stdout=PIPE).stdout


@pytest.mark.parametrize(
    ("keywords", "said"),
    [
        ({"user": "nobody-such"}, "user='nobody-such' is not valid"),
        ({"user": "root:nobody-such"}, "user='root:nobody-such' is not valid"),
        ({"group": "nobody-such"}, "group='nobody-such' is not valid"),
        ({"extra_groups": ["nobody-such"]}, "group='nobody-such' is not valid"),
        ({"preexec_fn": print}, "preexec_fn="),
        ({"process_group": 77}, "process_group=77 is not valid"),
    ],
)
def test_invalid_arguments_are_refused(box, keywords, said):
    """An argument that has no meaning in a container, or an unknown user, is a SettingsError with
    its name.
    """
    with pytest.raises(SettingsError) as caught:
        box.run(["true"], **keywords)
    assert said in str(caught.value)


@pytest.mark.needs("memory")
def test_check_raises_out_of_memory():
    """With check=True, a kill for memory raises OutOfMemory, a CalledProcessError with the
    limit.
    """
    eat = [sys.executable, "-c", "x = bytearray(400 << 20)"]
    with Container(memory="64m") as c:
        with pytest.raises(OutOfMemory) as caught:
            c.run(eat, check=True)
        assert (-signal.SIGKILL, eat, 64 << 20) == (
            caught.value.returncode,
            caught.value.cmd,
            caught.value.memory_limit,
        )
        assert -signal.SIGKILL == c.run(eat).returncode
        assert 0 == c.run(["true"], check=True).returncode


def test_check_raises_called_process_error_for_another_kill(box):
    """A SIGKILL of another origin raises a plain CalledProcessError."""
    with pytest.raises(subprocess.CalledProcessError) as caught:
        box.run([SH, "-c", "kill -9 $$"], check=True)
    assert (subprocess.CalledProcessError, -9) == (type(caught.value), caught.value.returncode)


def test_user_of_the_settings_and_home():
    """``user`` is looked up inside with its groups; HOME is its home unless the environment has
    one.
    """
    with Container(user="daemon") as c:
        assert b"daemon\n" == c.run(["id", "-un"], stdout=PIPE, check=True).stdout
        assert b"root\n" == c.run(["id", "-un"], user="root", stdout=PIPE, check=True).stdout
        assert (
            b"daemon bin\n"
            == c.run(
                [SH, "-c", "echo $(id -un) $(id -gn)"], user="daemon:bin", stdout=PIPE, check=True
            ).stdout
        )


def test_a_process_without_standard_streams_can_start_containers(tmp_path):
    """The library's descriptors are not 0, 1 or 2, even if a daemon has closed those before."""
    code = (
        "import os, sys; os.closerange(0, 3); from pytest_sandbox import Container\n"
        "with Container() as c:\n"
        "    out = c.run(['sh', '-c', 'cat; echo out; ls /proc/self/fd | wc -l'], "
        "capture_output=True, check=True).stdout\n"
        "    value = c.call(len, 'four')\n"
        "open(sys.argv[1], 'w').write(f'{out} {value}')\n"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "said"], check=True, timeout=60)
    assert "b'out\\n4\\n' 4" == (tmp_path / "said").read_text()
