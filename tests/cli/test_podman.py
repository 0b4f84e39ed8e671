"""The command line compared with podman's: exit statuses, and the shape of the output.

Here are the verbs of images, and errors; see test_podman_containers.py for those of containers.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from podman_peer import normalized
from tarballs import Made, docker_archive, files

from pytest_sandbox.cli.main import main
from pytest_sandbox.image.image import Image

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.needs("podman", "root")

#: Command lines whose status is the same.
SAME_STATUS = [
    "images",
    "images --filter dangling=true",
    "images --filter nosuch=1",
    "images --nosuch",
    "inspect",
    "inspect nosuch",
    "inspect --type container app:1",
    "inspect --format {{.Nosuch}} app:1",
    "history app:1",
    "history nosuch",
    "history",
    "tag app:1",
    "tag nosuch x:1",
    "tag app:1 UPPER",
    "save",
    "save nosuch -o /nosuch/x.tar",
    "save app:1 -o /nosuch/x.tar",
    "load -i /nosuch",
    "rmi",
    "rmi -f nosuch",
    "ps",
    "ps -q",
    "ps --format {{.Names}}",
    "ps --filter nosuch=1",
    "ps --nosuch",
    "ps extra",
    "run",
    "run --memroy 64m app:1 true",
    "run --memory lots app:1 true",
    "run -v relative app:1 true",
    "run --tmpfs relative app:1 true",
    "run --mount type=nosuch,target=/x app:1 true",
    "run --add-host nocolon app:1 true",
    "run --restart sometimes app:1 true",
    "run --pull sometimes app:1 true",
    "run --env-file /nosuch app:1 true",
    "exec nosuch true",
    "exec",
    "top",
    "top nosuch",
    "cp /x /y",
    "cp /x",
    "cp nosuch:/x /y",
    "cp /etc/hosts nosuch:/y",
    "commit",
    "commit nosuch",
    "commit nosuch UPPER:1",
    "logs nosuch",
    "stop nosuch",
    "kill nosuch",
    "kill -s NOSUCH nosuch",
    "rm",
    "rm -f nosuch",
    "port nosuch",
    "rename nosuch x",
    "rename nosuch",
    "wait nosuch",
    "diff nosuch",
    "stats --no-stream nosuch",
    "network ls -q",
    "network inspect nosuch",
    "network connect nosuch other",
    "network disconnect nosuch other",
    "network",
]
#: Command lines for which podman and docker have the status 1, and this one 125 as for each error.
FAILURES = ["rmi nosuch", "rm nosuch", "network rm nosuch"]
#: Command lines with the same output once ids, sizes, times and registries are replaced.
SAME_OUTPUT = [
    "images",
    "images -q",
    "images --no-trunc -q app:1",
    "images --format {{.Repository}}:{{.Tag}}",
    "images --filter reference=app",
    "images --filter label=kind=test",
    "images --filter label=kind=other",
    "images --filter before=app:1",
    "history -q app:1",
    "history --format {{.CreatedBy}}|{{.Comment}} app:1",
    "inspect --format {{.Id}} app:1",
    "inspect --format {{.Config.Env}} app:1",
    "inspect --format {{.Config.Labels.kind}} app:1",
    "inspect --format {{json|.Config.Cmd}} app:1",
    "inspect --format {{len|.RootFS.Layers}} app:1",
    "inspect --format {{range|.Config.Cmd}}<{{.}}>{{end}} app:1",
    "inspect --format {{.Os}}/{{.Architecture}} app:1",
    "inspect --format {{if|.Config.User}}yes{{else}}no{{end}} app:1",
    "inspect --format {{index|.Config.Labels|`kind`}} app:1",
    "ps --filter name=^nosuch$ --format {{.ID}}",
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, podman) -> Path:
    """An archive of `save`, which is loaded into both stores."""
    place = tmp_path_factory.mktemp("saved")
    config = {
        "Env": ["A=1"],
        "Cmd": ["sh", "-c", "true"],
        "Labels": {"kind": "test"},
        "WorkingDir": "/srv",
    }
    made = Made([files(a="1" * 1500), files(b="2")], config)
    made.document["created"] = "2026-01-02T03:04:05Z"
    (place / "in.tar").write_bytes(docker_archive(made, "app:1"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTEST_SANDBOX_HOME", str(place / "first"))
        Image.load(place / "in.tar").save(place / "saved.tar")
        done = podman("load", "-i", str(place / "saved.tar"))
        assert 0 == done.returncode, done.stderr
        patch.setenv("PYTEST_SANDBOX_HOME", str(place / "home"))
        Image.load(place / "saved.tar")
    return place / "saved.tar"


@pytest.fixture(autouse=True)
def store(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_SANDBOX_HOME", str(saved.parent / "home"))


def words(line: str) -> list[str]:
    """Split a command line; ``|`` in a template stands for a space."""
    return [
        re.sub(r"\{\{[^}]*\}\}", lambda match: match[0].replace("|", " "), word)
        for word in line.split()
    ]


@pytest.mark.parametrize("line", SAME_STATUS)
def test_the_status_is_the_same(podman, capsys, line):
    """The exit status is podman's; an error prints nothing on stdout."""
    theirs = podman(*words(line))
    assert theirs.returncode == main(words(line)), theirs.stderr
    out, err = capsys.readouterr()
    assert not theirs.returncode or ("" == out and err)


@pytest.mark.parametrize("line", FAILURES)
def test_both_fail(podman, capsys, line):
    """Where podman's status is 1, ours is 125, as for each error of pytest-sandbox."""
    assert (1, 125) == (podman(*words(line)).returncode, main(words(line)))
    assert "" == capsys.readouterr().out


@pytest.mark.parametrize("line", SAME_OUTPUT)
def test_the_output_is_the_same(podman, capsys, line):
    """The output has podman's shape and values."""
    theirs = podman(*words(line))
    assert (0, 0) == (theirs.returncode, main(words(line))), theirs.stderr
    assert normalized(theirs.stdout) == normalized(capsys.readouterr().out)


def test_a_name_is_given_and_removed(podman, capsys):
    """`tag` prints nothing, and `rmi` of one of two names what podman prints."""
    for line in ("tag app:1 further:2", "rmi further:2"):
        theirs = podman(*words(line))
        assert (0, 0) == (theirs.returncode, main(words(line))), theirs.stderr
        assert normalized(theirs.stdout) == normalized(capsys.readouterr().out)


def test_podman_has_the_same_id(podman, saved):
    """An image that was saved and loaded by podman has the id that it has here."""
    theirs = podman("inspect", "--format", "{{.Id}}", "app:1").stdout.strip()
    assert Image.get("app:1").id == f"sha256:{theirs}"


@pytest.mark.parametrize("kind", ["docker-archive", "oci-archive"])
def test_what_podman_saves_is_loaded(podman, tmp_path, monkeypatch, kind):
    """`load` reads both kinds of archive of `podman save`."""
    done = podman("save", "--format", kind, "-o", str(tmp_path / "theirs.tar"), "app:1")
    assert 0 == done.returncode, done.stderr
    monkeypatch.setenv("PYTEST_SANDBOX_HOME", str(tmp_path / "home"))
    loaded = Image.load(tmp_path / "theirs.tar", name="theirs:1")
    assert (["A=1"], 2) == (loaded.config["Env"], len(loaded.layers))
