"""``ps``, ``exec``, ``shell``, ``rm``, ``stats`` and ``diff``: containers of other processes, and
what is kept of them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid

import pytest
from terminals import Terminal, wait_for

from pytest_sandbox import Container
from pytest_sandbox.cli import main, output, stats
from pytest_sandbox.client import session
from pytest_sandbox.container import saved_layers
from pytest_sandbox.outcome import Stats

pytestmark = pytest.mark.needs("containers")


def sandbox(*words: str, **keywords: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest_sandbox", *words],
        capture_output=True,
        text=True,
        check=False,
        **keywords,
    )


@pytest.fixture
def labelled():
    """A container with a name that no other has."""
    container = Container(memory="64m") if os.geteuid() == 0 else Container()
    container.label = f"box-{uuid.uuid4().hex}"
    with container:
        yield container


@pytest.fixture
def left(tmp_path, monkeypatch):
    """What is kept of a container that wrote /etc/left and deleted /etc/hostname, in a store of the
    test's own.
    """
    monkeypatch.setenv("PYTEST_SANDBOX_HOME", str(tmp_path))
    container = Container()
    container.label = "tests/test_x.py::test_y"
    with container:
        container.run(
            ["sh", "-c", "echo left > /etc/left; rm /etc/passwd-; true"],
            check=True,
            stderr=subprocess.DEVNULL,
        )
        return saved_layers.keep(container)


class TestPs:
    """Listing."""

    @pytest.mark.vm
    def test_a_living_container_is_a_line(self, labelled):
        """Id, image, what runs, since when, and name."""
        with labelled.popen(["sleep", "1000"]) as running:
            (line,) = [line for line in sandbox("ps").stdout.splitlines() if labelled.label in line]
            running.kill()
        assert [labelled.id, "host", "sleep 1000", labelled.label] == [
            line.split("   ")[0],
            "host",
            "sleep 1000",
            line.split()[-1],
        ]
        assert "Up " in line
        assert "sleep 1000" in line

    def test_json_is_for_programs(self, labelled):
        """--format json is a list of objects."""
        (one,) = [
            one
            for one in json.loads(sandbox("ps", "--format", "json").stdout)
            if one["name"] == labelled.label
        ]
        expected = {
            "id": labelled.id,
            "status": "running",
            "name": labelled.label,
            "image": "host",
            "pid": labelled.pid,
            "session": session.current().name,
        }
        assert expected.items() <= one.items()
        assert time.time() - 600 < one["created"] <= time.time()
        assert one["settings"].get("memory") == labelled.settings.memory

    @pytest.mark.needs("limits")
    def test_a_paused_container_is_said_to_be(self, labelled):
        """A pause stands beside the age, and exec ends at once with what is the matter."""
        labelled.pause()
        (line,) = [line for line in sandbox("ps").stdout.splitlines() if labelled.label in line]
        refused = sandbox("exec", labelled.id, "true", timeout=60)
        assert "(Paused)" in line
        assert (125, True) == (refused.returncode, f"{labelled.id} is paused" in refused.stderr)

    def test_quiet_is_ids(self, labelled):
        """-q prints ids alone, as scripts want them."""
        assert labelled.id in sandbox("ps", "-q").stdout.split("\n")

    def test_an_ended_container_is_no_more(self):
        """What has ended is not listed."""
        with Container() as container:
            pass
        assert container.id not in sandbox("ps", "-q").stdout

    def test_a_run_elsewhere_is_listed_by_its_name(self):
        """`run --name` is what ps shows, with the command that it runs, and `exec` finds."""
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

    def test_all_lists_the_kept_too(self, left):
        """-a adds what was kept; without it nothing of them is listed."""
        assert left.id not in sandbox("ps", "-q").stdout
        (one,) = [
            one
            for one in json.loads(sandbox("ps", "-a", "--format", "json").stdout)
            if one["id"] == left.id
        ]
        assert ("kept", "tests/test_x.py::test_y", None) == (one["status"], one["name"], one["pid"])
        assert "Kept " in sandbox("ps", "-a").stdout

    def test_a_test_inside_is_listed(self, pytester):
        """While a sandboxed test runs, another terminal sees its container, and gets in."""
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
    """One more command."""

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
        """As of run."""
        assert status == sandbox("exec", box.id, *command).returncode

    def test_flags(self, box):
        """-e, -w and -i reach the command, on top of what the container's own commands have."""
        script = "echo $A $(pwd) $(cat)"
        assert (
            "b /etc in\n"
            == sandbox(
                "exec", "-e", "A=b", "-w", "/etc", "-i", box.id, "sh", "-c", script, input="in"
            ).stdout
        )

    @pytest.mark.needs("root")
    def test_another_user(self, box):
        """-u is who runs the command."""
        assert "1000\n" == sandbox("exec", "-u", "1000", box.id, "id", "-u").stdout

    def test_the_containers_own_variables_and_directory(self):
        """Variables and working directory of the container's settings are the command's."""
        with Container(env={"A": "b"}, workdir="/etc") as container:
            assert "b /etc\n" == sandbox("exec", container.id, "sh", "-c", "echo $A $(pwd)").stdout

    @pytest.mark.parametrize(
        ("words", "said"),
        [(("nobody", "true"), "pytest-sandbox ps"), ((), "required"), (("nobody",), "no command")],
    )
    def test_errors(self, words, said):
        """A container that is not there, and a command that is not, are 125 and a line."""
        done = sandbox("exec", *words)
        assert (125, True) == (done.returncode, said in done.stderr)

    def test_a_command_that_outlives_the_asker_is_the_containers(self, box):
        """What was started in the background stays until the container goes."""
        sandbox("exec", box.id, "sh", "-c", "setsid sleep 1234 > /dev/null 2>&1 &")
        assert [line for _pid, line in box.processes() if "sleep 1234" in line]


