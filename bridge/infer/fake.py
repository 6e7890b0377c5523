"""A model server inside the process: fast, deterministic, and held to the same contract suite as the real one."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bridge.infer.errors import Disposition, InferenceError
from bridge.record import Prediction, Rows
from bridge.tensors import DATA_TYPES, ModelSpec, decode_bytes

Function = Callable[[Mapping[str, npt.NDArray[Any]]], Mapping[str, npt.NDArray[Any]]]


class FakeServer:
    """`ModelServer` around a Python function.

    Args:
        model: what `describe` answers.
        function: input arrays of shape (rows, ...) -> output arrays.

    Attributes:
        script: errors to raise, one for each coming call of `infer`, before the function is asked again.
        version: the version that answers carry.
        available: while cleared, `describe` and `infer` fail as an unreachable server does.
        absent: a sentence, when the model is not loaded.
        gate: while cleared, answers are held back.
        calls: rows of each call so far.
    """

    def __init__(self, model: ModelSpec, function: Function) -> None:
        self.model = model
        self.function = function
        self.script: list[InferenceError] = []
        self.version = model.versions[-1] if model.versions else "1"
        self.available = True
        self.absent = ""
        self.gate = asyncio.Event()
        self.gate.set()
        self.calls: list[int] = []

    async def describe(self) -> ModelSpec:
        """See `ModelServer`."""
        self._check_available()
        return self.model

    async def infer(self, model: ModelSpec, rows: Rows, count: int, outputs: Sequence[str]) -> Prediction:
        """See `ModelServer`."""
        self.calls.append(count)
        await self.gate.wait()
        self._check_available()
        if self.script:
            raise self.script.pop(0)
        arrays: dict[str, npt.NDArray[Any]] = {}
        for spec in model.inputs:
            payload = b"".join(rows[spec.name])
            flat = decode_bytes(payload) if spec.datatype == "BYTES" else None
            if flat is None:
                flat = np.frombuffer(payload, dtype=DATA_TYPES[spec.datatype].numpy)
            arrays[spec.name] = flat.reshape(count, *spec.shape)
        answers = self.function(arrays)
        for name in outputs:
            if name not in answers or len(answers[name]) != count:
                raise InferenceError(Disposition.RETRY, "BAD_ANSWER", f"the fake answered {name!r} wrongly")
        return Prediction({name: answers[name] for name in outputs}, self.version)

    async def close(self) -> None:
        """See `ModelServer`."""

    def _check_available(self) -> None:
        if not self.available:
            raise InferenceError(Disposition.RETRY, "UNAVAILABLE", "the fake server is away")
        if self.absent:
            raise InferenceError(Disposition.ABSENT, "NOT_FOUND", self.absent)

    def __repr__(self) -> str:
        return f"<FakeServer {self.model.name} version={self.version} calls={len(self.calls)}>"
