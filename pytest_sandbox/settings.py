"""The settings of a container: one frozen value, checked once, pure.

Names and forms are docker's where docker has them. :data:`KEYS` describes every key once; the options, the ini settings and the
reference documentation are made from it. Nothing here reads a file or the environment, so relative ``volumes`` and an unknown image
are found out later, by whoever opens them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, NoReturn, TypeVar

from pytest_sandbox.errors import SettingsError

__all__ = ["CAPABILITIES", "KEYS", "ULIMITS", "FrozenMap", "Key", "Settings", "Volume", "from_text", "parse_size"]

#: Capabilities in the order of their numbers (linux/capability.h): the index is the bit.
CAPABILITIES: tuple[str, ...] = tuple(
    f"CAP_{name}"
    for name in (  # noqa: SIM905 - forty quoted words are harder to compare with the header
        "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE NET_BROADCAST "
        "NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE "
        "SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM "
        "BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE"
    ).split()
)

#: Resource limits under docker's names; ``as`` is ours. ``resource.RLIMIT_<NAME>`` is the constant, but for ``locks``, which Python lacks.
ULIMITS = tuple("as core cpu data fsize locks memlock msgqueue nice nofile nproc rss rtprio rttime sigpending stack".split())  # noqa: SIM905 - a list of names

_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40, "p": 1 << 50}
_SIZE = re.compile(r"([0-9]{1,20}(?:\.[0-9]*)?|\.[0-9]+) ?(?:([kmgtp])(?:i?b)?|b)?", re.IGNORECASE | re.ASCII)
_SIZE_FORM = 'bytes, or a number with b, k, m, g, t or p, counted by 1024, such as "512m"'
_LEAST_MEMORY = 6 << 20  # docker's least; below it init itself does not fit
_MOST_CPUS = 8192  # CONFIG_NR_CPUS at its greatest on x86_64
_MOST_PIDS = 4_194_304  # PID_MAX_LIMIT: pids.max refuses more
_MOST_BYTES = (1 << 63) - 1
_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_HOSTNAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_USER = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.-]*\$?(?::[A-Za-z0-9_.][A-Za-z0-9_.-]*)?")
_SECURITY = ("seccomp=unconfined", "seccomp=builtin", "no-new-privileges", "no-new-privileges:false")
_SECURITY_FORM = f"items among {', '.join(_SECURITY)}"
_ULIMIT_FORM = 'a dict of int or (soft, hard), or "NAME=SOFT[:HARD]" items; -1 or unlimited for no limit'
_VOLUME_FORM = 'items "SOURCE:TARGET[:ro]" with an absolute TARGET and a SOURCE that begins with /, . or ~'

V = TypeVar("V")


class FrozenMap(Mapping[str, V]):
    """A mapping that cannot be changed, can be hashed and can be pickled (``types.MappingProxyType`` can do neither)."""

    __slots__ = ("_items",)

    def __init__(self, items: Mapping[str, V] | Iterable[tuple[str, V]] = ()) -> None:
        self._items: dict[str, V] = dict(items)

    def __getitem__(self, key: str) -> V:
        return self._items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        return hash(frozenset(self._items.items()))

    def __repr__(self) -> str:
        return repr(self._items)


@dataclass(frozen=True, slots=True)
class Volume:
    """A host folder or file that is not thrown away: ``source`` on the host appears as ``target`` inside.

    ``source`` is as it was written: absolute, or beginning with ``.`` or ``~``.
    """

    source: str
    target: str
    read_only: bool = False

    def __str__(self) -> str:
        return f"{self.source}:{self.target}{':ro' if self.read_only else ''}"


class _RefusedError(Exception):
    """The value does not have the key's form; its argument, where there is one, says the accepted form better than the table."""


def parse_size(size: object) -> int:
    """Read a size as docker does: ``"512m"`` is 536,870,912.

    An int is bytes. Text is a number, which may have a fraction, and a unit (b, k, m, g, t, p; also kb, kib, ...; any case), counted by
    1024; what is left of a byte is cut off. Raises :class:`SettingsError`, a ValueError.
    """
    try:
        return _size(size)
    except _RefusedError:
        raise SettingsError("size", size, _SIZE_FORM) from None


