"""Interrupts, and what is short or missing: each is said, and leaves a library that works on."""

from __future__ import annotations

import os
import resource
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from crash import remains
from crash.remains import all_gone

from pytest_sandbox import Container, ContainerStopped, SandboxError, SetupError
from pytest_sandbox.client import cleanup
from pytest_sandbox.linux import process
from pytest_sandbox.linux.syscall_batch import number

pytestmark = pytest.mark.needs("root")


def python(code, **keywords):
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **keywords,
    )


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize(
    "doing",
    [
        "c.run(['sleep', '60'])",
        "c.call(time.sleep, 60)",
        "c.popen(['sleep', '60']).wait()",
        "time.sleep(60)",
    ],
)
def test_ctrl_c(doing, times):
    """KeyboardInterrupt, once or again while it cleans up, ends the process, and nothing is
    left.
    """
    code = f"""
import os, time
from pytest_sandbox import Container
with Container() as c:
    c.popen(["sleep", "61"])
    print("ready", flush=True)
    {doing}
"""
    with python(code, start_new_session=True) as p:
        assert "ready\n" == p.stdout.readline()
        for _ in range(times):
            os.killpg(p.pid, signal.SIGINT)
        _out, error = p.communicate(timeout=60)
    assert -signal.SIGINT == p.returncode
    assert "KeyboardInterrupt" in error
    assert [] == all_gone(p.pid)


def test_ctrl_c_while_a_container_starts():
    """An interrupt in the middle of start() and close() ends the process as well."""
    code = """
from pytest_sandbox import Container
print("ready", flush=True)
while True:
    with Container() as c: pass
"""
    for _ in range(5):
        with python(code, start_new_session=True) as p:
            p.stdout.readline()
            time.sleep(0.15)  # into the work; when exactly is left to chance
            os.killpg(p.pid, signal.SIGINT)
            p.communicate(timeout=60)
        assert p.returncode != 0
        assert [] == all_gone(p.pid)


def test_terminate():
    """SIGTERM's default end leaves nothing either."""
    with python(
        "from pytest_sandbox import Container; c = Container().start(); print(1, flush=True); "
        "c.run(['sleep', '60'])"
    ) as p:
        p.stdout.readline()
        p.terminate()
        p.communicate(timeout=60)
    assert [] == all_gone(p.pid)


def test_an_exception_in_the_block():
    """Leaving by an exception closes."""
    with pytest.raises(ZeroDivisionError), Container() as c:
        1 / 0  # noqa: B018
    assert "stopped" == c.status


def test_exit_without_close():
    """sys.exit and the end of the script close what is open, os._exit leaves it to the launcher."""
    for end in ("", "sys.exit(3)", "os._exit(4)", "raise SystemExit", "os.kill(os.getpid(), 9)"):
        with python(
            "import os, sys; from pytest_sandbox import Container; c = Container().start(); "
            f"c.popen(['sleep', '60']); {end}"
        ) as p:
            p.communicate(timeout=60)
        assert [] == all_gone(p.pid), end


def test_a_launcher_that_dies_takes_its_containers():
    """ContainerStopped for what lived, and the next container has a new launcher."""
    with Container() as c:
        with c.popen(["sleep", "60"]) as p:
            os.kill(remains.launcher_of(os.getpid()), signal.SIGKILL)
            assert -signal.SIGKILL == p.wait(30)
        assert process.ended(c.handle.pidfd, 30)
        with pytest.raises(ContainerStopped):
            c.run(["true"])
        assert "stopped" == c.status
    with Container() as again:
        assert 0 == again.run(["true"]).returncode


def test_a_launcher_that_dies_between_two_containers():
    """The next container is made by a new one, also while the old one can not be waited for yet."""
    for _ in range(20):
        with Container() as c:
            launcher = c.handle.launcher
        os.kill(launcher.process.pid, signal.SIGKILL)
        gone = select.poll()
        gone.register(launcher.channel.fileno(), 0)
        assert gone.poll(30_000)
        with Container() as again:
            assert (0, True) == (
                again.run(["true"]).returncode,
                again.handle.launcher is not launcher,
            )


