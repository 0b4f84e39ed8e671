"""The verbs of images: docker's words, docker's output, for people and for programs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from registries import push, registry
from tarballs import Made, digest_of, docker_archive, files

from pytest_sandbox.cli.main import main
from pytest_sandbox.image.image import Image
from pytest_sandbox.units import decimal_size

if TYPE_CHECKING:
    from pathlib import Path


pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture
def made() -> Made:
    return Made(
        [files(a="1" * 1500), files(b="2")], {"Env": ["A=1"], "Cmd": ["sh", "-c", "x" * 80]}
    )


@pytest.fixture
def archive(made: Made, tmp_path: Path) -> Path:
    made.document["created"] = "2026-01-02T03:04:05.123456789Z"
    made.document["history"][1] |= {"created_by": "RUN " + "y" * 80, "comment": "buildkit"}
    made.document["history"].append({"created_by": "CMD sh", "empty_layer": True})
    (tmp_path / "saved.tar").write_bytes(docker_archive(made, "app:1", "example.test/app:2"))
    return tmp_path / "saved.tar"


def ours(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """What a verb prints when it succeeds."""
    assert 0 == main([*map(str, words)])
    return capsys.readouterr().out


@pytest.mark.parametrize(
    "words", [("load", "{}"), ("load", "-i", "{}"), ("load", "--input", "{}", "-q")]
)
def test_load_says_what_was_loaded(capsys, archive, words):
    """As docker says it."""
    assert "Loaded image: app:1\n" == ours(capsys, *(word.format(archive) for word in words))


def test_load_reads_stdin(archive):
    """`docker save app | pytest-sandbox load`."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest_sandbox", "load", "-t", "own:3"],
        input=archive.read_bytes(),
        capture_output=True,
        check=False,
    )
    assert (b"Loaded image: own:3\n", b"") == (done.stdout, done.stderr)


def test_images_are_a_table_as_dockers(capsys, archive):
    """Repository, tag, short id, age and size; by name, as ids, as JSON."""
    ours(capsys, "load", archive)
    image = Image.get("app:1")
    lines = ours(capsys, "images").splitlines()
    assert ["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"] == [
        cell.strip() for cell in lines[0].split("   ") if cell.strip()
    ]
    assert [["app", "1", image.id[7:19]], ["example.test/app", "2", image.id[7:19]]] == [
        line.split()[:3] for line in lines[1:]
    ]
    assert lines[1].endswith("1.5kB")
    assert 2 == len(ours(capsys, "images", "app").splitlines())
    assert image.id + "\n" == ours(capsys, "images", "-q", "--no-trunc", "app:1")
    assert [("app", "1", 1501)] == [
        (one["repository"], one["tag"], one["size"])
        for one in json.loads(ours(capsys, "images", "--format", "json", "app"))
    ]


def test_inspect_prints_what_dockers_prints(capsys, archive, made):
    """The same keys, for the same image."""
    ours(capsys, "load", archive)
    (shown,) = json.loads(ours(capsys, "inspect", "app:1"))
    assert Image.get("app:1").id == shown["Id"]
    assert ["app:1", "example.test/app:2"] == shown["RepoTags"]
    assert made.config == shown["Config"]
    assert {"Type": "layers", "Layers": [digest_of(data) for data in made.layers]} == shown[
        "RootFS"
    ]
    assert ("amd64", "linux", 1501) == (shown["Architecture"], shown["Os"], shown["Size"])


@pytest.mark.needs("docker-registry")
def test_pull_prints_the_name_and_inspect_the_digest(capsys, tmp_path, made):
    """From a real registry; without a terminal nothing else is printed."""
    with registry(tmp_path / "registry") as server:
        described = push(server.host, "app:1", made)
        assert f"{server.host}/app:1\n" == ours(capsys, "pull", f"{server.host}/app:1")
        assert "" == capsys.readouterr().err
        (shown,) = json.loads(ours(capsys, "inspect", f"{server.host}/app:1"))
    assert [f"{server.host}/app@{described['digest']}"] == shown["RepoDigests"]


