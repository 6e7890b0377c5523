"""ONNX models behind the real Triton, asked by the bridge's own client."""

import asyncio
import struct

import numpy as np

from bridge.config.model import Model
from bridge.infer import Disposition, InferenceError
from bridge.infer.triton import TritonServer
from bridge.tensors import encode_bytes
from headrace.rig.triton import TritonRig


def rows(counts: list[int]) -> dict[str, list[bytes]]:
    return {
        "count": [struct.pack("<q", n) for n in counts],
        "flag": [struct.pack("<?", n % 2) for n in counts],
        "matrix": [struct.pack("<4e", n, 1, 2, 3) for n in counts],
        "text": [encode_bytes([f"é{n}".encode()]) for n in counts],
        "vector": [struct.pack("<3d", n, 0.5, -n) for n in counts],
    }


def test_every_type_goes_through_and_what_is_refused_fails_no_neighbour(triton: TritonRig) -> None:
    outputs = ["double", "found", "halves", "other", "same"]

    async def asked() -> None:
        server = TritonServer(Model(address=triton.address, name="onnx_types", timeout="10s"))
        try:
            spec = await server.describe()
            assert [str(item.name) for item in spec.outputs] == outputs
            answer = await server.infer(spec, rows([0, 1, 2]), 3, outputs)
            got = {name: array.reshape(3, -1) for name, array in answer.outputs.items()}
            assert got["found"][:, 0].tolist() == [10, 20, 30]
            assert got["same"][:, 0].tolist() == ["é0".encode(), "é1".encode(), "é2".encode()]
            assert got["other"][:, 0].tolist() == [True, False, True]
            np.testing.assert_array_equal(got["double"], [[0, 1, 0], [2, 1, -2], [4, 1, -4]])
            calls = [server.infer(spec, rows([n]), 1, ["found"]) for n in (1, 7, 2, 9, 0)]
            answers = await asyncio.gather(*calls, return_exceptions=True)
            assert [a.disposition if isinstance(a, InferenceError) else a.outputs["found"].item() for a in answers] == [
                20, Disposition.DATA, 30, Disposition.DATA, 10,
            ]  # fmt: skip
            assert "indices element out of data bounds" in str(answers[1])
        finally:
            await server.close()

    asyncio.run(asked())