@pytest.mark.parametrize("where", ["/tmp", "/dev/shm", "/usr"])
def test_a_full_disk_inside(where):
    """ENOSPC inside is the test's matter: the container reports, answers and closes."""
    with Container(disk="4m", shm_size="1m") as c:
        done = c.run(
            ["sh", "-c", f"dd if=/dev/zero of={where}/x bs=1M count=50; echo $?"],
            capture_output=True,
            text=True,
        )
        assert ("1\n", True) == (done.stdout, "No space left" in done.stderr)
        with pytest.raises(OSError, match="No space left"):
            c.write_bytes(f"{where}/y", bytes(8 << 20))
        assert 7 == c.call(lambda: 7)
        assert c.diff() or where == "/dev/shm"


def test_a_full_disk_outside(tmp_path):
    """A stdout file on a full file system is the caller's OSError, where the command would have met
    it.
    """
    code = f"""
import subprocess, sys
from pytest_sandbox import Container
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", {str(tmp_path)!r}], check=True)
with Container() as c, open({str(tmp_path / "out")!r}, "wb") as out:
    try:
        c.run(["head", "-c", "1000000", "/dev/zero"], stdout=out, timeout=30)
    except OSError as error:
        print(error.errno == 28)
"""
    command = ["unshare", "--mount", "--propagation", "private", sys.executable, "-c", code]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert "True\n" == done.stdout, done.stderr


def test_too_many_open_files():
    """EMFILE is an OSError of the call that met it; with descriptors free again, all works."""
    code = """
import os, resource
from pytest_sandbox import Container
with Container() as c:
    c.run(["true"])
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    held = []
    try:
        while True: held.append(os.open("/dev/null", os.O_RDONLY))
    except OSError: pass
    said = []
    for free in range(12):
        for use in (lambda: c.run(["true"], capture_output=True), lambda: c.call(len, ""), lambda: c.read_text("/etc/passwd"), c.stats, c.diff,
                    lambda: Container().start().close()):
            try: use()
            except Exception as error: said.append(type(error).__name__)
        os.close(held.pop())
    for fd in held: os.close(fd)
    assert c.run(["true"], capture_output=True).returncode == 0 and c.call(len, "a") == 1 and c.read_text("/etc/passwd")
    with Container() as other: assert other.run(["true"]).returncode == 0
    print(sorted(set(said)))
"""
    with python(code) as p:
        out, error = p.communicate(timeout=100)
    assert set(eval(out or repr([error]))) <= {
        "OSError",
        "SetupError",
        "ContainerStopped",
        "SandboxError",
    }
    assert [] == all_gone(p.pid)


def test_too_many_processes_inside():
    """A fork bomb ends at pids_limit, and the container can be ended and used."""
    with Container(pids_limit=30) as c:
        with c.popen(
            ["sh", "-c", "bomb() { bomb | bomb & }; bomb; wait"], stderr=subprocess.DEVNULL
        ):
            deadline = time.monotonic() + 30
            while c.stats().pids_peak < 30:
                assert time.monotonic() < deadline
            c.kill()
        c.kill()
        assert c.stats().pids_peak <= 30
        assert 0 == c.run(["true"]).returncode


WITHOUT = {
    "user": ("max_user_namespaces", None),
    "net": ("max_net_namespaces", "net"),
    "mnt": ("max_mnt_namespaces", "mnt"),
    "pid": ("max_pid_namespaces", "pid"),
    "uts": ("max_uts_namespaces", "uts"),
    "ipc": ("max_ipc_namespaces", "ipc"),
    "cgroup": ("max_cgroup_namespaces", "cgroup"),
}


@pytest.mark.parametrize("kind", WITHOUT)
def test_a_host_that_lacks_a_namespace(kind):
    """Where the kernel gives no more namespaces of a kind, a container is refused with the reason,
    or does without the user's; nothing is left.
    """
    code = f"""
import os, sys
open("/proc/sys/user/max_{kind}_namespaces", "w").write("0")
from pytest_sandbox import Container, SandboxError
try:
    with Container(pids_limit=None) as c: print("ran", c.run(["true"]).returncode)
except SandboxError as error: print(type(error).__name__, error)
"""
    # A user namespace of its own has limits of its own, so that the host's are not touched.
    command = [
        "unshare",
        "--user",
        "--map-root-user",
        "--mount",
        "--propagation",
        "private",
        sys.executable,
        "-c",
        code,
    ]
    p = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    out, error = p.communicate(timeout=100)
    assert "Traceback" not in error, error
    assert out.startswith(("ran 0", "SetupError", "UnsupportedError")), (out, error)
    assert [] == all_gone(p.pid)


