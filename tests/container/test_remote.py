"""Containers of other processes: list them, find them, and use them."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import tempfile

import pytest

from pytest_sandbox import Container, ContainerStopped, SandboxError
from pytest_sandbox.client import cleanup, session
from pytest_sandbox.container import remote
from pytest_sandbox.container.container import open_remote
from pytest_sandbox.host.trial import attempt
from pytest_sandbox.linux import local_socket
from pytest_sandbox.outcome import Change

pytestmark = pytest.mark.needs("containers")


def mine() -> list[remote.RemoteContainer]:
    """Return the running containers of this session."""
    return [
        one for one in remote.list_containers(stats=True) if one.session == session.current().name
    ]


def of(container: Container) -> remote.RemoteContainer:
    return remote.find(container.id, mine())


def control_socket() -> str:
    return remote._socket_of(session.current().name)


def in_another_process(code: str, *args: str) -> subprocess.CompletedProcess[str]:
    """Run code in another process, which has no containers."""
    begin = (
        "import sys\nfrom pytest_sandbox.container import remote\n"
        "from pytest_sandbox.container.container import open_remote\n"
    )
    return subprocess.run(
        [sys.executable, "-c", begin + code, *args], capture_output=True, text=True, check=False
    )


@pytest.mark.needs("limits")
def test_a_running_container_is_listed():
    """Another process of the user sees id, label, settings and figures; a prepared container is not
    listed.
    """
    container = Container(memory="64m", env={"A": "b"})
    container.handle.label = "tests/test_x.py::test_y"
    with container:
        container.run(["true"])
        (one,) = mine()
        assert (container.id, container.handle.label, container.pid) == (one.id, one.label, one.pid)
        assert (64 << 20, {"A": "b"}, os.getcwd()) == (
            one.settings.memory,
            dict(one.settings.env),
            one.settings.workdir,
        )
        assert (64 << 20, 0) == (one.stats.memory_limit, one.stats.pids_current)
    assert [] == mine()


def test_the_oldest_is_listed_first():
    """Containers are listed in the order of their start."""
    with Container() as first, Container() as second:
        assert [first.id, second.id] == [one.id for one in mine()]


def test_another_process_runs_commands_inside():
    """A command of another process has the container's files, host name and environment."""
    with Container(env={"A": "b"}) as container:
        container.write_text("/etc/only-here", "yes")
        code = (
            "with open_remote(remote.find(sys.argv[1])) as c: print(c.run(['sh', '-c', 'cat "
            "/etc/only-here; hostname; echo $A'], text=True, capture_output=True).stdout)"
        )
        assert f"yes{container.hostname}\nb\n\n" == in_another_process(code, container.id).stdout


def test_diff_of_a_remote_container():
    """diff() of a remote container is the owner's."""
    with Container() as container:
        container.write_text("/etc/only-here", "yes")
        with open_remote(of(container)) as opened:
            assert container.diff() == opened.diff()
            assert Change("/etc/only-here", "added") in opened.diff()


@pytest.mark.needs("limits")
def test_stats_of_a_remote_container():
    """stats() of a remote container are those of its cgroup."""
    with Container(memory="64m") as container, open_remote(of(container)) as opened:
        opened.run(["true"])
        assert (64 << 20, True) == (opened.stats().memory_limit, opened.stats().cpu_seconds > 0)


def test_closing_a_remote_container_leaves_it_running():
    """Neither close() of a remote container nor the death of the process that uses it ends the
    container.
    """
    with Container() as container:
        with open_remote(of(container)) as opened:
            assert 0 == opened.run(["true"]).returncode
        killed = in_another_process(
            "import os; c = open_remote(remote.find(sys.argv[1])); os.kill(os.getpid(), 9)",
            container.id,
        )
        assert (-signal.SIGKILL, 0) == (killed.returncode, container.run(["true"]).returncode)


@pytest.mark.vm
def test_the_owners_close_kills_commands_of_other_processes():
    """The owner's close() kills commands of other processes, which get ContainerStopped
    afterwards.
    """
    with Container() as container:
        opened = open_remote(of(container))
        popen = opened.popen(["sleep", "1000"])
    assert -signal.SIGKILL == popen.wait(30)
    with pytest.raises(ContainerStopped):
        opened.run(["true"])
    opened.close()


@pytest.mark.needs("limits")
@pytest.mark.parametrize(
    "use",
    [
        lambda c: c.run(["true"]),
        lambda c: c.popen(["true"]),
        lambda c: c.read_text("/etc/hostname"),
        lambda c: c.kill(),
    ],
    ids=["run", "popen", "file", "kill"],
)
def test_a_paused_remote_container_refuses_commands(use):
    """A command in a paused remote container is refused, as by docker, and works after the owner's
    unpause().
    """
    with Container() as container, open_remote(of(container)) as opened:
        container.pause()
        with pytest.raises(ContainerStopped, match=f"{container.id} is paused"):
            use(opened)
        container.unpause()
        assert 0 == opened.run(["true"]).returncode


@pytest.mark.needs("limits")
def test_a_paused_container_can_be_inspected():
    """Figures, changes and the list of containers are available while a container is paused."""
    with Container() as container, open_remote(of(container)) as opened:
        container.write_text("/etc/only-here", "yes")
        container.pause()
        assert (True, False) == (of(container).paused, opened.stats().pids_current is None)
        assert Change("/etc/only-here", "added") in opened.diff()


def test_an_ended_container_cannot_be_opened():
    """A container that has ended since it was listed raises ContainerStopped with a remedy."""
    with Container() as container:
        one = of(container)
    with pytest.raises(ContainerStopped, match="pytest-sandbox ps"):
        open_remote(one)


