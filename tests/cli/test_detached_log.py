"""The log of a detached container: its limits, and readers while it grows."""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import resource
import signal
import subprocess
import threading
from contextlib import contextmanager

import pytest
from command_line import COMMAND, output_of, sandbox
from terminals import wait_for

from pytest_sandbox import SettingsError
from pytest_sandbox.container import detached
from pytest_sandbox.container.detached_log import STDERR, STDOUT, LogLimits, LogReader, LogWriter

needs_containers = pytest.mark.needs("containers")


def log_files(directory) -> dict[str, int]:
    """Return the files of a log with their sizes."""
    found = {}
    for name in os.listdir(directory):
        if name.startswith("log"):
            try:
                found[name] = os.stat(f"{directory}/{name}").st_size
            except FileNotFoundError:  # it was removed meanwhile
                found.pop(name, None)
    return found


def text_of(reader: LogReader) -> str:
    return b"".join(frame.data for frame in reader.read()).decode()


@contextmanager
def a_log(directory, limits):
    """Yield a writer and a reader, which counts gaps."""
    writer = LogWriter(str(directory), limits)
    gaps = []
    reader = LogReader(str(directory), lambda: gaps.append(1))
    try:
        yield writer, reader, gaps
    finally:
        writer.close()
        reader.close()


