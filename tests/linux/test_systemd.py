"""A scope from the user's systemd manager: with a real manager where one runs, and with a stand-in
for its bus everywhere.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from pytest_sandbox.linux.cgroup import Hierarchy, systemd

pytestmark = pytest.mark.vm

#: Asks for a scope in a process of its own, and says where it is then and which limits it has.
ASK = """
import json, os
from pytest_sandbox import Container
from pytest_sandbox.linux.cgroup import systemd
from pytest_sandbox.linux.cgroup import SCOPE, Hierarchy, parse_own, read

name = f"{SCOPE}{os.getpid()}.scope"
moved = systemd.move_into_scope(name)
own = parse_own(read("/proc/self/cgroup"))[""]
hierarchy = Hierarchy.find()
with Container(memory="64m", pids_limit=32) as container:
    limit = container.stats().memory_limit
print(json.dumps([moved, os.path.basename(own) == name, hierarchy.base.directory.endswith(name), sorted(hierarchy.controllers), limit]))
"""


@pytest.mark.needs("systemd_user", "containers")
def test_a_manager_gives_a_scope_with_limits():
    """The process is moved into a scope of its own, and containers below it have their limits."""
    done = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, check=True)
    moved, in_scope, based_there, controllers, limit = json.loads(done.stdout)
    assert (True, True, True, 64 << 20) == (moved, in_scope, based_there, limit)
    assert {"memory", "pids"} <= set(controllers)


@pytest.fixture
def bus(tmp_path, monkeypatch):
    """A stand-in for busctl that notes how it was called; what it does beside that is a shell's
    word.
    """

    def make(does: str) -> None:
        (tmp_path / "bus").touch()
        program = tmp_path / "busctl"
        program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >"{tmp_path}/called"\n{does}\n')
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))

    return make


def test_the_manager_is_asked_for_a_delegated_scope(bus, tmp_path, monkeypatch):
    """The call names this process, a scope and Delegate, in the types that the manager's method
    has.
    """
    bus("exit 0")
    seen = iter(["/session", "/session", "/app.slice/x.scope"])
    monkeypatch.setattr(systemd, "_own", lambda: next(seen))
    assert systemd.move_into_scope("x.scope")
    called = (tmp_path / "called").read_text().split("\n")
    assert [
        "ssa(sv)a(sa(sv))",
        "x.scope",
        "fail",
        "3",
        "PIDs",
        "au",
        "1",
        str(os.getpid()),
        "Delegate",
        "b",
        "true",
    ] == called[7:18]


def test_a_manager_that_refuses_changes_nothing(bus):
    """Where it says no, the process stays where it is, and says so."""
    bus("exit 1")
    assert not systemd.move_into_scope("x.scope")


def test_a_manager_that_hangs_is_given_up(bus, monkeypatch):
    """A bus without an answer costs some seconds once, and never the session."""
    bus("sleep 100")
    monkeypatch.setattr(systemd, "_PATIENCE", 0.1)
    assert not systemd.move_into_scope("x.scope")


def test_a_move_that_does_not_come_is_given_up(bus, monkeypatch):
    """The manager may queue a job that fails: this process is then where it was."""
    bus("exit 0")
    monkeypatch.setattr(systemd, "_PATIENCE", 0.1)
    assert not systemd.move_into_scope("x.scope")


def test_nobody_is_asked_where_the_limits_are_there(bus, tmp_path, monkeypatch):
    """A process that has cgroups of its own, or cgroup v1, stays where it is."""
    bus("exit 0")
    whole = Hierarchy()
    whole.version, whole.controllers = 2, frozenset({"memory", "cpu", "pids", "io"})
    monkeypatch.setattr(Hierarchy, "find", staticmethod(lambda: whole))
    assert whole is systemd.find_hierarchy()
    assert not (tmp_path / "called").exists()


def test_root_asks_nobody(bus, monkeypatch):
    """Root has no manager of its own: its cgroups are its to make."""
    bus("exit 0")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert not systemd.has_manager()
