"""What golden requests find."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.errors import ServingError
from serving.golden import Golden, ask_golden, difference, read_golden
from serving.signature import Signature, Tensor

X = Tensor("x", "FP32", (-1, 2), "x:0")
TEXT = Tensor("t", "BYTES", (-1,), "t:0")
SIGNATURE = Signature("serving_default", (TEXT, X), ())
GOLDEN = Golden(inputs={"x": [[1, 2]], "t": ["é"]}, outputs={"y": [3.0]})


def answering(value: Any) -> Any:
    return lambda inputs: {"y": np.asarray(value)}


def test_inputs_have_the_types_of_the_signature() -> None:
    seen: dict[str, Any] = {}

    def run(inputs: Any) -> Any:
        seen.update(inputs)
        return {"y": np.array([3.0])}

    ask_golden(GOLDEN, SIGNATURE, run)
    assert (seen["x"].dtype, seen["x"].shape) == (np.float32, (1, 2))
    assert (seen["t"].dtype, seen["t"].tolist()) == (object, ["é"])


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        ([3.1], "output 'y': value 0 is 3.1 where 3.0 is expected"),
        ([float("nan")], "output 'y': value 0 is nan where 3.0 is expected"),
        ([3.0, 3.0], "output 'y': 2 values where 1 are expected"),
        ([], "output 'y': 0 values where 1 are expected"),
    ],
)
def test_a_wrong_answer_is_a_sentence(answer: Any, sentence: str) -> None:
    with pytest.raises(ServingError, match=sentence):
        ask_golden(GOLDEN, SIGNATURE, answering(answer))


def test_what_is_not_asked_or_answered_is_named() -> None:
    with pytest.raises(ServingError, match="nothing for the input 't'"):
        ask_golden(GOLDEN.model_copy(update={"inputs": {"x": [[1, 2]]}}), SIGNATURE, answering([3.0]))
    with pytest.raises(ServingError, match="no output 'y'"):
        ask_golden(GOLDEN, SIGNATURE, lambda inputs: {})
    with pytest.raises(ServingError, match="input 'x': "):
        ask_golden(GOLDEN.model_copy(update={"inputs": {"x": [["a"]], "t": [""]}}), SIGNATURE, answering([3.0]))


def test_numbers_may_differ_by_the_tolerance_and_texts_not_at_all() -> None:
    assert difference(np.array([1.00005, 2e6 + 100]), [1.0, 2e6], 1e-4) is None
    assert difference(np.array([1.0005]), [1.0], 1e-4) is not None
    assert difference(np.array([b"a", b"b"], object), ["a", "b"], 1.0) is None
    assert difference(np.array([b"a", b"c"], object), ["a", "b"], 1.0) == "value 1 is 'c' where 'b' is expected"
    assert difference(np.array([[1], [2]]), [[1], [2]], 0.0) is None


def test_what_cannot_be_compared_is_a_sentence() -> None:
    wrong = "what is expected cannot be compared with it"
    assert wrong in str(difference(np.array([1.0]), ["high"], 1e-4))
    assert wrong in str(difference(np.array([1.0, 2.0]), [[1.0], [2.0, 3.0]], 1e-4))
    with pytest.raises(ServingError, match="input 't': texts are expected"):
        ask_golden(GOLDEN.model_copy(update={"inputs": {"x": [[1, 2]], "t": [3]}}), SIGNATURE, answering([3.0]))


def test_whole_numbers_are_right_or_wrong() -> None:
    assert difference(np.array([1_000_000]), [1_000_050], 1e-4) == "value 0 is 1000000.0 where 1000050.0 is expected"


def test_a_file_that_cannot_be_read_is_a_sentence(tmp_path: Path) -> None:
    assert read_golden(tmp_path) is None
    (tmp_path / "golden.json").write_text('{"inputs": {}}')
    with pytest.raises(ServingError, match="golden.json: outputs: Field required"):
        read_golden(tmp_path)
    (tmp_path / "golden.json").write_text("{")
    with pytest.raises(ServingError, match="golden.json: document: "):
        read_golden(tmp_path)
