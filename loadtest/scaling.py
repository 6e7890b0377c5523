"""Simulates a day of autoscaling: bridges by lag, under a load that comes and goes, with a rebalance at every step.

A discrete-event simulation. Between two events (a look at the lag, a pod that becomes ready, the end of a rebalance, a
change of the load) every partition's lag grows or falls at a fixed rate. Nothing is measured here: what a bridge can
do, how long it takes to start and how long a rebalance stops the group are given.

    python -m loadtest.scaling                # the settings that docs/scaling.md compares, as a table
    python -m loadtest.scaling --figure F     # and a day by lag alone and by the chart's defaults as a picture
"""

import argparse
import heapq
import itertools
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

DAY = 86_400.0
_STEP = 60.0  # seconds for which the load is taken to be steady
_LOOK = 15.0  # seconds between the autoscaler's looks, as Kubernetes has it
_METRICS = 15.0  # age of what it sees of the CPU
_TOLERANCE = 0.1  # the autoscaler's
_UP = 4  # most bridges that the chart adds within a minute


@dataclass(frozen=True, slots=True)
class World:
    """What is given.

    Attributes:
        partitions: of the topic.
        skew: how much busier the busiest partition is than the mean.
        capacity: events/s of one bridge.
        start: seconds from asking for a pod until it takes part.
        stop: seconds that a rebalance stops the whole group; every coming and going is one.
        load: second of the day -> events/s.
    """

    partitions: int = 24
    skew: float = 1.2
    capacity: float = 20_000.0
    start: float = 12.0
    stop: float = 4.0
    load: Callable[[float], float] = lambda second: day(second)


@dataclass(frozen=True, slots=True)
class Settings:
    """What the chart sets.

    Attributes:
        lag_threshold: events of lag for each bridge.
        scale_down_window: seconds that fewer bridges must have been enough.
        min_replicas: fewest bridges.
        max_replicas: most bridges.
        even: wants only numbers of bridges among which the partitions divide evenly; on the way down, one at a time,
            there are others too.
        cpu: share of its capacity at which a bridge should work; 0 does not look at it.
    """

    lag_threshold: float = 20_000.0
    scale_down_window: float = 600.0
    min_replicas: int = 1
    max_replicas: int = 12
    even: bool = True
    cpu: float = 0.0


@dataclass
class Outcome:
    """What became of the day.

    Attributes:
        waits: (seconds an event that comes now waits for its turn, how many events that is true for).
        bridge_hours: paid for.
        rebalances: in the day.
        line: (second, events/s, lag, bridges, wait), for a picture.
    """

    waits: list[tuple[float, float]] = field(default_factory=list)
    bridge_hours: float = 0.0
    rebalances: int = 0
    line: list[tuple[float, float, float, int, float]] = field(default_factory=list)

    def wait(self, share: float) -> float:
        """The wait that this share of the day's events does not exceed, seconds."""
        waits, weights = np.array(self.waits).T
        order = np.argsort(waits)
        reached = np.cumsum(weights[order]) / weights.sum()
        return float(waits[order][min(len(order) - 1, np.searchsorted(reached, share))])


def day(second: float) -> float:
    """A usual day: a quiet night, a peak in the evening, and at noon ten minutes of three times the load; events/s."""
    hour = second / 3600 % 24
    base = 30_000 + 45_000 * max(0.0, math.sin((hour - 7) / 17 * math.pi)) ** 2 if hour >= 7 else 30_000 - 2_000 * hour
    evening = 40_000 * math.exp(-(((hour - 20) / 1.5) ** 2))
    burst = 3.0 if 12 <= hour < 12 + 1 / 6 else 1.0
    return (base + evening) * burst


