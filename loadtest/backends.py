"""What the way through Triton costs: the backend beside TensorFlow and ONNX Runtime, called directly in one process.

One network of dense layers, with the same weights as a SavedModel and as an ONNX model, in five places: TensorFlow's
Python package; the library as the backend calls it; the backend behind Triton, asked by four threads; and the last two
once more by ONNX Runtime. Rounds take turns; what is shown is the median, least to most.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton

from headrace.rig.triton import TritonRig
from serving.formats import load

BATCHES = (1, 32, 256, 1024)
FEATURES, HIDDEN = 30, 64
ASKING = 4
SAVED, ONNX = "saved", "onnx"

_MAKE = """
import sys
import numpy as np, onnx, tensorflow as tf
from onnx import TensorProto, helper, numpy_helper
root, features, hidden = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
rng = np.random.default_rng(1)
first = rng.normal(0, features**-0.5, (features, hidden)).astype("f")
second = rng.normal(0, hidden**-0.5, (hidden, 1)).astype("f")

class Dense(tf.Module):
    def __init__(self):
        self.first, self.second = tf.Variable(first), tf.Variable(second)
    @tf.function(input_signature=[tf.TensorSpec([None, features], tf.float32, "features")])
    def score(self, features):
        return {"score": tf.sigmoid(tf.nn.relu(features @ self.first) @ self.second)}

dense = Dense()
tf.saved_model.save(dense, f"{root}/saved/1/model.savedmodel", signatures={"serving_default": dense.score})
node, tensor = helper.make_node, helper.make_tensor_value_info
graph = helper.make_graph(
    [node("MatMul", ["features", "first"], ["a"]), node("Relu", ["a"], ["b"]), node("MatMul", ["b", "second"], ["c"]),
     node("Sigmoid", ["c"], ["score"])],
    "dense",
    [tensor("features", TensorProto.FLOAT, ["rows", features])],
    [tensor("score", TensorProto.FLOAT, ["rows", 1])],
    [numpy_helper.from_array(first, "first"), numpy_helper.from_array(second, "second")],
)
tf.io.gfile.makedirs(f"{root}/onnx/1")
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
onnx.save(model, f"{root}/onnx/1/model.onnx")
"""

_DIRECT = """
import json, sys, time
import numpy as np, tensorflow as tf
score = tf.saved_model.load(sys.argv[1]).signatures["serving_default"]
for line in sys.stdin:
    batch, seconds = json.loads(line)
    rows = np.ones((batch, int(sys.argv[2])), "f")
    score(features=tf.constant(rows))["score"].numpy()
    calls, begun = 0, time.perf_counter()
    while (took := time.perf_counter() - begun) < seconds:
        score(features=tf.constant(rows))["score"].numpy()
        calls += 1
    print(calls * batch / took, flush=True)
"""

Measure = Callable[[int, float], float]
"""(rows a call, seconds) -> rows a second."""


def repeated(call: Callable[[], object], batch: int, seconds: float, threads: int = 1) -> float:
    """Rows a second of a call, made again and again."""
    call()
    counts = [0] * threads
    begun = time.perf_counter()

    def ask(place: int) -> None:
        while time.perf_counter() - begun < seconds:
            call()
            counts[place] += 1

    asking = [threading.Thread(target=ask, args=(place,)) for place in range(threads)]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()
    return sum(counts) * batch / (time.perf_counter() - begun)


def in_process(version: Path) -> Measure:
    """A model run here, as the backend runs it."""
    runner = load(version)
    return lambda batch, seconds: repeated(
        lambda: runner.run({"features": np.ones((batch, FEATURES), np.float32)}), batch, seconds
    )


def behind_triton(client: triton.InferenceServerClient, name: str) -> Measure:
    """A model asked over gRPC, four calls at a time."""

    def measure(batch: int, seconds: float) -> float:
        rows = triton.InferInput("features", [batch, FEATURES], "FP32")
        rows.set_data_from_numpy(np.ones((batch, FEATURES), np.float32))
        wanted = [triton.InferRequestedOutput("score")]
        return repeated(lambda: client.infer(name, [rows], outputs=wanted), batch, seconds, ASKING)

    return measure


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="for each figure of a round")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make = [sys.executable, "-c", _MAKE, folder, str(FEATURES), str(HIDDEN)]
        subprocess.run(make, check=True, stderr=subprocess.DEVNULL)
        for name, platform in ((SAVED, "tensorflow_savedmodel"), (ONNX, "onnxruntime_onnx")):
            config = f'platform: "{platform}"\ninstance_group [ {{ count: 1, kind: KIND_CPU }} ]\n'
            (root / name / "config.pbtxt").write_text(config)
        rows = {"features": np.random.default_rng(2).normal(0, 1, (8, FEATURES)).astype("f")}
        saved, onnx = (load(root / name / "1").run(rows)["score"] for name in (SAVED, ONNX))
        np.testing.assert_allclose(saved, onnx, rtol=1e-5)
        command = [sys.executable, "-c", _DIRECT, str(root / SAVED / "1" / "model.savedmodel"), str(FEATURES)]
        asking = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        with TritonRig(root) as rig, asking as python:
            client = triton.InferenceServerClient(rig.address)

            def direct(batch: int, seconds: float) -> float:
                assert python.stdin
                assert python.stdout
                print(json.dumps([batch, seconds]), file=python.stdin, flush=True)
                return float(python.stdout.readline())

            places: dict[str, Measure] = {
                "tensorflow, Python package": direct,
                "tensorflow, library": in_process(root / SAVED / "1"),
                "tensorflow backend": behind_triton(client, SAVED),
                "onnxruntime": in_process(root / ONNX / "1"),
                "onnxruntime backend": behind_triton(client, ONNX),
            }
            found: dict[tuple[str, int], list[float]] = {}
            for _ in range(asked.rounds):
                for batch in BATCHES:
                    for name, measure in places.items():
                        found.setdefault((name, batch), []).append(measure(batch, asked.seconds))
            client.close()
            assert python.stdin
            python.stdin.close()
    for batch in BATCHES:
        base = statistics.median(found["tensorflow, Python package", batch])
        for name in places:
            rates = found[name, batch]
            middle = statistics.median(rates)
            spread = f"({min(rates):,.0f} to {max(rates):,.0f})"
            print(f"batch {batch:5}  {name:27} {middle:12,.0f} rows/s {spread:26} {middle / base:6.2f} x")


if __name__ == "__main__":
    main()
