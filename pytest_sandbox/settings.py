"""The settings of a container: one frozen value, checked once, pure.

Names and forms are docker's where docker has them. :data:`KEYS` describes every key once; the options, the ini settings and the
reference documentation are made from it. Nothing here reads a file or the environment, so relative ``volumes`` and an unknown image
are found out later, by whoever opens them.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from pytest_sandbox import forms
from pytest_sandbox.errors import SettingsError
from pytest_sandbox.forms import CAPABILITIES, ULIMITS, FrozenMap, Volume, parse_size

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["CAPABILITIES", "DEVICE_RATES", "KEYS", "ULIMITS", "FrozenMap", "Key", "Settings", "Volume", "from_text", "parse_size"]

#: The keys that limit how fast a block device is used, and what each counts.
DEVICE_RATES: tuple[str, ...] = ("device_read_bps", "device_write_bps", "device_read_iops", "device_write_iops")


@dataclass(frozen=True, slots=True)
class Key:
    """One setting: ``form`` (what it accepts), ``default`` and ``meaning`` in words, and whether it is an ``option`` of pytest's too.

    ``read`` turns what the user wrote, a value or a text, into the canonical value, or refuses it.
    """

    name: str
    form: str
    default: str
    meaning: str
    option: bool
    read: Callable[[object], object] = field(repr=False, compare=False)


def _key(default: object, read: Callable[[object], object], form: str, said: str, meaning: str, *, option: bool = False) -> Any:
    metadata = {"read": read, "form": form, "default": said, "meaning": meaning, "option": option}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a container is like; make one with :meth:`of`, which checks.

    Sizes are bytes, times seconds; None is "no limit", or "as the image or the caller has it". ``memory_swap`` is memory plus swap, -1 for
    no limit on swap, None for "as memory" (see :attr:`swap_limit`). ``given`` are the keys that somebody asked for: a default may be left
    out where the host cannot enforce it, what was asked for may not.
    """

    image: object = _key(
        "host",
        forms.image,
        '"host", a reference, a path or an Image',
        "host",
        "the host's own root, a stored image, or a root folder",
        option=True,
    )
    memory: int | None = _key(
        None, forms.memory, f"{forms.SIZE_FORM}; at least 6m", "none", "hard cap; over it the kernel kills inside", option=True
    )
    memory_swap: int | None = _key(
        None, forms.memory_swap, "as memory and not below it, or -1 for no limit", "as memory", "memory plus swap"
    )
    memory_high: int | None = _key(
        None, forms.memory, f"{forms.SIZE_FORM}; at least 6m", "none", "over it the kernel slows down and takes back memory (cgroup v2)"
    )
    cpus: float | None = _key(None, forms.cpus, "a number of at least 0.01", "none", "CPU time per wall time", option=True)
    cpuset: str | None = _key(None, forms.cpuset, 'CPU numbers and ranges, such as "0-1,3"', "none", "CPUs that may be used")
    pids_limit: int | None = _key(4096, forms.pids_limit, f"1 to {forms.MOST_PIDS}, or -1 for no limit", "4096", "processes and threads")
    device_read_bps: Mapping[str, int] = _key(
        FrozenMap(), forms.byte_rates, forms.BYTE_RATE_FORM, "none", "bytes a second read from a device"
    )
    device_write_bps: Mapping[str, int] = _key(
        FrozenMap(), forms.byte_rates, forms.BYTE_RATE_FORM, "none", "bytes a second written to a device"
    )
    device_read_iops: Mapping[str, int] = _key(
        FrozenMap(), forms.count_rates, forms.COUNT_RATE_FORM, "none", "reads a second from a device"
    )
    device_write_iops: Mapping[str, int] = _key(
        FrozenMap(), forms.count_rates, forms.COUNT_RATE_FORM, "none", "writes a second to a device"
    )
    disk: int | None = _key(
        None,
        forms.some_bytes,
        f"{forms.SIZE_FORM}; more than 0",
        "none",
        "size of the writable layer; over it writes get ENOSPC",
        option=True,
    )
    storage: str = _key(
        "memory",
        forms.storage,
        '"memory" or "disk"',
        "memory",
        "where the writable layer lives: a tmpfs (counts as memory) or a folder",
        option=True,
    )
    shm_size: int = _key(64 << 20, forms.some_bytes, f"{forms.SIZE_FORM}; more than 0", "64m", "size of /dev/shm")
    timeout: float | None = _key(
        None,
        forms.timeout,
        "seconds, more than 0",
        "none",
        "wall time of the test inside, or of one run; over it all is killed",
        option=True,
    )
    network: object = _key(
        "none", forms.network, '"none", "host" or a Network', "none", "none: a network namespace of its own with loopback up", option=True
    )
    hostname: str | None = _key(
        None, forms.hostname, "a host name by RFC 1123 of at most 63 characters", "the container's id", "host name inside"
    )
    env: Mapping[str, str] = _key(
        FrozenMap(), forms.env, 'a dict of str to str, or "NAME=value" items', "inherited, or the image's", "environment variables to add"
    )
    user: str | None = _key(
        None, forms.user, '"UID", "UID:GID", "NAME", "NAME:GROUP"', "the invoking user, or the image's", "who runs inside"
    )
    workdir: str | None = _key(None, forms.absolute, "an absolute path inside", "the current folder, or the image's", "working folder")
    volumes: tuple[Volume, ...] = _key((), forms.volumes, forms.VOLUME_FORM, "none", "host folders that are not thrown away")
    read_only: bool = _key(False, forms.boolean, "true or false", "false", "no writable layer")
    cap_add: tuple[str, ...] = _key(
        (), forms.capabilities, "capability names such as NET_ADMIN, or ALL", "none", "more than docker's default set"
    )
    cap_drop: tuple[str, ...] = _key(
        (), forms.capabilities, "capability names such as NET_RAW, or ALL", "none", "less than docker's default set"
    )
    ulimits: Mapping[str, tuple[int, int]] = _key(
        FrozenMap(), forms.ulimits, forms.ULIMIT_FORM, "inherited", "resource limits of each process"
    )
    security_opt: tuple[str, ...] = _key(
        (), forms.security_opt, forms.SECURITY_FORM, "seccomp=builtin, no-new-privileges", "seccomp policy; what set-user-ID programs give"
    )
    privileged: bool = _key(False, forms.boolean, "true or false", "false", "all capabilities, no seccomp, no masked paths")
    given: frozenset[str] = field(default=frozenset(), compare=False)

    @classmethod
    def of(cls, **raw: object) -> Settings:
        """Read what a user wrote, as values or as text.

        None stands for the key's default; for ``pids_limit`` it is "no limit". Raises :class:`SettingsError` for an unknown key (with the
        name that was probably meant), a value of another form, or values that contradict each other.
        """
        return cls().replace(**raw)

    def replace(self, **raw: object) -> Settings:
        """Return settings in which these keys have new values, in any form that :meth:`of` reads."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        for name, value in raw.items():
            values[name] = _read(name, value)
        said = {name for name, value in raw.items() if value is not None or name == "pids_limit"}
        values["given"] = (self.given - raw.keys()) | said
        return _agree(Settings(**values))

    def raw(self) -> dict[str, object]:
        """Return the keys that were given, as values that ``of`` reads again and JSON can hold (but for an Image or a Network)."""
        return {name: _plain(getattr(self, name)) for name in KEYS if name in self.given or getattr(self, name) != getattr(_DEFAULTS, name)}

    @property
    def swap_limit(self) -> int | None:
        """Memory plus swap in bytes, None where there is no limit on it."""
        return self.memory if self.memory_swap is None else None if self.memory_swap == -1 else self.memory_swap

    def device_rates(self) -> tuple[tuple[str, str, int], ...]:
        """Return every limit on a block device: the key, the device's path, how much a second."""
        return tuple((key, path, rate) for key in DEVICE_RATES for path, rate in getattr(self, key).items())

    @property
    def seccomp(self) -> bool:
        """Whether docker's default seccomp policy is loaded."""
        return not self.privileged and "seccomp=unconfined" not in self.security_opt

    @property
    def no_new_privileges(self) -> bool:
        """Whether set-user-ID programs and file capabilities give nothing (PR_SET_NO_NEW_PRIVS)."""
        if self.privileged:
            return "no-new-privileges" in self.security_opt
        return "no-new-privileges:false" not in self.security_opt


