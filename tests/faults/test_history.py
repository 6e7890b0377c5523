"""The checker itself: each violation is found, and nothing else."""

import pytest

from tests.faults.history import Fault, History, Seen, check


def history(*offsets: int, written: int = 5, faults: list[Fault] | None = None) -> History:
    made = History(
        writes=dict.fromkeys(range(written), "ok"), places={n: (0, n) for n in range(written)}, faults=faults or []
    )
    made.seen = [Seen(0, n, (0, n), right=True) for n in offsets]
    return made


def test_a_kept_promise() -> None:
    verdict = check(history(0, 1, 2, 3, 4), exactly_once=True)
    assert verdict.violations == []
    assert (verdict.events, verdict.results, verdict.lost, verdict.duplicated) == (5, 5, 0, 0)


@pytest.mark.parametrize(
    ("offsets", "sentence"),
    [
        ((0, 1, 2, 4), r"I1: 1 events lost, the first \[3\]"),
        ((0, 1, 2, 3, 3, 4), r"I2: 1 events seen twice, the first \[3\]"),
        ((0, 2, 1, 3, 4), r"I5: 1 results out of order: \[\(0, 2, 1\)\]"),
        ((0, 1, 2, 3, 4, 9), "I2: 1 outcomes of events that were never written"),
    ],
)
def test_a_broken_promise(offsets: tuple[int, ...], sentence: str) -> None:
    import re

    found = check(history(*offsets), exactly_once=True).violations
    assert any(re.match(sentence, text) for text in found), found


def test_an_outcome_on_another_event() -> None:
    made = history(0, 1, 2, 3)
    made.seen = [*made.seen, Seen(0, 4, (0, 4), right=False)]
    assert any(text.startswith("I8") for text in check(made, exactly_once=True).violations)
    made.seen = [*list(made.seen)[:-1], Seen(0, 4, (0, 3), right=True)]
    assert any(text.startswith("I8") for text in check(made, exactly_once=True).violations)


def test_a_committed_offset_that_goes_back() -> None:
    made = history(0, 1, 2, 3, 4)
    made.committed[0] += [1, 4, 3]
    assert check(made, exactly_once=True).violations == ["I4: the committed offset of partition 0 went back: 4 to 3"]


def test_duplicates_of_at_least_once_lie_in_replay_windows() -> None:
    offsets = (0, 1, 2, 1, 2, 3, 4)
    assert check(history(*offsets, faults=[Fault("kill", 1.0, {0: 1})]), exactly_once=False).violations == []
    for faults in ([], [Fault("kill", 1.0, {0: 2})]):
        (found,) = check(history(*offsets, faults=faults), exactly_once=False).violations
        assert "done again from offset 1 after 2, outside every replay window" in found


def test_what_may_or_may_not_have_been_written() -> None:
    made = history(0, 1, 2, 3)
    made.writes[4] = "info"
    assert check(made, exactly_once=True).violations == []
    made.writes[3] = "fail"
    assert check(made, exactly_once=True).violations != []