@pytest.mark.needs("docker-registry")
def test_pull_shows_progress_on_a_terminal(tmp_path, made):
    """A bar for each layer, gone at the end."""
    import pty

    with registry(tmp_path / "registry") as server:
        push(server.host, "app:1", made)
        ours_, theirs = pty.openpty()
        command = [sys.executable, "-m", "pytest_sandbox", "pull", f"{server.host}/app:1"]
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=theirs,
            env=os.environ | {"TERM": "xterm"},
            check=False,
        )
        os.close(theirs)
        shown = os.read(ours_, 1 << 16).decode()
        os.close(ours_)
    assert (0, f"{server.host}/app:1\n".encode()) == (done.returncode, done.stdout)
    assert [] == [
        one["digest"] for one in made.manifest["layers"] if one["digest"][7:19] not in shown
    ]


def test_history_prints_what_dockers_prints(capsys, archive):
    """Newest first, a size for each layer, long commands shortened unless --no-trunc."""
    ours(capsys, "load", archive)
    lines = ours(capsys, "history", "app:1").splitlines()
    assert [Image.get("app:1").id[7:19], "<missing>", "<missing>"] == [
        line.split()[0] for line in lines[1:]
    ]
    assert ["0B", "1B", "1.5kB"] == [
        next(cell for cell in line.split() if cell in ("0B", "1B", "1.5kB")) for line in lines[1:]
    ]
    assert "RUN " + "y" * 39 + "…" in lines[2]
    assert lines[2].endswith("buildkit")
    assert "RUN " + "y" * 80 in ours(capsys, "history", "--no-trunc", "app:1")
    assert ["CMD sh", "RUN " + "y" * 80, "step 0"] == [
        one["CreatedBy"] for one in json.loads(ours(capsys, "history", "--format", "json", "app:1"))
    ]


def test_rmi_untags_and_then_deletes(capsys, archive):
    """The last name takes the image along; what is not there is an error unless -f."""
    ours(capsys, "load", archive)
    image = Image.get("app:1")
    assert "Untagged: app:1\n" == ours(capsys, "rmi", "app:1")
    assert f"Untagged: example.test/app:2\nDeleted: {image.id}\n" == ours(
        capsys, "rmi", "example.test/app:2"
    )
    assert 125 == main(["rmi", "app:1"])
    assert "no stored image 'app:1'" in capsys.readouterr().err
    assert "" == ours(capsys, "rmi", "-f", "app:1")


def test_prune_removes_what_has_no_name(capsys, archive, tmp_path):
    """And everything with -a, but not what was used within the span."""
    ours(capsys, "load", archive)
    (tmp_path / "other.tar").write_bytes(files(c="3" * 2000))
    ours(capsys, "load", tmp_path / "other.tar")
    unnamed = Image.list()[-1].id
    assert f"Deleted: {unnamed}\nTotal reclaimed space: 2kB\n" == ours(capsys, "prune", "-f")
    assert "Total reclaimed space: 0B\n" == ours(capsys, "prune", "-a", "--filter", "until=24h")
    assert f"Deleted: {Image.get('app:1').id}\nTotal reclaimed space: 1.5kB\n" == ours(
        capsys, "prune", "-a"
    )
    assert [] == Image.list()


def test_prune_keeps_as_much_as_is_allowed(capsys, tmp_path):
    """What was used longest ago goes first."""
    ages = {}
    for number, name in enumerate(("old", "middle", "new")):
        (tmp_path / name).write_bytes(files(f=name[0] * 10_000))
        ours(capsys, "load", "-t", name, tmp_path / name)
        ages[name] = Image.get(name)
        os.utime(tmp_path / "home/images" / ages[name].id[7:], (number, number))
    assert f"Deleted: {ages['old'].id}\n" in ours(capsys, "prune", "--keep-storage", "20k")
    assert {"middle:latest", "new:latest"} == {image.reference for image in Image.list()}


@pytest.mark.parametrize("text", ["24h", "until=x", "until=", "label=a"])
def test_a_filter_that_is_none_is_refused(capsys, text):
    """With the accepted form."""
    assert 125 == main(["prune", "--filter", text])
    assert "until=24h" in capsys.readouterr().err


