"""``ps``, ``exec``, ``shell``, ``rm``, ``stats`` and ``diff``: containers of other processes, and
saved layers.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid

import pytest
from command_line import sandbox
from terminals import Terminal, wait_for

from pytest_sandbox import Container
from pytest_sandbox.cli import main, output, stats
from pytest_sandbox.client import session
from pytest_sandbox.container import saved_layers
from pytest_sandbox.container.processes import list_processes
from pytest_sandbox.outcome import Stats

pytestmark = pytest.mark.needs("containers")


@pytest.fixture
def labelled():
    """Yield a running container with a unique name."""
    container = Container(memory="64m") if os.geteuid() == 0 else Container()
    container.handle.label = f"box-{uuid.uuid4().hex}"
    with container:
        yield container


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """Return the saved layer of a container that wrote /etc/left and deleted /etc/passwd-, in a
    store of its own.
    """
    monkeypatch.setenv("PYTEST_SANDBOX_HOME", str(tmp_path))
    container = Container()
    container.handle.label = "tests/test_x.py::test_y"
    with container:
        container.run(
            ["sh", "-c", "echo left > /etc/left; rm /etc/passwd-; true"],
            check=True,
            stderr=subprocess.DEVNULL,
        )
        return saved_layers.save(container.handle)


class TestPs:
    """Lists of containers."""

    @pytest.mark.vm
    def test_a_running_container_is_listed(self, labelled):
        """A line has the id, the image, the command, the age and the name."""
        with labelled.popen(["sleep", "1000"]) as running:
            (line,) = [
                line for line in sandbox("ps").stdout.splitlines() if labelled.handle.label in line
            ]
            running.kill()
        assert [labelled.id, "host", "sleep 1000", labelled.handle.label] == [
            line.split("   ")[0],
            "host",
            "sleep 1000",
            line.split()[-1],
        ]
        assert "Up " in line
        assert "sleep 1000" in line

    def test_json(self, labelled):
        """--format json prints a list of objects."""
        (one,) = [
            one
            for one in json.loads(sandbox("ps", "--format", "json").stdout)
            if one["name"] == labelled.handle.label
        ]
        expected = {
            "id": labelled.id,
            "status": "running",
            "name": labelled.handle.label,
            "image": "host",
            "pid": labelled.pid,
            "session": session.current().name,
        }
        assert expected.items() <= one.items()
        assert time.time() - 600 < one["created"] <= time.time()
        assert one["settings"].get("memory") == labelled.settings.memory

    @pytest.mark.needs("limits")
    def test_a_paused_container_is_marked(self, labelled):
        """Ps marks a paused container, and exec fails at once with an error that says so."""
        labelled.pause()
        (line,) = [
            line for line in sandbox("ps").stdout.splitlines() if labelled.handle.label in line
        ]
        refused = sandbox("exec", labelled.id, "true", timeout=60)
        assert "(Paused)" in line
        assert (125, True) == (refused.returncode, f"{labelled.id} is paused" in refused.stderr)

    def test_quiet_prints_ids(self, labelled):
        """-q prints only ids."""
        assert labelled.id in sandbox("ps", "-q").stdout.split("\n")

    def test_an_ended_container_is_not_listed(self):
        """A container that has ended is not listed."""
        with Container() as container:
            pass
        assert container.id not in sandbox("ps", "-q").stdout

    def test_a_container_of_another_process_has_its_name(self):
        """Ps lists the name of `run --name` with its command, and exec finds it by the name."""
        name = uuid.uuid4().hex
        with subprocess.Popen(
            [sys.executable, "-m", "pytest_sandbox", "run", "--name", name, "host", "sleep", "1000"]
        ) as process:
            try:
                wait_for(
                    lambda: any(
                        name in line and "sleep 1000" in line
                        for line in sandbox("ps").stdout.splitlines()
                    )
                )
                assert 0 == sandbox("exec", name, "true").returncode
            finally:
                process.kill()

    def test_all_lists_saved_layers(self, saved):
        """Only -a lists saved layers."""
        assert saved.id not in sandbox("ps", "-q").stdout
        (one,) = [
            one
            for one in json.loads(sandbox("ps", "-a", "--format", "json").stdout)
            if one["id"] == saved.id
        ]
        assert ("kept", "tests/test_x.py::test_y", None) == (one["status"], one["name"], one["pid"])
        assert "Kept " in sandbox("ps", "-a").stdout

    def test_the_container_of_a_test_is_listed(self, pytester):
        """While a test runs inside, ps lists its container, and exec runs a command in it."""
        pytester.makepyfile(
            """
            import pathlib, pytest, time
            @pytest.mark.container
            def test_waits():
                pathlib.Path("/etc/inside").write_text("yes")
                deadline = time.monotonic() + 60
                while not pathlib.Path("/etc/go-on").exists() and time.monotonic() < deadline:
                    time.sleep(0.01)
                assert pathlib.Path("/etc/go-on").exists()
            """
        )

        def inside() -> list[str]:
            ids = [
                one["id"]
                for one in json.loads(sandbox("ps", "--format", "json").stdout)
                if "test_waits" in one["name"]
            ]
            return [
                one for one in ids if sandbox("exec", one, "cat", "/etc/inside").stdout == "yes"
            ]

        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        with subprocess.Popen(command, cwd=pytester.path, stdout=subprocess.DEVNULL) as process:
            (found,) = wait_for(inside)
            assert 0 == sandbox("exec", found, "touch", "/etc/go-on").returncode
            assert 0 == process.wait(60)


class TestExec:
    """Further commands in a container."""

    @pytest.mark.vm
    @pytest.mark.parametrize(
        ("command", "status"),
        [
            (["true"], 0),
            (["sh", "-c", "exit 7"], 7),
            (["sh", "-c", "kill -9 $$"], 137),
            (["no-such-command"], 127),
            (["/etc/passwd"], 126),
        ],
        ids=str,
    )
    def test_the_status_is_the_commands_own(self, box, command, status):
        """The exit status is that of the command, or 126 or 127."""
        assert status == sandbox("exec", box.id, *command).returncode

    def test_flags(self, box):
        """-e, -w and -i set the variables, the directory and the input of the command."""
        script = "echo $A $(pwd) $(cat)"
        assert (
            "b /etc in\n"
            == sandbox(
                "exec", "-e", "A=b", "-w", "/etc", "-i", box.id, "sh", "-c", script, input="in"
            ).stdout
        )

    @pytest.mark.needs("root")
    def test_another_user(self, box):
        """-u sets the user of the command."""
        assert "1000\n" == sandbox("exec", "-u", "1000", box.id, "id", "-u").stdout

    def test_settings_of_the_container(self):
        """The command has the variables and the working directory of the container's settings."""
        with Container(env={"A": "b"}, workdir="/etc") as container:
            assert "b /etc\n" == sandbox("exec", container.id, "sh", "-c", "echo $A $(pwd)").stdout

    @pytest.mark.parametrize(
        ("args", "said"),
        [
            (("nobody", "true"), "pytest-sandbox ps"),
            ((), "required"),
            (("nobody",), "command is missing"),
        ],
    )
    def test_errors(self, args, said):
        """A missing container or command is an error with the status 125."""
        done = sandbox("exec", *args)
        assert (125, True) == (done.returncode, said in done.stderr)

    def test_a_background_process_keeps_running(self, box):
        """A background process that exec started runs until the container ends."""
        sandbox("exec", box.id, "sh", "-c", "setsid sleep 1234 > /dev/null 2>&1 &")
        assert [line for _pid, line in list_processes(box.handle) if "sleep 1234" in line]


