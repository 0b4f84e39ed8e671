"""What a fault does to each frame: it is delayed, lost, sent twice, or sent before others."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pytest_sandbox.runtime.protocol import Message

__all__ = ["MAX_FLOWS", "Decision", "Rule"]

#: Bytes that wait for a rate: a thousand frames, the limit of tc-netem(8). Later ones are dropped.
_MAX_BACKLOG = 1000 * 1514
#: Pairs of MAC addresses whose state is kept; a process inside can send any.
MAX_FLOWS = 4096


class Decision(NamedTuple):
    """What happens to a frame: how often it is sent (0: it is lost), after how many seconds, and
    whether after those that came before.
    """

    copies: int
    delay: float = 0.0
    in_order: bool = True


_LOST = Decision(0)


class Rule:
    """A fault, from the client's message; its numbers are valid."""

    def __init__(self, message: Message) -> None:
        self.id: int = message["id"]
        self._latency: float = message["latency"]
        self._jitter: float = message["jitter"]
        self._loss: float = message["loss"]
        self._duplicate: float = message["duplicate"]
        self._reorder: float = message["reorder"]
        self._rate: float = message["rate"]
        self._seed: int = message["seed"]
        self._is_cut: bool = message["cut"]
        self._flows: dict[bytes, random.Random] = {}
        #: When the link is free again, by direction.
        self._free: dict[tuple[int, bool], float] = {}
        self.counters: dict[str, int] = dict.fromkeys(
            ("frames", "delayed", "lost", "duplicated", "reordered", "overflowed", "reset"), 0
        )

    def decide(
        self, flow: bytes, direction: tuple[int, bool], size: int, now: float, *, is_arp: bool
    ) -> Decision:
        """Return what happens to a frame of ``size`` bytes.

        Each frame of a ``flow``, the two MAC addresses, takes the same count of random numbers. So
        the fate of the n-th frame depends on the seed only. ARP takes none, since its packets
        depend on time; a cut drops them, too.
        """
        self.counters["frames"] += 1
        if self._is_cut:
            return self._count("lost", _LOST)
        lose, duplicate, reorder, jitter = (1, 1, 1, 0.5) if is_arp else self._numbers(flow)
        if lose < self._loss:
            return self._count("lost", _LOST)
        waits = self._transmission(direction, size, now)
        if waits is None:
            return self._count("overflowed", _LOST)
        copies = 1
        if duplicate < self._duplicate:
            copies = 2
            self.counters["duplicated"] += 1
        if reorder < self._reorder:
            return self._count("reordered", Decision(copies, waits, in_order=False))
        delay = waits + max(0.0, self._latency + self._jitter * (2 * jitter - 1))
        self.counters["delayed"] += delay > 0
        return Decision(copies, delay)

    def _count(self, counter: str, decision: Decision) -> Decision:
        self.counters[counter] += 1
        return decision

    def _numbers(self, flow: bytes) -> tuple[float, float, float, float]:
        source = self._flows.get(flow)
        if source is None:
            if len(self._flows) >= MAX_FLOWS:
                self._flows.clear()
            # From a text, as its hash is the same in every process and version of Python.
            source = self._flows[flow] = random.Random(f"{self._seed}/{flow.hex()}")  # noqa: S311
        one = source.random
        return one(), one(), one(), one()

    def _transmission(self, direction: tuple[int, bool], size: int, now: float) -> float | None:
        """Return the seconds until a frame has been transmitted at the rate; None if too much is
        waiting.
        """
        if not self._rate:
            return 0.0
        start = max(now, self._free.get(direction, 0.0))
        if (start - now) * self._rate / 8 > _MAX_BACKLOG:
            return None
        self._free[direction] = end = start + size * 8 / self._rate
        return end - now

    def restart(self) -> None:
        """Forget what is waiting for the rate, since it has been sent."""
        self._free.clear()
