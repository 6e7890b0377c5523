"""Batches: every event once, in order, within bounds, and never late."""

from hypothesis import given
from hypothesis import strategies as st

from bridge.batch import Batcher
from bridge.memory import MemoryRecord
from bridge.offsets import PartitionEpoch
from bridge.record import Segment


def segment(epoch: PartitionEpoch, sizes: list[int]) -> Segment:
    first = epoch.next_offset or 0
    offsets = list(range(first, first + len(sizes)))
    records = [
        MemoryRecord(epoch.topic, epoch.partition, offset, 0, None, bytes(size) if size else None)
        for offset, size in zip(offsets, sizes, strict=True)
    ]
    return Segment(epoch, epoch.deliver(offsets), records)


@given(
    arrivals=st.lists(st.tuples(st.integers(0, 2), st.lists(st.integers(0, 60), max_size=12)), max_size=20),
    max_events=st.integers(1, 10),
    max_bytes=st.integers(1, 100),
)
def test_every_event_leaves_once_in_order_within_bounds(
    arrivals: list[tuple[int, list[int]]], max_events: int, max_bytes: int
) -> None:
    epochs = [PartitionEpoch("t", number) for number in range(3)]
    for epoch in epochs:
        epoch.start_at(0)
    batcher = Batcher(max_events, max_bytes, 0.0)
    added = []
    for partition, sizes in arrivals:
        one = segment(epochs[partition], sizes)
        batcher.add(one, now=0.0)
        added += list(one.records)
    taken = []
    while batcher.ready(0.0):
        batch = batcher.take()
        assert 1 <= len(batch.records) <= max_events
        assert sum(len(r.value or b"") for r in batch.records) <= max_bytes or len(batch.records) == 1
        assert [r for s in batch.segments for r in s.records] == list(batch.records)
        for part in batch.segments:
            assert part.start == part.records[0].offset  # here positions and offsets are the same
        taken += batch.records
    assert taken == added
    assert (batcher.events, batcher.bytes) == (0, 0)


@given(
    times=st.lists(st.floats(0, 1), min_size=1, max_size=8),
    max_wait=st.floats(0.001, 1),
    max_events=st.integers(1, 10),
)
def test_a_batch_is_due_when_full_or_old(times: list[float], max_wait: float, max_events: int) -> None:
    epoch = PartitionEpoch("t", 0)
    epoch.start_at(0)
    batcher = Batcher(max_events, 10**9, max_wait)
    assert batcher.until_ready(0.0) == float("inf")
    now = 0.0
    for step in times:
        now += step
        batcher.add(segment(epoch, [1]), now)
    oldest = times[0]
    full = len(times) >= max_events
    assert batcher.ready(now) == (full or now - oldest >= max_wait or oldest + max_wait - now <= 0)
    if not batcher.ready(now):
        assert batcher.ready(now + batcher.until_ready(now) + 1e-9)  # the float before the due time is not due