class TestSavedLayers:
    """Saved layers of ended containers."""

    def test_shell_shows_the_files(self, saved):
        """`shell` shows the files of a saved layer, and does not change them."""
        done = sandbox("shell", saved.id, input="cat /etc/left; echo more > /etc/more")
        assert (0, "left\n") == (done.returncode, done.stdout)
        assert 0 != sandbox("shell", saved.label, input="cat /etc/more").returncode

    def test_diff(self, saved):
        """`diff` lists the changes of a saved layer."""
        assert "C /etc\nA /etc/left\n" in sandbox("diff", saved.id).stdout

    def test_rm(self, saved):
        """`rm` removes a saved layer, and fails if there is none."""
        removed = sandbox("rm", saved.label)
        assert (0, f"{saved.label}\n") == (removed.returncode, removed.stdout)
        done = sandbox("rm", saved.id)
        assert (125, True) == (done.returncode, "ps -a" in done.stderr)

    def test_an_interactive_shell(self, saved):
        """On a terminal `shell` is interactive."""
        with Terminal("shell", saved.id) as terminal:
            terminal.type("tty; cat /etc/left; exit 4\n")
            terminal.read("/dev/pts/0\r\nleft\r\n")
            assert 4 == terminal.wait()


class TestDiff:
    """Changed files."""

    def test_docker_s_format(self):
        """Diff prints A, C and D with the path, sorted by path."""
        with Container() as container:
            container.write_text("/etc/new", "")
            container.run(["rm", "/etc/passwd"], check=True)
            assert "C /etc\nA /etc/new\nD /etc/passwd\n" == sandbox("diff", container.id).stdout

    def test_json(self):
        """--format json prints a list of objects with kind and path."""
        with Container() as container:
            container.write_text("/etc/new", "")
            found = json.loads(sandbox("diff", "--format", "json", container.id).stdout)
        assert [
            {"kind": "modified", "path": "/etc"},
            {"kind": "added", "path": "/etc/new"},
        ] == found


