"""The demo's book-keeping sees what is lost, doubled, out of order or on another key."""

import numpy as np

from headrace.demo.tally import Tally


def tally(events: int = 4) -> Tally:
    made = Tally(events, np.array([0.0, 1.0, 0.0, 1.0])[:events], "t")
    for event in range(events):
        made.note_sent(event, event % 2, event // 2)
    return made


def result(
    t: Tally, event: int, key: int | None = None, place: tuple[int, int] | None = None, version: str = "1"
) -> None:
    partition, offset = place or (event % 2, event // 2)
    document = {"id": event, "score": event / 4, "model_version": version}
    t.note_result(
        str(event if key is None else key).encode(), document, "score", partition, f"t/{partition}/{offset}", 0.5
    )


def test_a_clean_run() -> None:
    t = tally()
    for event in range(4):
        result(t, event, version="1" if event < 2 else "2")
    assert t.good
    assert (t.lost, t.duplicated, t.out_of_order, dict(t.versions)) == (0, 0, 0, {"1": 2, "2": 2})
    assert t.latency_ms(0.5) == 500
    assert t.quality("roc_auc") == {"1": 1.0, "2": 1.0}


def test_a_lost_event() -> None:
    t = tally()
    result(t, 0)
    t.note_dead_letter(b"1", "decode")
    assert (t.lost, t.good) == (2, False)


def test_a_doubled_event() -> None:
    t = tally(2)
    for event in (0, 1, 1):
        result(t, event)
    assert (t.lost, t.duplicated, t.good) == (0, 1, False)


def test_an_event_out_of_order() -> None:
    t = tally()
    for event in (2, 0, 1, 3):
        result(t, event)
    assert (t.out_of_order, t.good) == (1, False)


def test_a_result_on_another_key_or_place() -> None:
    for key, place in ((1, None), (None, (0, 1)), (None, (1, 0))):
        t = tally(1)
        result(t, 0, key, place)
        assert (t.mismatched, t.good) == (1, False)


def test_a_result_that_comes_before_its_event_is_known_is_checked_later() -> None:
    t = Tally(1, np.zeros(1), "t")
    result(t, 0, place=(0, 7))
    t.note_sent(0, 0, 7)
    assert t.good
    t.note_sent(0, 0, 8)
    assert (t.mismatched, t.good) == (1, False)
