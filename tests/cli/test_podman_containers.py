"""The verbs of containers compared with podman's: exit statuses, output, and their effects.

Where docker and podman differ, ours is docker's; docs/reference/cli.md has the differences from
docker.
"""

from __future__ import annotations

import re
import shlex
import shutil
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
from command_line import sandbox
from podman_peer import normalized
from tarballs import Made, directory, docker_archive, entry, layer, link
from terminals import wait_for

from pytest_sandbox.cli.main import main
from pytest_sandbox.image.image import Image

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from podman_peer import Podman

pytestmark = pytest.mark.needs("podman", "root", "podman_containers", "busybox")

#: Programs of the image, which are links to busybox.
_PROGRAMS = ["sh", "sleep", "cat", "echo", "true", "id", "pwd", "ls", "seq", "touch"]
#: Options and command of `run --rm app:1`, in the foreground.
FOREGROUND = [
    "app:1 echo hello",
    "app:1",
    "app:1 sh -c 'echo out; echo err >&2; exit 7'",
    "app:1 /nosuch",
    "app:1 nosuch",
    "app:1 /etc/data",
    "app:1 /etc",
    "app:1 sh -c 'sleep 100 & kill -9 $!; wait $!'",
    "app:1 sh -c 'sleep 100 & kill -15 $!; wait $!'",
    "--entrypoint echo app:1 a b",
    "--entrypoint /nosuch app:1",
    "--pull never nosuch:1 true",
    "--name 'a b' app:1 true",
    "--name .a app:1 true",
    "--user ann app:1 id -u",
    "--user 1000:7 app:1 sh -c 'id -u; id -g'",
    "--workdir /tmp -e B=2 -e A=3 app:1 sh -c 'pwd; echo $A$B'",
    "--hostname h app:1 cat /proc/sys/kernel/hostname",
    "-v HERE:/mnt app:1 touch /mnt/made",
    "-v HERE:/mnt:ro app:1 touch /mnt/refused",
    "-v /nosuch/x:/mnt app:1 true",
    "--read-only app:1 touch /x",
    "--tmpfs /t app:1 touch /t/x",
    "-i app:1 cat",
    "--memory 64m --cpus 0.5 --pids-limit 50 app:1 true",
    "--rm --restart always app:1 true",
]
_BUSY = "echo hi; while :; do sleep 0.05; done"
#: Command lines one after the other. Each must have podman's status and output, or, after `status`,
#: only the status, or, after `fails`, fail as podman's, with 125. `await TEXT` waits until the log
#: has the text, `until TEMPLATE VALUE` until `inspect` prints the value, and `gone` until there is
#: no container. `box` is the name of the container, HERE a directory of the host.
SCENARIOS = {
    "status": [
        "run -d --name box app:1 sh -c 'echo out; echo err >&2; exit 7'",
        "wait box",
        "wait box",
        "logs box",
        "port box",
        "stop box",
        "kill box",
        "top box",
        "fails exec box true",
        "fails rename box 'a b'",
        "ps -q --filter name=box",
        "ps -a --filter name=box --format '{{.Names}} {{.Image}} {{.Status}}'",
        "ps -a --filter name=box --no-trunc --format '{{.ID}} {{.Command}}'",
        "ps -a --filter name=^box$ --filter status=exited --format {{.Names}}",
        "ps -a --filter name=^bo$ --format {{.Names}}",
        "ps -a --filter name=box --filter exited=7 --format {{.Names}}",
        "ps -a --filter name=box --filter exited=0 --format {{.Names}}",
        "ps -a --filter name=box --filter label=kind=test --format {{.Names}}",
        "inspect --format '{{.State.ExitCode}} {{.State.Status}} {{.State.Running}}' box",
        "inspect --format '{{.State.Pid}} {{.State.OOMKilled}} {{.State.Error}}' box",
        "inspect --format '{{json .Config.Cmd}} {{.Path}} {{json .Args}}' box",
        "inspect --format '{{.Config.Image}} {{.Image}} {{.RestartCount}} {{json .Mounts}}' box",
        "inspect --format '{{json .Config.Labels}}' box",
        "rm box",
        "fails rm box",
        "rm -f box",
        "logs box",
        "wait box",
    ],
    "name": [
        f"run -d --name box app:1 sh -c 'trap \"exit 0\" TERM; {_BUSY}'",
        "await hi",
        "run -d --name box app:1 true",
        "run --rm --name box app:1 true",
        "fails rm box",
        "rename box box2",
        "run -d --name box app:1 true",
        "fails rename box box2",
        "ps -a --filter name=box --format {{.Names}}",
        "wait box",
        "rm -f box box2",
        "gone",
    ],
    "stop": [
        f"run -d --name box app:1 sh -c 'trap \"echo bye; exit 3\" TERM; {_BUSY}'",
        "await hi",
        "stop box",
        "wait box",
        "logs box",
        "inspect --format '{{.State.ExitCode}} {{.State.Status}} {{.State.Running}}' box",
        "rm box",
    ],
    "stop that kills": [
        f"run -d --name box app:1 sh -c 'trap \"\" TERM; {_BUSY}'",
        "await hi",
        "status stop -t 1 box",
        "wait box",
        "ps -a --filter name=box --format {{.Status}}",
        "inspect --format '{{.State.ExitCode}} {{.State.Status}} {{.State.OOMKilled}}' box",
        "rm box",
    ],
    "signals": [
        f'run -d --name box app:1 sh -c \'trap "echo got" USR1; trap "exit 5" INT; {_BUSY}\'',
        "await hi",
        "kill -s USR1 box",
        "await got",
        "kill -s 99 box",
        "ps --filter name=box --format {{.Names}}",
        "kill -s SIGINT box",
        "wait box",
        "logs box",
        "rm box",
    ],
    "kill": [
        "run -d --name box app:1 sleep 100",
        "kill box",
        "wait box",
        "ps -a --filter name=box --format {{.Status}}",
        "rm box",
    ],
    "rm": [
        "run -d --rm --name box app:1 sleep 100",
        "ps --filter name=box --format {{.Names}}",
        "kill box",
        "gone",
    ],
    "several": [
        "run -d --name box1 app:1 sh -c 'exit 1'",
        "run -d --name box2 app:1 sh -c 'exit 2'",
        "wait box1 box2",
        "kill box1 box2",
        "fails kill box1 nosuch",
        "rm box1 box2",
        "ps -aq --filter name=box",
    ],
    "logs": [
        "run -d --name box app:1 seq 5",
        "wait box",
        "logs --tail 2 box",
        "logs --tail 0 box",
        "logs --tail=-1 box",
        "logs --tail x box",
        "logs -f box",
        "logs -f --tail 1 box",
        "rm box",
    ],
    "restart": [
        "run -d --name box --restart on-failure:2 app:1 sh -c 'echo x; exit 4'",
        "until {{.RestartCount}}-{{.State.Status}} 2-exited",
        "logs box",
        "inspect --format '{{.RestartCount}} {{.State.ExitCode}}' box",
        "inspect --format '{{.HostConfig.RestartPolicy.MaximumRetryCount}}' box",
        "rm box",
    ],
    "exec": [
        "run -d --name box --label a=b --label kind=mine -w /tmp -u 1000 app:1 sleep 100",
        "exec box pwd",
        "exec box sh -c 'exit 9'",
        "exec box /nosuch",
        "exec box /etc/data",
        "exec -w /etc -e X=1 -u 0 box sh -c 'pwd; id -u; echo $X'",
        "exec -w /nosuch box pwd",
        "exec box sh -c 'kill -9 $$'",
        "status top box",
        "ps --filter label=a=b --filter name=box --format {{.Names}}",
        "ps --filter label=kind=test --filter name=box --format {{.Names}}",
        "inspect --format '{{json .Config.Labels}} {{.Config.WorkingDir}} {{.Config.User}}' box",
        "inspect --format '{{.State.Status}} {{.State.Running}} {{.State.ExitCode}}' box",
        "kill box",
    ],
    "entrypoint": [
        "run -d --name box --entrypoint echo -v HERE:/mnt:ro app:1 a",
        "wait box",
        "logs box",
        "inspect --format '{{json .Config.Cmd}} {{.Path}} {{json .Args}}' box",
        "inspect --format '{{range .Mounts}}{{.Source}} {{.Destination}} {{.RW}}{{end}}' box",
        "rm box",
    ],
    "cp": [
        "run -d --name box app:1 sleep 100",
        "cp box:/etc/data HERE/out",
        "cp box:/nosuch HERE/out",
        "cp HERE/nosuch box:/srv/in",
        "cp HERE/out box:/srv/in",
        "exec box cat /srv/in",
        "cp HERE/out box:/srv/",
        "cp HERE/out box:/nosuch/dir/x",
        "cp HERE/out box:/nosuch/",
        "cp HERE/out box:/srv/in/",
        "cp HERE box:/srv/tree",
        "cp HERE/. box:/srv/tree2",
        "cp HERE/. box:/srv/tree2",
        "exec box ls -1 /srv /srv/tree /srv/tree2",
        "cp box:/srv/tree2/. HERE/back",
        "cp box:/srv/tree2 HERE/back",
        "cp box:/etc HERE/out",
        "cp HERE/back box:/srv/in",
        "kill box",
        "wait box",
        "cp box:/srv/in HERE/after",
        "cp box:/srv/in HERE/missing/",
        "rm box",
    ],
    "commit": [
        "run -d --name box app:1 sh -c 'echo new > /srv/new; echo hi; sleep 100'",
        "await hi",
        "status commit box made:1",
        "run --rm made:1 cat /srv/new",
        "status commit -c 'CMD [\"cat\", \"/srv/new\"]' -c 'ENV B=2' box made:2",
        "run --rm made:2",
        "inspect --format '{{json .Config.Cmd}}' made:2",
        "commit -c 'NOSUCH x' box made:3",
        "commit box UPPER",
        "kill box",
        "wait box",
        "status commit box made:4",
        "run --rm made:4 cat /srv/new",
        "rm box",
    ],
}
#: The scenarios that also run on cgroup v2, in a virtual machine, where each line takes seconds.
_IN_VM = {"stop", "kill"}


