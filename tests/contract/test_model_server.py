"""What every `ModelServer` must do: one suite for the fake, a real Triton, and TensorFlow Serving's own messages."""

import asyncio
import struct
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from bridge.config.model import Model
from bridge.infer import Disposition, InferenceError, ModelServer
from bridge.infer.fake import FakeServer
from bridge.infer.tfserving import TensorFlowServing
from bridge.infer.triton import TritonServer
from bridge.tensors import ModelSpec, TensorSpec, encode_bytes

TYPES = ModelSpec(
    "types",
    ["1"],
    [
        TensorSpec("count", "INT64", (1,)),
        TensorSpec("flag", "BOOL", (1,)),
        TensorSpec("matrix", "FP16", (2, 2)),
        TensorSpec("small", "INT8", (1,)),
        TensorSpec("text", "BYTES", (1,)),
        TensorSpec("vector", "FP64", (3,)),
    ],
    [
        TensorSpec("count", "INT32", (1,)),
        TensorSpec("flag", "BOOL", (1,)),
        TensorSpec("matrix", "FP16", (2, 2)),
        TensorSpec("small", "INT8", (1,)),
        TensorSpec("text", "BYTES", (1,)),
        TensorSpec("vector", "FP64", (3,)),
    ],
    4096,
)
OUTPUTS = [spec.name for spec in TYPES.outputs]


def change(arrays):
    """What the model `types` of tests/models.py does."""
    if (arrays["count"] < 0).any():
        raise InferenceError(Disposition.DATA, "INVALID_ARGUMENT", "the count is negative")
    upper = np.vectorize(bytes.upper, otypes=[object])
    return {
        "text": upper(arrays["text"]),
        "count": (arrays["count"] + 1).astype("<i4"),
        "small": -arrays["small"],
        "flag": ~arrays["flag"],
        "vector": arrays["vector"] * 2,
        "matrix": arrays["matrix"],
    }


SERVED = replace(
    TYPES,
    inputs=[replace(spec, shape=() if spec.shape == (1,) else spec.shape) for spec in TYPES.inputs],
    outputs=[replace(spec, shape=() if spec.shape == (1,) else spec.shape) for spec in TYPES.outputs],
    max_batch_size=None,
)
"""The same model as TensorFlow Serving describes it: a scalar a row has no shape, and there is no limit."""


@pytest.fixture
def described(request: pytest.FixtureRequest) -> ModelSpec:
    return SERVED if "[tfserving" in request.node.name else TYPES


@pytest.fixture(params=["fake", "triton", "tfserving"])
def make(request: pytest.FixtureRequest) -> Iterator[Callable[..., ModelServer]]:
    if request.param == "tfserving":
        address = request.getfixturevalue("tensorflow_serving")

        def served(name: str = "types", version: str | int = "latest") -> ModelServer:
            config = Model(server="tfserving", address=address, name=name, version=version, timeout="10s")
            return TensorFlowServing(config)

        yield served
    elif request.param == "fake":

        def fake(name: str = "types", version: str | int = "latest") -> ModelServer:
            server = FakeServer(TYPES, change)
            if name != "types" or version not in ("latest", 1):
                server.absent = f"model {name!r} version {version} is not there"
            return server

        yield fake
    else:
        address = request.getfixturevalue("triton").address

        def real(name: str = "types", version: str | int = "latest") -> ModelServer:
            return TritonServer(Model(address=address, name=name, version=version, timeout="10s"))

        yield real


def asking(make: Callable[[], ModelServer], body: Callable[[ModelServer], Awaitable[object]]) -> object:
    async def run() -> object:
        server = make()
        try:
            return await body(server)
        finally:
            await server.close()

    return asyncio.run(run())