def _size(value: object) -> int:
    if isinstance(value, str):
        found = _SIZE.fullmatch(value.strip()) or _refuse()
        number, unit = found[1], _UNITS[(found[2] or "").lower()]
        value = int(number) * unit if number.isdigit() else int(float(number) * unit)
    return _integer(value, 0, _MOST_BYTES)


def _integer(value: object, least: int, most: int) -> int:
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,20}", value.strip()):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise _RefusedError
    return value


def _number(value: object, least: float, most: float) -> float:
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise _RefusedError from None
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise _RefusedError
    return float(value)


def _bool(value: object) -> bool:
    if isinstance(value, bool):
        return value
    text = value.strip().lower() if isinstance(value, str) else ""
    return text in _TRUE if text in _TRUE + _FALSE else _refuse()


def _text(value: object) -> str:
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if not isinstance(value, str) or not value or "\0" in value:
        raise _RefusedError
    return value


def _memory(value: object) -> int:
    return size if (size := _size(value)) >= _LEAST_MEMORY else _refuse()


def _memory_swap(value: object) -> int:
    return -1 if str(value).strip() in {"-1", "unlimited"} else _memory(value)


def _some_bytes(value: object) -> int:
    return _size(value) or _refuse()


def _refuse(better: str = "") -> NoReturn:
    raise _RefusedError(better)


def _cpuset(value: object) -> str:
    if isinstance(value, int):
        value = str(_integer(value, 0, _MOST_CPUS - 1))
    chosen: set[int] = set()
    for part in _text(value).split(","):
        first, dash, last = part.strip().partition("-")
        low = _integer(first, 0, _MOST_CPUS - 1)
        chosen.update(range(low, _integer(last if dash else first, low, _MOST_CPUS - 1) + 1))
    return _ranges(sorted(chosen))


def _ranges(numbers: list[int]) -> str:
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in runs)


def _pids_limit(value: object) -> int | None:
    limit = _integer(value, -1, _MOST_PIDS)
    return limit if limit > 0 else None


def _image(value: object) -> object:
    """Text and paths become text; an image itself is known by its layers, so that this floor need not import images."""
    if isinstance(value, str | os.PathLike):
        return _text(value)
    return value if hasattr(value, "layers") else _refuse()


def _network(value: object) -> object:
    """Text is one of two words; a network itself is left to the room that knows it."""
    if isinstance(value, str):
        return value if value in {"none", "host"} else _refuse()
    return _refuse() if isinstance(value, bytes | int | float | list | tuple | set | dict) else value


def _storage(value: object) -> str:
    return value if isinstance(value, str) and value in {"memory", "disk"} else _refuse()


def _cpus(value: object) -> float:
    return _number(value, 0.01, _MOST_CPUS)


def _timeout(value: object) -> float:
    return _number(value, 1e-9, 1e9)


def _hostname(value: object) -> str:
    return name if len(name := _text(value)) <= 63 and _HOSTNAME.fullmatch(name) else _refuse()


def _user(value: object) -> str:
    if isinstance(value, int):
        value = str(_integer(value, 0, 2**32 - 2))  # 2**32 - 1 means "no change" to chown and setresuid
    if not _USER.fullmatch(_text(value)):
        raise _RefusedError
    for part in _text(value).split(":"):
        if part.isdigit():
            _integer(part, 0, 2**32 - 2)
    return _text(value)


def _absolute(value: object) -> str:
    return path if (path := _text(value)).startswith("/") else _refuse()


def _items(value: object, separator: str = r",") -> Iterable[object]:
    """Text of several lines has one item a line; text of one line has commas; anything else is iterated."""
    if isinstance(value, str):
        parts = value.splitlines() if "\n" in value.strip() else re.split(separator, value)
        return [part.strip() for part in parts if part.strip()]
    if isinstance(value, Volume) or not isinstance(value, Iterable) or isinstance(value, bytes | Mapping):
        raise _RefusedError
    return value


