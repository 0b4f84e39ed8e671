"""Inside of a container as docker makes it, made here by runc: the recipes of docs/how-to/ci.md,
from the one that nobody can change to --privileged.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest
from capabilities import has

from pytest_sandbox.linux import capabilities
from pytest_sandbox.linux import syscall as sc

pytestmark = pytest.mark.needs("root", "runc", "plain_root")

PROJECT = Path(__file__).parents[2]
#: Loads docker's policy of system calls, as this library has it, and becomes Python once more.
DOCKERS = """
import os, sys
from pytest_sandbox.linux import capabilities, seccomp
from pytest_sandbox.linux import syscall as sc
sc.prctl(sc.PR_SET_NO_NEW_PRIVS, 1)
sc.seccomp_set_filter(seccomp.program(capabilities.DOCKER_DEFAULT))
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
#: The policy that podman loads by default, which lets a user namespace be made; it comes with
#: skopeo.
PODMANS = Path("/usr/share/containers/seccomp.json")
MASKED = [
    f"/proc/{name}"
    for name in [
        "acpi",
        "asound",
        "interrupts",
        "kcore",
        "keys",
        "latency_stats",
        "timer_list",
        "timer_stats",
        "sched_debug",
        "scsi",
    ]
]
READ_ONLY = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
_TIMEOUT = 120
MAKE = (
    "from pytest_sandbox import Container\nwith Container({limits}) as c: print(c.run(['echo', "
    "'inside'], capture_output=True, text=True).stdout, c.stats())"
)


def policy(held: set[str]) -> dict[str, object]:
    """The rules of the policy that apply with these capabilities, in the form of the OCI
    runtime.
    """
    whole = json.loads(PODMANS.read_text())
    rules = [
        rule
        for rule in whole["syscalls"]
        if applies(rule.get("includes") or {}, rule.get("excludes") or {}, held)
    ]
    kept = ("names", "action", "args", "errnoRet")
    return {
        "defaultAction": whole["defaultAction"],
        "defaultErrnoRet": whole["defaultErrnoRet"],
        "syscalls": [
            {key: rule[key] for key in kept if rule.get(key) is not None} for rule in rules
        ],
    }


def applies(includes: dict[str, list[str]], excludes: dict[str, list[str]], held: set[str]) -> bool:
    own = {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]
    wrong_machine = own not in includes.get("arches", [own]) or own in excludes.get("arches", [])
    return (
        not wrong_machine
        and held.issuperset(includes.get("caps", []))
        and not held & set(excludes.get("caps", []))
    )