class Done(NamedTuple):
    """The result of a command line."""

    status: int
    out: list[str]
    error: str


class Peers:
    """Run command lines with podman and with our command line, each with its container, named by
    the word ``box``, and its directory, named HERE.
    """

    def __init__(self, podman: Podman, directory: Path, output: pytest.CaptureFixture[str]) -> None:
        self._output = output
        self._podman = podman
        self._name = f"p{uuid.uuid4().hex[:6]}x"  # `ps` also lists those of other sessions
        self._here = {"theirs": directory / "theirs", "ours": directory / "ours"}
        for place in self._here.values():
            (place / "here").mkdir(parents=True)

    def both(self, line: str) -> tuple[Done, Done]:
        """Return podman's result and ours."""
        return self._run(line, "theirs"), self._run(line, "ours")

    def wait_until(self, line: str, holds: Callable[[list[str]], bool]) -> None:
        """Run a command line with each until a condition holds for its output."""
        for whose in ("theirs", "ours"):
            wait_for(lambda whose=whose: holds(self._run(line, whose).out))

    def close(self) -> None:
        """Remove the containers of both."""
        self._podman.remove_containers()
        self._run("rm -f box box1 box2", "ours")

    def _run(self, line: str, whose: str) -> Done:
        here = str(self._here[whose] / "here")
        words = [
            re.sub(r"\bbox", self._name, word).replace("HERE", here) for word in shlex.split(line)
        ]
        if whose == "theirs" or words[0] in {"run", "exec"}:
            done = (sandbox if whose == "ours" else self._podman)(*words)
            status, out, error = done.returncode, done.stdout, done.stderr
        else:
            status = main(words)
            out, error = self._output.readouterr()
        out = out.replace(self._name, "box").replace(here, "HERE")
        return Done(status, normalized(out), error)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, podman: Podman) -> Path:
    """A store of the module's own, which has the image app:1, as podman's has."""
    place = tmp_path_factory.mktemp("stores")
    busybox = Path(shutil.which("busybox") or "").read_bytes()
    content = layer(
        *(directory(name) for name in ("bin", "etc", "srv", "tmp")),
        entry("bin/busybox", busybox, mode=0o755),
        *(link(f"bin/{name}", "busybox") for name in _PROGRAMS),
        entry("etc/data", b"data\n"),
        entry("etc/passwd", b"root:x:0:0:root:/:/bin/sh\nann:x:1000:1000::/srv:/bin/sh\n"),
        entry("etc/group", b"root:x:0:\nann:x:1000:\n"),
    )
    config = {
        "Cmd": ["sh", "-c", "exit 0"],
        "Env": ["PATH=/bin", "A=1"],
        "Labels": {"kind": "test"},
        "WorkingDir": "/srv",
    }
    (place / "app.tar").write_bytes(docker_archive(Made([content], config), "app:1"))
    loaded = podman("load", "-i", str(place / "app.tar"))
    assert 0 == loaded.returncode, loaded.stderr
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTEST_SANDBOX_HOME", str(place / "home"))
        Image.load(place / "app.tar")
    return place / "home"