def _pairs(value: object, separator: str = r",") -> Iterable[tuple[str, object]]:
    if isinstance(value, Mapping):
        return [(name if isinstance(name, str) else _refuse(), one) for name, one in value.items()]
    split = [_text(item).partition("=") for item in _items(value, separator)]
    return [(name.strip(), one) if equals else _refuse() for name, equals, one in split]


def _env(value: object) -> FrozenMap[str]:
    # A comma ends a value only where another NAME= follows, so that values may have commas.
    env = dict(_pairs(value, r",(?=\s*[A-Za-z_][A-Za-z0-9_]*=)"))
    for name, one in env.items():
        if not name or "=" in name or "\0" in name or not isinstance(one, str) or "\0" in one:
            raise _RefusedError
    return FrozenMap(env)  # type: ignore[arg-type]


def _volumes(value: object) -> tuple[Volume, ...]:
    volumes = tuple(one if isinstance(one, Volume) else _volume(one) for one in _items(value))
    targets = [volume.target for volume in volumes]
    if len(targets) != len(set(targets)):
        raise _RefusedError(f"each target once ({max(targets, key=targets.count)} is there twice)")
    return volumes


def _volume(value: object) -> Volume:
    source, *rest = _text(value).split(":")
    if not rest or len(rest) > 2 or rest[1:] not in ([], ["ro"], ["rw"]):
        raise _RefusedError
    if not source.startswith(("/", ".", "~")):
        raise _RefusedError(f'a path: named volumes do not exist here, "./{source}:{rest[0]}" is the folder below the current one')
    target = os.path.normpath(_absolute(rest[0]))
    if target in {"/", "//"}:
        raise _RefusedError('a target below "/"; image="PATH" makes a folder the root')
    return Volume(source, target.replace("//", "/"), rest[1:] == ["ro"])


def _capabilities(value: object) -> tuple[str, ...]:
    names = []
    for item in _items(value):
        name = item.upper() if isinstance(item, str) else _refuse()
        name = name if name == "ALL" or name.startswith("CAP_") else f"CAP_{name}"
        if name != "ALL" and name not in CAPABILITIES:
            raise _RefusedError(f"capability names of capabilities(7), such as NET_ADMIN, or ALL{_meant(name, CAPABILITIES)}")
        names.append(name)
    return tuple(dict.fromkeys(names))


def _ulimits(value: object) -> FrozenMap[tuple[int, int]]:
    limits = {}
    for name, one in _pairs(value):
        if name not in ULIMITS:
            raise _RefusedError(f"names among {', '.join(ULIMITS)}{_meant(name, ULIMITS)}")
        limits[name] = _ulimit(one)
    return FrozenMap(limits)


def _ulimit(value: object) -> tuple[int, int]:
    if isinstance(value, str):
        value = tuple(value.split(":"))
    if isinstance(value, list | tuple):
        numbers = [-1 if str(one).strip() == "unlimited" else _integer(one, -1, _MOST_BYTES) for one in value]
    else:
        numbers = [_integer(value, -1, _MOST_BYTES)]
    if not 1 <= len(numbers) <= 2:
        raise _RefusedError
    soft, hard = numbers[0], numbers[-1]
    if hard != -1 and (soft == -1 or soft > hard):
        raise _RefusedError("a soft limit that is not above the hard one")
    return soft, hard


def _security_opt(value: object) -> tuple[str, ...]:
    items = [_text(item).replace("privileges=", "privileges:").removesuffix(":true") for item in _items(value)]
    return tuple(dict.fromkeys(item if item in _SECURITY else _refuse() for item in items))