@pytest.mark.needs("limits")
class TestStats:
    """Resource usage."""

    def test_json(self, labelled):
        """--format json prints an object with the fields of Stats and the CPU usage."""
        labelled.run(["true"])
        (one,) = json.loads(sandbox("stats", "--format", "json", labelled.handle.label).stdout)
        assert {"id", "name", "cpu_percent"} | set(Stats.__dataclass_fields__) == set(one)
        assert (labelled.id, 64 << 20) == (one["id"], one["memory_limit"])

    def test_a_table_once(self, labelled):
        """--no-stream prints one table."""
        head, line = sandbox("stats", "--no-stream", labelled.id).stdout.splitlines()
        assert [
            "CONTAINER",
            "ID",
            "NAME",
            "CPU",
            "%",
            "MEM",
            "USAGE",
            "/",
            "LIMIT",
        ] == head.split()[:9]
        assert [labelled.id, labelled.handle.label] == line.split()[:2]
        assert "/ 64MiB" in line

    def test_the_cpu_usage_of_a_busy_container(self, labelled):
        """The CPU usage of a container with a busy loop is above 5 %."""
        with labelled.popen(["sh", "-c", "while :; do :; done"]) as busy:
            (one,) = json.loads(sandbox("stats", "--format", "json", labelled.id).stdout)
            busy.kill()
        assert one["cpu_percent"] > 5

    def test_an_unknown_name_is_an_error(self):
        """An unknown name is an error with the status 125."""
        assert 125 == sandbox("stats", "--no-stream", "nobody").returncode

    @pytest.mark.needs("root")
    def test_a_live_table(self, labelled):
        """On a terminal the table is updated until Ctrl-C, which restores the terminal."""
        with Terminal("stats", labelled.id, columns=150) as terminal:
            terminal.read(labelled.id)
            terminal.read(labelled.id)
            terminal.type("\x03")
            assert (0, True) == (terminal.wait(), terminal.is_as_it_was())

    def test_a_live_table_without_rich(self, labelled, monkeypatch):
        """Without rich, plain tables are printed one below the other."""
        drawn = []

        def print_table(_columns: object, rows: list[tuple[str, ...]]) -> None:
            drawn.append(rows[0][0])
            if len(drawn) == 2:
                raise KeyboardInterrupt

        monkeypatch.setattr(output, "console", lambda: None)
        monkeypatch.setattr(output, "print_table", print_table)
        monkeypatch.setattr(stats, "_INTERVAL", 0.01)
        assert (0, [labelled.id] * 2) == (main.main(["stats", labelled.id]), drawn)

    def test_a_missing_figure_is_a_dash(self):
        """A figure that this host does not have is printed as a dash."""
        from pytest_sandbox import Settings
        from pytest_sandbox.container.remote import RemoteContainer

        one = RemoteContainer("s", "s-1", 1, 0.0, "name", Settings(), Stats(*[None] * 10))
        assert ("s-1", "name", "-", "- / -", "-", "-", "- / -", "-") == stats._row(one, None)
