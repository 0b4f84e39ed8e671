"""The forms in which settings are written: one reader for each kind of value, which returns the
canonical value or refuses.

Names and forms are docker's where docker has them. Nothing here reads a file or the environment.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NoReturn, TypeVar

from pytest_sandbox.errors import SettingsError
from pytest_sandbox.settings.schema import MOST_PIDS, SECURITY, SIZE_FORM

#: Capabilities in the order of their numbers (linux/capability.h): the index is the bit.
CAPABILITIES: tuple[str, ...] = tuple(
    f"CAP_{name}"
    for name in (  # noqa: SIM905 - forty quoted words are harder to compare with the header
        "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP "
        "LINUX_IMMUTABLE NET_BIND_SERVICE NET_BROADCAST "
        "NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE "
        "SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE "
        "SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP "
        "MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM "
        "BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE"
    ).split()
)

#: Resource limits under docker's names; ``as`` is ours. ``resource.RLIMIT_<NAME>`` is the constant,
#: but for ``locks``, which Python lacks.
ULIMITS = (
    "as",
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
)

_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40, "p": 1 << 50}
_SIZE = re.compile(
    r"([0-9]{1,20}(?:\.[0-9]*)?|\.[0-9]+) ?(?:([kmgtp])(?:i?b)?|b)?", re.IGNORECASE | re.ASCII
)
_LEAST_MEMORY = 6 << 20  # docker's least; below it init itself does not fit
_MOST_CPUS = 8192  # CONFIG_NR_CPUS at its greatest on x86_64
_MOST_BYTES = (1 << 63) - 1
_LEAST_RATE = 2  # io.max refuses less
_MOST_RATE = (1 << 32) - 1  # blkio.throttle.*_iops_device is an unsigned int
#: Docker's; all but ro and rw are for SELinux or for Docker Desktop, and have no effect here.
_VOLUME_OPTIONS = ("ro", "rw", "z", "Z", "cached", "delegated", "consistent")
_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_HOSTNAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_USER = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.-]*\$?(?::[A-Za-z0-9_.][A-Za-z0-9_.-]*)?")

V = TypeVar("V")


class FrozenMap(Mapping[str, V]):
    """A mapping that cannot be changed, can be hashed and can be pickled
    (``types.MappingProxyType`` can do neither).
    """

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
    """A host directory or file that is not thrown away: ``source`` on the host appears as
    ``target`` inside.

    ``source`` is as it was written: absolute, or beginning with ``.`` or ``~``.
    """

    source: str
    target: str
    read_only: bool = False

    def __str__(self) -> str:
        return f"{self.source}:{self.target}{':ro' if self.read_only else ''}"


class RefusedError(Exception):
    """The value does not have the key's form; its argument, where there is one, says the accepted
    form better than the table.
    """


def parse_size(size: object) -> int:
    """Read a size as docker does: ``"512m"`` is 536,870,912.

    An int is bytes. Text is a number, which may have a fraction, and a unit (b, k, m, g, t, p; also
    kb, kib, ...; any case), counted by 1024; what is left of a byte is cut off. Raises
    :class:`SettingsError`, a ValueError.
    """
    try:
        return _size(size)
    except RefusedError:
        raise SettingsError("size", size, SIZE_FORM) from None


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
        raise RefusedError
    return value


def _number(value: object, least: float, most: float) -> float:
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise RefusedError from None
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise RefusedError
    return float(value)


def boolean(value: object) -> bool:
    if isinstance(value, bool):
        return value
    text = value.strip().lower() if isinstance(value, str) else ""
    return text in _TRUE if text in _TRUE + _FALSE else _refuse()


def _text(value: object) -> str:
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if not isinstance(value, str) or not value or "\0" in value:
        raise RefusedError
    return value


def memory(value: object) -> int:
    return size if (size := _size(value)) >= _LEAST_MEMORY else _refuse()


def memory_swap(value: object) -> int:
    return -1 if str(value).strip() in {"-1", "unlimited"} else memory(value)


def some_bytes(value: object) -> int:
    return _size(value) or _refuse()


def _refuse(better: str = "") -> NoReturn:
    raise RefusedError(better)


def cpuset(value: object) -> str:
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


def pids_limit(value: object) -> int | None:
    limit = _integer(value, -1, MOST_PIDS)
    return limit if limit > 0 else None


def image(value: object) -> object:
    """Text and paths become text; an image itself is known by its layers, so that this floor need
    not import images.
    """
    if isinstance(value, str | os.PathLike):
        return _text(value)
    return value if hasattr(value, "layers") else _refuse()


def network(value: object) -> object:
    """Text is one of two words; a network itself is known by its subnet, so that this floor need
    not import it.
    """
    if isinstance(value, str):
        return (
            value
            if value in {"none", "host"}
            else _refuse('"none" or "host"; or a Network, which is no text: network=Network()')
        )
    return value if hasattr(value, "subnet") else _refuse()


def storage(value: object) -> str:
    return value if isinstance(value, str) and value in {"memory", "disk"} else _refuse()


def cpus(value: object) -> float:
    return _number(value, 0.01, _MOST_CPUS)


def timeout(value: object) -> float:
    return _number(value, 1e-9, 1e9)


def hostname(value: object) -> str:
    return name if len(name := _text(value)) <= 63 and _HOSTNAME.fullmatch(name) else _refuse()


def user(value: object) -> str:
    if isinstance(value, int):
        value = str(_integer(value, 0, 2**31 - 1))  # docker's range
    if not _USER.fullmatch(_text(value)):
        raise RefusedError
    for part in _text(value).split(":"):
        if part.isascii() and part.isdigit():
            _integer(part, 0, 2**31 - 1)
    return _text(value)


def absolute(value: object) -> str:
    return path if (path := _text(value)).startswith("/") else _refuse()


def _items(value: object, separator: str = r",") -> Iterable[object]:
    """Text of several lines has one item a line; text of one line has commas; anything else is
    iterated.
    """
    if isinstance(value, str):
        parts = value.splitlines() if "\n" in value.strip() else re.split(separator, value)
        return [part.strip() for part in parts if part.strip()]
    if (
        isinstance(value, Volume)
        or not isinstance(value, Iterable)
        or isinstance(value, bytes | Mapping)
    ):
        raise RefusedError
    return value


def _pairs(value: object, separator: str = r",") -> Iterable[tuple[str, object]]:
    if isinstance(value, Mapping):
        return [(name if isinstance(name, str) else _refuse(), one) for name, one in value.items()]
    split = [_text(item).partition("=") for item in _items(value, separator)]
    return [(name.strip(), one) if equals else _refuse() for name, equals, one in split]


def env(value: object) -> FrozenMap[str]:
    # A comma ends a value only where another NAME= follows, so that values may have commas.
    env = dict(_pairs(value, r",(?=\s*[A-Za-z_][A-Za-z0-9_]*=)"))
    for name, one in env.items():
        if not name or "=" in name or "\0" in name or not isinstance(one, str) or "\0" in one:
            raise RefusedError
    return FrozenMap(env)  # type: ignore[arg-type]


def volumes(value: object) -> tuple[Volume, ...]:
    separator = rf",(?!(?:{'|'.join(_VOLUME_OPTIONS)})\s*(?:,|$))"  # "/a:/b:ro,z,/c:/d" are two
    volumes = tuple(
        one if isinstance(one, Volume) else _volume(one) for one in _items(value, separator)
    )
    targets = [volume.target for volume in volumes]
    if len(targets) != len(set(targets)):
        raise RefusedError(f"each target once ({max(targets, key=targets.count)} is there twice)")
    return volumes


def _volume(value: object) -> Volume:
    source, *rest = _text(value).split(":")
    if not 1 <= len(rest) <= 2:
        raise RefusedError
    options = rest[1].split(",") if rest[1:] else []
    if not set(options) <= set(_VOLUME_OPTIONS) or {"ro", "rw"} <= set(options):
        raise RefusedError
    if not source.startswith(("/", ".", "~")):
        raise RefusedError(
            f'a path: named volumes do not exist here, "./{source}:{rest[0]}" is the directory '
            "below the current one"
        )
    target = os.path.normpath(absolute(rest[0]))
    if target in {"/", "//"}:
        raise RefusedError('a target below "/"; image="PATH" makes a directory the root')
    return Volume(source, target.replace("//", "/"), "ro" in options)


def capabilities(value: object) -> tuple[str, ...]:
    names = []
    for item in _items(value):
        name = item.upper() if isinstance(item, str) else _refuse()
        name = name if name == "ALL" or name.startswith("CAP_") else f"CAP_{name}"
        if name != "ALL" and name not in CAPABILITIES:
            raise RefusedError(
                "capability names of capabilities(7), such as NET_ADMIN, or "
                f"ALL{meant(name, CAPABILITIES)}"
            )
        names.append(name)
    return tuple(dict.fromkeys(names))


def ulimits(value: object) -> FrozenMap[tuple[int, int]]:
    limits = {}
    for name, one in _pairs(value):
        if name not in ULIMITS:
            raise RefusedError(f"names among {', '.join(ULIMITS)}{meant(name, ULIMITS)}")
        limits[name] = _ulimit(one)
    return FrozenMap(limits)


def _ulimit(value: object) -> tuple[int, int]:
    if isinstance(value, str):
        value = tuple(value.split(":"))
    if isinstance(value, list | tuple):
        numbers = [
            -1 if str(one).strip() == "unlimited" else _integer(one, -1, _MOST_BYTES)
            for one in value
        ]
    else:
        numbers = [_integer(value, -1, _MOST_BYTES)]
    if not 1 <= len(numbers) <= 2:
        raise RefusedError
    soft, hard = numbers[0], numbers[-1]
    if hard != -1 and (soft == -1 or soft > hard):
        raise RefusedError("a soft limit that is not above the hard one")
    return soft, hard


def byte_rates(value: object) -> FrozenMap[int]:
    """Read bytes a second for each block device."""
    return _rates(value, lambda rate: _integer(_size(rate), _LEAST_RATE, _MOST_BYTES))


def count_rates(value: object) -> FrozenMap[int]:
    """Read how often a second for each block device."""
    return _rates(value, lambda rate: _integer(rate, _LEAST_RATE, _MOST_RATE))


def _rates(value: object, read: Callable[[object], int]) -> FrozenMap[int]:
    pairs = (
        value.items()
        if isinstance(value, Mapping)
        else [_text(item).rpartition(":")[::2] for item in _items(value)]
    )
    rates = [(absolute(path), read(rate)) for path, rate in pairs]
    if len(rates) != len(dict(rates)):
        raise RefusedError("each device once")
    return FrozenMap(rates)


def security_opt(value: object) -> tuple[str, ...]:
    items = [
        _text(item).replace("privileges=", "privileges:").removesuffix(":true")
        for item in _items(value)
    ]
    return tuple(dict.fromkeys(item if item in SECURITY else _refuse() for item in items))


def meant(name: str, names: Iterable[str]) -> str:
    import difflib

    near = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""