class TestFiles:
    """The files, without a container."""

    @pytest.mark.parametrize("count", [1, 2, 3, 7])
    def test_the_size_is_limited_and_the_newest_is_kept(self, tmp_path, count):
        """At each moment the files are within the limit, and have at least its newest part: half
        of it for one file, else all but one file.
        """
        size, header, length = 1000, 13, 100
        in_file = (size // 2 if count == 1 else size) // (header + length) * length
        least = in_file * max(1, count - 1)
        with a_log(tmp_path, LogLimits(size, count)) as (writer, _reader, _gaps):
            text = ""
            for number in range(300):
                line = f"{number:099}\n"
                text += line
                writer.append(STDOUT, line.encode())
                assert sum(log_files(tmp_path).values()) <= size * count
                reader = LogReader(str(tmp_path), pytest.fail)
                kept = text_of(reader)
                reader.close()
                assert text.endswith(kept)
                assert len(kept) >= min(len(text), least)

    def test_output_that_is_larger_than_a_file(self, tmp_path):
        """It is split, and its end is kept."""
        data = bytes(range(256)) * 256
        with a_log(tmp_path, LogLimits(1024, 4)) as (writer, _reader, _gaps):
            writer.append(STDERR, data)
            assert sum(log_files(tmp_path).values()) <= 4096
            reader = LogReader(str(tmp_path), pytest.fail)
            frames = list(reader.read())
            reader.close()
        assert {STDERR} == {frame.stream for frame in frames}
        kept = b"".join(frame.data for frame in frames)
        assert data.endswith(kept)
        assert len(kept) > 3000

    def test_without_a_limit_there_is_one_file(self, tmp_path):
        """max-size=-1 keeps everything."""
        with a_log(tmp_path, LogLimits.read([("max-size", "-1")])) as (writer, reader, gaps):
            for _ in range(100):
                writer.append(STDOUT, bytes(1 << 16))
            assert ["log.0"] == list(log_files(tmp_path))
            assert 100 << 16 == len(text_of(reader))
        assert [] == gaps

    @pytest.mark.parametrize("seed", range(20))
    def test_a_reader_that_keeps_up_misses_nothing(self, tmp_path, seed):
        """Whatever the sizes of outputs and files are, it has all of the output, in order."""
        chance = random.Random(seed)
        limits = LogLimits(chance.choice([1024, 5000, 70_000]), chance.choice([1, 2, 5]))
        expected, found = b"", b""
        with a_log(tmp_path, limits) as (writer, reader, gaps):
            room = (limits.file_size or 0) - 13
            for _ in range(200):
                data = chance.randbytes(chance.choice([0, 1, 100, chance.randrange(1, room)]))
                writer.append(chance.choice([STDOUT, STDERR]), data)
                expected += data
                found += b"".join(frame.data for frame in reader.read())
        assert expected == found
        assert [] == gaps

    def test_a_reader_that_is_too_slow_is_told(self, tmp_path):
        """It goes on with the oldest output that there is, after one call; then it has all."""
        with a_log(tmp_path, LogLimits(1024, 3)) as (writer, reader, gaps):
            writer.append(STDOUT, b"first\n")
            assert "first\n" == text_of(reader)
            for number in range(1000):
                writer.append(STDOUT, f"{number}\n".encode())
            numbers = [int(line) for line in text_of(reader).splitlines()]
            # The rest of the file that it had open, then what there is: one jump, to the newest.
            jumps = [b - a for a, b in itertools.pairwise(numbers) if b - a != 1]
            assert (1, 999) == (len(jumps), numbers[-1])
            assert [1] == gaps
            writer.append(STDOUT, b"last\n")
            assert "last\n" == text_of(reader)
            assert [1] == gaps

    def test_a_reader_beside_a_writer(self, tmp_path):
        """While another thread writes as fast as it can, each frame is whole, their order is kept,
        each jump is announced, and the last frame arrives.
        """
        count = 30_000

        def write():
            for number in range(count):
                writer.append(STDOUT, f"{number}\n".encode() * (number % 7 + 1))

        with a_log(tmp_path, LogLimits(2048, 3)) as (writer, reader, gaps):
            thread = threading.Thread(target=write)
            thread.start()
            last, jumps = -1, 0
            while last < count - 1:
                is_alive = thread.is_alive()
                for frame in reader.read():
                    (number,) = set(frame.data.split())
                    assert frame.data == number + b"\n" + (number + b"\n") * (int(number) % 7)
                    assert int(number) > last
                    jumps += int(number) != last + 1
                    last = int(number)
                assert is_alive or last == count - 1
            thread.join()
        assert jumps == len(gaps)

    def test_a_part_of_a_frame_is_not_read(self, tmp_path):
        """A frame that the writer could not complete, and has removed, was not read either."""
        with a_log(tmp_path, LogLimits()) as (writer, reader, _gaps):
            writer.append(STDOUT, b"one")
            with open(tmp_path / "log.0", "ab") as file:
                file.write(b"\x01" + bytes(8) + b"\xff\xff")
            assert "one" == text_of(reader)
            os.truncate(tmp_path / "log.0", 13 + 3)
            writer.append(STDOUT, b"two")
            assert "two" == text_of(reader)

    def test_a_full_disk_is_noted_and_leaves_the_rest_readable(self, tmp_path):
        """What cannot be written is discarded as a whole, with the error; later output is kept."""
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        with a_log(tmp_path, LogLimits()) as (writer, reader, _gaps):
            writer.append(STDOUT, b"a" * 3000)
            try:
                resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
                writer.append(STDOUT, b"b" * 3000)
                writer.append(STDOUT, b"b" * 3000)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            assert isinstance(writer.error, OSError)
            writer.append(STDOUT, b"c" * 3000)
            assert "a" * 3000 + "c" * 3000 == text_of(reader)

    def test_no_new_file_on_a_full_disk(self, tmp_path):
        """If the next file cannot be created, the full one is kept, and it is tried again."""
        with a_log(tmp_path, LogLimits(1024, 2)) as (writer, reader, _gaps):
            writer.append(STDOUT, b"a" * 1000)
            (tmp_path / "log.1").write_bytes(b"")  # O_EXCL fails
            writer.append(STDOUT, b"b" * 1000)
            assert isinstance(writer.error, OSError)
            (tmp_path / "log.1").unlink()
            writer.append(STDOUT, b"c" * 1000)
            assert "a" * 1000 + "c" * 1000 == text_of(reader)

    def test_a_log_that_was_removed(self, tmp_path):
        """A reader has the rest of the file that it has open, and then nothing."""
        with a_log(tmp_path, LogLimits(1024, 3)) as (writer, reader, gaps):
            writer.append(STDOUT, b"rest")
            for name in log_files(tmp_path):
                os.unlink(tmp_path / name)
            assert "rest" == text_of(reader)
            assert "" == text_of(reader)
        assert [] == gaps
        with pytest.raises(FileNotFoundError):
            LogReader(str(tmp_path), pytest.fail)


class TestOptions:
    """--log-opt."""

    def test_the_defaults_are_those_of_dockers_driver_local(self):
        """20 MB in each of 5 files."""
        assert {"max-size": str(20 << 20), "max-file": "5"} == LogLimits.read([]).options
        assert LogLimits() == LogLimits.read(LogLimits().options.items())

    @pytest.mark.parametrize(
        ("given", "expected"),
        [
            ([("max-size", "10m")], LogLimits(10 << 20, 5)),
            ([("max-size", "1k"), ("max-file", "1")], LogLimits(1024, 1)),
            ([("max-size", "1m"), ("max-size", "2m")], LogLimits(2 << 20, 5)),
            ([("max-size", "-1"), ("max-file", "1000")], LogLimits(None, 1000)),
        ],
    )
    def test_valid_options(self, given, expected):
        """Sizes are docker's; the last one of a name counts; they survive as text."""
        limits = LogLimits.read(given)
        assert expected == limits
        assert limits == LogLimits.read(limits.options.items())

    @pytest.mark.parametrize(
        "given",
        [
            "max-size=",
            "max-size=lots",
            "max-size=1023",
            "max-size=-2",
            "max-file=0",
            "max-file=1001",
            "max-file=-1",
            "max-file=1.5",
            "max-file=x",
            "compress=true",
            "max_size=1m",
            "max-size",
            "",
        ],
    )
    def test_invalid_options(self, given):
        """The error has the option as it was given, and the accepted form."""
        name, _, value = given.partition("=")
        with pytest.raises(SettingsError, match=r"accepted: max-(size|file)=") as info:
            LogLimits.read([(name, value)])
        assert "log-opt" == info.value.key
        assert info.value.value in {given, f"{given}="}

    @needs_containers
    @pytest.mark.parametrize(
        ("flags", "said"),
        [
            (["-d", "--log-opt", "max-size=5"], "--log-opt 'max-size=5' is not valid; accepted: m"),
            (["-d", "--log-opt", "mode=fast"], "--log-opt 'mode=fast' is not valid; accepted: max"),
            (["--log-opt", "max-size=1m"], "--log-opt needs -d"),
        ],
    )
    def test_invalid_flags(self, home, flags, said):
        """Nothing is started, and the status is 125."""
        done = sandbox("run", *flags, "host", "true")
        assert (125, "", True) == (done.returncode, done.stdout, said in done.stderr)
        assert not (home / "kept").exists() or [] == os.listdir(home / "kept")


@needs_containers
@pytest.mark.usefixtures("home")
class TestContainers:
    """The logs of containers."""

    def test_a_container_that_floods_its_output_cannot_fill_the_disk(self):
        """While it writes without end, its log is never larger than its limit."""
        options = ["--log-opt", "max-size=100k", "--log-opt", "max-file=3"]
        name = output_of("run", "-d", *options, "host", "yes", "x" * 1000).strip()
        (one,) = detached.list_detached()
        seen = set()

        def has_rotated() -> bool:
            sizes = log_files(one.directory)
            assert sum(sizes.values()) <= 300 << 10
            seen.update(sizes)
            return len(seen) > 200

        wait_for(has_rotated)
        assert ["x" * 1000] * 10 == output_of("logs", "-n", "10", name).splitlines()
        output_of("kill", name)
        assert "137\n" == output_of("wait", name)
        (one,) = detached.list_detached()
        assert sum(log_files(one.directory).values()) <= 300 << 10

    @pytest.mark.slow
    def test_without_options_the_log_is_limited_too(self):
        """Of 150 MB of output, the newest 80 to 100 MB are kept, and their end is the last line."""
        script = "yes 0123456789 | head -c 150000004; echo last"
        name = output_of("run", "-d", "host", "sh", "-c", script).strip()
        assert "0\n" == output_of("wait", name)
        (one,) = detached.list_detached()
        size = sum(log_files(one.directory).values())
        assert 80 << 20 < size <= 100 << 20
        assert "last\n" == output_of("logs", "-n", "1", name)
        (facts,) = json.loads(output_of("inspect", name))
        expected = {"Type": "local", "Config": {"max-size": "20971520", "max-file": "5"}}
        assert expected == facts["HostConfig"]["LogConfig"]

    def test_follow_goes_on_in_the_next_file(self, gate):
        """`logs -f` has each line once, and in order, while the log is rotated many times."""
        name = gate.start("max-size=8k", "max-file=2")
        with gate.open() as control, following(name) as reader:
            for batch in range(20):
                control.write(f"{batch * 500 + 1} {batch * 500 + 500}\n")
                control.flush()
                for number in range(batch * 500 + 1, batch * 500 + 501):
                    assert f"{number}\n" == reader.stdout.readline()
            control.write("end\n")
            control.close()
            assert ("", "") == reader.communicate(timeout=60)
        (one,) = detached.list_detached()
        assert min(map(file_number, log_files(one.directory))) >= 5
        assert "9999\n10000\n" == output_of("logs", "-n", "2", name)

    def test_follow_tells_of_output_that_it_has_missed(self, gate):
        """A reader that was stopped goes on with newer output, and says that a part is missing."""
        name = gate.start("max-size=8k", "max-file=2")
        with gate.open() as control, following(name) as reader:
            control.write("1 10\n")
            control.flush()
            for number in range(1, 11):
                assert f"{number}\n" == reader.stdout.readline()
            reader.send_signal(signal.SIGSTOP)
            control.write("11 20000\n")
            control.close()
            assert "0\n" == output_of("wait", name)
            reader.send_signal(signal.SIGCONT)
            out, error = reader.communicate(timeout=60)
        lines = [int(line) for line in out.split()]
        assert (20_000, True) == (lines[-1], len(lines) < 15_000)
        assert re.fullmatch(
            r"pytest-sandbox: a part of the output is missing: .*--log-opt.*\n", error
        )

    def test_a_restarted_command_goes_on_with_the_log(self):
        """The log of all runs together is within the limit."""
        options = ["--restart=on-failure:3", "--log-opt", "max-size=4k", "--log-opt", "max-file=2"]
        script = "echo x >> /tmp/runs; seq 1000; wc -l < /tmp/runs; exit 4"
        name = output_of("run", "-d", *options, "host", "sh", "-c", script).strip()
        assert "4\n" == output_of("wait", name)
        assert "1000\n4\n" == output_of("logs", "-n", "2", name)
        (one,) = detached.list_detached()
        assert sum(log_files(one.directory).values()) <= 8192


def file_number(name: str) -> int:
    return int(name.removeprefix("log."))


def following(name: str) -> subprocess.Popen[str]:
    """Start `logs -f`."""
    pipe = subprocess.PIPE
    return subprocess.Popen([*COMMAND, "logs", "-f", name], stdout=pipe, stderr=pipe, text=True)


class Gate:
    """A container that prints the numbers of each range that is written to a FIFO."""

    SCRIPT = "while read first last; do [ $first = end ] || seq $first $last; done < /gate/fifo"

    def __init__(self, directory):
        self._directory = directory
        os.mkfifo(directory / "fifo")

    def start(self, *options):
        """Start it with options of the log; return its id."""
        flags = [part for one in options for part in ("--log-opt", one)]
        volume = ["-v", f"{self._directory}:/gate"]
        return output_of("run", "-d", *flags, *volume, "host", "sh", "-c", self.SCRIPT).strip()

    def open(self):
        """Return the FIFO, open for writing, once the container has opened it."""
        return open(self._directory / "fifo", "w")


@pytest.fixture
def gate(tmp_path):
    (tmp_path / "gate").mkdir()
    return Gate(tmp_path / "gate")
