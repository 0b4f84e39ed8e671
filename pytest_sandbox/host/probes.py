"""Every probe, in the order of the report: what it is for, how it is tried, and what helps where it
fails.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_sandbox.host import files, kernel, limits, namespace, store
from pytest_sandbox.host.capability import Capability
from pytest_sandbox.host.trial import Trial, attempt

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Probe", "probes", "rows"]


@dataclass(frozen=True, slots=True)
class Probe:
    """How one row comes to be: ``do`` returns what it saw, or raises :class:`OSError`; ``remedy``
    reads how it went wrong.
    """

    name: str
    area: str
    use: str
    do: Callable[[], str]
    remedy: Callable[[Trial], str]
    needed: bool = True

    def row(self) -> Capability:
        """Try it in a fork."""
        trial = attempt(self.do)
        return Capability(
            name=self.name,
            area=self.area,
            use=self.use,
            needed=self.needed,
            found=trial.went_well,
            why=trial.said,
            remedy="" if trial.went_well else self.remedy(trial),
        )


#: System calls: name, use, how it is tried, the Linux version that has it.
_CALLS = (
    ("pidfd", "waiting for processes and signalling them, without races", kernel.try_pidfd, "5.3"),
    ("clone3", "making all namespaces of a container at once", kernel.try_clone3, "5.3"),
    ("openat2", "names that are resolved inside, and nowhere else", kernel.try_openat2, "5.6"),
    ("keyring", "a session keyring of the container's own", kernel.try_keyring, "2.6"),
    ("seccomp", "docker's default policy of system calls", kernel.try_seccomp, "3.5"),
)


def _kernel() -> list[Probe]:
    calls = [
        Probe(name, "kernel", use, do, kernel.remedy_for_call(since))
        for name, use, do, since in _CALLS
    ]
    first = Probe(
        "kernel",
        "kernel",
        "Linux, on a machine whose system calls are known",
        kernel.try_kernel,
        kernel.remedy_for_kernel,
    )
    profile = Probe(
        "no profile",
        "kernel",
        "a security module that denies nothing more",
        kernel.try_profile,
        kernel.remedy_for_profile,
        needed=False,
    )
    return [first, *calls, profile]


def _namespaces() -> list[Probe]:
    root = Probe(
        "root",
        "namespaces",
        "containers without a user namespace of this user's own; test bodies inside",
        namespace.try_root,
        lambda _trial: namespace.run_as_root(),
        needed=False,
    )
    user = Probe(
        "user namespace",
        "namespaces",
        "power over a container only; without root, the way to all of it",
        namespace.try_user,
        namespace.remedy_for_user,
        needed=not namespace.is_root(),
    )
    ids = Probe(
        "subordinate ids",
        "namespaces",
        "more than one user inside, without root",
        namespace.try_subordinate_ids,
        namespace.remedy_for_ids,
        needed=False,
    )
    others = [
        Probe(
            f"{name} namespace",
            "namespaces",
            use,
            namespace.trier(name),
            namespace.remedy_for(name),
        )
        for name, use in namespace.USES.items()
    ]
    return [root, user, ids, *others]


def _files() -> list[Probe]:
    return [
        Probe(name, "files", use, do, files.remedy_for(name), needed=needed)
        for name, use, do, needed in (
            ("tmpfs", "the writable layer in memory", files.try_tmpfs, True),
            (
                "overlay",
                "copy-on-write over the host's root and over images",
                files.try_overlay,
                True,
            ),
            (
                "overlay in a user namespace",
                "the same without root",
                files.try_overlay_in_user_namespace,
                not namespace.is_root(),
            ),
            ("proc", "a /proc that shows the container's processes", files.try_proc, True),
            ("devpts", "terminals of the container's own", files.try_devpts, True),
            ("detached mounts", "host directories inside", files.try_bind, True),
        )
    ]


def _limits() -> list[Probe]:
    cgroup = Probe(
        "cgroup",
        "limits",
        "limits and figures",
        limits.try_cgroup,
        limits.remedy_for_cgroup,
        needed=False,
    )
    pressure = Probe(
        "pressure",
        "limits",
        "for how long a container stood still",
        limits.try_pressure,
        limits.remedy_for_pressure,
        needed=False,
    )
    return [cgroup, pressure]


def _rest() -> list[Probe]:
    return [
        Probe(
            "loopback",
            "network",
            'network="none": a network of its own',
            namespace.try_loopback,
            namespace.remedy_for("network"),
        ),
        Probe(
            "bridge",
            "network",
            "network=Network(): containers that reach each other",
            namespace.try_bridge,
            namespace.remedy_for_bridge,
            needed=False,
        ),
        Probe(
            "state directory",
            "store",
            "locks of running sessions, and the control sockets of their containers",
            store.try_state,
            store.remedy_for_state,
        ),
        Probe(
            "image store",
            "store",
            "pulled and loaded images",
            store.try_store,
            store.remedy_for_store,
            needed=False,
        ),
    ]


def probes() -> list[Probe]:
    """Return all of them; what is needed depends on who asks."""
    return [*_kernel(), *_namespaces(), *_files(), *_limits(), *_rest()]


def rows(*names: str) -> tuple[Capability, ...]:
    """Try those of these names, by default all."""
    return tuple(probe.row() for probe in probes() if not names or probe.name in names)
