"""The watermark's edges; its behaviour at large is in tests/property."""

import pytest

from bridge.offsets import PartitionEpoch


def started(offset: int = 0) -> PartitionEpoch:
    epoch = PartitionEpoch("t", 3)
    epoch.start_at(offset)
    return epoch


def test_an_offset_that_does_not_follow_is_refused() -> None:
    epoch = started(5)
    epoch.deliver([5, 9])
    for offset in (9, 3):
        with pytest.raises(ValueError, match="delivered after 9"):
            epoch.deliver([offset])


def test_what_was_not_delivered_cannot_be_complete() -> None:
    epoch = started()
    epoch.deliver([0, 1])
    for start, stop in ((0, 3), (-1, 1), (2, 1)):
        with pytest.raises(ValueError, match="were not delivered"):
            epoch.complete(start, stop)


def test_a_finished_prefix_is_forgotten() -> None:
    epoch = started()
    for n in range(0, 300_000, 1000):
        start = epoch.deliver(list(range(n, n + 1000)))
        epoch.complete(start, start + 1000)
    assert (epoch.position, epoch.pending, len(epoch._offsets)) == (300_000, 0, 0)


def test_it_tells_its_state() -> None:
    epoch = started(7)
    epoch.deliver([7, 8])
    assert repr(epoch) == "<PartitionEpoch t/3 ready position=7 next=9 pending=2>"
    epoch.alive = False
    assert "dead" in repr(epoch)


def test_what_is_delivered_and_not_committed_is_counted() -> None:
    epoch = PartitionEpoch("t", 0)
    assert epoch.uncommitted == 0
    epoch.start_at(100)
    epoch.committed = 100
    epoch.deliver([100, 101, 105])
    epoch.complete(0, 3)
    assert epoch.uncommitted == 6
    epoch.committed = epoch.position
    assert epoch.uncommitted == 0
