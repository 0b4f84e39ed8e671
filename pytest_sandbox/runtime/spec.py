"""What a container is made of, as data: the client writes it, the launcher compares it, an init
executes it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from pytest_sandbox.settings.settings import FrozenMap, Settings

__all__ = ["OVERHEAD", "SHELF", "Spec"]

#: What the place of a directory in a committed layer begins with.
SHELF = "shelf:"
#: Processes of ours in a container's group, which its limit does not count: init.
OVERHEAD = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """All that has to be known before the first process of a container starts.

    Two containers of one spec are interchangeable until one is claimed, which is what lets the
    launcher make the next one ahead. ``lower`` are the directories below the writable layer,
    topmost first, ``("/",)`` for the host's root with every real file system on it; ``above`` are
    more directories, topmost first, each with the point of the overlay that it belongs to ("": the
    root): a path, or ``shelf:KEY/...`` for what is in a committed layer. ``directories`` are
    directories of the host laid over an image at their usual places; ``scratch`` are an image's
    volumes, which stay writable on a read-only root: a path, and what lies below it;
    ``capabilities`` is a mask. ``packet_sockets`` are allowed where NET_RAW was asked for by name
    (packet(7)). ``layers`` is where writable layers lie that are not in memory, and ``hostname``
    then is the name in /etc/hostname, which cannot be changed later; the launcher adds the
    directory, and the device, of one container's.
    """

    lower: tuple[str, ...] = ("/",)
    above: tuple[tuple[str, str], ...] = ()
    directories: tuple[str, ...] = ()
    scratch: tuple[tuple[str, ...], ...] = ()
    disk: int | None = None
    layers: str | None = None
    layer_directory: str | None = None
    layer_device: str | None = None
    shm_size: int = 64 << 20
    read_only: bool = False
    hostname: str | None = None
    own_network: bool = True
    user_namespace: bool = True
    protected: bool = True
    kept: tuple[tuple[str, str], ...] = ()
    volumes: tuple[tuple[str, str, bool], ...] = ()
    capabilities: int = 0
    seccomp: bool = True
    packet_sockets: bool = False
    no_new_privileges: bool = True
    ulimits: tuple[tuple[str, int, int], ...] = ()
    memory: int | None = None
    memory_swap: int | None = None
    memory_high: int | None = None
    cpus: float | None = None
    cpuset: str | None = None
    pids_limit: int | None = None
    device_rates: tuple[tuple[str, str, int], ...] = ()

    def limits(self) -> Settings:
        """Return the limits that its group enforces."""
        return Settings.unchecked(
            memory=self.memory,
            memory_swap=self.memory_swap,
            memory_high=self.memory_high,
            cpus=self.cpus,
            cpuset=self.cpuset,
            pids_limit=self.pids_limit,
            **_by_key(self.device_rates),
        )

    @property
    def shelved(self) -> tuple[str, ...]:
        """The keys of the committed layers that it takes, each once, in order."""
        found = (
            place.removeprefix(SHELF).partition("/")[0]
            for _point, place in self.above
            if place.startswith(SHELF)
        )
        return tuple(dict.fromkeys(found))

    @property
    def is_on_host(self) -> bool:
        """Whether the container lies on the host's root."""
        return self.lower == ("/",)

    def to_json(self) -> dict[str, Any]:
        """Return the spec as JSON can hold it."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Spec:
        """Read what :meth:`to_json` wrote."""
        tuples = {
            key: _tuples(value) if isinstance(value, list) else value for key, value in data.items()
        }
        return cls(**tuples)


def _by_key(rates: tuple[tuple[str, str, int], ...]) -> dict[str, Any]:
    keys = dict.fromkeys(key for key, _path, _rate in rates)
    return {key: FrozenMap((path, rate) for of, path, rate in rates if of == key) for key in keys}


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
