"""What each step of a rising rate has found, and so how much the system takes. Pure."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Literal

import numpy as np

from loadtest.load.plan import Plan
from loadtest.load.settings import BOUNDS
from loadtest.load.stream import Found, percentile_ms

_BEFORE, _AFTER = 2, 1  # seconds of a step that do not count: Locust looks at the plan once a second
_MANY = 0.01  # as p99 says it
_BEHIND = 1.0  # seconds of events without an outcome
_SENT = 0.9  # of what was asked for

_NONE = np.zeros(len(BOUNDS) + 1)
_ENDS = {"cut short": "the run was ended", "fell behind": "it falls behind", "too slow": "p99 is above --max-p99-ms"}
Verdict = Literal["kept up", "fell behind", "too slow", "void", "cut short", "after"]


@dataclass(frozen=True, slots=True)
class Step:
    """One step.

    Attributes:
        rate: that was asked for, events/s.
        outcomes: that came, per second.
        p50: of the latencies of the outcomes that came, milliseconds, to some 7 %.
        p99: the same.
        late: share of the events that the generator sent too late.
        away: share of the reader's looks that came too long after the last.
        verdict: cut short, when it was not carried out; void, when more than one of a hundred events was sent too late,
            or of the reader's looks; fell behind, when in the end more than a second of events had no outcome; too
            slow, when p99 is above what it may be; after, when one of these three was before it.
    """

    rate: float
    outcomes: float
    p50: float
    p99: float
    late: float
    away: float
    verdict: Verdict


def judge(found: Found, plan: Plan, max_p99_ms: float = math.inf) -> list[Step]:
    """Each step of a plan that was carried out."""
    began = min(found.sending, default=0)
    ends = [began + round(second) for second in accumulate((phase.seconds for phase in plan), initial=0)]
    steps: list[Step] = []
    for phase, (start, end) in zip(plan, pairwise(ends), strict=True):
        seconds = range(start + _BEFORE, end - _AFTER)

        def total(counter: Counter[int], among: range = seconds) -> int:
            return sum(counter[second] for second in among)

        counts = sum((found.arriving[second] for second in seconds if second in found.arriving), _NONE)
        done = sum(int(arrived.sum()) for second, arrived in found.arriving.items() if second < seconds.stop)
        waiting = total(found.sending, range(began, seconds.stop)) - done
        p50, p99 = percentile_ms(counts, 0.5), percentile_ms(counts, 0.99)
        late = total(found.late) / max(1, total(found.sending))
        away = total(found.away) / max(1, total(found.looks))
        verdict: Verdict = "kept up"
        if any(step.verdict in _ENDS or step.verdict == "after" for step in steps):
            verdict = "after"
        elif late > _MANY or away > _MANY:
            verdict = "void"
        elif total(found.sending) < phase.rate * len(seconds) * _SENT:
            verdict = "cut short"
        elif waiting > phase.rate * _BEHIND:
            verdict = "fell behind"
        elif p99 > max_p99_ms:
            verdict = "too slow"
        steps.append(Step(phase.rate, float(counts.sum()) / len(seconds), p50, p99, late, away, verdict))
    return steps


def capacity(steps: Sequence[Step]) -> float:
    """The highest rate that was kept up with, events/s; 0 when none was."""
    return max((step.rate for step in steps if step.verdict == "kept up"), default=0.0)


def told(steps: Sequence[Step]) -> str:
    """The same as a sentence, with what came after it."""
    most = f"keeps up with {capacity(steps):,.0f} events/s" if capacity(steps) else "nothing was found"
    for step in steps:
        if step.verdict in _ENDS:
            return f"{most}; at {step.rate:,.0f} {_ENDS[step.verdict]}"
    void = [step.rate for step in steps if step.verdict == "void" and step.rate > capacity(steps)]
    if void:
        return (
            f"{most}; from {void[0]:,.0f} on the generator itself was too slow, in sending or in reading, to say more"
        )
    return f"{most} and may do more: no step was too much for it (--plan-rate)"
