"""``cp``, ``commit`` and ``top`` of containers."""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile

import pytest
from boxes import make_busybox_root
from command_line import COMMAND, output_of, sandbox
from tarballs import directory, entry, layer, link
from terminals import wait_for

from pytest_sandbox import Container, ImageError
from pytest_sandbox.container import detached
from pytest_sandbox.image.image import Image

pytestmark = pytest.mark.needs("containers")


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory):
    """Use a store of the module's own, and kill what a failed test leaves running."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTEST_SANDBOX_HOME", str(tmp_path_factory.mktemp("store") / "home"))
        yield
        for one in detached.list_detached():
            sandbox("rm", "-f", one.id)


@pytest.fixture(scope="module")
def web() -> str:
    """A detached container that runs until the end, with some files."""
    script = (
        "mkdir -p /srv/d/sub; cd /srv; echo one > d/one; echo two > d/sub/two; chmod 750 d/sub;"
        "ln -s /etc/shadow d/escape; ln -s one d/inner; ln -s d directory; mkfifo d/pipe;"
        "ln -s / root; chown -R 1234:2345 d/one; touch ready; exec sleep 1000"
    )
    name = output_of("run", "-d", "--name", "web", "host", "sh", "-c", script).strip()
    wait_for(lambda: sandbox("exec", name, "test", "-e", "/srv/ready").returncode == 0)
    return name


def inside(name: str, script: str) -> str:
    return output_of("exec", name, "sh", "-c", script)


class TestCopy:
    """cp."""

    def test_out(self, web, tmp_path):
        """A file, a directory into an existing one, and the content of a directory."""
        assert "" == output_of("cp", f"{web}:/srv/d/one", str(tmp_path / "got"))
        assert "one\n" == (tmp_path / "got").read_text()
        output_of("cp", "web:srv/d", str(tmp_path))
        assert "two\n" == (tmp_path / "d/sub/two").read_text()
        assert 0o750 == (tmp_path / "d/sub").stat().st_mode & 0o7777
        assert "one" == os.readlink(tmp_path / "d/inner")
        assert not (tmp_path / "d/pipe").exists()
        output_of("cp", "web:/srv/d/.", str(tmp_path / "content"))
        assert "one\n" == (tmp_path / "content/one").read_text()

    def test_no_link_leads_to_the_host(self, web, tmp_path):
        """A link in the container is followed inside, whatever it leads to on the host."""
        output_of("exec", web, "sh", "-c", "echo inner > /srv/secret; ln -sf /srv/secret /srv/l")
        (tmp_path / "target").mkdir()
        output_of("cp", "web:/srv/l", str(tmp_path / "target"))
        assert "inner\n" == (tmp_path / "target/l").read_text()
        secret = tmp_path / "host-secret"
        secret.write_text("of the host")
        inside(web, f"ln -s {secret} /srv/to-host; rm -f {secret}")
        refused = sandbox("cp", "web:/srv/to-host", str(tmp_path / "stolen"))
        assert (125, False) == (refused.returncode, (tmp_path / "stolen").exists())

    def test_in_never_leaves_the_container(self, web, tmp_path):
        """A target with a link in its path is resolved inside."""
        (tmp_path / "file").write_text("mine")
        outside = tmp_path / "outside"
        outside.mkdir()
        inside(web, f"mkdir -p {outside}; ln -sfn {outside} /srv/out")
        output_of("cp", str(tmp_path / "file"), "web:/srv/out/")
        assert [] == os.listdir(outside)
        assert "mine" == inside(web, f"cat {outside}/file")

    @pytest.mark.needs("root")
    def test_owners(self, web, tmp_path):
        """Copies belong to the caller, and inside to root; -a keeps the numbers."""
        for flags, expected in ((), (0, 0)), (("-a",), (1234, 2345)):
            place = tmp_path / f"out{len(flags)}"
            output_of("cp", *flags, "web:/srv/d/one", str(place))
            assert expected == (place.stat().st_uid, place.stat().st_gid)
        os.chown(tmp_path / "out1", 7, 8)
        for flags, expected in ((), "0:0\n"), (("--archive",), "7:8\n"):
            output_of("cp", *flags, str(tmp_path / "out1"), "web:/srv/owned")
            assert expected == inside(web, "stat -c %u:%g /srv/owned")

    def test_a_link_on_the_host(self, web, tmp_path):
        """Without -L a link is copied as a link, with -L as what it leads to."""
        (tmp_path / "file").write_text("x")
        (tmp_path / "link").symlink_to("file")
        output_of("cp", str(tmp_path / "link"), "web:/srv/as-link")
        assert "file\n" == inside(web, "readlink /srv/as-link")
        output_of("cp", "-L", str(tmp_path / "link"), "web:/srv/as-file")
        assert "x" == inside(web, "test ! -L /srv/as-file; cat /srv/as-file")

    def test_an_archive_out(self, web):
        """With - as the target, a tar stream with owners and links is written."""
        raw = subprocess.check_output([*COMMAND, "cp", "web:/srv/d", "-"])
        with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
            names = {one.name: one for one in archive}
            assert {"d", "d/one", "d/sub", "d/sub/two", "d/escape", "d/inner"} <= set(names)
            assert b"two\n" == archive.extractfile("d/sub/two").read()
        assert "/etc/shadow" == names["d/escape"].linkname
        assert tarfile.FIFOTYPE == names["d/pipe"].type
        raw = subprocess.check_output([*COMMAND, "cp", "web:/srv/d/one", "-"])
        with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
            assert ["one"] == archive.getnames()

    def test_an_archive_in(self, web, tmp_path):
        """With - as the source, a tar stream is extracted; a hostile one stays in the target."""
        good = layer(directory("new", mode=0o750), entry("new/file", b"in"), link("new/l", "/etc"))
        inside(web, "mkdir -p /srv/in")
        subprocess.run([*COMMAND, "cp", "-", "web:/srv/in"], input=good, check=True)
        assert "in/etc\n750\n" == inside(web, "cd /srv/in/new; cat file; readlink l; stat -c %a .")
        victim = tmp_path / "victim"
        for hostile in (
            layer(entry("../../../../.." + str(victim), b"x")),
            layer(link("l", str(tmp_path)), entry("l/victim", b"x")),
            layer(link("/l2", "/srv"), entry("/l2/victim", b"x")),
        ):
            sandbox_bytes("cp", "-", "web:/srv/in", input=hostile)
            assert not victim.exists()
        broken = sandbox_bytes("cp", "-", "web:/srv/in", input=b"no archive" * 100)
        assert (125, True) == (broken.returncode, b"pytest-sandbox: " in broken.stderr)

    @pytest.mark.needs("root")
    @pytest.mark.parametrize("name", ["other", "mounted/file"])
    def test_an_ended_container_whose_mount_is_gone(self, home, tmp_path, name):
        """A mount of the host that is gone matters only if the container has written below it."""
        (tmp_path / "mounted").mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "none", str(tmp_path / "mounted")], check=True)
        try:
            one = output_of("run", "-d", "host", "sh", "-c", f"echo x > {tmp_path}/{name}").strip()
            assert "0\n" == output_of("wait", one)
        finally:
            subprocess.run(["umount", str(tmp_path / "mounted")], check=True)
        done = sandbox("cp", f"{one}:{tmp_path}/{name}", "-")
        if name == "other":
            assert (0, True) == (done.returncode, "x\n" in done.stdout), done.stderr
        else:
            assert (125, True) == (done.returncode, "mount it again" in done.stderr)

    def test_an_ended_container(self, tmp_path):
        """Files of an ended container can be copied out, and not into it."""
        name = output_of("run", "-d", "host", "sh", "-c", "echo left > /srv/left").strip()
        output_of("wait", name)
        output_of("cp", f"{name}:/srv/left", str(tmp_path / "left"))
        assert "left\n" == (tmp_path / "left").read_text()
        refused = sandbox("cp", str(tmp_path / "left"), f"{name}:/srv/")
        assert (125, True) == (refused.returncode, "has ended" in refused.stderr)

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (("a:/x", "b:/y"), "copying between containers is not supported"),
            (("/x", "/y"), "must specify at least one container source"),
            (("nosuch:/x", "/tmp/y"), "no running container 'nosuch'"),
            (("/nosuch/file", "web:/x"), "No such file or directory: '/nosuch/file'"),
            (("web:/nosuch", "/tmp/x"), "No such file or directory: '/nosuch'"),
            (("/etc/hosts", "web:/nosuch/"), "No such file or directory: '/nosuch/'"),
            (("web:/srv/d/one", "/nosuch/x"), "/nosuch: there is no such directory"),
        ],
    )
    def test_errors(self, web, words, said):
        """Wrong arguments and missing files are one line and the status 125."""
        done = sandbox("cp", *words)
        assert (125, "", True) == (done.returncode, done.stdout, said in done.stderr), done.stderr


def sandbox_bytes(*args: str, input: bytes) -> subprocess.CompletedProcess[bytes]:  # noqa: A002
    return subprocess.run([*COMMAND, *args], input=input, capture_output=True, check=False)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A stored image with one layer, "base:1"."""
    root = make_busybox_root(tmp_path_factory.mktemp("image") / "root")
    archive = root.parent / "root.tar"
    subprocess.run(["tar", "-C", root, "-cf", archive, "."], check=True)
    Image.load(archive, name="base:1")
    return "base:1"


