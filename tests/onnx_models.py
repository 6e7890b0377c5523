"""ONNX models made for tests: small graphs with every type, and one that refuses some of its inputs."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def types(path: Path) -> None:
    """Every kind of tensor; the count is a place in a table of three, so that 3 and more are refused."""
    table = numpy_helper.from_array(np.array([10, 20, 30], np.int64), "table")
    two = numpy_helper.from_array(np.array(2.0), "two")
    save(
        path,
        [
            helper.make_node("Identity", ["text"], ["same"]),
            helper.make_node("Gather", ["table", "count"], ["found"]),
            helper.make_node("Not", ["flag"], ["other"]),
            helper.make_node("Mul", ["vector", "two"], ["double"]),
            helper.make_node("Identity", ["matrix"], ["halves"]),
        ],
        [("text", TensorProto.STRING, []), ("count", TensorProto.INT64, []), ("flag", TensorProto.BOOL, []),
         ("vector", TensorProto.DOUBLE, [3]), ("matrix", TensorProto.FLOAT16, [2, 2])],
        [("same", TensorProto.STRING, []), ("found", TensorProto.INT64, []), ("other", TensorProto.BOOL, []),
         ("double", TensorProto.DOUBLE, [3]), ("halves", TensorProto.FLOAT16, [2, 2])],
        [table, two],
    )  # fmt: skip


def dense(path: Path, features: int, hidden: int = 8, scale: float = 1.0) -> None:
    """features -> relu -> score, with seeded weights times `scale`."""
    rng = np.random.default_rng(7)
    first = rng.normal(0, scale, (features, hidden)).astype(np.float32)
    second = rng.normal(0, scale, (hidden, 1)).astype(np.float32)
    save(
        path,
        [
            helper.make_node("MatMul", ["features", "first"], ["a"]),
            helper.make_node("Relu", ["a"], ["b"]),
            helper.make_node("MatMul", ["b", "second"], ["c"]),
            helper.make_node("Sigmoid", ["c"], ["d"]),
            helper.make_node("Squeeze", ["d", "last"], ["score"]),
        ],
        [("features", TensorProto.FLOAT, [features])],
        [("score", TensorProto.FLOAT, [])],
        [
            numpy_helper.from_array(first, "first"),
            numpy_helper.from_array(second, "second"),
            numpy_helper.from_array(np.array([1], np.int64), "last"),
        ],
    )


def save(path: Path, nodes: list, inputs: list, outputs: list, weights: list, *, external: bool = False) -> None:
    """Write a graph; every tensor has the rows in front, which vary."""

    def values(tensors: list) -> list:
        return [helper.make_tensor_value_info(name, kind, ["rows", *rest]) for name, kind, rest in tensors]

    graph = helper.make_graph(nodes, "made for a test", values(inputs), values(outputs), weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path, save_as_external_data=external, location="weights.bin", size_threshold=0)
