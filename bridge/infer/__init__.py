"""Calls to the model server, behind a Protocol of a few methods."""

from collections.abc import Sequence
from typing import Protocol

from bridge.infer.errors import Disposition, InferenceError
from bridge.record import Prediction, Rows
from bridge.tensors import ModelSpec


class ModelServer(Protocol):
    """A server that hosts one model in versions. Every method raises `InferenceError` and nothing else."""

    async def describe(self) -> ModelSpec:
        """What the server says of the model now; also how to ask whether it is ready."""
        ...

    async def infer(self, model: ModelSpec, rows: Rows, count: int, outputs: Sequence[str]) -> Prediction:
        """One call.

        Args:
            model: as `describe` gave it.
            rows: for each input of `model`, the bytes of `count` rows.
            count: rows of the call, at least 1.
            outputs: the output tensors to return.

        Returns:
            The outputs, each with exactly `count` rows.
        """
        ...

    async def close(self) -> None:
        """Let go of the connection."""
        ...


__all__ = ["Disposition", "InferenceError", "ModelServer"]