_DEFAULTS = Settings()

#: Every key by its name, in the order of the documentation.
KEYS: Mapping[str, Key] = FrozenMap((one.name, Key(one.name, **one.metadata)) for one in fields(Settings) if one.metadata)


def _read(name: str, value: object) -> object:
    key = KEYS.get(name)
    if key is None:
        raise SettingsError(name, value, f"{forms.meant(name, KEYS).lstrip('; ')} the keys are {', '.join(KEYS)}".strip())
    if value is None:
        return None if name == "pids_limit" else getattr(_DEFAULTS, name)
    try:
        return key.read(value)
    except forms.RefusedError as refused:
        raise SettingsError(name, value, str(refused) or key.form) from None


def _agree(settings: Settings) -> Settings:
    swap, memory = settings.memory_swap, settings.memory
    if swap not in {None, -1} and (memory is None or swap < memory):
        raise SettingsError("memory_swap", swap, f"memory plus swap, so not below memory, which must be given too (memory is {memory})")
    said = set(settings.security_opt)
    if said.issuperset(forms.SECURITY[:2]) or said.issuperset(forms.SECURITY[2:]):
        raise SettingsError("security_opt", list(settings.security_opt), "items that do not contradict each other")
    return settings


def _plain(value: object) -> object:
    if isinstance(value, FrozenMap):
        return {name: list(one) if isinstance(one, tuple) else one for name, one in value.items()}
    if isinstance(value, tuple):
        return [str(one) for one in value]
    return value


def from_text(key: str, text: str) -> object:
    """Read one key from the text of an ini file, an option or a command line, into the canonical value of :class:`Settings`.

    Lists and dicts have one item a line, or commas; an empty text, and ``none`` for a key that can be without a value, is the default
    (no limit for ``pids_limit``). Raises :class:`SettingsError`.
    """
    text = text.strip()
    absent = ("", "none") if key in KEYS and key != "network" else ("",)
    return _read(key, None if text.lower() in absent else text)
