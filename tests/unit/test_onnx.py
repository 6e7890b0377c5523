"""ONNX models without a server: what they say of themselves, what is refused, and how they are run."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from serving.arrays import zeros
from serving.completeness import check
from serving.errors import ModelError, ServingError
from serving.formats import load, read_signature
from serving.formats.onnx import OnnxModel
from tests import onnx_models

INPUTS = {
    "text": np.array(["é".encode(), b"", b"x" * 100], dtype=object),
    "count": np.array([0, 2, 1]),
    "flag": np.array([True, False, True]),
    "vector": np.arange(9.0).reshape(3, 3),
    "matrix": np.arange(12, dtype=np.float16).reshape(3, 2, 2),
}


@pytest.fixture
def version(tmp_path: Path) -> Path:
    onnx_models.types(tmp_path / "1" / "model.onnx")
    return tmp_path / "1"


def test_a_signature_is_read_without_onnx_runtime(version: Path) -> None:
    signature = read_signature(version)
    assert [str(tensor) for tensor in signature.inputs] == [
        "count INT64[-1]", "flag BOOL[-1]", "matrix FP16[-1, 2, 2]", "text BYTES[-1]", "vector FP64[-1, 3]",
    ]  # fmt: skip
    assert [str(tensor) for tensor in signature.outputs] == [
        "double FP64[-1, 3]", "found INT64[-1]", "halves FP16[-1, 2, 2]", "other BOOL[-1]", "same BYTES[-1]",
    ]  # fmt: skip
    assert signature.batches


def test_weights_that_are_named_among_the_inputs_are_none(tmp_path: Path, version: Path) -> None:
    """As old exporters do."""
    model = onnx.load(version / "model.onnx")
    model.graph.input.append(helper.make_tensor_value_info("table", TensorProto.INT64, [3]))
    onnx.save(model, tmp_path / "model.onnx")
    assert read_signature(tmp_path).inputs == read_signature(version).inputs


def test_every_type_goes_in_and_out(version: Path) -> None:
    loaded = load(version)
    found = loaded.run(INPUTS)
    assert found["same"].tolist() == INPUTS["text"].tolist()
    assert found["found"].tolist() == [10, 30, 20]
    assert found["other"].tolist() == [False, True, False]
    np.testing.assert_array_equal(found["double"], INPUTS["vector"] * 2)
    np.testing.assert_array_equal(found["halves"], INPUTS["matrix"])
    empty = loaded.run({name: array[:0] for name, array in INPUTS.items()})
    assert {name: len(array) for name, array in empty.items()} == dict.fromkeys(found, 0)
    assert loaded.run(zeros(loaded.signature, 2))["found"].tolist() == [10, 10]
    loaded.close()


def test_a_trailing_one_is_dropped_where_the_signature_has_none(version: Path) -> None:
    found = load(version, threads=1).run(INPUTS | {"count": np.array([[2], [1], [0]])})
    assert found["found"].tolist() == [30, 20, 10]


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"count": np.array([0, 5, 1])}, "indices element out of data bounds"),
        ({"count": np.zeros(3)}, "input 'count': float64 in place of int64"),
        ({"vector": np.zeros((3, 2))}, "Got invalid dimensions for input: vector"),
        ({"text": np.array([b"\xff"] * 3, object)}, "input 'text': 'utf-8' codec"),
    ],
)
def test_what_the_model_refuses_is_the_fault_of_what_it_was_asked(
    version: Path, wrong: dict[str, np.ndarray], sentence: str
) -> None:
    loaded = load(version)
    with pytest.raises(ModelError, match=sentence) as caught:
        loaded.run(INPUTS | wrong)
    assert caught.value.code == "INVALID_ARGUMENT"
    assert loaded.run(INPUTS)["found"].tolist() == [10, 30, 20]


def _with_weights_beside(folder: Path) -> Path:
    path = folder / "model.onnx"
    weight = numpy_helper.from_array(np.arange(6, dtype=np.float32).reshape(3, 2), "weight")
    onnx_models.save(
        path,
        [helper.make_node("MatMul", ["x", "weight"], ["y"])],
        [("x", TensorProto.FLOAT, [3])],
        [("y", TensorProto.FLOAT, [2])],
        [weight],
        external=True,
    )
    return path


def test_weights_in_a_file_of_their_own_belong_to_the_model(tmp_path: Path) -> None:
    path = _with_weights_beside(tmp_path / "1")
    assert OnnxModel(path).files() == [path, tmp_path / "1" / "weights.bin"]
    assert load(tmp_path / "1").run({"x": np.ones((1, 3), np.float32)})["y"].tolist() == [[6.0, 9.0]]
    check(tmp_path / "1", tmp_path)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4])


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda folder: (folder / "weights.bin").unlink(), "weights.bin: missing; the ONNX model has been copied in part"),
        (lambda folder: _truncate(folder / "weights.bin"), "20 bytes where the ONNX model has 24 at least"),
        (lambda folder: _truncate(folder / "model.onnx"), "model.onnx: not an ONNX model, or copied in part"),
        (lambda folder: (folder / "model.onnx").write_bytes(b""), "model.onnx: not an ONNX model, or copied in part"),
        (lambda folder: (folder / "saved_model.pb").write_bytes(b""), "more than one model in it"),
    ],
)  # fmt: skip
def test_half_a_model_is_none(tmp_path: Path, spoil: Callable[[Path], object], sentence: str) -> None:
    _with_weights_beside(tmp_path / "1")
    spoil(tmp_path / "1")
    with pytest.raises(ServingError, match=sentence):
        check(tmp_path / "1", tmp_path)


def test_weights_elsewhere_are_not_taken(tmp_path: Path) -> None:
    path = _with_weights_beside(tmp_path / "1")
    model = onnx.load(path, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        entry.value = "../../outside.bin" if entry.key == "location" else entry.value
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ServingError, match=r"weights in \.\./\.\./outside.bin, which is not beside it"):
        check(tmp_path / "1", tmp_path)


def test_what_cannot_be_served_is_one_sentence(tmp_path: Path, version: Path) -> None:
    with pytest.raises(ServingError, match="no signature 'other'; an ONNX model has one, serving_default"):
        read_signature(version, "other")
    model = onnx.load(version / "model.onnx")
    model.graph.output.append(helper.make_tensor_sequence_value_info("all", TensorProto.FLOAT, None))
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(ServingError, match="'all' is a sequence, which cannot be served; export a tensor"):
        read_signature(tmp_path)
    model.graph.output[-1].CopyFrom(helper.make_tensor_value_info("all", TensorProto.BFLOAT16, [1]))
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(ServingError, match="'all' has ONNX type 16, which cannot be served"):
        read_signature(tmp_path)
    model.graph.output[-1].CopyFrom(helper.make_tensor_value_info("all", TensorProto.FLOAT, None))
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(ServingError, match="tensor 'all' has no known rank"):
        read_signature(tmp_path)
