"""The values of a network fault, as text or numbers."""

from __future__ import annotations

import math
import re
import secrets
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypedDict

from pytest_sandbox.errors import SettingsError
from pytest_sandbox.settings.parsers import suggestion

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["FaultCounters", "FaultKeywords", "FaultValues"]

__tracebackhide__ = True  # pytest shows the line of the test; --full-trace shows all

_SECONDS: Final = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_BITS: Final = {"bit": 1, "kbit": 10**3, "mbit": 10**6, "gbit": 10**9}
_NUMBER: Final = r"([0-9]+(?:\.[0-9]+)?) ?"
_TIME: Final = re.compile(rf"{_NUMBER}(us|ms|s)")
_PERCENT: Final = re.compile(rf"{_NUMBER}%")
_RATE: Final = re.compile(rf"{_NUMBER}([kmg]?bit)", re.IGNORECASE)
_MAX_SECONDS: Final = 3600.0
_MIN_RATE, _MAX_RATE = 1000.0, 1e12
_TIME_FORM: Final = 'seconds, or a number with us, ms or s, such as "50ms"; at most an hour'
_PART_FORM: Final = 'a part of the packets, from 0 to 1, such as 0.02, or "2%"'
_RATE_FORM: Final = (
    'bits a second, or a number with bit, kbit, mbit or gbit, such as "1mbit"; at least 1kbit'
)
_SEED_FORM: Final = "an int of at least 0; the same seed loses the same packets"
_FAULT_FORM: Final = (
    "at least one of latency, jitter, loss, duplicate, reorder, rate and reset, such as "
    'latency="50ms"'
)


class FaultKeywords(TypedDict, total=False):
    """The keywords of a fault."""

    latency: str | float
    jitter: str | float
    loss: str | float
    duplicate: str | float
    reorder: str | float
    rate: str | float
    reset: bool
    seed: int | None


class FaultCounters(NamedTuple):
    """What the faults of one container, or one pair, have done: the ``frames`` that they have
    seen, and how many of these were ``delayed``, ``lost``, ``duplicated`` (sent twice),
    ``reordered`` (sent before earlier ones), or ``overflowed`` (dropped, as too much was waiting);
    and the connections that were ``reset``.
    """

    frames: int = 0
    delayed: int = 0
    lost: int = 0
    duplicated: int = 0
    reordered: int = 0
    overflowed: int = 0
    reset: int = 0


@dataclass(frozen=True)
class FaultValues:
    """A fault: seconds, parts of 1, bits a second."""

    latency: float = 0.0
    jitter: float = 0.0
    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    rate: float = 0.0
    reset: bool = False
    seed: int = 0
    cut: bool = False

    @classmethod
    def read(cls, keywords: Mapping[str, Any]) -> FaultValues:
        """Return the fault of these keywords. Raises :class:`SettingsError`."""
        names = [one.name for one in fields(cls) if one.name != "cut"]
        for name in keywords:
            if name not in names:
                accepted = f"one of {', '.join(names)}{suggestion(name, names)}"
                raise SettingsError("fault", name, accepted)
        found: dict[str, Any] = {
            name: _READ[name](name, value) for name, value in keywords.items() if name != "seed"
        }
        if not any(found.values()):
            raise SettingsError("fault", dict(keywords), _FAULT_FORM)
        values = cls(**found, seed=_seed(keywords.get("seed")))
        if values.reorder and not values.latency:
            accepted = "0 without latency: a packet overtakes those that are delayed. Add latency="
            raise SettingsError("reorder", keywords["reorder"], accepted)
        if values.jitter > values.latency:
            accepted = f"at most the latency, {values.latency:g} s. Raise latency="
            raise SettingsError("jitter", keywords["jitter"], accepted)
        return values

    @property
    def changes_frames(self) -> bool:
        """Whether it does more than reset connections."""
        return self.cut or any(
            (self.latency, self.jitter, self.loss, self.duplicate, self.reorder, self.rate)
        )

    def to_message(self) -> dict[str, Any]:
        """Return the fields of the relay's message."""
        return asdict(self)

    def __str__(self) -> str:
        if self.cut:
            return "cut"
        given = {name: value for name, value in asdict(self).items() if value and name != "cut"}
        return " ".join(f"{name}={value}" for name, value in {**given, "seed": self.seed}.items())


def _number(value: object, pattern: re.Pattern[str], units: Mapping[str, float]) -> float | None:
    """Return a number, or the number in a text times its unit; None for anything else."""
    if isinstance(value, str):
        match = pattern.fullmatch(value.strip())
        if match is None:
            return None
        unit = match[2].lower() if pattern.groups > 1 else ""
        return float(match[1]) * units[unit]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _time(key: str, value: object) -> float:
    found = _number(value, _TIME, _SECONDS)
    if found is None or not 0 <= found <= _MAX_SECONDS:
        raise SettingsError(key, value, _TIME_FORM)
    return found


def _part(key: str, value: object) -> float:
    found = _number(value, _PERCENT, {"": 0.01})
    if found is None or not 0 <= found <= 1:
        raise SettingsError(key, value, _PART_FORM)
    return found


def _rate(key: str, value: object) -> float:
    found = _number(value, _RATE, _BITS)
    if found is None or not (found == 0 or _MIN_RATE <= found <= _MAX_RATE):
        raise SettingsError(key, value, _RATE_FORM)
    return found


def _reset(key: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise SettingsError(key, value, "True or False")
    return value


def _seed(value: object) -> int:
    if value is None:
        return secrets.randbelow(1 << 32)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 63:
        raise SettingsError("seed", value, _SEED_FORM)
    return value


_READ: Final = {
    "latency": _time,
    "jitter": _time,
    "loss": _part,
    "duplicate": _part,
    "reorder": _part,
    "rate": _rate,
    "reset": _reset,
}
