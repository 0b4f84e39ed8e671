"""Containers seen from other processes: which there are, and a way into one."""

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
from pytest_sandbox.host.trial import attempt
from pytest_sandbox.linux import local_socket
from pytest_sandbox.outcome import Change

pytestmark = pytest.mark.needs("containers")


def mine() -> list[remote.Living]:
    """The living containers of this test's own session."""
    return [one for one in remote.living(stats=True) if one.session == session.current().name]


def of(container: Container) -> remote.Living:
    return remote.find(container.id, mine())


def door() -> str:
    return os.path.join(cleanup.state_directory(), session.current().name, "door")


def elsewhere(code: str, *args: str) -> subprocess.CompletedProcess[str]:
    """Run code in another process, which has no container of its own."""
    begin = "import sys\nfrom pytest_sandbox.container import remote\n"
    return subprocess.run(
        [sys.executable, "-c", begin + code, *args], capture_output=True, text=True, check=False
    )


@pytest.mark.needs("limits")
def test_a_living_container_is_listed_with_what_it_is():
    """Another process of the user sees id, label, settings and figures; one made ahead for later is
    not listed.
    """
    container = Container(memory="64m", env={"A": "b"})
    container.label = "tests/test_x.py::test_y"
    with container:
        container.run(["true"])
        (one,) = mine()
        assert (container.id, container.label, container.pid) == (one.id, one.label, one.pid)
        assert (64 << 20, {"A": "b"}, os.getcwd()) == (
            one.settings.memory,
            dict(one.settings.env),
            one.settings.workdir,
        )
        assert (64 << 20, 0) == (one.stats.memory_limit, one.stats.pids_current)
    assert [] == mine()


def test_the_oldest_is_listed_first():
    """The list is in the order of starting."""
    with Container() as first, Container() as second:
        assert [first.id, second.id] == [one.id for one in mine()]


def test_another_process_runs_commands_inside():
    """A command that another process starts sees the container's files, host name and variables."""
    with Container(env={"A": "b"}) as container:
        container.write_text("/etc/only-here", "yes")
        code = (
            "with remote.enter(remote.find(sys.argv[1])) as c: print(c.run(['sh', '-c', 'cat "
            "/etc/only-here; hostname; echo $A'], text=True, capture_output=True).stdout)"
        )
        assert f"yes{container.hostname}\nb\n\n" == elsewhere(code, container.id).stdout


def test_another_process_sees_what_was_changed():
    """diff() of an entered container is the owner's."""
    with Container() as container:
        container.write_text("/etc/only-here", "yes")
        with remote.enter(of(container)) as entered:
            assert container.diff() == entered.diff()
            assert Change("/etc/only-here", "added") in entered.diff()


@pytest.mark.needs("limits")
def test_another_process_sees_the_figures():
    """stats() of an entered container are its group's."""
    with Container(memory="64m") as container, remote.enter(of(container)) as entered:
        entered.run(["true"])
        assert (64 << 20, True) == (entered.stats().memory_limit, entered.stats().cpu_seconds > 0)


def test_a_visitor_that_leaves_leaves_the_container_running():
    """Closing an entered container, or dying with it, ends nothing of its owner's."""
    with Container() as container:
        with remote.enter(of(container)) as entered:
            assert 0 == entered.run(["true"]).returncode
        killed = elsewhere(
            "import os; c = remote.enter(remote.find(sys.argv[1])); os.kill(os.getpid(), 9)",
            container.id,
        )
        assert (-signal.SIGKILL, 0) == (killed.returncode, container.run(["true"]).returncode)


@pytest.mark.vm
def test_a_visitors_command_ends_with_the_container():
    """The owner's close() kills what a visitor runs, and tells the visitor."""
    with Container() as container:
        entered = remote.enter(of(container))
        popen = entered.popen(["sleep", "1000"])
    assert -signal.SIGKILL == popen.wait(30)
    with pytest.raises(ContainerStopped):
        entered.run(["true"])
    entered.close()


@pytest.mark.needs("limits")
@pytest.mark.parametrize(
    "enters",
    [
        lambda c: c.run(["true"]),
        lambda c: c.popen(["true"]),
        lambda c: c.read_text("/etc/hostname"),
        lambda c: c.kill(),
    ],
    ids=["run", "popen", "file", "kill"],
)
def test_nobody_enters_a_paused_container(enters):
    """Who would wait for the owner's unpause() is told at once, as docker does it; afterwards all
    goes on.
    """
    with Container() as container, remote.enter(of(container)) as entered:
        container.pause()
        with pytest.raises(ContainerStopped, match=f"{container.id} is paused"):
            enters(entered)
        container.unpause()
        assert 0 == entered.run(["true"]).returncode


@pytest.mark.needs("limits")
def test_a_paused_container_is_listed_and_looked_at():
    """What needs nobody inside works on: figures, changes, the list of containers."""
    with Container() as container, remote.enter(of(container)) as entered:
        container.write_text("/etc/only-here", "yes")
        container.pause()
        assert (True, False) == (of(container).paused, entered.stats().pids_current is None)
        assert Change("/etc/only-here", "added") in entered.diff()


