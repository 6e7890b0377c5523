"""When events are sent: rates over time, and how events are spaced at a rate. Pure.

A plan never waits for answers (an open loop): an event is due when it is due, whether the system keeps up or not, and
its latency counts from then. A closed loop sends less when the system is slow, and so hides that it is.
"""

import csv
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path


class PlanError(ValueError):
    """A plan that cannot be carried out; one sentence."""


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of one rate.

    Attributes:
        seconds: how long.
        rate: events/s.
    """

    seconds: float
    rate: float


Plan = Sequence[Phase]
_SHORTEST_STEP = 4  # seconds
STEPS = 8
"""So many a plan of steps has, unless told otherwise."""


def uniform(rate: float, seconds: float) -> Plan:
    """One rate."""
    return [Phase(seconds, rate)]


def steps(highest: float, count: int, seconds: float) -> Plan:
    """From a share of the highest rate up to it, each step as long: to find where the system is full.

    Raises:
        PlanError: a step is too short to say anything.
    """
    if seconds < _SHORTEST_STEP:
        raise PlanError(f"a step of {seconds:g} s is too short to judge; it takes {_SHORTEST_STEP} s or more")
    return [Phase(seconds, highest * number / count) for number in range(1, count + 1)]


def spike(rate: float, seconds: float, factor: float = 10.0, at: float = 0.4, length: float = 30.0) -> Plan:
    """One rate, but for a spike of so many times it.

    Args:
        rate: before and after, events/s.
        seconds: of all.
        factor: of the spike.
        at: when it begins, as a share of `seconds`.
        length: of the spike, seconds.
    """
    before = seconds * at
    if before + length >= seconds:
        raise PlanError(f"a spike of {length:g} s does not fit in {seconds:g} s; make the run longer")
    return [Phase(before, rate), Phase(length, rate * factor), Phase(seconds - before - length, rate)]


def replay(path: Path, speed: float = 1.0, factor: float = 1.0) -> Plan:
    """A recorded day: a CSV file of `seconds,events_per_second`, one line for each change of the rate.

    Args:
        path: of the file; the last line ends the day.
        speed: so many times faster.
        factor: of the rate.

    Raises:
        PlanError: the file is no such record.
    """
    try:
        with path.open() as file:
            points = [(float(row["seconds"]), float(row["events_per_second"])) for row in csv.DictReader(file)]
    except OSError as error:
        raise PlanError(f"{path}: cannot be read: {error.strerror}") from None
    except (KeyError, TypeError, ValueError):
        raise PlanError(f"{path}: not a CSV file with the columns seconds and events_per_second") from None
    if len(points) < 2 or any(b[0] <= a[0] for a, b in pairwise(points)):
        raise PlanError(f"{path}: needs two lines or more, in the order of their seconds")
    return [Phase((after[0] - here[0]) / speed, here[1] * factor) for here, after in pairwise(points)]


def rate_at(plan: Plan, second: float) -> float | None:
    """The rate at a time since the start, events/s; None when the plan is over."""
    for phase in plan:
        if second < phase.seconds:
            return phase.rate
        second -= phase.seconds
    return None


class Spacing:
    """When the next event is due, at a rate that may change at any time.

    Args:
        poisson: gaps as between independent events; else all alike.
        seed: of the gaps.
        start: seconds on the caller's clock.
    """

    def __init__(self, poisson: bool, seed: int, start: float) -> None:
        self._random = random.Random(seed) if poisson else None
        self._rate = 0.0
        # In units of the mean gap, so that a change of the rate stretches what is left of a gap, and no more.
        self._left = self._gap()
        self._now = start

    def set_rate(self, rate: float, now: float) -> None:
        """From `now` on, so many events/s."""
        self._left = max(0.0, self._left - (now - self._now) * self._rate)
        self._now, self._rate = now, rate

    def due(self, now: float) -> Iterator[float]:
        """The times at which events are due, up to `now`."""
        while self._rate and (at := self._now + self._left / self._rate) <= now:
            self._now, self._left = at, self._gap()
            yield at

    def wait(self, now: float) -> float:
        """Seconds until the next one is due, as it stands now."""
        return max(0.0, self._now + self._left / self._rate - now) if self._rate else 1.0

    def _gap(self) -> float:
        return self._random.expovariate(1.0) if self._random else 1.0
