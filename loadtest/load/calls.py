"""Calls of a model server over gRPC, as a TritonUser makes them; with the messages that the bridge uses."""

import json
from pathlib import Path

import grpc
import numpy as np

from bridge.infer._pb import inference_v2_pb2 as pb
from bridge.infer.triton import SERVICE
from bridge.tensors import DATA_TYPES


class Caller:
    """Asks one model.

    Args:
        address: host:port.
        model: its name.
        rows: in each call.
        events: file with events; their numbers fill the first input. Empty: zeros.
    """

    def __init__(self, address: str, model: str, rows: int, events: str) -> None:
        self.rows = rows
        channel = grpc.insecure_channel(address)
        describe = channel.unary_unary(
            f"{SERVICE}ModelMetadata", pb.ModelMetadataRequest.SerializeToString, pb.ModelMetadataResponse.FromString
        )
        self._infer = channel.unary_unary(
            f"{SERVICE}ModelInfer", pb.ModelInferRequest.SerializeToString, pb.ModelInferResponse.FromString
        )
        request = pb.ModelInferRequest(model_name=model)
        for item in describe(pb.ModelMetadataRequest(name=model), timeout=10).inputs:
            shape = (rows, *item.shape[1:])
            values = _values(events, shape) if events else np.zeros(shape)
            request.inputs.add(name=item.name, datatype=item.datatype, shape=shape)
            request.raw_input_contents.append(values.astype(DATA_TYPES[item.datatype].numpy).tobytes())
        self._request = request

    def ask(self) -> None:
        """One call."""
        self._infer(self._request, timeout=30)


def _values(events: str, shape: tuple[int, ...]) -> np.ndarray:  # type: ignore[type-arg]
    numbers = [
        float(value)
        for line in Path(events).read_text().splitlines()[: shape[0]]
        for value in json.loads(line).values()
        if isinstance(value, int | float)
    ]
    return np.resize(np.array(numbers or [0.0]), shape)
