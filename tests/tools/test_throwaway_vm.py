from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from throwaway_vm.archive import archive
from throwaway_vm.command import order, parser
from throwaway_vm.lane import WAYS
from throwaway_vm.machine import Order, Stream, script, traversed

MARK = "0123456789abcdef"


@pytest.fixture
def pipe():
    read, write = os.pipe()
    os.set_blocking(read, False)
    yield read, write
    os.close(read)
    os.close(write)


def received(read: int) -> bytes:
    try:
        return os.read(read, 1 << 16)
    except BlockingIOError:
        return b""


def test_a_stream_ends_at_its_mark_however_it_is_cut(pipe):
    """The mark is found and held back, whatever pieces the serial line delivers."""
    read, write = pipe
    whole = b"one\ntwo " + MARK.encode() + b"\n"
    for cut in range(1, len(whole)):
        stream = Stream(write, MARK)
        stream.feed(whole[:cut])
        stream.feed(whole[cut:])
        assert (b"one\ntwo ", True) == (received(read), stream.ended)


def test_a_stream_passes_on_what_only_looks_like_a_mark(pipe):
    """A part of the mark inside of the output is output, and comes as soon as it cannot be the mark
    any more.
    """
    read, write = pipe
    stream = Stream(write, MARK)
    stream.feed(MARK[:8].encode())
    assert b"" == received(read)
    stream.feed(b"!")
    assert (MARK[:8].encode() + b"!", False) == (received(read), stream.ended)


@pytest.mark.skipif(not shutil.which("cpio"), reason="this host lacks cpio")
def test_an_archive_is_what_cpio_reads(tmp_path):
    """The initramfs unpacks to the same files, all of them executable."""
    files = {"init": b"#!/busybox sh\n", "run.env": b"", "odd": b"x" * 4097}
    subprocess.run(["cpio", "-id", "--quiet"], input=archive(files), cwd=tmp_path, check=True)
    assert files == {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert {0o755} == {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}


@pytest.mark.parametrize(
    ("arguments", "run_as"),
    [
        (["--", "true"], "root"),
        (["--user", "true"], "delegated"),
        (["--user", "--no-delegate", "--", "true"], "plain"),
    ],
)
def test_the_options_say_who_runs_the_command(arguments, run_as):
    """Root by default; a user with a delegated cgroup; a user without."""
    asked = order(parser().parse_args(arguments))
    assert (run_as, ("true",)) == (asked.run_as, asked.command)


def test_the_script_runs_the_command_as_it_was_given(tmp_path):
    """Spaces, quotes and variables of the command line reach the command untouched."""
    command = ("printf", "%s|", "a b", "it's", "$HOME", 'say "x"')
    asked = Order(command=command, cwd=tmp_path, environment={"ODD": "a 'b' $c"})
    done = subprocess.run(["sh"], input=script(asked), capture_output=True, text=True, check=True)
    assert 'a b|it\'s|$HOME|say "x"|' == done.stdout


def test_a_user_can_reach_the_working_directory(tmp_path):
    """Every directory above the working directory is among those that are opened for the guest's
    user.
    """
    assert {str(path) for path in tmp_path.parents} - {"/"} <= set(
        traversed(Order(command=("true",), cwd=tmp_path))
    )


def test_the_guests_scripts_are_shell(scripts):
    """Each script of the guest is read by a shell without complaint."""
    assert [] == [
        path.name for path in scripts if subprocess.run(["sh", "-n", path], check=False).returncode
    ]


@pytest.fixture
def scripts() -> list[Path]:
    return sorted((Path(__file__).parents[2] / "tools/throwaway_vm/guest").glob("*.sh"))


def test_the_lane_without_groups_runs_all_of_the_sample_project_but_one():
    """What the lane deselects is named as pytest names it: one test is left out, and no other."""
    sample = next(way.sample for way in WAYS if way.name == "user-without-groups")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--collect-only",
        *shlex.split(sample),
    ]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True
    )
    limits = [
        line.partition("::")[2] for line in done.stdout.splitlines() if "test_limits.py::" in line
    ]
    assert (["test_a_test_that_never_ends_is_ended"], True) == (
        limits,
        "(1 deselected)" in done.stdout,
    )
