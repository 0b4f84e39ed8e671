"""The settings of a container: one frozen value, which is checked once.

Names and forms are docker's if docker has them. :data:`KEYS` has every key with its parser and its
description, from which the reference documentation is generated. Nothing here reads a file or the
environment: errors such as a missing volume or image are found later.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from pytest_sandbox.errors import SettingsError
from pytest_sandbox.settings import destinations, parsers, path_parsers, port_mapping
from pytest_sandbox.settings.parsers import (
    CAPABILITIES,
    ULIMITS,
    FrozenMap,
    parse_size,
)
from pytest_sandbox.settings.path_parsers import Tmpfs, Volume
from pytest_sandbox.settings.port_mapping import PortMapping
from pytest_sandbox.settings.schema import SECURITY, WORDS
from pytest_sandbox.units import mib

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Unpack

    from pytest_sandbox.settings.kwargs import SettingsKwargs

__all__ = [
    "CAPABILITIES",
    "DEVICE_RATES",
    "KEYS",
    "ULIMITS",
    "FrozenMap",
    "Key",
    "PortMapping",
    "Settings",
    "Tmpfs",
    "Volume",
    "from_text",
    "parse_size",
]

__tracebackhide__ = True  # pytest shows the line of the test; --full-trace shows all

#: The keys that limit the rate of reads and writes of block devices.
DEVICE_RATES: tuple[str, ...] = (
    "device_read_bps",
    "device_write_bps",
    "device_read_iops",
    "device_write_iops",
)


@dataclass(frozen=True, slots=True)
class Key:
    """One setting: its ``form`` (the accepted values), ``default`` and ``meaning`` in words, and
    whether it is an ``option`` of pytest.

    ``read`` returns the canonical value for a value or a text of the user, or raises
    :class:`~pytest_sandbox.settings.parsers.RefusedError`.
    """

    name: str
    form: str
    default: str
    meaning: str
    option: bool
    read: Callable[[object], object] = field(repr=False, compare=False)


def _key(name: str, default: object, read: Callable[[object], object]) -> Any:
    return field(default=default, metadata={"read": read, **WORDS[name]._asdict()})


@dataclass(frozen=True, slots=True, init=False)
class Settings:
    """The settings of a container: ``Settings(memory="512m", pids_limit=64)``.

    None stands for a key's default, except for ``pids_limit``, where it means no limit. Raises
    :class:`SettingsError` for an unknown key (with the name that was probably meant), an invalid
    value, or values that contradict each other.

    Sizes are in bytes, times in seconds. An attribute that is None means no limit, or the value of
    the image or the caller. ``memory_swap`` is memory plus swap, -1 for no limit on swap, None for
    the same as memory (see :attr:`swap_limit`). ``hostname`` is a tuple if there are aliases (see
    :attr:`names`). ``given`` has the keys that were set: if the host
    cannot enforce a limit, a default is left out, and one that was set is an error.
    """

    image: object = _key("image", "host", parsers.image)
    memory: int | None = _key("memory", None, parsers.memory)
    memory_swap: int | None = _key("memory_swap", None, parsers.memory_swap)
    memory_high: int | None = _key("memory_high", None, parsers.memory)
    cpus: float | None = _key("cpus", None, parsers.cpus)
    cpuset: str | None = _key("cpuset", None, parsers.cpuset)
    pids_limit: int | None = _key("pids_limit", 4096, parsers.pids_limit)
    device_read_bps: Mapping[str, int] = _key("device_read_bps", FrozenMap(), parsers.byte_rates)
    device_write_bps: Mapping[str, int] = _key("device_write_bps", FrozenMap(), parsers.byte_rates)
    device_read_iops: Mapping[str, int] = _key("device_read_iops", FrozenMap(), parsers.count_rates)
    device_write_iops: Mapping[str, int] = _key(
        "device_write_iops", FrozenMap(), parsers.count_rates
    )
    disk: int | None = _key("disk", None, parsers.some_bytes)
    storage: str = _key("storage", "memory", parsers.storage)
    shm_size: int = _key("shm_size", 64 << 20, parsers.some_bytes)
    timeout: float | None = _key("timeout", None, parsers.timeout)
    network: object = _key("network", "none", destinations.network)
    publish: tuple[PortMapping, ...] = _key("publish", (), port_mapping.publish)
    hostname: str | tuple[str, ...] | None = _key("hostname", None, parsers.hostname)
    extra_hosts: Mapping[str, str] = _key("extra_hosts", FrozenMap(), parsers.extra_hosts)
    env: Mapping[str, str] = _key("env", FrozenMap(), parsers.env)
    user: str | None = _key("user", None, parsers.user)
    workdir: str | None = _key("workdir", None, parsers.absolute)
    volumes: tuple[Volume, ...] = _key("volumes", (), path_parsers.volumes)
    tmpfs: tuple[Tmpfs, ...] = _key("tmpfs", (), path_parsers.tmpfs)
    devices: tuple[Volume, ...] = _key("devices", (), path_parsers.devices)
    gpus: str | None = _key("gpus", None, path_parsers.gpus)
    read_only: bool = _key("read_only", False, parsers.boolean)
    cap_add: tuple[str, ...] = _key("cap_add", (), parsers.capabilities)
    cap_drop: tuple[str, ...] = _key("cap_drop", (), parsers.capabilities)
    ulimits: Mapping[str, tuple[int, int]] = _key("ulimits", FrozenMap(), parsers.ulimits)
    security_opt: tuple[str, ...] = _key("security_opt", (), parsers.security_opt)
    privileged: bool = _key("privileged", False, parsers.boolean)
    artifacts: tuple[str, ...] = _key("artifacts", (), path_parsers.artifacts)
    artifacts_limit: int = _key("artifacts_limit", 100 << 20, parsers.some_bytes)
    alone: bool = _key("alone", False, parsers.boolean)
    given: frozenset[str] = field(default=frozenset(), compare=False)

    def __init__(self, **raw: Unpack[SettingsKwargs]) -> None:
        values = {**_defaults, **_read_all(raw)}
        _check_contradictions(values)
        self._assign(values)

    def _assign(self, values: Mapping[str, object]) -> None:
        put = object.__setattr__  # the class is frozen
        for name, value in values.items():
            put(self, name, value)

    @classmethod
    def of(cls, **raw: Unpack[SettingsKwargs]) -> Settings:
        """Return ``Settings(**raw)``."""
        return cls(**raw)

    @classmethod
    def unchecked(cls, **values: Any) -> Settings:
        """Return settings with canonical values, which are not parsed; ``given`` is empty."""
        made = cls.__new__(cls)
        made._assign({**_defaults, **values})  # noqa: SLF001 - its own
        return made

    def replace(self, **raw: Unpack[SettingsKwargs]) -> Settings:
        """Return a copy with new values for these keys, in any form that is accepted."""
        read = _read_all(raw)
        values = {**{name: getattr(self, name) for name in _defaults}, **read}
        values["given"] = read["given"] | (self.given - raw.keys())
        _check_contradictions(values)
        made = Settings.__new__(Settings)
        made._assign(values)  # noqa: SLF001 - its own
        return made

    def raw(self) -> dict[str, object]:
        """Return the keys that were set or differ from the default, as values that ``of`` accepts.

        JSON can hold all of them except an Image or a Network.
        """
        return {
            name: _plain(getattr(self, name))
            for name in KEYS
            if name in self.given or getattr(self, name) != getattr(_DEFAULTS, name)
        }

    @property
    def names(self) -> tuple[str, ...]:
        """The host name and the aliases; empty without ``hostname``."""
        given = self.hostname
        return () if given is None else (given,) if isinstance(given, str) else given

    @property
    def swap_limit(self) -> int | None:
        """Memory plus swap in bytes, None for no limit."""
        return (
            self.memory
            if self.memory_swap is None
            else None
            if self.memory_swap == -1
            else self.memory_swap
        )

    def device_rates(self) -> tuple[tuple[str, str, int], ...]:
        """Return the limits on block devices: key, path of the device, and rate per second."""
        return tuple(
            (key, path, rate) for key in DEVICE_RATES for path, rate in getattr(self, key).items()
        )

    @property
    def seccomp(self) -> bool:
        """Whether docker's default seccomp policy is loaded."""
        return not self.privileged and "seccomp=unconfined" not in self.security_opt

    @property
    def no_new_privileges(self) -> bool:
        """Whether set-user-ID and file capabilities have no effect (PR_SET_NO_NEW_PRIVS)."""
        if self.privileged:
            return "no-new-privileges" in self.security_opt
        return "no-new-privileges:false" not in self.security_opt


