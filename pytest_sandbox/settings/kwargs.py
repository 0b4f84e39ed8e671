"""The settings of a container as keyword arguments, for type checkers.

:class:`SettingsKwargs` has the keys of :class:`~pytest_sandbox.settings.settings.Settings` with
every type that its parsers accept. A test compares the two, so that none is missing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias, TypedDict

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping

    from pytest_sandbox.settings.path_parsers import Tmpfs, Volume
    from pytest_sandbox.settings.port_mapping import PortMapping

__all__ = ["ImageLike", "NetworkLike", "SettingsKwargs"]

#: Bytes, or text with a unit such as "512m".
Size: TypeAlias = int | str
Number: TypeAlias = float | str
#: An int or text for both limits, or a pair (soft, hard).
Ulimit: TypeAlias = int | str | tuple[int | str, int | str] | list[int | str]
Switch: TypeAlias = bool | str


class ImageLike(Protocol):
    """An :class:`~pytest_sandbox.Image`, which settings recognise by its layers."""

    @property
    def layers(self) -> tuple[str, ...]:
        """Return the digests of the layers."""


class NetworkLike(Protocol):
    """A :class:`~pytest_sandbox.Network`, which settings recognise by its subnet."""

    @property
    def subnet(self) -> str:
        """Return the subnet in CIDR notation."""


class SettingsKwargs(TypedDict, total=False):
    """Every setting by its name. None stands for the default, except for ``pids_limit``, where it
    means no limit.
    """

    image: str | os.PathLike[str] | ImageLike | None
    memory: Size | None
    memory_swap: Size | None
    memory_high: Size | None
    cpus: Number | None
    cpuset: int | str | None
    pids_limit: int | str | None
    device_read_bps: Mapping[str, Size] | Iterable[str] | None
    device_write_bps: Mapping[str, Size] | Iterable[str] | None
    device_read_iops: Mapping[str, int | str] | Iterable[str] | None
    device_write_iops: Mapping[str, int | str] | Iterable[str] | None
    disk: Size | None
    storage: Literal["memory", "disk"] | None
    shm_size: Size | None
    timeout: Number | None
    network: str | Iterable[str] | NetworkLike | None
    publish: int | str | Iterable[int | str | PortMapping] | None
    hostname: str | Iterable[str] | None
    extra_hosts: Mapping[str, str] | Iterable[str] | None
    env: Mapping[str, str] | Iterable[str] | None
    user: int | str | None
    workdir: str | os.PathLike[str] | None
    volumes: Iterable[str | Volume] | None
    tmpfs: Iterable[str | Tmpfs] | None
    devices: Iterable[str | Volume] | None
    gpus: str | None
    read_only: Switch | None
    cap_add: Iterable[str] | None
    cap_drop: Iterable[str] | None
    ulimits: Mapping[str, Ulimit] | Iterable[str] | None
    security_opt: Iterable[str] | None
    privileged: Switch | None
    artifacts: Iterable[str] | None
    artifacts_limit: Size | None
    alone: Switch | None
