"""The parsers of settings: one function for each kind of value.

Each returns the canonical value, or raises :class:`RefusedError`. Names and forms are docker's if
docker has them. Nothing here reads a file or the environment.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NoReturn, TypeVar

from pytest_sandbox.errors import SettingsError
from pytest_sandbox.settings.schema import MOST_PIDS, SECURITY, SIZE_FORM

#: Capabilities by number (linux/capability.h): the index is the bit.
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

#: Resource limits with docker's names, and ``as``, which docker lacks. The constant of each is
#: ``resource.RLIMIT_<NAME>``, except for ``locks``, which Python lacks.
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
_MIN_MEMORY = 6 << 20  # docker's minimum
_MAX_CPUS = 8192  # the highest CONFIG_NR_CPUS of x86_64
_MAX_BYTES = (1 << 63) - 1
_MIN_RATE = 2  # the minimum of io.max
_MAX_RATE = (1 << 32) - 1  # blkio.throttle.*_iops_device is an unsigned int
_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_HOSTNAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_HOST_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?")
_USER = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.-]*\$?(?::[A-Za-z0-9_.][A-Za-z0-9_.-]*)?")

V = TypeVar("V")


class FrozenMap(Mapping[str, V]):
    """A read-only mapping that can be hashed and pickled, unlike ``types.MappingProxyType``."""

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


class RefusedError(Exception):
    """The value is not valid. The argument, if there is one, describes the accepted form more
    precisely than the schema.
    """


def parse_size(size: object) -> int:
    """Return a size in bytes, parsed as docker does: ``"512m"`` is 536,870,912.

    An int is a number of bytes. Text is a number, which may have a fraction, and a unit: b, k, m,
    g, t or p, also kb, kib and so on, in upper or lower case. Units are powers of 1024; a fraction
    of a byte is cut off. Raises :class:`SettingsError`, which is a ValueError.
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
    return _integer(value, 0, _MAX_BYTES)


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


def as_text(value: object) -> str:
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if not isinstance(value, str) or not value or "\0" in value:
        raise RefusedError
    return value


def memory(value: object) -> int:
    """Return a size that is enough for a container."""
    return size if (size := _size(value)) >= _MIN_MEMORY else _refuse()


def memory_swap(value: object) -> int:
    """Return a size, or -1 for no limit."""
    return -1 if str(value).strip() in {"-1", "unlimited"} else memory(value)


def some_bytes(value: object) -> int:
    """Return a size of at least one byte."""
    return _size(value) or _refuse()


def _refuse(form: str = "") -> NoReturn:
    raise RefusedError(form)


def cpuset(value: object) -> str:
    """Return the numbers of CPUs as sorted ranges, the format of cpuset.cpus."""
    if isinstance(value, int):
        value = str(_integer(value, 0, _MAX_CPUS - 1))
    chosen: set[int] = set()
    for part in as_text(value).split(","):
        first, dash, last = part.strip().partition("-")
        low = _integer(first, 0, _MAX_CPUS - 1)
        chosen.update(range(low, _integer(last if dash else first, low, _MAX_CPUS - 1) + 1))
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
    """Return a number of processes, or None for no limit."""
    limit = _integer(value, -1, MOST_PIDS)
    return limit if limit > 0 else None


def image(value: object) -> object:
    """Return a reference or a path as text, or an Image, which is recognised by its layers because
    this package cannot import images.
    """
    if isinstance(value, str | os.PathLike):
        return as_text(value)
    return value if hasattr(value, "layers") else _refuse()


def storage(value: object) -> str:
    return value if isinstance(value, str) and value in {"memory", "disk"} else _refuse()


def cpus(value: object) -> float:
    return _number(value, 0.01, _MAX_CPUS)


def timeout(value: object) -> float:
    return _number(value, 1e-9, 1e9)


def hostname(value: object) -> str | tuple[str, ...]:
    """Return the host name; with aliases, a tuple."""
    given = [value] if isinstance(value, str) and "," not in value else split_items(value)
    names = tuple(dict.fromkeys(map(_host_name, given)))
    return names if len(names) > 1 else names[0] if names else _refuse()


def _host_name(value: object) -> str:
    return name if len(name := as_text(value)) <= 63 and _HOSTNAME.fullmatch(name) else _refuse()


def user(value: object) -> str:
    """Return ``USER`` or ``USER:GROUP``, each a name or a number."""
    if isinstance(value, int):
        value = str(_integer(value, 0, 2**31 - 1))  # docker's range
    if not _USER.fullmatch(as_text(value)):
        raise RefusedError
    for part in as_text(value).split(":"):
        if part.isascii() and part.isdigit():
            _integer(part, 0, 2**31 - 1)
    return as_text(value)


def absolute(value: object) -> str:
    return path if (path := as_text(value)).startswith("/") else _refuse()


def split_items(value: object, separator: str = r",") -> Iterable[object]:
    """Return the items of text, one per line or separated with commas, or those of an iterable."""
    if isinstance(value, str):
        parts = value.splitlines() if "\n" in value.strip() else re.split(separator, value)
        return [part.strip() for part in parts if part.strip()]
    if not isinstance(value, Iterable) or isinstance(value, bytes | Mapping):
        raise RefusedError
    return value


