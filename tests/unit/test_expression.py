"""The alert's condition."""

import numpy as np
import pytest

from bridge.expression import Expression

COLUMNS = {
    "score": np.array([0.1, 0.5, 0.9], dtype=np.float32),
    "label": np.array([b"a", b"b", b"a"], dtype=object),
    "v": np.array([[1, 2], [3, 4], [5, 6]]),
}


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("score >= 0.5", [False, True, True]),
        ("0.2 < score < 0.8", [False, True, False]),
        ("not score >= 0.5", [True, False, False]),
        ("score < 0.2 or v[1] == 6", [True, False, True]),
        ("score > 0 and v[0] * 2 - 1 >= 5", [False, True, True]),
        ("-score < -0.6", [False, False, True]),
        ("(score + 1) / 2 > 0.9", [False, False, True]),
        ("label == 'a'", [True, False, True]),
        ("label != 'a' and score < 1", [False, True, False]),
        ("(score > 0.2) == true", [False, True, True]),
    ],
)
def test_it_is_evaluated_for_every_row(text: str, rows: list[bool]) -> None:
    assert Expression.parse(text).evaluate(COLUMNS).tolist() == rows


def test_it_knows_the_fields_it_reads() -> None:
    assert Expression.parse("a > 1 and b[0] < c or true == true").names == {"a", "b", "c"}


@pytest.mark.parametrize(
    "text",
    ["", "score", "1 > 0", "score >= ", "x.y > 1", "f(x) > 1", "[1] > 2", "score > 1; import os", "x if y > 1 else z",
     "v[i] > 1", "v[0:1] > 1", "lambda: 1", "score ** 9 > 1", "a in b"],
)  # fmt: skip
def test_nothing_else_is_allowed(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        Expression.parse(text)


def test_types_that_do_not_compare_are_one_sentence() -> None:
    with pytest.raises(ValueError, match="cannot be evaluated"):
        Expression.parse("v[7] > 1").evaluate(COLUMNS)
