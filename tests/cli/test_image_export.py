"""``tag`` and ``save``, and the formats and filters of ``images`` and ``history``."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from typing import TYPE_CHECKING

import pytest
from tarballs import Made, directory, docker_archive, entry, files, layer, link

from pytest_sandbox.cli.main import main
from pytest_sandbox.image.image import Image

if TYPE_CHECKING:
    from pathlib import Path


pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture
def made() -> Made:
    """An image with what a layer may have: links, whiteouts, modes, times, long names."""
    lower = layer(
        directory("d", mode=0o1750, mtime=5),
        entry("d/gone", b"x"),
        directory("opaque"),
        entry("opaque/below", b"x"),
        entry("n" * 120 + "/é", b"long", mtime=1_700_000_000.25, pax_headers={"mtime": "17.25"}),
    )
    upper = layer(
        entry("d/.wh.gone"),
        directory("opaque"),
        entry("opaque/.wh..wh..opq"),
        entry("opaque/new", b"n"),
        entry("one", b"content", mode=0o4755),
        link("hard", "one", kind="hard"),
        link("soft", "../outside"),
        entry("pipe", kind="fifo"),
    )
    return Made([lower, upper], {"Env": ["A=1"], "Labels": {"kind": "test"}})


@pytest.fixture
def archive(made: Made, tmp_path: Path) -> Path:
    made.document["created"] = "2026-01-02T03:04:05Z"
    (tmp_path / "in.tar").write_bytes(docker_archive(made, "app:1", "example.test/app:2"))
    return tmp_path / "in.tar"


def ours(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """What a verb prints when it succeeds."""
    assert 0 == main([*map(str, words)])
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """What a verb says that fails."""
    assert 125 == main([*map(str, words)])
    return capsys.readouterr().err


def listing(path: Path) -> list[tuple[object, ...]]:
    """Return the entries of the layers in a saved archive."""
    found = []
    with tarfile.open(path) as outer:
        (image,) = json.load(outer.extractfile("manifest.json"))
        for name in image["Layers"]:
            data = io.BytesIO(outer.extractfile(name).read())
            with tarfile.open(fileobj=data) as inner:
                found += [
                    (one.name, one.type, one.mode, one.linkname, one.size, one.mtime)
                    for one in inner
                ]
    return found


class TestSave:
    """save."""

    def test_what_was_saved_is_loaded_again(self, capsys, archive, tmp_path, monkeypatch):
        """An image survives save and load in another store with its names, configuration, history
        and files; saving it again gives the same archive.
        """
        ours(capsys, "load", archive)
        first = tmp_path / "first.tar"
        assert "" == ours(capsys, "save", "-o", first, "app:1", "example.test/app:2")
        before = Image.get("app:1")
        monkeypatch.setenv("PYTEST_SANDBOX_HOME", str(tmp_path / "other"))
        assert "Loaded image: app:1\n" in ours(capsys, "load", "-i", first)
        after = Image.get("app:1")
        assert before.config == after.config
        assert before.history == after.history
        assert ("app:1", "example.test/app:2") == after.names
        assert before.size == after.size
        second = tmp_path / "second.tar"
        ours(capsys, "save", "-o", second, "app:1", "example.test/app:2")
        assert first.read_bytes() == second.read_bytes()

    def test_the_layers_have_every_kind_of_file(self, capsys, archive, tmp_path):
        """Whiteouts, opaque directories, links, FIFOs, modes, times and long names are saved."""
        ours(capsys, "load", archive)
        ours(capsys, "save", "app:1", "--output", tmp_path / "out.tar")
        found = listing(tmp_path / "out.tar")
        names = {one[0]: one for one in found}
        assert {
            "d/.wh.gone",
            "opaque/.wh..wh..opq",
            "opaque/new",
            "hard",
            "one",
            "soft",
            "pipe",
            "d/gone",
            f"{'n' * 120}/é",
        } <= set(names)
        assert ("d", tarfile.DIRTYPE, 0o1750) == names["d"][:3]
        assert 17.25 == names[f"{'n' * 120}/é"][5]
        assert ("soft", tarfile.SYMTYPE, "../outside") == (*names["soft"][:2], names["soft"][3])
        assert tarfile.FIFOTYPE == names["pipe"][1]
        assert {tarfile.REGTYPE, tarfile.LNKTYPE} == {names["one"][1], names["hard"][1]}
        # Directories that had no entry in the original layer have none in the saved one.
        assert "n" * 120 not in names
        assert "." not in names

    def test_standard_output(self, archive, capsys):
        """Without -o the archive goes to stdout; by id, an image has no name in it."""
        ours(capsys, "load", archive)
        done = subprocess.run(
            [sys.executable, "-m", "pytest_sandbox", "save", Image.get("app:1").id],
            capture_output=True,
            check=True,
        )
        with tarfile.open(fileobj=io.BytesIO(done.stdout)) as outer:
            (listed,) = json.load(outer.extractfile("manifest.json"))
            index = json.load(outer.extractfile("index.json"))
        assert None is listed["RepoTags"]
        assert "annotations" not in index["manifests"][0]

    def test_nothing_is_left_after_an_error(self, capsys, archive, tmp_path):
        """An unknown image, and a directory that does not exist, are errors that leave no file."""
        ours(capsys, "load", archive)
        assert "no stored image 'nosuch" in refused(
            capsys, "save", "-o", tmp_path / "x.tar", "app:1", "nosuch:1"
        )
        assert "No such file or directory" in refused(
            capsys, "save", "-o", tmp_path / "nosuch/x.tar", "app:1"
        )
        assert ["home", "in.tar"] == sorted(os.listdir(tmp_path))

    @pytest.mark.parametrize("kind", ["docker-archive", "oci-archive"])
    @pytest.mark.needs("skopeo")
    def test_skopeo_reads_it(self, capsys, archive, tmp_path, kind):
        """Skopeo reads the archive as docker's and as OCI's."""
        ours(capsys, "load", archive)
        ours(capsys, "save", "-o", tmp_path / "out.tar", "app:1")
        raw = subprocess.check_output(
            ["skopeo", "inspect", "--config", f"{kind}:{tmp_path / 'out.tar'}"]
        )
        assert ["A=1"] == json.loads(raw)["config"]["Env"]
        subprocess.run(
            ["skopeo", "copy", "-q", f"{kind}:{tmp_path / 'out.tar'}", f"dir:{tmp_path / 'dir'}"],
            check=True,
        )

    def test_two_images_share_a_layer(self, capsys, tmp_path):
        """Several images are saved in one archive, in which each layer is once."""
        base = files(a="1")
        for number in (1, 2):
            made = Made([base, files(b=str(number))], {"Env": [f"N={number}"]})
            (tmp_path / "in.tar").write_bytes(docker_archive(made, f"app:{number}"))
            ours(capsys, "load", tmp_path / "in.tar")
        ours(capsys, "save", "-o", tmp_path / "out.tar", "app:1", "app:2")
        with tarfile.open(tmp_path / "out.tar") as outer:
            one, other = json.load(outer.extractfile("manifest.json"))
            assert one["Layers"][0] == other["Layers"][0]
            assert len(outer.getnames()) == len(set(outer.getnames()))
        assert ["app:1"] == one["RepoTags"]


class TestTag:
    """tag."""

    def test_a_further_name(self, capsys, archive):
        """The image has both names, and `rmi` of one leaves the other."""
        ours(capsys, "load", archive)
        assert "" == ours(capsys, "tag", "app:1", "localhost:5000/other")
        assert Image.get("app:1").id == Image.get("localhost:5000/other:latest").id
        assert "Untagged: app:1\n" == ours(capsys, "rmi", "app:1")
        assert "localhost:5000/other:latest" in Image.get("localhost:5000/other").names

    def test_a_name_moves(self, capsys, archive, tmp_path):
        """The name of another image is taken from it."""
        ours(capsys, "load", archive)
        (tmp_path / "b.tar").write_bytes(docker_archive(Made([files(b="2")]), "b:1"))
        ours(capsys, "load", tmp_path / "b.tar")
        old = Image.get("app:1")
        ours(capsys, "tag", "b:1", "app:1")
        assert Image.get("b:1").id == Image.get("app:1").id
        assert ("example.test/app:2",) == Image.get(old.id).names

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (("nosuch:1", "a:1"), "there is no stored image 'nosuch:1'"),
            (("app:1", "UPPER"), "UPPER"),
            (("app:1", f"a@sha256:{'0' * 64}"), "a name with a digest cannot be given"),
        ],
    )
    def test_errors(self, capsys, archive, words, said):
        """An unknown image and an invalid name are refused."""
        ours(capsys, "load", archive)
        assert said in refused(capsys, "tag", *words)


class TestLists:
    """images and history."""

    def test_templates(self, capsys, archive):
        """--format takes docker's fields; `table` adds their headers."""
        ours(capsys, "load", archive)
        image = Image.get("app:1")
        template = "{{.Repository}}:{{.Tag}} {{.ID}} {{.Size}}"
        assert f"app:1 {image.id[7:19]} 14B\n" == ours(
            capsys, "images", "--format", template, "app:1"
        )
        lines = ours(capsys, "images", "--format", r"table {{.ID}}\t{{.Tag}}").splitlines()
        assert ["IMAGE ID", "TAG"] == lines[0].split("   ")[:1] + lines[0].split()[-1:]
        assert [image.id[7:19], "1"] == lines[1].split()
        assert {"CreatedAt": "2026-01-02 03:04:05 +0000 UTC"}.items() <= json.loads(
            ours(capsys, "images", "--format", "{{json .}}", "app:1")
        ).items()
        assert "step 1 \nstep 0 \n" == ours(
            capsys, "history", "--format", "{{.CreatedBy}} {{.Comment}}", "app:1"
        )

    def test_an_unknown_field(self, capsys, archive):
        """The error names the fields."""
        ours(capsys, "load", archive)
        assert (
            "there is no field .Repositry; did you mean .Repository?; accepted: .ID, "
            in refused(capsys, "images", "--format", "{{.Repositry}}")
        )

    @pytest.mark.parametrize(
        ("condition", "names"),
        [
            ("reference=app", {"app:1"}),
            ("reference=*:2", {"example.test/app:2"}),
            ("label=kind", {"app:1", "example.test/app:2"}),
            ("label=kind=other", set()),
            ("dangling=true", set()),
            ("dangling=false", {"app:1", "example.test/app:2", "old:1"}),
            ("before=app:1", {"old:1"}),
            ("since=old:1", {"app:1", "example.test/app:2"}),
        ],
    )
    def test_filters(self, capsys, archive, tmp_path, condition, names):
        """--filter selects images as docker does."""
        ours(capsys, "load", archive)
        old = Made([files(a="old")])
        old.document["created"] = "2020-01-01T00:00:00Z"
        (tmp_path / "old.tar").write_bytes(docker_archive(old, "old:1"))
        ours(capsys, "load", tmp_path / "old.tar")
        form = "{{.Repository}}:{{.Tag}}"
        found = ours(capsys, "images", "--filter", condition, "--format", form)
        assert names == set(found.split())

    @pytest.mark.parametrize("condition", ["dangling=perhaps", "size=1", "label"])
    def test_an_invalid_filter(self, capsys, condition):
        """The error names the accepted keys."""
        assert "accepted: KEY=VALUE with a KEY among dangling, label" in refused(
            capsys, "images", "--filter", condition
        )

    def test_inspect_with_a_template(self, capsys, archive):
        """A setting that an image does not have is empty; an unknown one is an error."""
        ours(capsys, "load", archive)
        template = "{{.Config.Env}}{{.Config.User}}{{.Config.Labels.kind}}{{.Config.Labels.no}}"
        assert "[A=1]test<no value>\n" == ours(capsys, "inspect", "--format", template, "app:1")
        assert "did you mean .Config?" in refused(capsys, "inspect", "-f", "{{.Confg}}", "app:1")
