"""What the host can do: found by trying, here and where something is taken away, and told with a
remedy.
"""

from __future__ import annotations

import codecs
import errno
import json
import os
import pwd  # noqa: F401 - loaded while the standard library can still be read
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from pytest_sandbox import UnsupportedError, host
from pytest_sandbox.host import diagnosis, packages, probes
from pytest_sandbox.host.trial import Trial, attempt
from pytest_sandbox.linux import capabilities, mounts, namespaces, process, seccomp, userns
from pytest_sandbox.linux import syscall as sc

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.vm

NAMESPACES = ("mount", "pid", "network", "ipc", "uts", "cgroup")


def rows_after(prepare: Callable[[], object]) -> dict[str, host.Capability]:
    """The rows of a fork that has lost something first."""

    def do() -> str:
        prepare()
        return json.dumps([row.to_json() for row in host.try_here()])

    trial = attempt(do, patience=120)
    assert trial.went_well, trial.said
    return {row.name: row for row in (host.Capability(**row) for row in json.loads(trial.said))}


def become_nobody() -> None:
    codecs.lookup("ascii")  # loaded while the standard library can still be read
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
    sc.prctl(sc.PR_SET_DUMPABLE, 1)  # as a program is that this user has started


def enter_user_namespace() -> None:
    uid, gid = os.geteuid(), os.getegid()
    sc.unshare(sc.CLONE_NEWUSER)
    userns.map_single_id(uid, gid, rooted=True)


def take_away(parameter: str) -> Callable[[], None]:
    """A throw-away user namespace in which nobody may have more of one kind of namespace."""

    def prepare() -> None:
        enter_user_namespace()
        with open(f"/proc/sys/user/max_{parameter}_namespaces", "w", encoding="ascii") as file:
            file.write("0")

    return prepare


def filter_as_docker_does() -> None:
    for number in range(capabilities.supported().bit_length()):
        if not capabilities.DOCKER_DEFAULT >> number & 1:
            sc.prctl(sc.PR_CAPBSET_DROP, number)
    sc.capset(capabilities.DOCKER_DEFAULT, capabilities.DOCKER_DEFAULT, 0)
    sc.prctl(sc.PR_SET_NO_NEW_PRIVS, 1)
    sc.seccomp_set_filter(seccomp.program(capabilities.DOCKER_DEFAULT))


@pytest.mark.vm
def test_every_row_is_whole():
    """A row that was found says what was seen; one that was not says why, and what helps."""
    rows = host.capabilities()
    assert [] == [
        row for row in rows if not row.why or not row.use or bool(row.remedy) == row.found
    ]
    assert len(rows) == len({row.name for row in rows}) >= 25


@pytest.mark.needs("root", "limits")
def test_root_with_limits_can_do_all_that_is_needed():
    """On a host where the other tests run, nothing that is needed is missing."""
    rows = host.capabilities()
    assert [] == [row for row in rows if row.needed and not row.found]
    assert all(host.find(name).found for name in ("root", "cgroup"))


@pytest.mark.needs("root")
def test_nobody_is_told_what_is_roots():
    """An unprivileged user lacks root's rights and has no groups of its own, and the remedy says
    how to get them.
    """
    rows = rows_after(become_nobody)
    assert (False, "uid 65534, without CAP_SYS_ADMIN") == (rows["root"].found, rows["root"].why)
    assert (False, False) == (rows["cgroup"].found, rows["subordinate ids"].found)
    assert "run pytest as root" in rows["cgroup"].remedy or "Delegate" in rows["cgroup"].remedy
    assert rows["user namespace"].needed


@pytest.mark.needs("root")
def test_nobody_has_namespaces_where_user_namespaces_are():
    """Without root, every namespace and file system is tried below a user namespace of the user's
    own.
    """
    rows = rows_after(become_nobody)
    if not rows["user namespace"].found:
        assert [] == [name for name in NAMESPACES if rows[f"{name} namespace"].found]
        return
    assert [] == [name for name in (*NAMESPACES, "user") if not rows[f"{name} namespace"].found]
    assert [] == [
        name
        for name in ("tmpfs", "overlay", "devpts", "detached mounts", "loopback")
        if not rows[name].found
    ]