class TestCommit:
    """commit."""

    def test_a_running_container(self, image):
        """What it wrote is an image with a name, a message, an author and changes; it goes on."""
        name = output_of(
            "run", "-d", image, "sh", "-c", "echo new > /new; rm /etc/group; sleep 1000"
        ).strip()
        wait_for(lambda: sandbox("exec", name, "test", "-e", "/new").returncode == 0)
        changes = ["-c", "ENV A=b C='d e'", "-c", 'CMD ["cat", "/new"]', "-c", "WORKDIR /etc"]
        flags = ["-m", "what it is", "-a", "Ann", *changes]
        said = output_of("commit", *flags, name, "made:2").strip()
        made = Image.get("made:2")
        assert said == made.id
        assert "new\n" == output_of("run", "made:2")
        assert "b d e /etc\n" == output_of("run", "made:2", "sh", "-c", "echo $A $C $PWD")
        assert 1 == sandbox("run", "made:2", "test", "-e", "/etc/group").returncode
        assert ("what it is", "Ann") == (made.history[-1]["comment"], made.history[-1]["author"])
        assert "running\n" == output_of("inspect", "-f", "{{.State.Status}}", name)
        output_of("rm", "-f", name)

    def test_an_ended_container(self, image):
        """An ended container is committed from its saved files; without a name, by its id."""
        name = output_of("run", "-d", image, "sh", "-c", "echo late > /late").strip()
        output_of("wait", name)
        said = output_of("commit", name).strip()
        assert "late\n" == output_of("run", said, "cat", "/late")
        assert said == Image.get(said).reference
        output_of("rm", name)

    def test_a_committed_image_is_saved_and_loaded(self, image, tmp_path):
        """Save packs the layers of a commit, too, with what it deleted."""
        name = output_of("run", "-d", image, "sh", "-c", "echo s > /s; rm /etc/group").strip()
        output_of("wait", name)
        output_of("commit", name, "made:3")
        output_of("save", "-o", str(tmp_path / "made.tar"), "made:3")
        output_of("rmi", "made:3")
        output_of("load", "-i", str(tmp_path / "made.tar"))
        assert "s\n" == output_of("run", "made:3", "sh", "-c", "cat /s; ls /etc/group 2>&-; true")

    def test_an_image_in_memory_has_no_name(self, tmp_path):
        """What is not in the store can be neither tagged nor saved; details store a commit."""
        with Container() as container:
            made = container.commit()
            for use in (lambda: made.tag("x:1"), lambda: made.save(tmp_path / "x.tar")):
                with pytest.raises(ImageError, match="in memory: commit it with a name"):
                    use()
            stored = container.commit(message="why", changes=["ENV A=1"])
        assert (["A=1"], "why") == (stored.config["Env"], stored.history[-1]["comment"])
        assert stored.id == Image.get(stored.id).id
        assert [] == os.listdir(tmp_path)

    def test_the_hosts_root_cannot_be_saved(self, web, tmp_path):
        """A commit on `host` is an image, which `save` refuses."""
        output_of("commit", web, "onhost:1")
        assert "one\n" == output_of("run", "onhost:1", "cat", "/srv/d/one")
        done = sandbox("save", "-o", str(tmp_path / "x.tar"), "onhost:1")
        assert (125, True) == (done.returncode, "changes to the host's root" in done.stderr)
        assert [] == os.listdir(tmp_path)

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (("nosuch",), "No such container: nosuch"),
            (("web", "UPPER:1"), "UPPER"),
            (("-c", "RUN true", "web"), "change='RUN true' is not valid; accepted: CMD,"),
            (("-c", "CMD [1]", "web"), "is not valid"),
            (("-c", "EXPOSE x", "web"), "is not valid"),
            (("-c", "ENV", "web"), "is not valid"),
        ],
    )
    def test_errors(self, web, words, said):
        """An invalid name, change or container is refused before anything is copied."""
        before = [one.id for one in Image.list()]
        done = sandbox("commit", *words)
        assert (125, "", True) == (done.returncode, done.stdout, said in done.stderr), done.stderr
        assert before == [one.id for one in Image.list()]