def _pairs(value: object, separator: str = r",") -> Iterable[tuple[str, object]]:
    if isinstance(value, Mapping):
        return [(name if isinstance(name, str) else _refuse(), one) for name, one in value.items()]
    split = [as_text(item).partition("=") for item in split_items(value, separator)]
    return [(name.strip(), one) if equals else _refuse() for name, equals, one in split]


def extra_hosts(value: object) -> FrozenMap[str]:
    """Return the addresses of names, for /etc/hosts; docker's forms are NAME:ADDRESS and
    NAME=ADDRESS.
    """
    if isinstance(value, Mapping):
        return FrozenMap([_host(name, address) for name, address in value.items()])
    split = [re.split("[:=]", as_text(item), maxsplit=1) for item in split_items(value)]
    return FrozenMap([_host(*one) if len(one) == 2 else _refuse() for one in split])


def _host(name: object, address: object) -> tuple[str, str]:
    from ipaddress import ip_address

    if not _HOST_NAME.fullmatch(as_text(name)):
        raise RefusedError
    try:
        return as_text(name), str(ip_address(as_text(address).strip("[]")))
    except ValueError:
        raise RefusedError from None


def env(value: object) -> FrozenMap[str]:
    """Return the environment variables."""
    # A comma ends a value only before another NAME=, so that values can contain commas.
    env = dict(_pairs(value, r",(?=\s*[A-Za-z_][A-Za-z0-9_]*=)"))
    for name, one in env.items():
        if not name or "=" in name or "\0" in name or not isinstance(one, str) or "\0" in one:
            raise RefusedError
    return FrozenMap(env)  # type: ignore[arg-type]


def capabilities(value: object) -> tuple[str, ...]:
    """Return capability names with the prefix ``CAP_``, or ``ALL``."""
    names = []
    for item in split_items(value):
        name = item.upper() if isinstance(item, str) else _refuse()
        name = name if name == "ALL" or name.startswith("CAP_") else f"CAP_{name}"
        if name != "ALL" and name not in CAPABILITIES:
            raise RefusedError(
                "capability names of capabilities(7), such as NET_ADMIN, or "
                f"ALL{suggestion(name, CAPABILITIES)}"
            )
        names.append(name)
    return tuple(dict.fromkeys(names))


def ulimits(value: object) -> FrozenMap[tuple[int, int]]:
    """Return the soft and the hard limit by name; -1 is no limit."""
    limits = {}
    for name, one in _pairs(value):
        if name not in ULIMITS:
            raise RefusedError(f"names among {', '.join(ULIMITS)}{suggestion(name, ULIMITS)}")
        limits[name] = _ulimit(one)
    return FrozenMap(limits)


def _ulimit(value: object) -> tuple[int, int]:
    if isinstance(value, str):
        value = tuple(value.split(":"))
    if isinstance(value, list | tuple):
        numbers = [
            -1 if str(one).strip() == "unlimited" else _integer(one, -1, _MAX_BYTES)
            for one in value
        ]
    else:
        numbers = [_integer(value, -1, _MAX_BYTES)]
    if not 1 <= len(numbers) <= 2:
        raise RefusedError
    soft, hard = numbers[0], numbers[-1]
    if hard != -1 and (soft == -1 or soft > hard):
        raise RefusedError("a soft limit of at most the hard limit")
    return soft, hard


def byte_rates(value: object) -> FrozenMap[int]:
    """Return the bytes per second for each block device."""
    return _rates(value, lambda rate: _integer(_size(rate), _MIN_RATE, _MAX_BYTES))


def count_rates(value: object) -> FrozenMap[int]:
    """Return the operations per second for each block device."""
    return _rates(value, lambda rate: _integer(rate, _MIN_RATE, _MAX_RATE))


def _rates(value: object, read: Callable[[object], int]) -> FrozenMap[int]:
    pairs = (
        value.items()
        if isinstance(value, Mapping)
        else [as_text(item).rpartition(":")[::2] for item in split_items(value)]
    )
    rates = [(absolute(path), read(rate)) for path, rate in pairs]
    if len(rates) != len(dict(rates)):
        raise RefusedError("each device once")
    return FrozenMap(rates)


def security_opt(value: object) -> tuple[str, ...]:
    """Return the security options in docker's newer form, with a colon."""
    items = [
        as_text(item).replace("privileges=", "privileges:").removesuffix(":true")
        for item in split_items(value)
    ]
    return tuple(dict.fromkeys(item if item in SECURITY else _refuse() for item in items))


#: What keys are called in docker-py, testcontainers and compose files.
_ELSEWHERE = {
    "environment": "env",
    "mem_limit": "memory",
    "memswap_limit": "memory_swap",
    "network_mode": "network",
    "ports": "publish",
    "working_dir": "workdir",
}


def suggestion(name: str, names: Iterable[str]) -> str:
    """Return "; did you mean ...?" for the key of this meaning, or for the nearest name; an empty
    string if none is near.
    """
    import difflib

    known = list(names)
    near = [one for one in known if one == _ELSEWHERE.get(name)]
    near = near or difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""
