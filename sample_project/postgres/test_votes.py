"""Tests that write what they like into a real PostgreSQL, each into a database of its own."""

from __future__ import annotations

import subprocess

import pytest


@pytest.mark.parametrize("voters", [1, 2, 3])
def test_nobody_has_voted_before(database, voters):
    assert database("select count(*) from vote") == "0"
    for _ in range(voters):
        database("insert into vote (candidate) values ('candidate 7')")
    assert database("select count(*) from vote") == str(voters)


def test_the_candidates_are_there(database):
    assert database("select count(*) from candidate") == "1000"


def test_a_table_may_be_dropped(database):
    database("drop table vote")
    with pytest.raises(subprocess.CalledProcessError, match="psql"):
        database("select count(*) from vote")


def test_who_does_not_stand_gets_no_vote(database):
    with pytest.raises(subprocess.CalledProcessError):
        database("insert into vote (candidate) values ('nobody')")
    assert database("select count(*) from vote") == "0"
