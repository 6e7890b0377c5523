"""Answers to results."""

import json

import numpy as np
import pytest

from bridge.encode import ResultEncoder
from bridge.expression import Expression
from bridge.record import Decoded, Part, Prediction, Reject
from bridge.tensors import TensorSpec, decode_bytes, encode_bytes


def encode(outputs: dict[str, np.ndarray], size: int | None = None, places=None, copied=None, alert=None, rejects=()):
    rows = len(next(iter(outputs.values())))
    places = range(rows) if places is None else places
    specs = {name: TensorSpec(name, "FP32", ()) for name in outputs}
    encoder = ResultEncoder("m%", specs, list(copied or {}), Expression.parse(alert) if alert else None)
    decoded = Decoded({}, places, copied or {}, list(rejects))
    return encoder.encode(size or rows, decoded, [Part(range(rows), Prediction(outputs, "3"), 1)])


def test_a_result_carries_copies_outputs_model_and_version() -> None:
    outcome = encode({"score": np.array([0.5, 1.0], "f4")}, copied={"id": [b"1", b'"b"']})
    assert [json.loads(value) for value in outcome.values] == [
        {"id": 1, "score": 0.5, "model": "m%", "model_version": "3"},
        {"id": "b", "score": 1.0, "model": "m%", "model_version": "3"},
    ]


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.array([1, 2], "i8"), [1, 2]),
        (np.array([[1], [2]], "i4"), [1, 2]),
        (np.array([[1, 2], [3, 4]], "f8"), [[1, 2], [3, 4]]),
        (np.array([[[1], [2]]], "f2"), [[[1], [2]]]),
        (np.array([True, False]), [True, False]),
        (np.array([[True], [False]]), [True, False]),
        (decode_bytes(encode_bytes(["é".encode(), b""])), ["é", ""]),
        (decode_bytes(encode_bytes([b"a", b"b"])).reshape(1, 2), [["a", "b"]]),
    ],
)
def test_every_kind_of_output(array: np.ndarray, expected: list[object]) -> None:
    assert [json.loads(value)["y"] for value in encode({"y": array}).values] == expected


def test_a_row_that_is_not_finite_is_an_output_reject_and_harms_nobody() -> None:
    outcome = encode({"y": np.array([1, np.nan, np.inf, 4], "f4")})
    assert [value is None for value in outcome.values] == [False, True, True, False]
    assert [(item.row, item.reason, item.version) for item in outcome.rejects] == [
        (1, "output", "3"),
        (2, "output", "3"),
    ]
    assert json.loads(outcome.values[3])["y"] == 4


def test_text_that_is_no_text_is_an_output_reject() -> None:
    outcome = encode({"y": np.array([b"ok", b"\xff"], dtype=object)})
    assert [item.row for item in outcome.rejects] == [1]


def test_rows_find_back_to_their_events() -> None:
    rejects = [Reject(0, "decode", "x"), Reject(2, "decode", "x")]
    outcome = encode({"y": np.array([1.0, 2.0])}, size=4, places=[1, 3], rejects=rejects, alert="y > 1")
    assert [None if value is None else json.loads(value)["y"] for value in outcome.values] == [None, 1, None, 2]
    assert outcome.alerts is not None
    assert outcome.alerts.tolist() == [False, False, False, True]


def test_parts_of_different_versions_are_stamped_apart() -> None:
    encoder = ResultEncoder("m", {"y": TensorSpec("y", "FP32", ())})
    parts = [
        Part(range(2), Prediction({"y": np.array([1.0, 2.0])}, "1"), 1),
        Part(range(3, 4), Prediction({"y": np.array([4.0])}, "2"), 2),
    ]
    outcome = encoder.encode(4, Decoded({}, range(4), {}, []), parts)
    read = [None if value is None else json.loads(value) for value in outcome.values]
    assert [None if item is None else (item["y"], item["model_version"]) for item in read] == [
        (1, "1"),
        (2, "1"),
        None,
        (4, "2"),
    ]


def test_nothing_predicted() -> None:
    encoder = ResultEncoder("m", {"y": TensorSpec("y", "FP32", ())}, alert=Expression.parse("y > 1"))
    outcome = encoder.encode(1, Decoded({}, [], {}, [Reject(0, "decode", "x")]), [])
    assert outcome.values == [None]
    assert outcome.alerts is None


def test_an_answer_that_lacks_a_row_is_never_matched_by_guess() -> None:
    encoder = ResultEncoder("m", {"y": TensorSpec("y", "FP32", ())}, [], None)
    short = Part(range(3), Prediction({"y": np.array([1, 2], "f4")}, "1"), 1)
    with pytest.raises(ValueError, match="zip"):
        encoder.encode(4, Decoded({}, range(3), {}, [Reject(3, "mapping", "")]), [short])
