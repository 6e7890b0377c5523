"""The watermark against a naive model: deliver, complete, revoke and assign again, in any order."""

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from bridge.offsets import PartitionEpoch


class Watermark(RuleBasedStateMachine):
    """The naive model keeps every offset of the partition in a list, with whether it is done."""

    def __init__(self) -> None:
        super().__init__()
        self.committed = 0
        self.dead: list[tuple[PartitionEpoch, int]] = []
        self.assign()

    def assign(self) -> None:
        self.epoch = PartitionEpoch("t", 0)
        self.epoch.start_at(self.committed)
        self.offsets: list[int] = []
        self.done: list[bool] = []

    @rule(gaps=st.lists(st.integers(1, 4), max_size=20))
    def deliver(self, gaps: list[int]) -> None:
        at = self.epoch.next_offset or 0
        offsets = []
        for gap in gaps:
            offsets.append(at + gap - 1)  # compaction and transaction markers leave gaps
            at = offsets[-1] + 1
        assert self.epoch.deliver(offsets) == len(self.offsets)
        self.offsets += offsets
        self.done += [False] * len(offsets)

    @precondition(lambda self: not all(self.done))
    @rule(data=st.data())
    def complete(self, data: st.DataObject) -> None:
        first = next(i for i, done in enumerate(self.done) if not done)
        start = data.draw(st.integers(first, len(self.done) - 1))
        stop = data.draw(st.integers(start, len(self.done)))
        self.epoch.complete(start, stop)
        self.done[start:stop] = [True] * (stop - start)

    @rule()
    def commit(self) -> None:
        position = self.epoch.position
        assert position is not None
        assert position >= self.committed  # I4: it never goes back
        self.committed = position

    @rule()
    def revoke_and_assign(self) -> None:
        self.epoch.alive = False
        self.dead.append((self.epoch, self.epoch.position or 0))
        self.assign()

    @invariant()
    def position_is_the_first_unfinished(self) -> None:
        unfinished = [offset for offset, done in zip(self.offsets, self.done, strict=True) if not done]
        expected = unfinished[0] if unfinished else (self.offsets[-1] + 1 if self.offsets else self.epoch.next_offset)
        assert self.epoch.position == expected
        assert self.epoch.pending >= len(unfinished)

    @invariant()
    def nothing_below_the_committed_offset_is_unfinished(self) -> None:
        if self.epoch.position is not None and self.epoch.position >= self.committed:
            assert all(done for offset, done in zip(self.offsets, self.done, strict=True) if offset < self.committed)

    @invariant()
    def dead_epochs_do_not_move(self) -> None:
        assert all(epoch.position == position for epoch, position in self.dead)


TestWatermark = Watermark.TestCase