class TestTop:
    """top."""

    def test_the_processes_by_their_pids_outside(self, web):
        """The columns are those of ps -ef; init is not listed."""
        header, *lines = output_of("top", web).splitlines()
        assert ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"] == header.split()
        (line,) = [line for line in lines if "sleep 1000" in line]
        pid = line.split()[1]
        with open(f"/proc/{pid}/cmdline") as file:
            assert "sleep\x001000\x00" == file.read()
        assert json.loads(output_of("inspect", "-f", "{{.State.Pid}}", web)) == int(pid)

    @pytest.mark.needs("ps")
    def test_options_of_ps(self, web):
        """With options, ps(1) of the host prints the columns; without PID it is an error."""
        lines = output_of("top", web, "-eo", "pid,comm").splitlines()
        assert (["PID", "COMMAND"], ["sleep"]) == (
            lines[0].split(),
            [line.split()[1] for line in lines[1:]],
        )
        done = sandbox("top", web, "-eo", "comm")
        assert (125, True) == (done.returncode, "couldn't find PID field" in done.stderr)

    def test_an_unknown_and_an_ended_container(self):
        """Both are errors, with docker's words."""
        assert "no running container 'nosuch'" in sandbox("top", "nosuch").stderr
        name = output_of("run", "-d", "host", "true").strip()
        output_of("wait", name)
        assert "is not running" in sandbox("top", name).stderr