#: The default of each field.
_defaults: dict[str, Any] = {one.name: one.default for one in fields(Settings)}
_DEFAULTS = Settings.unchecked()

#: Every key by its name, in the order of the documentation.
KEYS: Mapping[str, Key] = FrozenMap(
    (one.name, Key(one.name, **one.metadata)) for one in fields(Settings) if one.metadata
)


def _read(name: str, value: object) -> object:
    key = KEYS.get(name)
    if key is None:
        raise SettingsError(
            name,
            value,
            f"{parsers.suggestion(name, KEYS).lstrip('; ')} the keys are {', '.join(KEYS)}".strip(),
        )
    if value is None:
        return None if name == "pids_limit" else _defaults[name]
    try:
        return key.read(value)
    except parsers.RefusedError as refused:
        raise SettingsError(name, value, str(refused) or key.form) from None


def _read_all(raw: Mapping[str, object]) -> dict[str, Any]:
    """Return the canonical values, and in ``given`` the keys that were set."""
    said = frozenset(
        name for name, value in raw.items() if value is not None or name == "pids_limit"
    )
    return {**{name: _read(name, value) for name, value in raw.items()}, "given": said}


def _check_contradictions(values: Mapping[str, Any]) -> None:
    """Raise :class:`SettingsError` for values that contradict each other."""
    swap, memory = values["memory_swap"], values["memory"]
    if swap not in {None, -1} and (memory is None or swap < memory):
        raise SettingsError(
            "memory_swap",
            swap,
            "the sum of memory and swap, at least as much as memory, which must be set too; memory "
            f"is {'not set' if memory is None else mib(memory)}",
        )
    if values["publish"] and values["network"] == "host":
        raise SettingsError(
            "publish",
            [str(one) for one in values["publish"]],
            'nothing with network="host", where each port is one of the host already',
        )
    if values["extra_hosts"] and not isinstance(values["network"], str):
        raise SettingsError(
            "extra_hosts",
            dict(values["extra_hosts"]),
            "nothing on a Network, whose containers have one /etc/hosts with the names of all",
        )
    covered = {one.target for one in values["tmpfs"]} & {one.target for one in values["volumes"]}
    if covered:
        raise SettingsError(
            "tmpfs", sorted(covered), "paths that are not those of volumes, one mount for each"
        )
    options = values["security_opt"]
    if set(options).issuperset(SECURITY[:2]) or set(options).issuperset(SECURITY[2:]):
        raise SettingsError(
            "security_opt", list(options), "options that do not contradict each other"
        )


def _plain(value: object) -> object:
    """Return a canonical value as lists, dicts, text and numbers."""
    if isinstance(value, FrozenMap):
        return {name: list(one) if isinstance(one, tuple) else one for name, one in value.items()}
    if isinstance(value, tuple):
        return [str(one) for one in value]
    return value


def from_text(key: str, text: str) -> object:
    """Return the canonical value of a key for the text of an ini file, an option or a command line.

    Lists and dicts have one item per line, or items separated with commas. An empty text is the
    default (no limit for ``pids_limit``), and so is ``none``, except for ``network``. Raises
    :class:`SettingsError`.
    """
    text = text.strip()
    absent = ("", "none") if key in KEYS and key != "network" else ("",)
    return _read(key, None if text.lower() in absent else text)
