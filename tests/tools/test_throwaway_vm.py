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


def test_a_stream_ends_at_its_mark(pipe):
    """The mark is found and not copied, in whatever pieces it arrives."""
    read, write = pipe
    whole = b"one\ntwo " + MARK.encode() + b"\n"
    for cut in range(1, len(whole)):
        stream = Stream(write, MARK)
        stream.feed(whole[:cut])
        stream.feed(whole[cut:])
        assert (b"one\ntwo ", True) == (received(read), stream.ended)


def test_a_part_of_the_mark_is_copied(pipe):
    """Output that begins like the mark is copied as soon as it differs."""
    read, write = pipe
    stream = Stream(write, MARK)
    stream.feed(MARK[:8].encode())
    assert b"" == received(read)
    stream.feed(b"!")
    assert (MARK[:8].encode() + b"!", False) == (received(read), stream.ended)


@pytest.mark.skipif(not shutil.which("cpio"), reason="this host lacks cpio")
def test_cpio_unpacks_the_archive(tmp_path):
    """The initramfs can be unpacked by cpio to the same executable files."""
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
def test_the_options_choose_the_user(arguments, run_as):
    """The command runs as root, as a user with a delegated cgroup, or as a user without one."""
    asked = order(parser().parse_args(arguments))
    assert (run_as, ("true",)) == (asked.run_as, asked.command)


def test_the_script_quotes_the_command(tmp_path):
    """The command gets spaces, quotes and variables of its arguments unchanged."""
    command = ("printf", "%s|", "a b", "it's", "$HOME", 'say "x"')
    asked = Order(command=command, cwd=tmp_path, environment={"ODD": "a 'b' $c"})
    done = subprocess.run(["sh"], input=script(asked), capture_output=True, text=True, check=True)
    assert 'a b|it\'s|$HOME|say "x"|' == done.stdout


def test_a_user_can_reach_the_working_directory(tmp_path):
    """All parents of the working directory are made searchable for the guest's user."""
    assert {str(path) for path in tmp_path.parents} - {"/"} <= set(
        traversed(Order(command=("true",), cwd=tmp_path))
    )


def test_the_scripts_of_the_guest_are_valid(scripts):
    """Each script of the guest has valid syntax."""
    assert [] == [
        path.name for path in scripts if subprocess.run(["sh", "-n", path], check=False).returncode
    ]


@pytest.fixture
def scripts() -> list[Path]:
    return sorted((Path(__file__).parents[2] / "tools/throwaway_vm/guest").glob("*.sh"))


def test_the_lane_without_cgroups_deselects_one_test():
    """The lane without cgroups runs all tests of the sample project except one."""
    sample = next(way.sample for way in WAYS if way.name == "user-without-cgroups")
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