class Day:
    """One simulated day.

    Args:
        world: what is given.
        settings: of the autoscaler.
    """

    def __init__(self, world: World, settings: Settings) -> None:
        self._world, self._settings = world, settings
        shares = np.linspace(world.skew, 2 - world.skew, world.partitions)
        self._shares = shares / shares.sum()
        self._lag = np.zeros(world.partitions)
        self._rate = world.load(0.0)
        self._members = max(settings.min_replicas, math.ceil(self._rate / world.capacity))
        self._asked = self._members
        self._stopped_until = 0.0
        self._wanted: deque[tuple[float, int]] = deque()
        self._added: deque[tuple[float, int]] = deque()
        self._used: deque[tuple[float, float]] = deque([(0.0, self._rate)])
        self._last_down = self._now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self.outcome = Outcome()

    def run(self) -> Outcome:
        """Through the day."""
        self._at(0.0, self._change_load)
        self._at(_LOOK, self._look)
        while self._events and self._events[0][0] < DAY:
            at, _, act = heapq.heappop(self._events)
            self._advance(at)
            act()
        self._advance(DAY)
        return self.outcome

    def _at(self, when: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._order), act))

    def _change_load(self) -> None:
        self._rate = self._world.load(self._now)
        self._at(self._now + _STEP, self._change_load)

    def _look(self) -> None:
        """As the horizontal autoscaler does: up at once, down when the most that was wanted lately is less."""
        settings, now = self._settings, self._now
        wanted = max(self._by_lag(), self._by_cpu())
        self._wanted.append((now, wanted))
        while self._wanted[0][0] < now - settings.scale_down_window:
            self._wanted.popleft()
        most = max(count for _, count in self._wanted)
        if wanted > self._asked:
            while self._added and self._added[0][0] <= now - 60:
                self._added.popleft()
            room = _UP - sum(count for _, count in self._added)
            more = min(wanted - self._asked, room)
            if more > 0:
                self._added.append((now, more))
                self._asked += more
                self._at(now + self._world.start, lambda: self._join(more))
        elif most < self._asked and now - self._last_down >= min(300.0, settings.scale_down_window):
            self._asked, self._last_down = max(most, self._asked - 1), now
            self._join(-1)
        self._at(now + _LOOK, self._look)

    def _by_lag(self) -> int:
        """What KEDA's Kafka trigger asks for: a number that divides the partitions, if so set."""
        settings, partitions = self._settings, self._world.partitions
        wanted = self._tolerant(self._lag.sum() / settings.lag_threshold)
        most = min(settings.max_replicas, partitions)
        if settings.even:
            wanted = next((count for count in range(max(1, wanted), most + 1) if partitions % count == 0), most)
        return min(most, max(settings.min_replicas, wanted))

    def _by_cpu(self) -> int:
        """What the CPU asks for. Bridges that are full show no more than that, and the metrics are some seconds old."""
        settings = self._settings
        if not settings.cpu:
            return settings.min_replicas
        seen = next(used for at, used in reversed(self._used) if at <= self._now - _METRICS or at == self._used[0][0])
        wanted = self._tolerant(seen / self._world.capacity / settings.cpu)
        return min(settings.max_replicas, max(settings.min_replicas, wanted))

    def _tolerant(self, wanted: float) -> int:
        """A tenth more or less than there is changes nothing."""
        return self._asked if abs(wanted / self._asked - 1) <= _TOLERANCE else math.ceil(wanted)

    def _join(self, more: int) -> None:
        """The group has new members, or one less: everybody stops for a moment."""
        self._members = max(1, self._members + more)
        self.outcome.rebalances += 1
        self._stopped_until = self._now + self._world.stop
        self._at(self._stopped_until, lambda: None)  # so that a step ends there

    def _advance(self, until: float) -> None:
        """Let lags grow or fall up to a time."""
        world = self._world
        while self._now < until:
            stopped = self._now < self._stopped_until
            length = min(until, self._stopped_until if stopped else until) - self._now
            arriving = self._rate * self._shares
            members = np.arange(world.partitions) % self._members
            served = np.zeros(world.partitions)
            if not stopped:
                for member in range(self._members):
                    mine = members == member
                    served[mine] = _shared(world.capacity, arriving[mine], self._lag[mine], length)
            own = np.bincount(members, self._lag, self._members)
            wait = (own / world.capacity).max() + max(0.0, self._stopped_until - self._now)
            self.outcome.waits.append((wait, self._rate * length))
            self.outcome.line.append((self._now, self._rate, self._lag.sum(), self._members, wait))
            self._lag = np.maximum(0.0, self._lag + (arriving - served) * length)
            self._used.append((self._now, float(served.sum())))
            while self._used[0][0] < self._now - 10 * _METRICS and len(self._used) > 1:
                self._used.popleft()
            self.outcome.bridge_hours += self._asked * length / 3600
            self._now += length