def _meant(name: str, names: Iterable[str]) -> str:
    import difflib

    near = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""


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
        _image,
        '"host", a reference, a path or an Image',
        "host",
        "the host's own root, a stored image, or a root folder",
        option=True,
    )
    memory: int | None = _key(None, _memory, f"{_SIZE_FORM}; at least 6m", "none", "hard cap; over it the kernel kills inside", option=True)
    memory_swap: int | None = _key(None, _memory_swap, "as memory and not below it, or -1 for no limit", "as memory", "memory plus swap")
    cpus: float | None = _key(None, _cpus, "a number of at least 0.01", "none", "CPU time per wall time", option=True)
    cpuset: str | None = _key(None, _cpuset, 'CPU numbers and ranges, such as "0-1,3"', "none", "CPUs that may be used")
    pids_limit: int | None = _key(4096, _pids_limit, f"1 to {_MOST_PIDS}, or -1 for no limit", "4096", "processes and threads")
    disk: int | None = _key(
        None, _some_bytes, f"{_SIZE_FORM}; more than 0", "none", "size of the writable layer; over it writes get ENOSPC", option=True
    )
    storage: str = _key(
        "memory",
        _storage,
        '"memory" or "disk"',
        "memory",
        "where the writable layer lives: a tmpfs (counts as memory) or a folder",
        option=True,
    )
    shm_size: int = _key(64 << 20, _some_bytes, f"{_SIZE_FORM}; more than 0", "64m", "size of /dev/shm")
    timeout: float | None = _key(
        None, _timeout, "seconds, more than 0", "none", "wall time of the test inside, or of one run; over it all is killed", option=True
    )
    network: object = _key(
        "none", _network, '"none", "host" or a Network', "none", "none: a network namespace of its own with loopback up", option=True
    )
    hostname: str | None = _key(
        None, _hostname, "a host name by RFC 1123 of at most 63 characters", "the container's id", "host name inside"
    )
    env: Mapping[str, str] = _key(
        FrozenMap(), _env, 'a dict of str to str, or "NAME=value" items', "inherited, or the image's", "environment variables to add"
    )
    user: str | None = _key(None, _user, '"UID", "UID:GID", "NAME", "NAME:GROUP"', "the invoking user, or the image's", "who runs inside")
    workdir: str | None = _key(None, _absolute, "an absolute path inside", "the current folder, or the image's", "working folder")
    volumes: tuple[Volume, ...] = _key((), _volumes, _VOLUME_FORM, "none", "host folders that are not thrown away")
    read_only: bool = _key(False, _bool, "true or false", "false", "no writable layer")
    cap_add: tuple[str, ...] = _key(
        (), _capabilities, "capability names such as NET_ADMIN, or ALL", "none", "more than docker's default set"
    )
    cap_drop: tuple[str, ...] = _key(
        (), _capabilities, "capability names such as NET_RAW, or ALL", "none", "less than docker's default set"
    )
    ulimits: Mapping[str, tuple[int, int]] = _key(FrozenMap(), _ulimits, _ULIMIT_FORM, "inherited", "resource limits of each process")
    security_opt: tuple[str, ...] = _key(
        (), _security_opt, _SECURITY_FORM, "seccomp=builtin, no-new-privileges", "seccomp policy; what set-user-ID programs give"
    )
    privileged: bool = _key(False, _bool, "true or false", "false", "all capabilities, no seccomp, no masked paths")
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
        raise SettingsError(name, value, f"{_meant(name, KEYS).lstrip('; ')} the keys are {', '.join(KEYS)}".strip())
    if value is None:
        return None if name == "pids_limit" else getattr(_DEFAULTS, name)
    try:
        return key.read(value)
    except _RefusedError as refused:
        raise SettingsError(name, value, str(refused) or key.form) from None


def _agree(settings: Settings) -> Settings:
    swap, memory = settings.memory_swap, settings.memory
    if swap not in {None, -1} and (memory is None or swap < memory):
        raise SettingsError("memory_swap", swap, f"memory plus swap, so not below memory, which must be given too (memory is {memory})")
    said = set(settings.security_opt)
    if said.issuperset(_SECURITY[:2]) or said.issuperset(_SECURITY[2:]):
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
