"""The ledger of replayed letters: it remembers exactly what was marked, also through its text."""

from hypothesis import given
from hypothesis import strategies as st

from bridge.ledger import MOST_CHARACTERS, Ledger


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 12)), max_size=20), st.integers(0, 20))
def test_it_holds_what_was_marked(marks: list[tuple[int, int]], position: int) -> None:
    ledger = Ledger(position)
    replayed = set(range(position))
    for start, length in marks:
        ledger.mark(start, start + length)
        replayed |= set(range(start, start + length))
        ledger = Ledger(ledger.position, ledger.text)
    assert {offset for offset in range(100) if offset in ledger} == replayed
    assert ledger.position == next(offset for offset in range(200) if offset not in replayed)


def test_without_a_filter_it_is_the_position_alone() -> None:
    ledger = Ledger()
    for offset in range(0, 10_000, 2):  # every other offset is a transaction's marker
        ledger.mark(max(0, offset - 1), offset + 1)
    assert (ledger.position, ledger.text) == (9_999, "")


def test_a_text_of_something_else_is_refused() -> None:
    for text in ("consumer-1", "1nonsense", "1" + "0" * 20):
        try:
            Ledger(5, text)
        except ValueError:
            continue
        raise AssertionError(text)


@given(st.integers(0, 2**32 - 1))
def test_a_thousand_scattered_letters_fit_beside_the_offset(seed: int) -> None:
    import random

    offsets = sorted(random.Random(seed).sample(range(100_000), 1_000))
    ledger = Ledger()
    for offset in offsets:
        ledger.mark(offset, offset + 1)
    assert len(ledger.text) <= MOST_CHARACTERS