@pytest.fixture
def peers(
    podman: Podman,
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Iterator[Peers]:
    monkeypatch.setenv("PYTEST_SANDBOX_HOME", str(home))
    made = Peers(podman, tmp_path, capfd)
    yield made
    made.close()


def compare(peers: Peers, line: str) -> None:
    """Run one line of a scenario with both, and compare."""
    word, _, rest = line.partition(" ")
    if word == "await":
        peers.wait_until("logs box", lambda out: rest in out)
        return
    if word == "until":
        template, value = rest.split()
        peers.wait_until(f"inspect --format {template} box", lambda out: out == [value])
        return
    if word == "gone":
        peers.wait_until("ps -aq --filter name=box", lambda out: not out)
        return
    theirs, ours = peers.both(rest if word in {"status", "fails"} else line)
    if word == "fails":
        assert (True, 125, []) == (theirs.status > 0, ours.status, ours.out), (theirs, ours)
        return
    assert theirs.status == ours.status, (line, theirs, ours)
    assert theirs.status == 0 or ours.error or not theirs.error, (line, theirs, ours)
    if word != "status":
        assert theirs.out == ours.out, (line, theirs, ours)


@pytest.mark.parametrize("line", FOREGROUND)
def test_a_command_in_the_foreground(peers, line):
    """`run` has podman's status and output."""
    compare(peers, f"run --rm {line}")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.vm] if name in _IN_VM else []) for name in SCENARIOS],
)
def test_a_container_in_the_background(peers, name):
    """Each verb has podman's status and output, one after the other."""
    for line in SCENARIOS[name]:
        compare(peers, line)


def test_a_failed_name_does_not_keep_the_others(peers):
    """Of several containers, `rm`, `stop`, `kill` and `wait` handle each, as docker's do; podman's
    `kill` does, too.
    """
    for line in ("run -d --name box1 app:1 sleep 100", "run -d --name box2 app:1 sleep 100"):
        compare(peers, line)
    _theirs, ours = peers.both("kill box1 nosuch box2")
    assert (125, ["box1", "box2"]) == ours[:2]
    for line in ("wait box1 nosuch box2", "stop box1 nosuch box2", "rm box1 nosuch box2"):
        _theirs, ours = peers.both(line)
        expected = ["137", "137"] if line.startswith("wait") else ["box1", "box2"]
        assert (125, expected, True) == (*ours[:2], "nosuch" in ours.error)
    assert [] == peers.both("ps -aq --filter name=box")[1].out