def _shared(capacity: float, arriving: Any, lag: Any, length: float) -> Any:
    """How many events/s a bridge does of each of its partitions: all that are due, or its capacity in proportion."""
    due = arriving + lag / length
    total = due.sum()
    return due if total <= capacity else due * (capacity / total)


def simulate(world: World, settings: Settings) -> Outcome:
    """A day."""
    return Day(world, settings).run()


def compare(world: World) -> list[tuple[str, Settings, Outcome]]:
    """Settings worth comparing."""
    chosen = Settings()
    cases: list[tuple[str, Settings]] = [
        ("fixed for the peak", replace(chosen, min_replicas=12)),
        ("fixed for the mean", replace(chosen, min_replicas=4, max_replicas=4)),
        *((f"lag {lag:,} each", replace(chosen, lag_threshold=lag)) for lag in (5_000, 20_000, 100_000, 400_000)),
        *((f"window {window} s", replace(chosen, scale_down_window=window)) for window in (300, 1_800)),
        ("any number of bridges", replace(chosen, even=False)),
        *((f"lag, and CPU {cpu:.0%}", replace(chosen, cpu=cpu)) for cpu in (0.5, 0.7, 0.85)),
        ("lag, CPU 70 %, window 1,800 s", replace(chosen, cpu=0.7, scale_down_window=1_800)),
    ]
    return [(name, settings, simulate(world, settings)) for name, settings in cases]


def main() -> None:
    """Print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--capacity", type=float, default=World().capacity, help="events/s of one bridge")
    parser.add_argument("--start", type=float, default=World().start, help="seconds until a new pod takes part")
    parser.add_argument("--stop", type=float, default=World().stop, help="seconds that a rebalance stops the group")
    parser.add_argument(
        "--figure", type=Path, help="write a day by lag alone and by the chart's defaults there, as SVG"
    )
    arguments = parser.parse_args()
    world = World(capacity=arguments.capacity, start=arguments.start, stop=arguments.stop)
    found = compare(world)
    table = Table(title="A day of autoscaling", title_justify="left")
    for title in ("settings", "wait p50", "p99", "p99.9", "longest", "rebalances", "bridge hours"):
        table.add_column(title, justify="left" if title == "settings" else "right")
    for name, _, outcome in found:
        waits = [f"{outcome.wait(share):,.1f} s" for share in (0.5, 0.99, 0.999, 1.0)]
        table.add_row(name, *waits, str(outcome.rebalances), f"{outcome.bridge_hours:,.0f}")
    Console(width=120).print(table)
    if arguments.figure:
        arguments.figure.write_text(picture(found))


def picture(found: Sequence[tuple[str, Settings, Outcome]]) -> str:
    """By lag alone, and the chart's defaults, through the day."""
    from matplotlib.figure import Figure

    from loadtest.page import svg

    shown = [item for item in found if item[0] in ("lag 20,000 each", "lag, and CPU 70%")]
    figure = Figure(figsize=(11, 6), layout="constrained")
    axes = figure.subplots(3, len(shown), sharex=True, squeeze=False)
    for column, (name, _, outcome) in enumerate(shown):
        at, rate, _, members, wait = np.array(outcome.line)[::10].T
        hours = at / 3600
        panels = (("events/s", rate), ("bridges", members), ("wait, s", wait))
        for axis, (title, values) in zip(axes[:, column], panels, strict=True):
            axis.plot(hours, values, color="#2a6f97", linewidth=1)
            axis.set_title(f"{name}: {title}" if title == "events/s" else title, fontsize="medium")
            axis.spines[["top", "right"]].set_visible(False)
        axes[2, column].set_xlabel("hour of the day")
    return svg(figure)


if __name__ == "__main__":
    main()
