"""The words by which the parent names the next test to a process that tests share."""

from __future__ import annotations

from pytest_sandbox.plugin.test_words import TestWords


def close(words):
    words.close_reader()
    words.close_writer()


def test_a_word_has_the_index_and_the_services():
    """Several words are read one by one; an empty one, and the end, say that none follows."""
    words = TestWords.create()
    assert words.send(3)
    assert words.send(4, '{"db 0": {}}')
    assert words.send(None)
    assert (3, "") == (words.receive(), words.services)
    assert (4, '{"db 0": {}}') == (words.receive(), words.services)
    assert words.receive() is None
    words.close_writer()
    assert words.receive() is None
    words.close_reader()


def test_a_process_that_does_not_read_is_not_waited_for():
    """A word that does not fit into the pipe is reported, in part or as a whole."""
    words = TestWords.create()
    sent = [words.send(1, "x" * 40_000) for _ in range(3)]
    assert [True, False, False] == sent
    close(words)


def test_a_process_that_has_ended_gets_no_word():
    """The wait for it finds out."""
    words = TestWords.create()
    words.close_reader()
    assert words.send(1)
    words.close_writer()
