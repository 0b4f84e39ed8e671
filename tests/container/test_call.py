"""``Container.call``: run a function inside, and get its value or its exception as data."""

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
    None,
    True,
    False,
    0,
    -1,
    2**200,
    1.5,
    float("inf"),
    -0.0,
    "",
    "süß \udcff \0",
    b"\x00\xff",
    bytearray(b"x"),
    [],
    [1, [2, [3]]],
    (),
    (1, "a"),
    set(),
    {1, 2},
    frozenset({"a"}),
    {},
    {"a": 1},
    {1: "a", (2, 3): [4]},
    {None: None},
    1 + 2j,
    decimal.Decimal("1.10"),
    fractions.Fraction(1, 3),
    pathlib.Path("/a/b"),
    pathlib.PurePosixPath("c"),
    dt.datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=dt.UTC),
    dt.datetime(2026, 1, 2),  # noqa: DTZ001 - a naive one
    dt.date(2026, 1, 2),
    dt.time(1, 2, 3),
    dt.timedelta(days=-1, microseconds=5),
    Colour.RED,
    Level.LOW,
    Point(1, "y"),
    Box(Box((1, 2)), (b"x",)),
    [Colour.RED, Point(1, 2)],
    Nested.Inner(1),
]


@pytest.mark.vm
@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_values_are_returned_equal(box, value):
    """Plain data and values of the standard library are returned equal and of the same type."""
    found = box.call(lambda: value)
    assert (value, type(value)) == (found, type(found))


def test_nan_is_returned(box):
    """A NaN is returned as a NaN."""
    assert str(float("nan")) == str(box.call(float, "nan"))


@pytest.mark.vm
def test_any_object_can_be_an_argument(box):
    """Positional and keyword arguments may be any objects, since the function runs in a fork."""
    lock = threading.Lock()
    assert [lock.locked(), 1, {"b": 2}] == box.call(
        lambda a, one, **more: [a.locked(), one, more], lock, 1, b=2
    )


def test_the_function_runs_inside(box):
    """PID, host name and files are those of the container."""
    number, name, init = box.call(
        lambda: (os.getpid(), os.uname().nodename, os.stat("/proc/1").st_uid)
    )
    assert (True, box.hostname, 0) == (number > 1, name, init)


def test_changes_of_memory_stay_inside(box):
    """The function gets copies of the caller's objects."""
    found = []
    box.call(found.append, 1)
    assert [] == found


@pytest.mark.vm
def test_an_exception_is_raised_outside(box):
    """Type, arguments, attributes, notes and the traceback inside are those of the exception
    inside.
    """

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
        ValueError("a", 1),
        KeyError("k"),
        OSError(2, "No such file", "/x"),
        FileNotFoundError(2, "x", "a", None, "b"),
        StopIteration(3),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
        ExceptionGroup("many", [ValueError(1), TypeError(2)]),
        subprocess.CalledProcessError(3, ["a"], b"out", b"err"),
        AssertionError("no"),
        SystemExit(4),
        KeyboardInterrupt(),
        ZeroDivisionError(),
        ImportError("no", name="mod", path="/p"),
        SyntaxError("bad", ("f", 1, 2, "text")),
    ],
    ids=repr,
)
def test_standard_exceptions_are_raised_equal(box, error):
    """Exceptions of the standard library are raised with their type, arguments and text."""

    def fail():
        raise error

    with pytest.raises(type(error)) as caught:
        box.call(fail)
    assert (type(error), str(error), repr(error)) == (
        type(caught.value),
        str(caught.value),
        repr(caught.value),
    )


def test_an_exception_class_unknown_outside_is_a_sandbox_error(box):
    """An exception whose class was created inside is raised as a SandboxError that names
    the class.
    """

    def fail():
        raise type("Unknown", (Exception,), {"__module__": "made_inside"})("what it said")

    with pytest.raises(SandboxError, match="Unknown: what it said"):
        box.call(fail)


def test_an_exception_class_defined_in_a_function_is_found(box):
    """An exception class that is defined in a test function is the same class outside."""

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
def test_values_that_are_not_data_are_refused(box, value):
    """Returning code or an open file raises TypeError, which lists the types that can be
    returned.
    """
    with pytest.raises(TypeError, match="cannot leave a container: return plain data"):
        box.call(lambda: value)


def test_exception_attributes_that_are_not_data_become_their_repr(box):
    """An attribute of an exception that is not data is replaced by its repr."""

    def fail():
        error = ValueError(sys)
        error.lock = threading.Lock()
        raise error

    with pytest.raises(ValueError, match="module 'sys'") as caught:
        box.call(fail)
    assert "lock" in caught.value.lock


def test_no_code_of_returned_objects_runs_outside(box):
    """Code in an object's __reduce__, __repr__ or __str__ runs inside or not at all."""
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


def test_a_cyclic_list_is_refused(box):
    """Returning a list that contains itself is an error and does not hang."""

    def cycle():
        a = []
        a.append(a)
        return a

    with pytest.raises(RecursionError):
        box.call(cycle)