class TestPs:
    """Formats and filters of ps and inspect, of containers."""

    def test_templates(self, web):
        """--format takes docker's fields."""
        only = ["--filter", f"id={web}"]
        row = "{{.ID}} {{.Names}} {{.State}} {{.Networks}} {{.Image}}"
        assert f"{web} web running none host\n" == output_of("ps", *only, "--format", row)
        table = output_of("ps", *only, "--format", r"table {{.Names}}\t{{.Status}}").splitlines()
        assert ["NAME", "STATUS"] == table[0].split()
        assert table[1].startswith("web    Up ")
        assert "true\n" == output_of("inspect", "--format", "{{.State.Running}}", web)
        assert '"web"\n' == output_of("ps", *only, "--format", "{{json .Names}}")

    def test_filters(self):
        """exited, label, before and since select containers."""
        ids = [
            output_of("run", "-d", "-l", f"n={n}", "host", "sh", "-c", f"exit {n}").strip()
            for n in (3, 4)
        ]
        for one in ids:
            output_of("wait", one)
        assert ids[:1] == output_of("ps", "-aq", "--filter", "exited=3").split()
        assert ids[1:] == output_of("ps", "-aq", "--filter", "label=n=4").split()
        assert ids[1:] == output_of("ps", "-aq", "-f", f"since={ids[0]}", "-f", "label=n").split()
        assert ids[:1] == output_of("ps", "-aq", "-f", f"before={ids[1]}", "-f", "label=n").split()
        unknown = sandbox("ps", "-f", "since=nosuch")
        assert (125, True) == (unknown.returncode, "'nosuch' is no container" in unknown.stderr)
