"""Turn settings, which a user writes, into a spec, which the launcher executes."""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from pytest_sandbox.container import devices, gpus
from pytest_sandbox.errors import SettingsError
from pytest_sandbox.linux import capabilities
from pytest_sandbox.linux.cgroup.limits import CgroupLimits
from pytest_sandbox.paths import images
from pytest_sandbox.runtime.spec import Spec
from pytest_sandbox.settings.destinations import is_limited

if TYPE_CHECKING:
    from pytest_sandbox.client.session import LauncherClient
    from pytest_sandbox.container.network import Network
    from pytest_sandbox.container.rootfs import Rootfs
    from pytest_sandbox.settings.settings import Settings

__all__ = ["describe", "serializable", "spec_for", "spec_of", "with_saved"]

__tracebackhide__ = True  # pytest shows the line of the test; --full-trace shows all


def describe(rootfs: Rootfs, *, label: str) -> dict[str, object]:
    """Return what other processes of this user get to know of a container, for JSON.

    ``env`` and ``user`` are those of its commands (None on the host's root: those of the caller).
    """
    settings = rootfs.settings
    raw = {**serializable(settings), "workdir": rootfs.workdir}
    if not isinstance(settings.image, str):
        raw["image"] = getattr(settings.image, "reference", None) or repr(settings.image)
    env = rootfs.environment("".join(settings.names[:1])) if not rootfs.is_host else None
    return {"label": label, "settings": raw, "env": env, "user": rootfs.user}


def serializable(settings: Settings) -> dict[str, object]:
    """Return settings as another process can read them: without a :class:`Network`, which belongs
    to this process.
    """
    return {
        name: value
        for name, value in settings.raw().items()
        if name != "network" or isinstance(value, str)
    }


def spec_of(rootfs: Rootfs, *, has_user_namespace: bool, is_root: bool = True) -> Spec:
    """Return the spec of a container for its settings and image.

    ``has_user_namespace`` and ``is_root`` are facts about the launcher. Raises
    :class:`SettingsError`, :class:`ImageError`, or :class:`UnsupportedError`.
    """
    settings = rootfs.settings
    mask = (
        capabilities.resolve(settings.cap_add, settings.cap_drop, privileged=settings.privileged)
        & capabilities.supported()
    )
    own_network = settings.network != "host"
    # In a user namespace of its own a command has no capability over the host's namespaces. Where
    # docker would grant one (the host's network, cap_add), root's commands stay in the host's user
    # namespace; a launcher without root has none to grant.
    more = mask & ~capabilities.DOCKER_DEFAULT
    return Spec(
        lower=rootfs.lower,
        above=rootfs.above,
        scratch=rootfs.scratch,
        disk=settings.disk,
        layers=os.path.join(images(), "writable") if settings.storage == "disk" else None,
        shm_size=settings.shm_size,
        read_only=settings.read_only,
        hostname=settings.names[0] if settings.names and settings.storage == "disk" else None,
        own_network=own_network,
        hides_hosts=is_limited(settings.network),
        user_namespace=has_user_namespace and (not is_root or (own_network and not more)),
        protected=not settings.privileged,
        # Outer targets first, so that none covers another.
        volumes=tuple(
            sorted(
                (
                    *((_source(v.source), v.target, v.read_only) for v in settings.volumes),
                    *(gpus.libraries() if settings.gpus and not rootfs.is_host else ()),
                ),
                key=lambda volume: volume[1],
            )
        ),
        tmpfs=tuple(
            (one.target, one.size, one.mode, one.read_only, one.executable)
            for one in settings.tmpfs
        ),
        extra_hosts=tuple(settings.extra_hosts.items()),
        devices=devices.nodes(settings),
        capabilities=mask,
        seccomp=settings.seccomp,
        packet_sockets=bool(
            capabilities.mask(settings.cap_add) & mask & capabilities.bit("NET_RAW")
        ),
        no_new_privileges=settings.no_new_privileges,
        ulimits=tuple((name, soft, hard) for name, (soft, hard) in settings.ulimits.items()),
        limits=_limits(settings),
    )


def spec_for(rootfs: Rootfs, launcher: LauncherClient) -> Spec:
    """Return the spec for this launcher; stored layers above the host's root are copied to its
    layer holder.
    """
    spec = spec_of(
        rootfs, has_user_namespace=launcher.has_user_namespace, is_root=launcher.builder_fd < 0
    )
    if spec.above and rootfs.is_host:
        from pytest_sandbox.container.snapshot_copy import copied_layers

        spec = replace(spec, above=copied_layers(launcher, spec.above))
    network = rootfs.settings.network
    return (
        spec
        if isinstance(network, str)
        else replace(spec, volumes=_with_hosts(spec.volumes, cast("Network", network)))
    )


def _with_hosts(
    volumes: tuple[tuple[str, str, bool], ...], network: Network
) -> tuple[tuple[str, str, bool], ...]:
    """Add the file with the network's host names, unless a volume is mounted there."""
    hosts = network.hosts()
    return (
        volumes
        if any(target == hosts[1] for _source, target, _ro in volumes)
        else (*volumes, hosts)
    )


def with_saved(saved: dict[str, str]) -> dict[str, Any]:
    """Return the fields of a spec whose writable layer lies above saved directories: on disk, where
    they are.
    """
    return (
        {"saved": tuple(saved.items()), "layers": os.path.join(images(), "writable")}
        if saved
        else {}
    )


def _limits(settings: Settings) -> CgroupLimits:
    limits = CgroupLimits.of(settings)
    for key, path, _rate in limits.device_rates:
        if not _is_block_device(path):
            raise SettingsError(
                key, path, "a block device of the host, before the colon, such as /dev/sda"
            )
    return limits


def _is_block_device(path: str) -> bool:
    try:
        return stat.S_ISBLK(os.stat(path).st_mode)
    except OSError:
        return False


def _source(path: str) -> str:
    found = os.path.abspath(os.path.expanduser(path))
    if not os.path.exists(found):
        raise SettingsError(
            "volumes", path, "a file or directory of the host that exists, before the colon"
        )
    if devices.has_nodes(found):
        accepted = "files and directories without device nodes, which cannot be opened in a volume"
        raise SettingsError("volumes", path, f'{accepted}; devices=["{found}"] passes them in')
    return found