@pytest.mark.needs("root")
@pytest.mark.parametrize(
    ("name", "parameter"),
    [("network", "net"), ("pid", "pid"), ("ipc", "ipc"), ("uts", "uts"), ("cgroup", "cgroup")],
)
def test_a_namespace_that_is_taken_away_is_missed_alone(name, parameter):
    """A limit of zero on one kind of namespace fails that row, names the parameter, and leaves the
    others.
    """
    rows = rows_after(take_away(parameter))
    assert [name] == [other for other in NAMESPACES if not rows[f"{other} namespace"].found]
    assert f"user.max_{parameter}_namespaces" in rows[f"{name} namespace"].remedy


@pytest.mark.parametrize(
    ("trial", "said"),
    [
        (Trial("Operation not supported", errno.EOPNOTSUPP), "modprobe -a bridge veth"),
        (Trial("No space left on device", errno.ENOSPC), "user.max_net_namespaces"),
        (Trial("Address family not supported", errno.EAFNOSUPPORT), "modprobe af_packet"),
    ],
)
def test_what_helps_where_containers_cannot_be_connected(trial, said):
    """The remedy names the modules or the limit."""
    from pytest_sandbox.host import namespace

    assert said in namespace.remedy_for_bridge(trial)


@pytest.mark.needs("root")
def test_user_namespaces_that_are_taken_away_name_who_did():
    """user.max_user_namespaces=0 is told as the reason, with the command that lifts it."""
    row = rows_after(take_away("user"))["user namespace"]
    assert (False, "As root: sysctl -w user.max_user_namespaces=15000.") == (row.found, row.remedy)


@pytest.mark.needs("root")
def test_dockers_policy_around_us_is_named():
    """Inside docker's default profile the rows say that a seccomp policy denies it, and how to
    start the outer container.
    """
    rows = rows_after(filter_as_docker_does)
    denied = {name: rows[name] for name in ("clone3", "user namespace", "mount namespace", "tmpfs")}
    assert [] == [name for name, row in denied.items() if row.found or "seccomp" not in row.remedy]
    assert rows["seccomp"].found


@pytest.mark.parametrize(
    ("values", "number", "said"),
    [
        (
            {"kernel.unprivileged_userns_clone": "0"},
            errno.EPERM,
            "kernel.unprivileged_userns_clone=1",
        ),
        ({"kernel.apparmor_restrict_unprivileged_userns": "1"}, errno.EACCES, "AppArmor profile"),
        ({"user.max_user_namespaces": "0"}, errno.ENOSPC, "user.max_user_namespaces=15000"),
        ({}, errno.ENOSPC, "nest less"),
        ({}, errno.EINVAL, "CONFIG_USER_NS"),
        ({}, errno.EPERM, "outside of the chroot"),
    ],
)
def test_who_restricts_user_namespaces_is_found_out(monkeypatch, values, number, said):
    """Each known way to restrict user namespaces has a remedy of its own."""
    from pytest_sandbox.host import namespace

    monkeypatch.setattr(namespace.sysctl, "value", values.get)
    monkeypatch.setattr(namespace, "denied", lambda _trial: "")
    assert said in namespace.remedy_for_user(Trial("refused", number))


def traces() -> tuple[list[int], list[str], list[int]]:
    """This process's namespaces, descriptors and children (a launcher of earlier tests may be among
    them).
    """
    own = [namespaces.identity(kind) for kind in ("mnt", "net", "pid", "user")]
    return own, sorted(os.listdir("/proc/self/fd")), sorted(process.descendants(os.getpid()))


def test_nothing_is_left_in_this_process():
    """Trying leaves the calling process in its namespaces, without children and descriptors."""
    before = traces()
    host.try_here()
    assert before == traces()


def test_require_raises_with_the_rows_remedy(monkeypatch):
    """What the host lacks becomes an UnsupportedError whose remedy is the row's."""
    lacking = replace(
        host.find("loopback"), found=False, why="Operation not permitted", remedy="Run as root."
    )
    monkeypatch.setattr(host, "find", lambda _name: lacking)
    with pytest.raises(UnsupportedError) as caught:
        host.require("loopback", 'network="none"')
    assert 'network="none" is not supported here. Operation not permitted. Run as root.' == str(
        caught.value
    )


def test_require_returns_what_is_there():
    """A row that was found is returned."""
    assert host.require("pidfd") == host.find("pidfd")


