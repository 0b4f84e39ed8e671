"""Who says no where the kernel would not: a stand-in for the kernel, and a security module's
profile around this process.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from pytest_sandbox import UnsupportedError, host
from pytest_sandbox.client.errors import raise_for
from pytest_sandbox.host import files, kernel, namespace
from pytest_sandbox.host.trial import Trial
from pytest_sandbox.linux import confinement
from pytest_sandbox.runtime.protocol import ErrorCode

REAL = "#1 SMP PREEMPT_DYNAMIC Debian 6.12.5-1 (2024-12-15)"
STAND_IN = "#1 SMP Sun Jan 10 15:06:54 PST 2016"


@pytest.mark.parametrize(
    ("release", "version", "is_it"),
    [
        ("4.4.0", STAND_IN, True),
        ("4.19.0-gvisor", "#1 SMP", True),
        ("6.12.5-amd64", REAL, False),
        ("4.4.0", "#1 SMP", False),
    ],
)
def test_gvisor_is_recognised(monkeypatch, release, version, is_it):
    """By what it answers to uname(2), in its older and its newer form."""
    system = SimpleNamespace(sysname="Linux", release=release, version=version, machine="x86_64")
    monkeypatch.setattr(confinement.os, "uname", lambda: system)
    assert is_it == confinement.is_gvisor()


@pytest.fixture
def gvisor(monkeypatch):
    monkeypatch.setattr(confinement, "is_gvisor", lambda: True)


@pytest.mark.usefixtures("gvisor")
def test_in_gvisor_the_doctor_says_so():
    """The row of the kernel names it, and every remedy says how to do without."""
    with pytest.raises(OSError, match="gVisor, which answers as Linux"):
        kernel.try_kernel()
    refused = Trial("Invalid argument", errno.EINVAL)
    remedies = [
        kernel.remedy_for_kernel,
        kernel.remedy_for_call("5.3"),
        namespace.remedy_for_user,
        namespace.remedy_for("pid"),
        files.remedy_for("overlay"),
    ]
    assert {kernel.GVISOR} == {remedy(refused) for remedy in remedies}
    assert "--runtime=runc" in kernel.GVISOR


@pytest.mark.usefixtures("gvisor")
def test_in_gvisor_a_failed_step_is_unsupported():
    """A step that failed is told as what it is, not as a fault of ours; elsewhere it is the step's
    own error.
    """
    answer = {
        "op": "error",
        "code": ErrorCode.STEP_FAILED,
        "step": "mount root",
        "reason": "Invalid argument: mount(overlay)",
        "errno": errno.EINVAL,
    }
    with pytest.raises(UnsupportedError) as caught:
        raise_for(answer)
    assert kernel.GVISOR == caught.value.remedy


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("unconfined\n", ""),
        ("docker-default (enforce)\n", "docker-default"),
        ("/usr/bin/a b (enforce)", "/usr/bin/a b"),
        ("x (complain)", ""),
    ],
)
def test_a_profile_is_read_as_apparmor_writes_it(text, name):
    """A name with spaces is whole, and a profile that only complains is none."""
    assert name == confinement._confining(text)


@pytest.mark.parametrize(
    ("number", "is_named"), [(errno.EACCES, True), (errno.EPERM, True), (errno.ENODEV, False)]
)
def test_a_profile_is_named_where_it_may_have_denied(monkeypatch, number, is_named):
    """What a profile can answer is told with its name and docker's option; what it cannot is not
    blamed on it.
    """
    monkeypatch.setattr(confinement, "profile", lambda: "docker-default")
    monkeypatch.setattr(kernel, "is_filtered", lambda: False)
    said = files.remedy_for("tmpfs")(Trial("refused", number))
    assert is_named == ("profile docker-default" in said) == ("apparmor=unconfined" in said)


def test_without_apparmor_no_profile_confines():
    """The row says that nobody confines this process, on hosts without AppArmor and outside of a
    profile.
    """
    row = host.find("no profile")
    assert (not confinement.apparmor_profile(), bool(row.remedy)) == (row.found, not row.found)


NO_MOUNTS = "network, capability, file, umount, signal, ptrace, deny mount,"
NO_POWER = "network, file, mount, umount, pivot_root, signal, ptrace,"
#: Becomes confined with its exec.
CONFINE = (
    "import os, sys; open('/proc/self/attr/apparmor/exec', 'w').write('exec ' + "
    "sys.argv[1]); os.execv(sys.executable, [sys.executable, *sys.argv[2:]])"
)
TRY = """
from pytest_sandbox import Container, UnsupportedError
try:
    Container().start()
except UnsupportedError as error:
    print(error)
"""


@pytest.mark.needs("root", "apparmor", "apparmor_parser")
@pytest.mark.parametrize("rules", [NO_MOUNTS, NO_POWER], ids=["no mounts", "no capabilities"])
def test_a_real_profile_is_named(tmp_path, rules):
    """Confined as docker's and as Ubuntu's profile confine, a container is refused with the
    profile's name and what to do.
    """
    name, file = f"pytest-sandbox-{os.getpid()}", tmp_path / "profile"
    file.write_text(f"profile {name} flags=(attach_disconnected) {{ {rules} }}\n")
    subprocess.run(["apparmor_parser", "--replace", "--skip-cache", file], check=True)
    try:
        done = subprocess.run(
            [sys.executable, "-c", CONFINE, name, "-c", TRY],
            capture_output=True,
            text=True,
            check=True,
        )
    finally:
        subprocess.run(["apparmor_parser", "--remove", file], check=True)
    assert f"AppArmor profile {name} around this process denies it" in done.stdout