class TestKept:
    """What a test has left."""

    def test_shell_begins_where_it_ended(self, left):
        """`shell` of a kept container sees what was written, and what is done there is not kept."""
        done = sandbox("shell", left.id, input="cat /etc/left; echo more > /etc/more")
        assert (0, "left\n") == (done.returncode, done.stdout)
        assert 0 != sandbox("shell", left.label, input="cat /etc/more").returncode

    def test_diff(self, left):
        """`diff` of a kept container is what it wrote."""
        assert "C /etc\nA /etc/left\n" in sandbox("diff", left.id).stdout

    def test_rm(self, left):
        """`rm` throws it away; what is not kept is an error."""
        assert (f"{left.id}\n", 0) == (sandbox("rm", left.label).stdout, 0)
        done = sandbox("rm", left.id)
        assert (125, True) == (done.returncode, "ps -a" in done.stderr)

    def test_an_interactive_shell(self, left):
        """With a terminal it is interactive."""
        with Terminal("shell", left.id) as terminal:
            terminal.type("tty; cat /etc/left; exit 4\n")
            terminal.read("/dev/pts/0\r\nleft\r\n")
            assert 4 == terminal.wait()


class TestDiff:
    """Changes."""

    def test_as_docker_prints_them(self):
        """A, C and D, sorted by path."""
        with Container() as container:
            container.write_text("/etc/new", "")
            container.run(["rm", "/etc/passwd"], check=True)
            assert "C /etc\nA /etc/new\nD /etc/passwd\n" == sandbox("diff", container.id).stdout

    def test_json(self):
        """--format json is a list of kind and path."""
        with Container() as container:
            container.write_text("/etc/new", "")
            found = json.loads(sandbox("diff", "--format", "json", container.id).stdout)
        assert [
            {"kind": "modified", "path": "/etc"},
            {"kind": "added", "path": "/etc/new"},
        ] == found


@pytest.mark.needs("limits")
class TestStats:
    """Figures."""

    def test_json(self, labelled):
        """One object a container, with the figures of Container.stats() and the CPU share."""
        labelled.run(["true"])
        (one,) = json.loads(sandbox("stats", "--format", "json", labelled.label).stdout)
        assert {"id", "name", "cpu_percent"} | set(Stats.__dataclass_fields__) == set(one)
        assert (labelled.id, 64 << 20) == (one["id"], one["memory_limit"])

    def test_a_table_once(self, labelled):
        """--no-stream prints one table, and ends."""
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
        assert [labelled.id, labelled.label] == line.split()[:2]
        assert "/ 64MiB" in line

    def test_a_busy_container_shows_its_share(self, labelled):
        """A loop shows in the CPU column."""
        with labelled.popen(["sh", "-c", "while :; do :; done"]) as busy:
            (one,) = json.loads(sandbox("stats", "--format", "json", labelled.id).stdout)
            busy.kill()
        assert one["cpu_percent"] > 5

    def test_an_unknown_one_is_an_error(self):
        """A name that fits nothing is 125."""
        assert 125 == sandbox("stats", "--no-stream", "nobody").returncode

    @pytest.mark.needs("root")
    def test_a_live_table(self, labelled):
        """On a terminal the table is drawn again and again, until Ctrl-C, which is no error."""
        with Terminal("stats", labelled.id, columns=150) as terminal:
            terminal.read(labelled.id)
            terminal.read(labelled.id)
            terminal.type("\x03")
            assert (0, True) == (terminal.wait(), terminal.is_as_it_was())

    def test_a_live_table_without_rich(self, labelled, monkeypatch):
        """Without rich one plain table follows the other."""
        drawn = []

        def print_table(_columns: object, rows: list[tuple[str, ...]]) -> None:
            drawn.append(rows[0][0])
            if len(drawn) == 2:
                raise KeyboardInterrupt

        monkeypatch.setattr(output, "console", lambda: None)
        monkeypatch.setattr(output, "print_table", print_table)
        monkeypatch.setattr(stats, "_EVERY", 0.01)
        assert (0, [labelled.id] * 2) == (main.main(["stats", labelled.id]), drawn)

    def test_figures_that_are_not_kept_are_dashes(self):
        """What this host does not count is a dash, never a zero."""
        from pytest_sandbox import Settings
        from pytest_sandbox.container.remote import Living

        one = Living("s", "s-1", 1, 0.0, "name", Settings(), Stats(*[None] * 10))
        assert ("s-1", "name", "-", "- / -", "-", "-", "- / -", "-") == stats._row(one, None)
