"""What happened in a run, and whether it keeps the promise. In Jepsen's words: every write of an event is ok, fail or info.

ok must be seen, fail must not, info may. The checker compares what was written with what a read_committed reader sees
after the faults have ended, invariant by invariant (I1 to I8, see docs/guarantees.md). Pure.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise


@dataclass(frozen=True, slots=True)
class Seen:
    """One record that a reader saw, in the order of its topic's partition.

    Attributes:
        partition: of the topic that was read.
        event: number of the event.
        source: partition and offset of the event, as the header says.
        right: whether the record belongs to the event: key, and for a result the score that this event must have.
        letter: the reason when it is a dead letter.
    """

    partition: int
    event: int
    source: tuple[int, int]
    right: bool
    letter: str | None = None


@dataclass(frozen=True, slots=True)
class Fault:
    """What was done to the system, when (seconds since the start), and the committed offsets before."""

    name: str
    at: float
    committed: Mapping[int, int]


@dataclass
class History:
    """Everything that is known of a run.

    Attributes:
        writes: event -> ok, fail or info.
        places: event -> where the broker put it; only of events whose write is ok.
        committed: partition -> the committed offsets as they were seen, in order.
        faults: in order.
        seen: results and dead letters.
    """

    writes: dict[int, str] = field(default_factory=dict)
    places: dict[int, tuple[int, int]] = field(default_factory=dict)
    committed: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
    faults: list[Fault] = field(default_factory=list)
    seen: Sequence[Seen] = ()


@dataclass
class Verdict:
    """What the checker found.

    Attributes:
        violations: a sentence each; empty when the promise was kept.
        events: written for sure.
        results: distinct events with a result.
        letters: distinct events with a dead letter.
        lost: events that were written and never seen.
        duplicated: events that were seen more than once.
        disordered: results that stand before an earlier event of their partition.
    """

    violations: list[str]
    events: int
    results: int
    letters: int
    lost: int
    duplicated: int
    disordered: int


def check(history: History, exactly_once: bool, window: int = 4608) -> Verdict:
    """Hold a run against the invariants.

    Args:
        history: of the run, after everything has settled.
        exactly_once: whether duplicates are violations. Otherwise they may lie in replay windows only: what is done
            again begins at or above the offset that was committed before some fault, and ends within `window` of it.
        window: events that a replay window may hold at most: what of a partition waits for its acknowledgement (4,096,
            docs/guarantees.md), and what a commit interval and the watcher's own period finish.
    """
    violations: list[str] = []
    counts = Counter(item.event for item in history.seen)
    written = {event for event, state in history.writes.items() if state == "ok"}
    lost = sorted(written - set(counts))
    ghosts = sorted(event for event in counts if history.writes.get(event, "fail") == "fail")
    duplicated = sorted(event for event, count in counts.items() if count > 1)
    wrong = [item for item in history.seen if not item.right]
    moved = [item for item in history.seen if history.places.get(item.event, item.source) != item.source]
    if lost:
        violations.append(f"I1: {len(lost)} events lost, the first {lost[:5]}")
    if ghosts:
        violations.append(f"I2: {len(ghosts)} outcomes of events that were never written: {ghosts[:5]}")
    if wrong or moved:
        violations.append(f"I8: {len(wrong) + len(moved)} outcomes on another event: {[*wrong, *moved][:3]}")
    for partition, offsets in history.committed.items():
        for before, after in pairwise(offsets):
            if after < before:
                violations.append(f"I4: the committed offset of partition {partition} went back: {before} to {after}")
    results = [item for item in history.seen if item.letter is None]
    jumps = list(_jumps(results))
    if exactly_once:
        if duplicated:
            violations.append(f"I2: {len(duplicated)} events seen twice, the first {duplicated[:5]}")
        if jumps:
            violations.append(f"I5: {len(jumps)} results out of order: {jumps[:3]} (partition, from, to)")
    else:
        violations += [
            f"I2: partition {partition} was done again from offset {to} after {at}, outside every replay window"
            for partition, at, to in jumps
            if not any(
                (start := fault.committed.get(partition, 0)) <= to <= at <= start + window for fault in history.faults
            )
        ]
    letters = {item.event for item in history.seen if item.letter is not None}
    return Verdict(
        violations,
        events=len(written),
        results=len({item.event for item in results}),
        letters=len(letters),
        lost=len(lost),
        duplicated=len(duplicated),
        disordered=len(jumps),
    )


def _jumps(results: Sequence[Seen]) -> "list[tuple[int, int, int]]":
    """(source partition, offset before, offset) wherever a result does not stand after the one before it."""
    last: dict[int, int] = {}
    found = []
    for item in results:
        partition, offset = item.source
        if offset <= last.get(partition, -1):
            found.append((partition, last[partition], offset))
        last[partition] = offset
    return found
