"""A V2 inference server made of the official messages (tritonclient's), scripted by a test.

That the bridge's own messages talk with it shows that they are the same on the wire.
"""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import grpc.aio
import numpy as np
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc as pb_grpc

Answer = Callable[[np.ndarray], Any]


class V2Server(pb_grpc.GRPCInferenceServiceServicer):
    """One input x FP32[-1, 1], one output y; `answer` makes y's array from x's, or a whole response, or raises."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.calls = 0
        self.version = "1"
        self.datatype = "FP32"  # of x, as the metadata tells it

    async def ModelReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        return pb.ModelReadyResponse(ready=True)

    async def ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        tensor = pb.ModelMetadataResponse.TensorMetadata
        return pb.ModelMetadataResponse(
            name=request.name,
            versions=[self.version],
            inputs=[tensor(name="x", datatype=self.datatype, shape=[-1, 1])],
            outputs=[tensor(name="y", datatype="FP32", shape=[-1, 1])],
        )

    async def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.calls += 1
        rows = np.frombuffer(request.raw_input_contents[0], "<f4").reshape(request.inputs[0].shape)
        try:
            answer = self.answer(rows)
        except grpc.RpcError as error:
            await context.abort(error.args[0], "scripted")
        if asyncio.iscoroutine(answer):
            answer = await answer
        if isinstance(answer, pb.ModelInferResponse):
            return answer
        return response(answer, self.version)


def response(array: np.ndarray, version: str = "1", name: str = "y") -> Any:
    """An answer with one output."""
    made = pb.ModelInferResponse(model_name="m", model_version=version)
    made.outputs.add(name=name, datatype="FP32", shape=array.shape)
    made.raw_output_contents.append(array.astype("<f4").tobytes())
    return made


def refuse(code: grpc.StatusCode) -> Answer:
    """An answer that is an error."""

    def answer(_: np.ndarray) -> Any:
        raise grpc.RpcError(code)

    return answer


@contextmanager
def v2_server(answer: Answer, credentials: grpc.ServerCredentials | None = None) -> Iterator[tuple[V2Server, str]]:
    """A running server and its address; it lives in a thread with a loop of its own."""
    servicer = V2Server(answer)
    started: dict[str, Any] = {}
    ready = threading.Event()

    async def serve() -> None:
        server = grpc.aio.server()
        pb_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
        if credentials is None:
            port = server.add_insecure_port("127.0.0.1:0")
        else:
            port = server.add_secure_port("127.0.0.1:0", credentials)
        await server.start()
        started.update(port=port, loop=asyncio.get_running_loop(), stop=asyncio.Event())
        ready.set()
        await started["stop"].wait()
        await server.stop(None)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    ready.wait()
    try:
        yield servicer, f"127.0.0.1:{started['port']}"
    finally:
        started["loop"].call_soon_threadsafe(started["stop"].set)
        thread.join()