@pytest.mark.needs("root", "docker-registry", "busybox")
def test_run_pulls_what_is_missing(capsys, tmp_path):
    """As docker does, unless it is not to."""
    with open("/bin/busybox", "rb") as file:
        from tarballs import entry, layer

        made = Made(
            [layer(entry("bin/busybox", file.read(), mode=0o755))],
            {"Entrypoint": ["/bin/busybox"], "Cmd": ["echo", "default"]},
        )
    with registry(tmp_path / "registry") as server:
        push(server.host, "app:1", made)
        name = f"{server.host}/app:1"
        run = [sys.executable, "-m", "pytest_sandbox", "run"]
        assert (
            125
            == subprocess.run(
                [*run, "--pull", "never", name], capture_output=True, check=False
            ).returncode
        )
        done = subprocess.run([*run, name], capture_output=True, check=False, text=True)
        assert ("default\n", f"Unable to find image '{name}' locally\n") == (
            done.stdout,
            done.stderr,
        )
    done = subprocess.run([*run, name, "echo", "mine"], capture_output=True, check=False, text=True)
    assert ("mine\n", "") == (done.stdout, done.stderr)


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, "0B"),
        (999, "999B"),
        (1000, "1kB"),
        (1_982_256, "1.98MB"),
        (117e6, "117MB"),
        (1.5e13, "15TB"),
    ],
)
def test_sizes_are_dockers(count, expected):
    """Powers of 1000, three digits."""
    assert expected == decimal_size(count)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_load_from_stdin_that_is_killed_leaves_no_copy(tmp_path, number):
    """The copy has no name: it goes with the process."""
    (tmp_path / "tmp").mkdir()
    environment = {**os.environ, "TMPDIR": str(tmp_path / "tmp")}
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest_sandbox", "load"], stdin=subprocess.PIPE, env=environment
    )
    assert process.stdin
    process.stdin.write(bytes(5_000_000))  # more than a pipe takes: it is being copied
    process.stdin.flush()
    process.send_signal(number)
    process.wait()
    process.stdin.close()
    assert (-number, []) == (process.returncode, os.listdir(tmp_path / "tmp"))


def test_an_archive_from_stdin_is_named_so_in_errors(tmp_path):
    """No path of a copy that nobody knows."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest_sandbox", "load"],
        input=b"x" * 600,
        capture_output=True,
        check=False,
    )
    assert (125, True) == (done.returncode, b"the archive on stdin: " in done.stderr)
    assert b"/proc/" not in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["images"],
        ["images", "-q"],
        ["images", "--format=json"],
        ["history", "app:1"],
        ["inspect", "app:1"],
        ["prune"],
        ["rmi", "app:1"],
    ],
)
def test_a_closed_stdout_changes_no_status(archive, words):
    """`pytest-sandbox images >&-` does what it does, and prints nothing."""
    Image.load(archive)
    command = [sys.executable, "-m", "pytest_sandbox", *words]
    done = subprocess.run(
        ["/bin/sh", "-c", 'exec "$@" >&-', "sh", *command], stderr=subprocess.PIPE, check=False
    )
    assert (0, b"") == (done.returncode, done.stderr)


def test_history_shows_what_a_terminal_could_obey_escaped(capsys, tmp_path):
    """A registry's image says what it likes, and a terminal obeys nothing of it."""
    made = Made([files(a="1")])
    made.document["history"] = [
        {"created_by": "\x1b]0;x\x07\x1b[2J\rrm", "comment": "\x9b31m\n\u202e"}
    ]
    made.document["author"] = "\x1b[31m\x9b"
    made.reseal()
    Image.load(made.write(tmp_path / "layout"), name="evil:1")
    for words in (
        ["history", "evil:1"],
        ["history", "--format=json", "evil:1"],
        ["inspect", "evil:1"],
    ):
        text = ours(capsys, *words)
        assert [] == [one for one in text if not one.isprintable() and one != "\n"]


def test_rmi_of_an_unknown_image_does_not_advise_to_pull_it(capsys):
    """Who removes it does not want it."""
    assert 125 == main(["rmi", "nosuch:1"])
    assert "pytest-sandbox: there is no stored image 'nosuch:1'\n" == capsys.readouterr().err


@pytest.mark.parametrize(
    "created",
    [
        5,
        "99999-01-01T00:00:00Z",
        "0001-01-01T00:00:00+23:59",
        "9999-12-31T23:59:59-23:59",
        "\x1b[31m",
    ],
)
def test_an_odd_time_is_not_available(capsys, tmp_path, created):
    """No time that an image may have is an error."""
    made = Made([files(a="1")])
    made.document["created"] = created
    made.reseal()
    Image.load(made.write(tmp_path / "layout"), name="odd:1")
    assert "odd" in ours(capsys, "images")
