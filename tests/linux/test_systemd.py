"""Delegated scopes from the user's systemd manager: a real one if it runs, and a fake busctl."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from pytest_sandbox.linux.cgroup import Hierarchy, systemd

pytestmark = pytest.mark.vm

#: Asks for a scope, and prints whether it is in it and which limits work there.
ASK = """
import json, os
from pytest_sandbox import Container
from pytest_sandbox.linux.cgroup import systemd
from pytest_sandbox.linux.cgroup import find_hierarchy, parse_own, read
from pytest_sandbox.linux.cgroup.base import SCOPE

name = f"{SCOPE}{os.getpid()}.scope"
moved = systemd.move_into_scope(name)
own = parse_own(read("/proc/self/cgroup"))[""]
hierarchy = find_hierarchy()
with Container(memory="64m", pids_limit=32) as container:
    limit = container.stats().memory_limit
in_scope, parent_there = os.path.basename(own) == name, hierarchy.parent.directory.endswith(name)
print(json.dumps([moved, in_scope, parent_there, sorted(hierarchy.controllers), limit]))
"""


@pytest.mark.needs("systemd_user", "containers")
def test_move_into_scope():
    """The process is moved into a new scope, in which containers have limits."""
    done = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, check=True)
    moved, in_scope, parent_there, controllers, limit = json.loads(done.stdout)
    assert (True, True, True, 64 << 20) == (moved, in_scope, parent_there, limit)
    assert {"memory", "pids"} <= set(controllers)


@pytest.fixture
def bus(tmp_path, monkeypatch):
    """Return a function that installs a fake busctl, which records its arguments."""

    def make(command: str) -> None:
        (tmp_path / "bus").touch()
        program = tmp_path / "busctl"
        program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >"{tmp_path}/called"\n{command}\n')
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))

    return make


def test_arguments_of_busctl(bus, tmp_path, monkeypatch):
    """The call names this process, a scope and Delegate, with the types of the method."""
    bus("exit 0")
    seen = iter(["/session", "/session", "/app.slice/x.scope"])
    monkeypatch.setattr(systemd, "_own_cgroup", lambda: next(seen))
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


def test_a_manager_that_refuses(bus):
    """If the manager refuses, the process stays in its cgroup, and False is returned."""
    bus("exit 1")
    assert not systemd.move_into_scope("x.scope")


def test_a_manager_that_does_not_answer(bus, monkeypatch):
    """The call is given up after a timeout."""
    bus("sleep 100")
    monkeypatch.setattr(systemd, "_TIMEOUT", 0.1)
    assert not systemd.move_into_scope("x.scope")


def test_a_job_that_fails(bus, monkeypatch):
    """If the process is not moved in time, False is returned."""
    bus("exit 0")
    monkeypatch.setattr(systemd, "_TIMEOUT", 0.1)
    assert not systemd.move_into_scope("x.scope")


def test_the_manager_is_not_called_if_limits_work(bus, tmp_path, monkeypatch):
    """A process with the usual controllers stays in its cgroup."""
    bus("exit 0")
    whole = Hierarchy()
    whole.version, whole.controllers = 2, frozenset({"memory", "cpu", "pids", "io"})
    monkeypatch.setattr(systemd, "find_hierarchy", lambda: whole)
    assert whole is systemd.find_delegated_hierarchy()
    assert not (tmp_path / "called").exists()


def test_root_has_no_user_manager(bus, monkeypatch):
    """Root can create cgroups itself."""
    bus("exit 0")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert not systemd.has_manager()
