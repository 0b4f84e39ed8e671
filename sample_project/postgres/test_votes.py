"""Tests that change a real PostgreSQL database; each has its own clone."""

from __future__ import annotations

import subprocess

import pytest


@pytest.mark.parametrize("voters", [1, 2, 3])
def test_the_votes_of_other_tests_are_not_counted(database, voters):
    assert database("select count(*) from vote") == "0"
    for _ in range(voters):
        database("insert into vote (candidate) values ('candidate 7')")
    assert database("select count(*) from vote") == str(voters)


def test_the_candidates_exist(database):
    assert database("select count(*) from candidate") == "1000"


def test_a_table_can_be_dropped(database):
    database("drop table vote")
    with pytest.raises(subprocess.CalledProcessError, match="psql"):
        database("select count(*) from vote")


def test_a_vote_for_an_unknown_candidate_is_refused(database):
    with pytest.raises(subprocess.CalledProcessError):
        database("insert into vote (candidate) values ('nobody')")
    assert database("select count(*) from vote") == "0"
