"""``Container.call``: a function inside, its value or its exception outside, as data."""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
import decimal
import enum
import fractions
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest
from descriptors import open_descriptors

from pytest_sandbox import Container, OutOfMemory, SandboxError
from pytest_sandbox.container import call
from pytest_sandbox.container.processes import list_processes

pytestmark = pytest.mark.needs("containers")


class Colour(enum.Enum):
    RED = 1


class Level(enum.IntEnum):
    LOW = 1


Point = collections.namedtuple("Point", "x y")


@dataclasses.dataclass(frozen=True)
class Box:
    inner: object
    more: tuple = ()


class Nested:
    @dataclasses.dataclass
    class Inner:
        one: int


class Failure(Exception):
    def __init__(self, code, *, hint):
        super().__init__(f"failed with {code}")
        self.code = code
        self.hint = hint


VALUES = [
    None, True, False, 0, -1, 2**200, 1.5, float("inf"), -0.0, "", "süß \udcff \0", b"\x00\xff", bytearray(b"x"), [], [1, [2, [3]]],
    (), (1, "a"), set(), {1, 2}, frozenset({"a"}), {}, {"a": 1}, {1: "a", (2, 3): [4]}, {None: None}, 1 + 2j,
    decimal.Decimal("1.10"), fractions.Fraction(1, 3), pathlib.Path("/a/b"), pathlib.PurePosixPath("c"),
    dt.datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=dt.UTC), dt.datetime(2026, 1, 2), dt.date(2026, 1, 2), dt.time(1, 2, 3), dt.timedelta(days=-1, microseconds=5),  # noqa: DTZ001
    Colour.RED, Level.LOW, Point(1, "y"), Box(Box((1, 2)), (b"x",)), [Colour.RED, Point(1, 2)],
    Nested.Inner(1),
]  # fmt: skip


@pytest.mark.vm
@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_values_come_back_equal(box, value):
    """Plain data, and the standard library's values, arrive equal and of the same type."""
    found = box.call(lambda: value)
    assert (value, type(value)) == (found, type(found))


def test_nan_comes_back(box):
    """Not a number stays none."""
    assert str(float("nan")) == str(box.call(float, "nan"))


@pytest.mark.vm
def test_arguments_and_keywords(box):
    """func(*args, **kwargs), with anything as argument: it is a fork."""
    lock = threading.Lock()
    assert [lock.locked(), 1, {"b": 2}] == box.call(
        lambda a, one, **more: [a.locked(), one, more], lock, 1, b=2
    )


def test_it_runs_inside(box):
    """PID, host name and files are the container's."""
    number, name, init = box.call(
        lambda: (os.getpid(), os.uname().nodename, os.stat("/proc/1").st_uid)
    )
    assert (True, box.hostname, 0) == (number > 1, name, init)


def test_changes_of_memory_stay_inside(box):
    """The caller's objects are copies in there."""
    found = []
    box.call(found.append, 1)
    assert [] == found


@pytest.mark.vm
def test_an_exception_comes_back(box):
    """Type, arguments, attributes, notes and the inner traceback."""

    def fail():
        error = Failure(7, hint="more")
        error.add_note("a note")
        raise error

    with pytest.raises(Failure, match="failed with 7") as caught:
        box.call(fail)
    assert (7, "more", ["a note"]) == (caught.value.code, caught.value.hint, caught.value.__notes__)
    assert "in fail\n" in str(caught.value.__cause__)
    assert "raise error" in str(caught.value.__cause__)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("a", 1), KeyError("k"), OSError(2, "No such file", "/x"), FileNotFoundError(2, "x", "a", None, "b"), StopIteration(3),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), ExceptionGroup("many", [ValueError(1), TypeError(2)]),
        subprocess.CalledProcessError(3, ["a"], b"out", b"err"), AssertionError("no"), SystemExit(4), KeyboardInterrupt(),
        ZeroDivisionError(), ImportError("no", name="mod", path="/p"), SyntaxError("bad", ("f", 1, 2, "text")),
    ],
    ids=repr,
)  # fmt: skip
def test_exceptions_of_the_standard_library(box, error):
    """Each comes back as its type, with equal arguments and text."""

    def fail():
        raise error

    with pytest.raises(type(error)) as caught:
        box.call(fail)
    assert (type(error), str(error), repr(error)) == (
        type(caught.value),
        str(caught.value),
        repr(caught.value),
    )


def test_an_exception_of_a_class_that_only_the_inside_has(box):
    """A class made inside arrives as a SandboxError that names it."""

    def fail():
        raise type("Unknown", (Exception,), {"__module__": "made_inside"})("what it said")

    with pytest.raises(SandboxError, match="Unknown: what it said"):
        box.call(fail)


