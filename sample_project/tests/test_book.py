"""Every test writes the same file and none removes it, but each starts with an empty book."""

from __future__ import annotations

import pytest
from guestbook import book
from guestbook.book import Signature


def test_a_new_book_is_empty():
    assert book.signatures() == []


def test_a_signature_is_saved():
    book.sign("Ada", "I was here.")
    assert [Signature("Ada", "I was here.")] == book.signatures()


def test_signatures_keep_their_order():
    book.sign("Ada", "first")
    book.sign("Bob", "second")
    assert [signature.words for signature in book.signatures()] == ["first", "second"]


@pytest.mark.parametrize("words", ["", "two\nlines", "ünïcödé", '"quoted"'])
def test_words_are_not_changed(words):
    book.sign("Ada", words)
    assert [words] == [signature.words for signature in book.signatures()]