class TestFind:
    """find() by what a person types."""

    def test_by_a_prefix_of_the_id(self):
        """A unique prefix of the id is enough."""
        with Container() as container:
            assert container.id == remote.find(container.id[:-1], mine()).id

    def test_by_label(self):
        """The label finds the container."""
        container = Container()
        container.handle.label = "database"
        with container:
            assert container.id == remote.find("database", mine()).id

    def test_an_id_that_is_a_prefix_of_another_is_exact(self):
        """The id ending in -1 is found although there is one ending in -11."""
        with Container() as container:
            one = of(container)
            longer = remote.RemoteContainer(one.session, f"{one.id}1", 1, 0.0, "", one.settings)
            assert one == remote.find(one.id, [longer, one])

    def test_an_ambiguous_prefix_is_an_error(self):
        """The error of a prefix of several ids lists them."""
        with (
            Container(),
            Container(),
            pytest.raises(SandboxError, match="the ids of 2 containers start with"),
        ):
            remote.find(session.current().name, mine())

    @pytest.mark.parametrize("name", ["nobody", ""])
    def test_an_unknown_name_is_an_error(self, name):
        """An unknown or empty name is an error with a remedy."""
        with Container(), pytest.raises(SandboxError, match="pytest-sandbox ps"):
            remote.find(name, mine())


class TestAccess:
    """Access to the control socket."""

    def test_the_directory_of_the_socket_is_private(self):
        """The directory of the control socket, and the one above it, are closed to other users."""
        with Container():
            directory = os.path.dirname(control_socket())
            assert [0o700, 0o700, 0o600] == [
                os.stat(path).st_mode & 0o777
                for path in (os.path.dirname(directory), directory, control_socket())
            ]

    @pytest.mark.needs("root")
    def test_connections_of_another_user_are_refused(self):
        """A connection of another user is refused even if the directory is open."""
        with (
            tempfile.TemporaryDirectory() as directory,
            local_socket.listen(path := os.path.join(directory, "socket")) as listening,
        ):
            os.chmod(directory, 0o755)
            os.chmod(path, 0o666)

            def connect_as_nobody() -> str:
                os.setuid(65534)
                with socket.socket(socket.AF_UNIX) as other:
                    other.connect(path)
                return "connected"

            trial = attempt(connect_as_nobody)
            select.select([listening], [], [], 10)
            connection, _address = listening.accept()
            assert ("connected", False) == (trial.said, local_socket.is_peer_trusted(connection))
            connection.close()

    def test_connections_of_this_user_are_accepted(self, tmp_path):
        """A connection of the same user in the same PID namespace is accepted."""
        with (
            local_socket.listen(str(tmp_path / "socket")) as listening,
            local_socket.connect(str(tmp_path / "socket"), 10),
        ):
            select.select([listening], [], [], 10)
            connection, _address = listening.accept()
            assert local_socket.is_peer_trusted(connection)
            connection.close()

    def test_connections_from_a_container_are_refused(self):
        """Root in a container that has the state directory as a volume gets no answer."""
        with Container():
            inside = (
                "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); "
                "b = b'{\"op\": \"list\"}'; s.sendall(len(b).to_bytes(4, 'big') + bytes(4) + b); "
                "print(s.recv(100))"
            )
            with Container(volumes=[f"{cleanup.state_directory()}:/state"]) as hostile:
                path = f"/state/{os.path.relpath(control_socket(), cleanup.state_directory())}"
                done = hostile.run(
                    [sys.executable, "-c", inside, path],
                    capture_output=True,
                    text=True,
                )
            assert True is (
                "b''" in done.stdout
                or "ConnectionResetError" in done.stderr
                or "BrokenPipeError" in done.stderr
            ), done

    def test_a_silent_client_does_not_block_the_launcher(self):
        """A client that sends nothing, or half a message, does not block the launcher."""
        with (
            Container(),
            local_socket.connect(control_socket(), 10),
            local_socket.connect(control_socket(), 10) as half,
        ):
            half.sendall(b"\0\0\0\x10\0\0")
            with Container() as other:
                assert 0 == other.run(["true"]).returncode

    @pytest.mark.parametrize(
        "message",
        [
            b"",
            b"\0\0\0\x02\0\0\0\0{}",
            b"\0\0\0\x02\0\0\0\0[]",
            b"\0\0\0\x01\0\0\0\0x",
            b"\0\0\0\x0f\0\0\0\0" + b'{"op": "bogus"}',
        ],
    )
    def test_an_invalid_message_is_ignored(self, message):
        """An invalid message does not affect the launcher and its containers."""
        with Container() as container:
            with local_socket.connect(control_socket(), 10) as client:
                client.sendall(message)
                client.shutdown(socket.SHUT_WR)
                while client.recv(4096):
                    pass
            assert [container.id] == [one.id for one in mine()]

    def test_the_socket_of_a_dead_session_is_removed(self):
        """After SIGKILL to the launcher, its containers are not listed, and the cleanup removes its
        directory.
        """
        with Container():
            launcher = session.current()
            launcher.process.kill()
            launcher.process.wait()
            assert [] == [one for one in remote.list_containers() if one.session == launcher.name]
        cleanup.remove_leftovers()
        assert not os.path.exists(os.path.join(cleanup.state_directory(), launcher.name))

    def test_an_ended_session_leaves_no_directory(self):
        """A session that ends removes its directory."""
        code = (
            "from pytest_sandbox import Container\nfrom pytest_sandbox.client import session\n"
            "Container().start(); print(session.current().name)"
        )
        name = in_another_process(code).stdout.strip()
        assert (True, False) == (
            bool(name),
            os.path.exists(os.path.join(cleanup.state_directory(), name)),
        )