def rows(count: int, numbers: list[int] | None = None) -> dict[str, list[bytes]]:
    numbers = numbers or list(range(count))
    return {
        "count": [struct.pack("<q", n) for n in numbers],
        "flag": [struct.pack("<?", n % 2) for n in numbers],
        "matrix": [struct.pack("<4e", n % 8, 1, 2, 3) for n in numbers],
        "small": [struct.pack("<b", n % 100) for n in numbers],
        "text": [encode_bytes([f"é{n}".encode()]) for n in numbers],
        "vector": [struct.pack("<3d", n, 0.5, -n) for n in numbers],
    }


def test_it_describes_the_model(make: Callable[..., ModelServer], described: ModelSpec) -> None:
    assert asking(make, lambda server: server.describe()) == described


@pytest.mark.parametrize("count", [1, 2, 255, 256, 1000])
def test_every_type_comes_back_row_by_row(make: Callable[..., ModelServer], described: ModelSpec, count: int) -> None:
    prediction = asking(make, lambda server: server.infer(described, rows(count), count, OUTPUTS))
    assert prediction.version == "1"
    got = {name: array.reshape(count, -1) for name, array in prediction.outputs.items()}
    numbers = np.arange(count)
    assert got["count"][:, 0].tolist() == (numbers + 1).tolist()
    assert got["flag"][:, 0].tolist() == (numbers % 2 == 0).tolist()
    assert got["small"][:, 0].tolist() == (-(numbers % 100)).tolist()
    assert got["text"][:, 0].tolist() == [f"é{n}".encode().upper() for n in numbers]
    assert got["vector"].tolist() == [[2.0 * n, 1.0, -2.0 * n] for n in numbers]
    assert got["matrix"][:, 0].tolist() == [n % 8 for n in numbers]
    assert {name: array.dtype.str for name, array in prediction.outputs.items()} == {
        "count": "<i4", "flag": "|b1", "small": "|i1", "text": "|O", "vector": "<f8", "matrix": "<f2",
    }  # fmt: skip


def test_only_the_outputs_asked_for_come_back(make: Callable[..., ModelServer], described: ModelSpec) -> None:
    prediction = asking(make, lambda server: server.infer(described, rows(2), 2, ["small"]))
    assert list(prediction.outputs) == ["small"]


def test_many_calls_at_once_keep_their_rows(make: Callable[..., ModelServer], described: ModelSpec) -> None:
    async def many(server: ModelServer) -> list[list[int]]:
        asked = [list(range(start, start + 1 + start % 7)) for start in range(0, 400, 10)]
        answers = await asyncio.gather(
            *(server.infer(described, rows(len(numbers), numbers), len(numbers), ["count"]) for numbers in asked)
        )
        return [answer.outputs["count"].ravel().tolist() for answer in answers]

    assert asking(make, many) == [[n + 1 for n in range(s, s + 1 + s % 7)] for s in range(0, 400, 10)]


def test_refused_data_is_told_apart_and_fails_no_neighbour(
    make: Callable[..., ModelServer], described: ModelSpec
) -> None:
    async def both(server: ModelServer) -> list[object]:
        calls = [server.infer(described, rows(1, [n]), 1, ["count"]) for n in (1, -1, 2, -2, 3)]
        return await asyncio.gather(*calls, return_exceptions=True)

    answers = asking(make, both)
    assert [a.disposition if isinstance(a, InferenceError) else a.outputs["count"].item() for a in answers] == [
        2, Disposition.DATA, 3, Disposition.DATA, 4,
    ]  # fmt: skip
    assert "the count is negative" in str(answers[1])


@pytest.mark.parametrize(("name", "version"), [("none", "latest"), ("types", 7)])
def test_a_model_that_is_not_there_is_absent(
    make: Callable[..., ModelServer], described: ModelSpec, name: str, version: int
) -> None:
    for body in (lambda s: s.describe(), lambda s: s.infer(described, rows(1), 1, ["count"])):
        with pytest.raises(InferenceError) as caught:
            asking(partial(make, name, version), body)
        assert caught.value.disposition is Disposition.ABSENT
        assert name in str(caught.value)
