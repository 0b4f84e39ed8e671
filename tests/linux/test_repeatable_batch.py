"""Lists of system calls that are run again with another name."""

from __future__ import annotations

import os

import pytest

from pytest_sandbox.linux.repeatable_batch import RepeatableBatch


def test_each_run_has_its_own_name_and_results(tmp_path):
    """The name is replaced in all strings; results and lengths are those of the run."""
    batch = RepeatableBatch()
    made = [
        batch.add("make", "mkdirat", -1, os.fsencode(tmp_path / name), 0o700)
        for name in ("a-1", "b-a-1-c")
    ]
    batch.run()
    batch.rename(b"a-1", b"a-2")
    batch.prepare()
    batch.run()
    assert [0, 0] == [batch[one] for one in made]
    batch.rename(b"a-2", b"a-3")
    batch.prepare()
    batch.run()
    assert ["a-1", "a-2", "a-3", "b-a-1-c", "b-a-2-c", "b-a-3-c"] == sorted(os.listdir(tmp_path))


def test_an_error_has_the_name_of_the_run(tmp_path):
    """The calls keep the first name; the message has the last."""
    batch = RepeatableBatch()
    batch.add("make", "mkdirat", -1, b"/no/such/a-1", 0o700)
    for old, new in ((b"a-1", b"a-2"), (b"a-2", b"a-3")):
        batch.rename(old, new)
    batch.prepare()
    with pytest.raises(FileNotFoundError, match=r"mkdirat\(-1, /no/such/a-3, 448\)"):
        batch.run()


def test_a_number_is_replaced():
    """A later run gets another descriptor."""
    batch = RepeatableBatch()
    call = batch.add("write", "write", 1 << 30, b"x", 1)
    with pytest.raises(OSError, match="Bad file descriptor"):
        batch.run()
    reader, writer = os.pipe()
    batch.set_argument(call, 0, writer)
    batch.prepare()
    batch.run()
    assert b"x" == os.read(reader, 10)
    os.close(reader)
    os.close(writer)


def test_a_name_of_another_length_is_refused():
    """The strings and their lengths are where they were."""
    with pytest.raises(ValueError, match="differ in length"):
        RepeatableBatch().rename(b"a-9", b"a-10")
