"""Databases whose files are prepared once, and cloned for each start."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from pytest_sandbox import SettingsError
from pytest_sandbox.cli.main import main
from pytest_sandbox.container import states
from pytest_sandbox.services import mariadb, postgres, setup_source

pytestmark = pytest.mark.needs("root")

psycopg = pytest.importorskip("psycopg")
pymysql = pytest.importorskip("pymysql")

#: Not a plain value, so it is not part of the key.
calls = SimpleNamespace(urls=[])


def create_table(db):
    calls.urls.append(db.url)
    with psycopg.connect(db.url) as connection:
        connection.execute("create table item (name text)")
        connection.execute("insert into item values ('first')")


def names(service):
    with psycopg.connect(service.url) as connection:
        return [row[0] for row in connection.execute("select name from item order by name")]


def add(service, name):
    with psycopg.connect(service.url) as connection:
        connection.execute("insert into item values (%s)", (name,))


@pytest.mark.needs("pg_ctlcluster")
@pytest.mark.parametrize("ahead", [0, 1])
def test_each_start_is_a_clone(ahead):
    """What one clone writes, another does not see; setup is called at most once."""
    calls.urls.clear()
    database = postgres(setup=create_table, ahead=ahead)
    try:
        for number in range(3):
            with database.start() as service:
                assert ["first"] == names(service)
                add(service, f"item {number}")
                with database.start() as other:
                    assert ["first"] == names(other)
                assert ["first", f"item {number}"] == names(service)
    finally:
        database.close()
    assert len(calls.urls) <= 1
    with postgres(setup=create_table).start() as service:
        assert ["first"] == names(service)
    assert len(calls.urls) <= 1


@pytest.mark.needs("pg_ctlcluster")
def test_prune_removes_the_prepared_files(home, capsys):
    """Afterwards they are prepared again."""
    with postgres(setup=create_table).start():
        pass
    keys = os.listdir(f"{home}/states")
    assert keys
    calls.urls.clear()
    assert 0 == main(["prune"])
    assert "Deleted: sha256:" in capsys.readouterr().out
    assert [] == os.listdir(f"{home}/states")
    with postgres(setup=create_table).start() as service:
        assert ["first"] == names(service)
    assert 1 == len(calls.urls)


@pytest.mark.needs("pg_ctlcluster")
def test_a_setup_that_fails_leaves_nothing(home):
    """Its exception is raised, and the next start calls it again."""

    def fail(db):
        calls.urls.append(db.url)
        raise ZeroDivisionError

    before = set(os.listdir(f"{home}/states")) if os.path.isdir(f"{home}/states") else set()
    calls.urls.clear()
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            postgres(setup=fail).start()
    assert 2 == len(calls.urls)
    assert before == set(os.listdir(f"{home}/states"))


SCRIPT = """
import os, sys, time
from pytest_sandbox.services import postgres
def setup(db):
    with open(sys.argv[1], "a") as file:
        file.write(f"{os.getpid()}\\n")
    if len(sys.argv) > 2:
        os.kill(os.getpid(), 9)
with postgres(setup=setup).start() as service:
    print(service.port)