def test_a_state_directory_of_somebody_else(tmp_path):
    """A state directory in which others may write is not trusted, and the error says which and what
    to do.
    """
    directory = tmp_path / "pytest-sandbox"
    directory.mkdir()
    directory.chmod(0o777)
    code = (
        f"import pytest_sandbox.paths as f; f.states = lambda: [{str(directory)!r}]\nfrom "
        "pytest_sandbox import Container\nContainer().start()"
    )
    with python(code) as p:
        _out, error = p.communicate(timeout=60)
    assert str(directory) in error
    assert "remove it" in error


def test_a_client_with_limits_of_its_own():
    """A small stack, no core and few files of the caller's do not hinder the launcher."""
    code = (
        "from pytest_sandbox import Container\nwith Container() as c: "
        "print(c.run(['true']).returncode)"
    )

    def limit():
        resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
        resource.setrlimit(resource.RLIMIT_STACK, (1 << 20, 1 << 20))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    with python(code, preexec_fn=limit) as p:
        assert ("0\n", "") == p.communicate(timeout=60)


def test_an_error_pickles():
    """What goes wrong inside a worker reaches its parent whole."""
    import pickle

    c = Container().start()
    c.close()
    with pytest.raises(SandboxError) as caught:
        c.run(["true"])
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(caught.value), str(caught.value)) == (type(again), str(again))


def test_a_step_that_fails_is_named(tmp_path):
    """A root that cannot be a root says which step met what, and leaves nothing."""
    (tmp_path / "root").mkdir()
    (tmp_path / "root/dev").symlink_to("/tmp")
    with pytest.raises(SetupError) as caught:
        Container(image=tmp_path / "root").start()
    assert "mount root" in caught.value.step
    with Container() as c:
        assert 0 == c.run(["true"]).returncode


BUILDER = """
import sys
from pytest_sandbox.runtime.create import Building, Host
from pytest_sandbox.runtime.spec import Spec
Building(Spec(), Host(sys.argv[1]), hostname="x", joins=(sys.argv[2],), shelved={}).build()
"""


def waiting_child(parent):
    """Wait for the child of a process that waits for a file to be opened; returns its number."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for pid in remains._read(f"/proc/{parent}/task/{parent}/children").decode().split():
            if remains._read(f"/proc/{pid}/syscall").startswith(b"%d " % number("openat")):
                return int(pid)
    raise TimeoutError


def test_a_container_that_is_half_made_when_its_launcher_dies(tmp_path):
    """The kernel kills an init with its launcher from the moment on that it asks for it; where the
    launcher died before, init ends by itself.
    """
    os.mkfifo(tmp_path / "group")  # whoever opens it to join waits until somebody reads
    with subprocess.Popen(
        [sys.executable, "-c", BUILDER, str(tmp_path), str(tmp_path / "group")]
    ) as launcher:
        pidfd = os.pidfd_open(waiting_child(launcher.pid))
        launcher.kill()
    reader = os.open(tmp_path / "group", os.O_RDONLY)
    try:
        assert process.ended(pidfd, 20)
    finally:
        process.kill(pidfd, signal.SIGKILL)
        for fd in (reader, pidfd):
            os.close(fd)


def test_what_a_client_makes_for_a_session_that_was_swept():
    """A session's directory that has no lock is nobody's, and goes with the next sweep; one whose
    lock is held stays.
    """
    with Container():
        directory = Path(cleanup.state_directory()) / f"{os.getpid():x}-dead00"
        (directory / "networks").mkdir(parents=True)
        own = [
            path
            for path in Path(cleanup.state_directory()).iterdir()
            if path.name.startswith(f"{os.getpid():x}-") and path != directory
        ]
        cleanup.sweep()
        assert (False, 2, True) == (
            directory.exists(),
            len(own),
            all(path.exists() for path in own),
        )
