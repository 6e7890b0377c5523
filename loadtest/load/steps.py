"""What each step of a rising rate has found, and so how much the system takes. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Literal

import numpy as np

from loadtest.load.plan import Plan
from loadtest.load.settings import BOUNDS
from loadtest.load.stream import Found, percentile_ms

_EDGE = 1  # seconds at both ends of a step that do not count: a rate is told in the middle of one
_LATE = 0.01  # of the events, as p99 says it
_BEHIND = 1.0  # seconds of events without an outcome


@dataclass(frozen=True, slots=True)
class Step:
    """One step.

    Attributes:
        rate: that was asked for, events/s.
        outcomes: that came, per second.
        p50: of the latencies of the outcomes that came, milliseconds, to some 7 %.
        p99: the same.
        late: share of the events that the generator sent too late.
        verdict: void, when more than one of a hundred events was sent too late; fell behind, when in the end more than
            a second of events had no outcome; after, when an earlier step did not keep up, so that it says nothing.
    """

    rate: float
    outcomes: float
    p50: float
    p99: float
    late: float
    verdict: Literal["kept up", "fell behind", "void", "after"]


def judge(found: Found, plan: Plan) -> list[Step]:
    """Each step of a plan that was carried out."""
    began = min(found.sending, default=0)
    ends = [began + round(second) for second in accumulate((phase.seconds for phase in plan), initial=0)]
    steps: list[Step] = []
    for phase, (start, end) in zip(plan, pairwise(ends), strict=True):
        seconds = range(start + _EDGE, end - _EDGE)
        counts = sum(
            (found.arriving[second] for second in seconds if second in found.arriving), np.zeros(len(BOUNDS) + 1)
        )
        late = sum(found.late[second] for second in seconds) / max(1, sum(found.sending[second] for second in seconds))
        sent = sum(count for second, count in found.sending.items() if second < seconds.stop)
        done = sum(int(arrived.sum()) for second, arrived in found.arriving.items() if second < seconds.stop)
        verdict: Literal["kept up", "fell behind", "void", "after"] = "kept up"
        if steps and steps[-1].verdict != "kept up":
            verdict = "after"
        elif late > _LATE:
            verdict = "void"
        elif sent - done > phase.rate * _BEHIND:
            verdict = "fell behind"
        p50, p99 = percentile_ms(counts, 0.5), percentile_ms(counts, 0.99)
        steps.append(Step(phase.rate, float(counts.sum()) / max(1, len(seconds)), p50, p99, late, verdict))
    return steps


def capacity(steps: Sequence[Step]) -> float:
    """The highest rate that was kept up with, events/s; 0 when none was."""
    return max((step.rate for step in steps if step.verdict == "kept up"), default=0.0)


def told(steps: Sequence[Step]) -> str:
    """The same as a sentence, with what came after it."""
    most = f"keeps up with {capacity(steps):,.0f} events/s"
    ended = next((step for step in steps if step.verdict in ("fell behind", "void")), None)
    if ended is None:
        return f"{most} and may do more: no step was too much for it (--plan-rate)"
    if ended.verdict == "void":
        return f"{most} and may do more: at {ended.rate:,.0f} the generator itself is late"
    return f"{most}; at {ended.rate:,.0f} it falls behind"
