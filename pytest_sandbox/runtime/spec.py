"""The specification of a container, as data: the client writes it, the launcher creates from it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pytest_sandbox.errors import SandboxError
from pytest_sandbox.linux.cgroup.limits import CgroupLimits

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["FIRST_DIRECTORY", "FIRST_SCRATCH", "LAYER_HOLDER", "OVERHEAD", "Spec"]

#: The prefix of a directory in a committed layer that the layer holder has:
#: ``layer-holder:KEY/PATH``.
LAYER_HOLDER = "layer-holder:"
#: Processes of ours in a container's cgroup, which ``pids_limit`` does not count: init.
OVERHEAD = 1
#: Overlays have numbers: 0 is the root's, those of the host's mounts follow, and these are the
#: first numbers of ``Spec.directories`` and of ``Spec.scratch``.
FIRST_DIRECTORY = 1000
FIRST_SCRATCH = 2000
_UNLIMITED = CgroupLimits()


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """All that must be known before the first process of a container starts.

    Containers of equal specs are interchangeable until one is claimed, which is why the launcher
    can prewarm the next one. What differs between them (the host name, the network address) is set
    when a container is claimed.
    """

    lower: tuple[str, ...] = ("/",)
    """The directories below the writable layer, topmost first; ``("/",)`` is the host's root with
    all of its file systems."""

    above: tuple[tuple[str, str], ...] = ()
    """Committed layers above ``lower``, topmost first: the mount point of the overlay that each
    belongs to ("": the root), and a path, or a :data:`LAYER_HOLDER` directory."""

    directories: tuple[str, ...] = ()
    """Directories of the host that an image's container has at the same paths, each under a
    writable layer."""

    scratch: tuple[tuple[str, ...], ...] = ()
    """An image's volumes, which stay writable on a read-only root: a path, and its lower
    directories."""

    disk: int | None = None
    """The size limit of the writable layer in bytes."""

    layers: str | None = None
    """The directory for writable layers that are not in memory."""

    layer_directory: str | None = None
    """The directory of this container's layer, which the launcher sets."""

    layer_device: str | None = None
    """The block device of this container's layer, which the launcher sets."""

    shm_size: int = 64 << 20
    read_only: bool = False
    hostname: str | None = None
    """The name in /etc/hostname, where it cannot be changed when the container is claimed."""

    own_network: bool = True
    hides_hosts: bool = False
    """Whether hosts(5) has no names of the host's."""

    user_namespace: bool = True
    protected: bool = True
    """Whether parts of /proc and /sys are hidden or read-only, as docker has it."""

    saved: tuple[tuple[str, str], ...] = ()
    """Directories whose content the writable layer starts with, by the mount point of their
    overlay."""

    volumes: tuple[tuple[str, str, bool], ...] = ()
    """Source, target, and whether it is read-only."""

    tmpfs: tuple[tuple[str, int | None, int, bool, bool], ...] = ()
    """File systems in memory: target, size in bytes, mode, whether it is read-only, and whether
    programs in it may be executed."""

    extra_hosts: tuple[tuple[str, str], ...] = ()
    """Names and addresses in /etc/hosts."""

    devices: tuple[tuple[str, str], ...] = ()
    """Device nodes of the host, and their paths inside."""

    capabilities: int = 0
    """The bounding set of payloads, a mask."""

    seccomp: bool = True
    packet_sockets: bool = False
    """Whether packet(7) sockets are allowed: where NET_RAW was added by name."""

    no_new_privileges: bool = True
    ulimits: tuple[tuple[str, int, int], ...] = ()
    """Name, soft limit and hard limit."""

    limits: CgroupLimits = _UNLIMITED

    @property
    def is_on_host(self) -> bool:
        """Whether the container is based on the host's root."""
        return self.lower == ("/",)

    @property
    def held_layers(self) -> tuple[str, ...]:
        """The keys of the layers in the layer holder that it needs, each once, in order."""
        held = (self.held_layer(place) for _point, place in self.above)
        return tuple(dict.fromkeys(one[0] for one in held if one))

    @staticmethod
    def held_layer(place: str) -> tuple[str, str] | None:
        """Return the key and the path of a :data:`LAYER_HOLDER` directory; None for any other."""
        if not place.startswith(LAYER_HOLDER):
            return None
        key, _, path = place.removeprefix(LAYER_HOLDER).partition("/")
        return key, path

    def numbered_directories(self) -> Iterator[tuple[int, str]]:
        """Return ``directories`` with the numbers of their overlays."""
        return enumerate(self.directories, FIRST_DIRECTORY)

    def numbered_scratch(self) -> Iterator[tuple[int, tuple[str, ...]]]:
        """Return ``scratch`` with the numbers of their overlays."""
        return enumerate(self.scratch, FIRST_SCRATCH)

    def to_json(self) -> dict[str, Any]:
        """Return the spec as JSON can hold it."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Spec:
        """Return the spec that :meth:`to_json` was called on.

        Raises :class:`SandboxError` for a spec of another version of this library.
        """
        try:
            values = {key: _tuples(value) for key, value in data.items()}
            limits = {key: _tuples(value) for key, value in data["limits"].items()}
            return cls(**{**values, "limits": CgroupLimits(**limits)})
        except (KeyError, TypeError) as error:
            raise SandboxError(
                "the container's session runs another version of pytest-sandbox. Use that version "
                "to join the container."
            ) from error


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