def test_an_ended_container_cannot_be_entered():
    """What has ended since it was listed is a ContainerStopped with the way to find others."""
    with Container() as container:
        one = of(container)
    with pytest.raises(ContainerStopped, match="pytest-sandbox ps"):
        remote.enter(one)


class TestFind:
    """Finding one by what a person writes."""

    def test_by_the_beginning_of_its_id(self):
        """As much of an id as tells it from the others is enough."""
        with Container() as container:
            assert container.id == remote.find(container.id[:-1], mine()).id

    def test_by_its_label(self):
        """The label finds it too."""
        container = Container()
        container.label = "database"
        with container:
            assert container.id == remote.find("database", mine()).id

    def test_an_id_that_begins_another_is_exact(self):
        """-1 is found although there is a -11."""
        with Container() as container:
            one = of(container)
            longer = remote.Living(one.session, f"{one.id}1", 1, 0.0, "", one.settings)
            assert one == remote.find(one.id, [longer, one])

    def test_several_are_an_error_that_names_them(self):
        """What fits several finds none."""
        with (
            Container(),
            Container(),
            pytest.raises(SandboxError, match="is the beginning of 2 containers"),
        ):
            remote.find(session.current().name, mine())

    @pytest.mark.parametrize("name", ["nobody", ""])
    def test_none_is_an_error_that_says_where_to_look(self, name):
        """A name that fits nothing, the empty one too, is an error with a remedy."""
        with Container(), pytest.raises(SandboxError, match="pytest-sandbox ps"):
            remote.find(name, mine())


class TestDoor:
    """Who gets in."""

    def test_only_this_user_may_enter_the_directory(self):
        """The directory of the door, and the one above it, are closed to all others."""
        with Container():
            directory = os.path.dirname(door())
            assert [0o700, 0o700, 0o600] == [
                os.stat(path).st_mode & 0o777
                for path in (os.path.dirname(directory), directory, door())
            ]

    @pytest.mark.needs("root")
    def test_another_user_is_known_by_the_kernel(self):
        """Even where the directory is open, a connection of another user is not ours."""
        with (
            tempfile.TemporaryDirectory() as directory,
            local_socket.listen(path := os.path.join(directory, "door")) as listening,
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

    def test_this_user_is_let_in(self, tmp_path):
        """A connection of the same user, in the same PID namespace, is ours."""
        with (
            local_socket.listen(str(tmp_path / "door")) as listening,
            local_socket.connect(str(tmp_path / "door"), 10),
        ):
            select.select([listening], [], [], 10)
            connection, _address = listening.accept()
            assert local_socket.is_peer_trusted(connection)
            connection.close()

    def test_a_container_that_sees_the_directory_is_not_let_in(self):
        """Root inside a container to which the state directory was given as a volume gets no
        answer.
        """
        with Container():
            inside = (
                "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); "
                "b = b'{\"op\": \"list\"}'; s.sendall(len(b).to_bytes(4, 'big') + bytes(4) + b); "
                "print(s.recv(100))"
            )
            with Container(volumes=[f"{cleanup.state_directory()}:/state"]) as hostile:
                done = hostile.run(
                    [sys.executable, "-c", inside, f"/state/{session.current().name}/door"],
                    capture_output=True,
                    text=True,
                )
            assert True is (
                "b''" in done.stdout
                or "ConnectionResetError" in done.stderr
                or "BrokenPipeError" in done.stderr
            ), done

    def test_a_silent_visitor_keeps_nobody_waiting(self):
        """Somebody who connects and says nothing, or half a message, does not stop the launcher."""
        with (
            Container(),
            local_socket.connect(door(), 10),
            local_socket.connect(door(), 10) as half,
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
    def test_nonsense_harms_nobody(self, message):
        """A message that is none leaves the launcher and its containers as they were."""
        with Container() as container:
            with local_socket.connect(door(), 10) as visitor:
                visitor.sendall(message)
                visitor.shutdown(socket.SHUT_WR)
                while visitor.recv(4096):
                    pass
            assert [container.id] == [one.id for one in mine()]

    def test_a_dead_sessions_door_is_passed_by_and_swept(self):
        """After a SIGKILL to the launcher nothing is listed, and the sweep removes its
        directory.
        """
        with Container():
            launcher = session.current()
            launcher.process.kill()
            launcher.process.wait()
            assert [] == [one for one in remote.living() if one.session == launcher.name]
        cleanup.sweep()
        assert not os.path.exists(os.path.join(cleanup.state_directory(), launcher.name))

    def test_an_ended_session_leaves_no_directory(self):
        """A session that ends removes its door."""
        code = (
            "from pytest_sandbox.client import session; from "
            "pytest_sandbox.container.container import Container; Container().start(); print(session.current().name)"
        )
        name = elsewhere(code).stdout.strip()
        assert (True, False) == (
            bool(name),
            os.path.exists(os.path.join(cleanup.state_directory(), name)),
        )
