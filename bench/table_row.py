"""The result of a row of the benchmark: a table of figures."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.measure import Sample, Series


@dataclass(frozen=True)
class Figure:
    """One line of a row's table."""

    label: str
    value: float
    unit: str = "ms"
    p90: float | None = None
    against: str = ""
    ratio: float | None = None
    paired: float | None = None
    at_most: float | None = None


@dataclass
class Row:
    """One table: its title, its figures, and notes for the reader."""

    key: str
    title: str
    figures: list[Figure]
    notes: list[str] = field(default_factory=list)


def figure(one: Series, samples: dict[str, Sample]) -> Figure:
    """Return the figure of a series, compared with the series ``against``."""
    own, other = samples[one.label], samples.get(one.against)
    return Figure(
        one.label,
        own.median,
        p90=own.p90,
        against=one.against,
        ratio=own.median / other.median if other else None,
        paired=own.paired_ratio(other) if other else None,
        at_most=one.at_most,
    )