def test_a_class_of_a_function_is_found(box):
    """An exception class of a test's own is the same class outside."""

    class OwnError(Exception):
        pass

    def fail():
        raise OwnError("mine")

    with pytest.raises(OwnError, match="mine"):
        box.call(fail)


@pytest.mark.parametrize(
    "value",
    [object(), lambda: 0, sys, threading.Lock, memoryview(b""), iter([])],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_data_is_refused(box, value):
    """A value that is code or a handle raises TypeError that says what can leave."""
    with pytest.raises(TypeError, match="cannot leave a container: return plain data"):
        box.call(lambda: value)


def test_an_exceptions_odd_parts_become_text(box):
    """What an exception carries that is no data arrives as its repr."""

    def fail():
        error = ValueError(sys)
        error.lock = threading.Lock()
        raise error

    with pytest.raises(ValueError, match="module 'sys'") as caught:
        box.call(fail)
    assert "lock" in caught.value.lock


def test_hostile_objects_cannot_run_outside(box):
    """An object whose reduction, repr or text does harm does it inside, or nowhere."""
    ran = []

    class Hostile(Exception):
        def __reduce__(self):
            ran.append("reduce")
            return (ran.append, ("unpickled",))

        def __repr__(self):
            raise RuntimeError("no repr")

        def __str__(self):
            raise RuntimeError("no str")

        def __setstate__(self, state):
            ran.append("setstate")

        def __init__(self, *args):
            ran.append("init")
            super().__init__(*args)

    def fail():
        raise Hostile(Hostile())

    with pytest.raises(Hostile):
        box.call(fail)
    assert [] == ran


def test_a_list_that_holds_itself_is_refused(box):
    """A cycle is no data: an error, not a hang."""

    def cycle():
        a = []
        a.append(a)
        return a

    with pytest.raises(RecursionError):
        box.call(cycle)


@pytest.mark.parametrize(
    "data",
    [
        ["enum", ["os", "system"], "x"], ["dataclass", ["subprocess", "Popen"], {"args": "id"}], ["namedtuple", ["os", "system"], 1],
        ["dataclass", ["builtins", "object"], {}], ["enum", ["nowhere", "X"], "Y"], ["no-such-tag", 1], ["namedtuple", ["builtins", "tuple.__new__"], 1],
    ],
)  # fmt: skip
def test_a_forged_answer_calls_nothing(data):
    """What the inside would not have written names no function, and makes no object of a class that
    is not plain data.
    """
    before = os.listdir("/proc/self/fd"), threading.active_count()
    with pytest.raises(SandboxError):
        call._decode(json.dumps({"value": data}).encode())
    assert before == (os.listdir("/proc/self/fd"), threading.active_count())


def test_a_forged_exception_of_no_class_is_an_error():
    """A function's name in the place of an exception's class gives a SandboxError with its text."""
    forged = {
        "class": ["os", "system"],
        "args": ["id"],
        "state": {},
        "fields": {},
        "notes": [],
        "traceback": "",
    }
    error, _value = call._decode(json.dumps({"error": forged}).encode())
    assert (SandboxError, "system: id") == (type(error), str(error))


@pytest.mark.parametrize(
    "raw",
    [b"", b"\n", b"[]\n", b"3\n", b"{}\n", b'{"value": ["bytes", 5]}\n', b'{"value": []}\n', b'{"value": ["set", ["list"]]}\n', b"\xff\n", b'{"error": 1}\n', b'{"error": {"class": 1}}\n',
     b'{"value": ["timedelta", "x"]}\n', b'{"value": ["Decimal", "x"]}\n', b'{"value": ["dict", 1]}\n', b"[" * 100_000 + b"\n", b'{"value": ["enum", ["signal", "Signals"], "NONE"]}\n'],
    ids=lambda raw: repr(raw[:30]),
)  # fmt: skip
def test_a_payload_that_forges_the_answer_gets_an_error(box, raw):
    """Whatever a hostile child writes as the answer, the caller gets a SandboxError."""

    def forge():
        for fd in range(3, 40):
            try:
                if os.readlink(f"/proc/self/fd/{fd}").startswith("socket:"):
                    os.write(fd, raw)
            except OSError:
                continue
        os._exit(0)

    with pytest.raises(SandboxError):
        box.call(forge)


def test_a_timeout_kills(box):
    """TimeoutError over the time, saying what ran; and the container serves on."""
    with pytest.raises(TimeoutError, match=r"after 0\.2 seconds"):
        box.call(lambda: subprocess.run(["sleep", "60"], check=True), timeout=0.2)
    assert 0 == box.run(["true"]).returncode
    assert [] == list_processes(box.handle)


def test_a_timeout_in_a_stopped_process(box):
    """A child that stops itself is killed all the same."""
    with pytest.raises(TimeoutError):
        box.call(lambda: os.kill(os.getpid(), signal.SIGSTOP), timeout=0.2)


def test_in_time_is_fine(box):
    """A timeout that is not reached changes nothing."""
    assert 3 == box.call(lambda: 3, timeout=60)


@pytest.mark.parametrize(
    ("die", "said"),
    [
        (lambda: os._exit(0), "without an answer: Exited"),
        (lambda: os._exit(7), r"Exited\(status=7\)"),
        (lambda: os.kill(os.getpid(), signal.SIGUSR1), "signal=10"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "signal=9"),
        (lambda: sys.stdout.close() or os.closerange(3, 100) or os._exit(0), "without an answer"),
    ],
)
def test_an_end_without_an_answer(box, die, said):
    """A child that dies by itself is a SandboxError that says how."""
    with pytest.raises(SandboxError, match=said):
        box.call(die)


@pytest.mark.needs("memory")
def test_a_kill_for_memory():
    """OutOfMemory, with limit and peak; the container serves on."""
    with Container(memory="64m") as c:
        with pytest.raises(OutOfMemory) as caught:
            c.call(lambda: len(bytearray(500 << 20)))
        assert 64 << 20 == caught.value.memory_limit
        assert 4 == c.call(lambda: 4)


def test_memory_error_is_an_exception(box):
    """MemoryError raised inside is the function's own."""

    def fail():
        raise MemoryError("own")

    with pytest.raises(MemoryError, match="own"):
        box.call(fail)


def test_big_values(box):
    """Answers larger than any buffer come through."""
    assert "ü" * 5_000_000 == box.call(lambda: "ü" * 5_000_000)


def test_threads_inside(box):
    """The function may use threads, and the caller may have some."""

    def threads():
        found = []
        some = [threading.Thread(target=found.append, args=(n,)) for n in range(5)]
        for one in some:
            one.start()
        for one in some:
            one.join()
        return sorted(found)

    stop = threading.Event()
    mine = threading.Thread(target=stop.wait)
    mine.start()
    try:
        assert [0, 1, 2, 3, 4] == box.call(threads)
    finally:
        stop.set()
        mine.join()


def test_calls_from_threads(box):
    """Several threads call at the same time, each gets its own answer."""
    found = {}

    def call(number):
        found[number] = box.call(lambda: (time.sleep(0.01), number * 2)[1])

    some = [threading.Thread(target=call, args=(n,)) for n in range(12)]
    for one in some:
        one.start()
    for one in some:
        one.join(60)
    assert {n: n * 2 for n in range(12)} == found


def test_a_grandchild_that_holds_the_answer_open(box):
    """A daemon that the function leaves behind does not keep the caller waiting."""

    def leave():
        if not os.fork():
            time.sleep(60)
            os._exit(0)
        return "done"

    assert "done" == box.call(leave, timeout=30)


def test_exit_handlers_do_not_run(box, tmp_path):
    """The fork ends without the parent's atexit handlers and without flushing the parent's
    buffers.
    """
    file = open(tmp_path / "f", "w")  # noqa: SIM115
    file.write("once")
    box.call(lambda: None)
    file.close()
    assert "once" == (tmp_path / "f").read_text()


def test_environment_and_user():
    """Env is added to the caller's, user and its groups are the container's."""
    with Container(env={"ADDED": "1"}, user="daemon") as c:
        assert ("1", True) == c.call(lambda: (os.environ["ADDED"], "PATH" in os.environ))
        assert (1, 1) == c.call(lambda: (os.getuid(), os.getgid()))


def test_no_descriptor_is_left(box):
    """Many calls, failed ones too, leave no descriptor and no zombie."""
    box.call(len, "")
    before = open_descriptors()
    for _ in range(20):
        box.call(len, "")
        with pytest.raises(SandboxError):
            box.call(os._exit, 3)
    assert before == open_descriptors()


@pytest.mark.needs("root")
def test_a_call_in_a_container_in_a_container_leaves_what_is_open(tmp_path):
    """The function inside the inner one has every descriptor of its caller's, whose numbers are
    some that the outer's owner uses for it.
    """

    def nested(directory):
        files = [os.open(directory, os.O_RDONLY) for _ in range(64)]
        with Container() as inner:
            return inner.call(
                lambda: [
                    fd for fd in files if not os.path.samestat(os.fstat(fd), os.stat(files[0]))
                ]
            )

    with Container(), Container(privileged=True) as outer:
        assert [] == outer.call(nested, str(tmp_path))