class Outer:
    """A container of docker's: ``run`` starts Python in one, with the flags of docker's that are
    named.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def run(
        self, *argv: str, flags: str = "", by: str = "docker"
    ) -> subprocess.CompletedProcess[str]:
        # Not with the prefix of our cgroups: other sessions would remove its empty ones.
        name = f"outer-{uuid.uuid4().hex}"
        (self.directory / "rootfs").mkdir(exist_ok=True)
        (self.directory / "config.json").write_text(
            json.dumps(self.config([sys.executable, "-P", *argv], {by, *flags.split()}))
        )
        # Docker's own root is an overlay, too.
        script = (
            f"mount -t tmpfs layer {self.directory}/rootfs && mkdir {self.directory}/rootfs/upper "
            f"{self.directory}/rootfs/work && "
            f"mount -t overlay -o lowerdir=/,upperdir={self.directory}/rootfs/upper,"
            f"workdir={self.directory}/rootfs/work docker {self.directory}/rootfs && "
            f"exec runc --root {self.directory}/state run --bundle {self.directory} {name}"
        )
        try:
            return subprocess.run(
                ["unshare", "--mount", "sh", "-c", script],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
                timeout=_TIMEOUT,
            )
        finally:  # a runc that was killed leaves the container, and its cgroups
            subprocess.run(
                ["runc", "--root", self.directory / "state", "delete", "--force", name],
                check=False,
                stderr=subprocess.DEVNULL,
            )

    def config(self, argv: list[str], given: set[str]) -> dict[str, object]:
        privileged, found = "--privileged" in given, self.spec()
        names = list(
            capabilities.names(sc.getcaps()[1] if privileged else capabilities.DOCKER_DEFAULT)
        )
        is_filtered = not given & {"--privileged", "seccomp=unconfined"}
        found["process"] |= {
            "terminal": False,
            "args": [argv[0], "-c", DOCKERS, *argv[1:]]
            if is_filtered and "docker" in given
            else argv,
            "cwd": "/tmp",
            "noNewPrivileges": False,
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), names),
        }
        found["root"] = {"path": "rootfs", "readonly": False}
        found["mounts"] += [
            {
                "destination": str(path),
                "source": str(path),
                "type": "bind",
                "options": ["rbind", "ro"],
            }
            for path in (PROJECT, sys.base_prefix)
        ]
        if privileged:
            found["mounts"] = [
                one | {"options": [word for word in one.get("options", []) if word != "ro"]}
                for one in found["mounts"]
            ]
        is_covered = not given & {"--privileged", "systempaths=unconfined"}
        found["linux"] |= {
            "maskedPaths": MASKED if is_covered else [],
            "readonlyPaths": READ_ONLY if is_covered else [],
        }
        if is_filtered and "podman" in given:
            found["linux"]["seccomp"] = policy(set(names))
        return found

    def spec(self) -> dict[str, Any]:
        """What runc suggests."""
        directory = self.directory / "spec"
        directory.mkdir(exist_ok=True)
        (directory / "config.json").unlink(missing_ok=True)
        subprocess.run(["runc", "spec", "--bundle", directory], check=True)
        return json.loads((directory / "config.json").read_text())


@pytest.fixture
def outer(tmp_path):
    return Outer(tmp_path)


def test_as_docker_makes_it_nothing_can_be_made_and_it_is_said(outer):
    """On a runner that nobody can change, the error names the policy that denies it, and docker's
    option.
    """
    done = outer.run("-c", MAKE.format(limits=""))
    assert "a container without root is not supported here" in done.stderr
    assert "seccomp policy" in done.stderr
    assert "--privileged" in done.stderr


def test_as_docker_makes_it_tests_can_be_skipped(outer):
    """sandbox_unsupported = "skip" skips what needs a container, with that reason, and runs what
    does not.
    """
    suite = (
        "import pytest\\ndef test_inside(): pass\\n@pytest.mark.no_sandbox\\ndef "
        "test_outside(): pass\\n"
    )
    run = (
        f"open('/tmp/test_it.py', 'w').write('{suite}'); import pytest; pytest.main(['-rs', "
        "'-p', 'no:cacheprovider', '--sandbox', '-o', 'sandbox_unsupported=skip', "
        "'/tmp/test_it.py'])"
    )
    done = outer.run("-c", run)
    assert "1 passed, 1 skipped" in done.stdout
    assert "a container without root is not supported here" in done.stdout


def test_three_options_are_enough_for_containers(outer):
    """With seccomp and systempaths unconfined (and no AppArmor) containers work, under docker's own
    capabilities.
    """
    done = outer.run(
        "-c", MAKE.format(limits=""), flags="seccomp=unconfined systempaths=unconfined"
    )
    assert ("", "inside\n") == (done.stderr, done.stdout[:7])


def test_with_two_options_limits_are_refused_by_name(outer):
    """Docker shows the groups read-only: a limit is refused with the option that changes it."""
    done = outer.run(
        "-c", MAKE.format(limits="memory='64m'"), flags="seccomp=unconfined systempaths=unconfined"
    )
    assert "memory=67108864 is not supported here" in done.stderr
    assert "--privileged" in done.stderr


#: What cannot be on docker's own root, and what is said of it.
ON_AN_OVERLAY = """
from pytest_sandbox import Container, SandboxError, host
from pytest_sandbox.container import saved_layers
row = host.find("image store")
print(row.found, row.remedy)
attempts = (
    lambda: Container(storage="disk").start(), lambda: saved_layers.save(container.handle)
)
for attempt in attempts:
    with Container() as container:
        container.run(["rm", "/etc/passwd"], check=True)
        try:
            attempt()
        except SandboxError as error:
            print(error)
"""


def test_what_dockers_own_root_cannot_hold_is_said(outer):
    """On a root that is an overlay itself, images, layers on disk and kept layers are told where
    else they can lie.
    """
    done = outer.run("-c", ON_AN_OVERLAY, flags="seccomp=unconfined systempaths=unconfined")
    row, disk, kept = done.stdout.splitlines()
    assert ["False", 'storage="disk"', "the layer of"] == [row[:5], disk[:14], kept[:12]]
    assert [] == [line for line in (row, disk, kept) if "PYTEST_SANDBOX_HOME" not in line]


@pytest.mark.needs("podmans_policy")
def test_podman_needs_two_options(outer):
    """Its policy lets user namespaces be made, and not all of the rest; each error names one of the
    two options that it takes.
    """
    covered = outer.run("-c", MAKE.format(limits=""), by="podman")
    assert "unmask=ALL (podman)" in covered.stderr
    filtered = outer.run("-c", MAKE.format(limits=""), flags="systempaths=unconfined", by="podman")
    assert "--security-opt seccomp=unconfined" in filtered.stderr


def test_one_option_is_not_enough(outer):
    """Where parts of /proc stay covered, the error names the option that uncovers them."""
    done = outer.run("-c", MAKE.format(limits=""), flags="seccomp=unconfined")
    assert "systempaths=unconfined" in done.stderr


@pytest.mark.skipif(not has("limits"), reason="this host gives no groups to hand on")
def test_privileged_has_limits(outer):
    """With --privileged there are limits and figures, too."""
    done = outer.run("-c", MAKE.format(limits="memory='64m'"), flags="--privileged")
    assert ("", "inside\n") == (done.stderr, done.stdout[:7])
    assert "memory_limit=67108864" in done.stdout