"""


@pytest.mark.needs("pg_ctlcluster")
def test_processes_prepare_once_and_a_killed_one_leaves_nothing(tmp_path):
    """One process is killed in its setup; of two that follow at once, one prepares the files."""
    script, log = tmp_path / "script.py", tmp_path / "log"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(log)]
    killed = subprocess.run([*command, "kill"], check=False, capture_output=True, timeout=100)
    assert -9 == killed.returncode
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert ["5432\n"] * 2 == [one.communicate(timeout=100)[0] for one in started]
    assert 2 == len(log.read_text().splitlines())


@pytest.mark.needs("mariadbd")
def test_mariadb_answers_and_is_cloned():
    """Its real client library reads what setup has written."""

    def setup(db):
        with connect(db) as connection, connection.cursor() as cursor:
            cursor.execute("create table item (name varchar(10))")
            cursor.execute("insert into item values ('first')")
            connection.commit()

    def connect(db):
        return pymysql.connect(host=db.host, port=db.port, user="root", database="test")

    database = mariadb(setup=setup)
    for _ in range(2):
        with (
            database.start() as service,
            connect(service) as connection,
            connection.cursor() as cursor,
        ):
            cursor.execute("insert into item values ('second')")
            cursor.execute("select count(*) from item")
            assert (2,) == cursor.fetchone()


# -- the key


def write(path, text):
    path.write_text(text)
    return path


def facts_of(tmp_path, body, files=()):
    """Return the facts of a function in a module of its own."""
    module = write(tmp_path / "migrations.py", body)
    space: dict[str, object] = {"__name__": "migrations", "__file__": str(module)}
    import linecache

    linecache.checkcache(str(module))
    exec(compile(body, str(module), "exec"), space)
    return setup_source.facts(space["setup"], files)


def test_the_key_has_the_source_and_what_it_names(tmp_path):
    """It changes with the function, one that it calls, a value, and a file that it names."""
    body = (
        "LIMIT = 5\n"
        "def helper(): return 1\n"
        "def setup(db):\n"
        "    helper(); open('schema.sql'); LIMIT\n"
    )
    schema = write(tmp_path / "schema.sql", "one")
    first = facts_of(tmp_path, body)
    assert first == facts_of(tmp_path, body)
    found = [first]
    changes = (
        body.replace("return 1", "return 2"),
        body.replace("LIMIT = 5", "LIMIT = 6"),
        body.replace("helper();", "helper() ;"),
    )
    found += [facts_of(tmp_path, changed) for changed in changes]
    schema.write_text("two")
    found.append(facts_of(tmp_path, body))
    extra = write(tmp_path / "extra.sql", "1")
    found.append(facts_of(tmp_path, body, [extra]))
    extra.write_text("2")
    found.append(facts_of(tmp_path, body, [extra]))
    assert len(found) == len({tuple(one) for one in found})


def test_a_directory_of_migrations_is_part_of_the_key(tmp_path):
    """A further file in it changes the key."""
    body = "def setup(db):\n    return 'migrations'\n"
    (tmp_path / "migrations").mkdir()
    before = facts_of(tmp_path, body)
    write(tmp_path / "migrations" / "0001.sql", "create table")
    assert before != facts_of(tmp_path, body)


def test_a_function_without_a_stable_source_is_refused(tmp_path):
    """The error says what is accepted."""
    value = object()

    def setup(db):
        return value

    for wrong in (setup, print, eval("lambda db: 0")):
        with pytest.raises(SettingsError) as info:
            setup_source.facts(wrong, ())
        assert "setup" == info.value.key
    with pytest.raises(SettingsError, match="files"):
        setup_source.facts(None, [tmp_path / "missing"])


@pytest.mark.parametrize(("keywords", "key"), [({"ahead": 2}, "ahead"), ({"setup": 5}, "setup")])
def test_an_invalid_database_is_refused(keywords, key):
    """The error names the key."""
    with pytest.raises(SettingsError) as info:
        postgres(**keywords)
    assert key == info.value.key


@pytest.mark.needs("root")
def test_states_of_another_user_are_refused(tmp_path, monkeypatch):
    """Another user who has made the directory first does not choose the image of a state."""
    monkeypatch.setenv("PYTEST_SANDBOX_HOME", str(tmp_path))
    directory = tmp_path / "states"
    directory.mkdir(parents=True)
    os.chown(directory, 1234, 1234)
    (directory / "key").write_text("sha256:" + "1" * 64)
    with pytest.raises(PermissionError, match="UID 1234"):
        states.find_or_make("key", pytest.fail)
    states.remove_stale()
    assert (directory / "key").exists()