@pytest.mark.parametrize(
    "data",
    [
        ["enum", ["os", "system"], "x"],
        ["dataclass", ["subprocess", "Popen"], {"args": "id"}],
        ["namedtuple", ["os", "system"], 1],
        ["dataclass", ["builtins", "object"], {}],
        ["enum", ["nowhere", "X"], "Y"],
        ["no-such-tag", 1],
        ["namedtuple", ["builtins", "tuple.__new__"], 1],
    ],
)
def test_a_forged_answer_runs_no_code(data):
    """A forged answer calls no function and creates no object other than plain data."""
    before = os.listdir("/proc/self/fd"), threading.active_count()
    with pytest.raises(SandboxError):
        call._decode(json.dumps({"value": data}).encode())
    assert before == (os.listdir("/proc/self/fd"), threading.active_count())


def test_a_forged_exception_class_is_a_sandbox_error():
    """A function's name in place of an exception class gives a SandboxError with the exception's
    text.
    """
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
    [
        b"",
        b"\n",
        b"[]\n",
        b"3\n",
        b"{}\n",
        b'{"value": ["bytes", 5]}\n',
        b'{"value": []}\n',
        b'{"value": ["set", ["list"]]}\n',
        b"\xff\n",
        b'{"error": 1}\n',
        b'{"error": {"class": 1}}\n',
        b'{"value": ["timedelta", "x"]}\n',
        b'{"value": ["Decimal", "x"]}\n',
        b'{"value": ["dict", 1]}\n',
        b"[" * 100_000 + b"\n",
        b'{"value": ["enum", ["signal", "Signals"], "NONE"]}\n',
    ],
    ids=lambda raw: repr(raw[:30]),
)
def test_a_forged_answer_of_the_child_is_a_sandbox_error(box, raw):
    """Whatever a hostile child writes as its answer, the caller gets a SandboxError."""

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


def test_a_timeout_kills_the_function(box):
    """After the timeout, call raises TimeoutError with the running command, and the container can
    be used.
    """
    with pytest.raises(TimeoutError, match=r"after 0\.2 seconds"):
        box.call(lambda: subprocess.run(["sleep", "60"], check=True), timeout=0.2)
    assert 0 == box.run(["true"]).returncode
    assert [] == list_processes(box.handle)


def test_a_timeout_kills_a_stopped_child(box):
    """A child that has stopped itself is killed at the timeout."""
    with pytest.raises(TimeoutError):
        box.call(lambda: os.kill(os.getpid(), signal.SIGSTOP), timeout=0.2)


def test_a_function_within_its_timeout_returns(box):
    """A timeout that is not reached has no effect."""
    assert 3 == box.call(lambda: 3, timeout=60)


@pytest.mark.parametrize(
    ("die", "message"),
    [
        (lambda: os._exit(0), "without an answer: Exited"),
        (lambda: os._exit(7), r"Exited\(status=7\)"),
        (lambda: os.kill(os.getpid(), signal.SIGUSR1), "signal=10"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "signal=9"),
        (lambda: sys.stdout.close() or os.closerange(3, 100) or os._exit(0), "without an answer"),
    ],
)
def test_a_child_that_dies_is_a_sandbox_error(box, die, message):
    """A child that ends without an answer is a SandboxError that says how it ended."""
    with pytest.raises(SandboxError, match=message):
        box.call(die)


@pytest.mark.needs("memory")
def test_a_kill_for_memory_raises_out_of_memory():
    """OutOfMemory has the limit and the peak, and the container can be used afterwards."""
    with Container(memory="64m") as c:
        with pytest.raises(OutOfMemory) as caught:
            c.call(lambda: len(bytearray(500 << 20)))
        assert 64 << 20 == caught.value.memory_limit
        assert 4 == c.call(lambda: 4)


def test_memory_error_is_raised_as_such(box):
    """A MemoryError that the function raises is raised outside."""

    def fail():
        raise MemoryError("own")

    with pytest.raises(MemoryError, match="own"):
        box.call(fail)


def test_large_values_are_returned(box):
    """A value larger than any buffer is returned complete."""
    assert "ü" * 5_000_000 == box.call(lambda: "ü" * 5_000_000)


def test_threads_of_the_function_and_of_the_caller(box):
    """The function may start threads, and the caller may have some."""

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


def test_calls_from_several_threads(box):
    """Calls from several threads at the same time each get their own value."""
    found = {}

    def call(number):
        found[number] = box.call(lambda: (time.sleep(0.01), number * 2)[1])

    some = [threading.Thread(target=call, args=(n,)) for n in range(12)]
    for one in some:
        one.start()
    for one in some:
        one.join(60)
    assert {n: n * 2 for n in range(12)} == found


def test_a_daemon_does_not_delay_the_answer(box):
    """A daemon that the function leaves behind does not keep the caller waiting."""

    def leave():
        if not os.fork():
            time.sleep(60)
            os._exit(0)
        return "done"

    assert "done" == box.call(leave, timeout=30)


def test_exit_handlers_do_not_run(box, tmp_path):
    """The child ends without the parent's atexit handlers and without flushing the parent's
    buffers.
    """
    file = open(tmp_path / "f", "w")  # noqa: SIM115
    file.write("once")
    box.call(lambda: None)
    file.close()
    assert "once" == (tmp_path / "f").read_text()


def test_environment_and_user():
    """``env`` is added to the caller's environment; ``user`` and its groups are looked up
    inside.
    """
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
def test_a_nested_call_keeps_the_callers_descriptors(tmp_path):
    """The function in a nested container has every descriptor of its caller, even those with
    numbers that the outer process uses for the library.
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