def test_an_unknown_row_is_a_key_error():
    """A name that no row has is the caller's mistake."""
    with pytest.raises(KeyError, match="teleport"):
        host.find("teleport")


def test_the_headline_says_who_and_which_limits():
    """One line for a session's header, without trying anything."""
    line = host.headline()
    assert line.startswith("root, " if os.geteuid() == 0 else f"user {os.geteuid()}, ")
    assert ("\n" not in line, ", limits: " in line) == (True, True)


def test_a_missing_package_names_its_extra(monkeypatch):
    """What pip can add is told as the command that adds it."""
    monkeypatch.setattr(packages, "find_spec", lambda _name: None)
    assert "pip install 'pytest-sandbox[images]'" == packages.rows()[0].remedy


class TestAttempt:
    """A trial in a fork."""

    def test_what_was_seen_comes_back(self):
        """The fork's answer is the trial's."""
        assert Trial("seen") == attempt(lambda: "seen")

    def test_what_the_kernel_answered_comes_back(self):
        """An OSError is told by its text and number."""

        def fail() -> str:
            raise PermissionError(errno.EPERM, "Operation not permitted")

        assert Trial("Operation not permitted", errno.EPERM) == attempt(fail)

    def test_a_death_is_no_answer(self):
        """A fork that is killed has failed, with its status."""
        trial = attempt(lambda: os.kill(os.getpid(), 9))
        assert ("the attempt ended with -9 and no answer", False) == (trial.said, trial.went_well)

    def test_a_hang_is_killed(self):
        """A fork that never answers is killed at the deadline."""
        assert not attempt(lambda: os.read(os.pipe()[0], 1), patience=0.1).went_well

    def test_a_long_answer_is_read_to_its_end(self):
        """An answer longer than a pipe's buffer is whole."""
        assert "x" * 300_000 == attempt(lambda: "x" * 300_000).said


def test_the_probes_are_the_rows():
    """Each probe makes the row of its name."""
    names = [probe.name for probe in probes.probes()]
    assert names == [row.name for row in host.capabilities()][: len(names)]


@pytest.mark.needs("root")
def test_root_is_not_told_to_be_root():
    """Root that lacks a capability is told which one, and how to give it back."""
    remedy = rows_after(lambda: drop_capability("DAC_OVERRIDE"))["root"].remedy
    assert "This root lacks CAP_DAC_OVERRIDE" in remedy
    assert "Run as root" not in remedy


def drop_capability(name: str) -> None:
    held = sc.getcaps()[1] & ~capabilities.bit(name)
    sc.capset(held, held, 0)


@pytest.mark.parametrize("kind", ["mnt", "net", "pid", "ipc", "uts", "cgroup", "user"])
@pytest.mark.needs("root")
def test_which_limit_on_namespaces_is_reached(kind):
    """ENOSPC of unshare(2) is no full disk: the error names the parameter."""

    def do() -> str:
        take_away(kind)()
        return diagnosis.explain("create", "No space left on device", errno.ENOSPC).remedy

    assert f"user.max_{kind}_namespaces" in attempt(do, patience=60).said


def test_a_full_disk_is_not_blamed_on_namespaces():
    """ENOSPC where namespaces can be made stays what it is."""
    error = diagnosis.explain("make layer", "No space left on device", errno.ENOSPC)
    assert ("make layer", "") == (error.step, error.remedy)


def test_a_limit_on_processes_is_named():
    """EAGAIN of clone(2) is explained by what limits processes."""
    remedy = diagnosis.explain("create", "Resource temporarily unavailable", errno.EAGAIN).remedy
    assert [] == [word for word in ("ulimit -u", "pids.max", "--pids-limit") if word not in remedy]


def test_nested_overlays_say_how_many_levels_there_are(monkeypatch):
    """EINVAL of an overlay on a root that is one names the depth, and on another root it does
    not.
    """
    for fstype, is_named in (("overlay", True), ("ext4", False)):
        root = [mounts.HostMount("/", fstype, 0)]
        monkeypatch.setattr(diagnosis.mounts, "list_mounts", lambda root=root: root)
        error = diagnosis.explain("mount root", "Invalid argument", errno.EINVAL)
        assert is_named == ("two levels of containers" in error.remedy)
