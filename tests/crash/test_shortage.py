"""Interrupts, full disks and missing resources: each is an error, and the library works on."""

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
from crash import leftovers

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
    """Ctrl-C, once or also during the cleanup, ends the process, and nothing is left."""
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
    assert [] == leftovers.of(p.pid)


def test_ctrl_c_while_a_container_starts():
    """Ctrl-C in the middle of start() or close() ends the process, and nothing is left."""
    code = """
from pytest_sandbox import Container
print("ready", flush=True)
while True:
    with Container() as c: pass
"""
    for _ in range(5):
        with python(code, start_new_session=True) as p:
            p.stdout.readline()
            time.sleep(0.15)  # nothing is awaited: the moment of the interrupt is random
            os.killpg(p.pid, signal.SIGINT)
            p.communicate(timeout=60)
        assert p.returncode != 0
        assert [] == leftovers.of(p.pid)


def test_terminate():
    """A process that SIGTERM ends leaves nothing."""
    with python(
        "from pytest_sandbox import Container; c = Container().start(); print(1, flush=True); "
        "c.run(['sleep', '60'])"
    ) as p:
        p.stdout.readline()
        p.terminate()
        p.communicate(timeout=60)
    assert [] == leftovers.of(p.pid)


def test_an_exception_in_the_block():
    """An exception in the with block closes the container."""
    with pytest.raises(ZeroDivisionError), Container() as c:
        1 / 0  # noqa: B018
    assert "stopped" == c.status


def test_exit_without_close():
    """Open containers end with the process: at its exit, or, after os._exit, by the launcher."""
    for end in ("", "sys.exit(3)", "os._exit(4)", "raise SystemExit", "os.kill(os.getpid(), 9)"):
        with python(
            "import os, sys; from pytest_sandbox import Container; c = Container().start(); "
            f"c.popen(['sleep', '60']); {end}"
        ) as p:
            p.communicate(timeout=60)
        assert [] == leftovers.of(p.pid), end


def test_a_launcher_that_dies_takes_its_containers():
    """Its containers are stopped, and the next container gets a new launcher."""
    with Container() as c:
        with c.popen(["sleep", "60"]) as p:
            os.kill(leftovers.launcher_of(os.getpid()), signal.SIGKILL)
            assert -signal.SIGKILL == p.wait(30)
        assert process.ended(c.handle.pidfd, 30)
        with pytest.raises(ContainerStopped):
            c.run(["true"])
        assert "stopped" == c.status
    with Container() as again:
        assert 0 == again.run(["true"]).returncode


def test_a_launcher_that_dies_between_two_containers():
    """A new one creates the next container, also while the old one has not ended completely."""
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
    """A full file system inside is an error of the command, and the container works on."""
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
    """A stdout file on a full file system of the host is an OSError of run()."""
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
    """EMFILE is an error of the call that needs a descriptor; once some are free, all works."""
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
    errors = []
    uses = [
        lambda: c.run(["true"], capture_output=True), lambda: c.call(len, ""),
        lambda: c.read_text("/etc/passwd"), c.stats, c.diff, lambda: Container().start().close(),
    ]
    for free in range(12):
        for use in uses:
            try: use()
            except Exception as error: errors.append(type(error).__name__)
        os.close(held.pop())
    for fd in held: os.close(fd)
    assert c.run(["true"], capture_output=True).returncode == 0
    assert c.call(len, "a") == 1 and c.read_text("/etc/passwd")
    with Container() as other: assert other.run(["true"]).returncode == 0
    print(sorted(set(errors)))
"""
    with python(code) as p:
        out, error = p.communicate(timeout=100)
    assert set(eval(out or repr([error]))) <= {
        "OSError",
        "SetupError",
        "ContainerStopped",
        "SandboxError",
    }
    assert [] == leftovers.of(p.pid)


def test_too_many_processes_inside():
    """A fork bomb stops at pids_limit; after kill() the container can be used again."""
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
    """At a limit on namespaces of a kind, start() fails with the reason, or does without a user
    namespace; nothing is left.
    """
    code = f"""
import os, sys
open("/proc/sys/user/max_{kind}_namespaces", "w").write("0")
from pytest_sandbox import Container, SandboxError
try:
    with Container(pids_limit=None) as c: print("ran", c.run(["true"]).returncode)
except SandboxError as error: print(type(error).__name__, error)
"""
    # A new user namespace has limits of its own (namespaces(7)): the host's stay as they are.
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
    assert [] == leftovers.of(p.pid)


def test_a_state_directory_that_others_may_write_to(tmp_path):
    """It is refused, and the error names it and says what to do."""
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
    """The launcher works with a client's small stack, no core files and few open files."""
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
    """A SandboxError of a worker process can be pickled for its parent."""
    import pickle

    c = Container().start()
    c.close()
    with pytest.raises(SandboxError) as caught:
        c.run(["true"])
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(caught.value), str(caught.value)) == (type(again), str(again))


def test_a_step_that_fails_is_named(tmp_path):
    """The error for an unsuitable root file system names the step, and the library works on."""
    (tmp_path / "root").mkdir()
    (tmp_path / "root/dev").symlink_to("/tmp")
    with pytest.raises(SetupError) as caught:
        Container(image=tmp_path / "root").start()
    assert "mount root" in caught.value.step
    with Container() as c:
        assert 0 == c.run(["true"]).returncode


CREATE = """
import sys
from pytest_sandbox.runtime.create import ContainerBuilder
from pytest_sandbox.runtime.host_resources import HostResources
from pytest_sandbox.runtime.spec import Spec
host = HostResources(sys.argv[1])
options = {"hostname": "x", "network": -1, "cgroup_files": (sys.argv[2],), "held_layers": {}}
ContainerBuilder(Spec(), host, **options).build()
"""


def waiting_child(parent):
    """Wait for a child of a process that blocks in openat(2); return its PID."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for pid in leftovers.children_of(parent):
            if leftovers.read(f"/proc/{pid}/syscall").startswith(b"%d " % number("openat")):
                return pid
    raise TimeoutError


def test_a_container_that_is_half_created_when_its_launcher_dies(tmp_path):
    """It ends, also if the launcher dies before the child asks for the death signal (prctl(2))."""
    # In place of a cgroup's file: opening it for writing blocks until there is a reader (fifo(7)).
    os.mkfifo(tmp_path / "group")
    with subprocess.Popen(
        [sys.executable, "-c", CREATE, str(tmp_path), str(tmp_path / "group")]
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


def test_the_directory_of_a_session_without_a_lock_file():
    """A cleanup removes it, and leaves those of sessions whose lock is held."""
    with Container():
        directory = Path(cleanup.state_directory()) / f"{os.getpid():x}-dead00"
        (directory / "networks").mkdir(parents=True)
        own = [
            path
            for path in Path(cleanup.state_directory()).iterdir()
            if path.name.startswith(f"{os.getpid():x}-") and path != directory
        ]
        cleanup.remove_leftovers()
        assert (False, 2, True) == (
            directory.exists(),
            len(own),
            all(path.exists() for path in own),
        )
