"""MLServer and its Kafka server, with the model in its own process, as it is meant to be.

It takes requests of the Open Inference Protocol only, so events are turned into such on the way in; it has no consumer
group and begins at a topic's end, which is changed here too, since it could not be measured otherwise.

main.py BROKERS SOURCE TARGET MODEL_ADDRESS MODEL FEATURES
"""

import asyncio
import dataclasses
import logging
import socket
import sys
from itertools import pairwise
from typing import Any

import mlserver.server
import numpy as np
import orjson
from aiokafka import AIOKafkaConsumer
from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.codecs import NumpyCodec
from mlserver.kafka import KafkaServer
from mlserver.settings import ModelParameters
from mlserver.types import InferenceRequest, InferenceResponse

brokers, source, target, _, name, features = sys.argv[1:7]
fields = [f"f{n}" for n in range(int(features))]


class Dense(MLModel):
    """The network that the others ask for, features-64-1, of the same numbers."""

    async def load(self) -> bool:
        """Make the weights."""
        rng = np.random.default_rng(1)
        sizes = [len(fields), 64, 1]
        self.layers = [rng.normal(0, a**-0.5, (a, b)).astype("f") for a, b in pairwise(sizes)]
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Score the rows of a request."""
        rows = NumpyCodec.decode_input(payload.inputs[0])
        hidden = np.maximum(rows @ self.layers[0], 0)
        scores = 1 / (1 + np.exp(-(hidden @ self.layers[1])))
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("score", scores)])


class FromTheStart(KafkaServer):
    """A member of a group that begins at the start and takes plain events."""

    def _create_server(self) -> None:
        super()._create_server()
        self._consumer = AIOKafkaConsumer(
            source, bootstrap_servers=brokers, group_id=target, auto_offset_reset="earliest"
        )

    async def _consumer_loop(self) -> None:
        while not self._consumer.assignment():  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0.05)
        print("ready", flush=True)
        await super()._consumer_loop()

    async def _process_request(self, record: Any) -> None:
        event = orjson.loads(record.value)
        data = [event[field] for field in fields]
        request = {"inputs": [{"name": "features", "shape": [1, len(fields)], "datatype": "FP32", "data": data}]}
        headers = [("mlserver-model", name.encode())]
        await super()._process_request(dataclasses.replace(record, value=orjson.dumps(request), headers=headers))


def free_port() -> int:
    """For servers that nobody asks, but that MLServer always starts."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


async def main() -> None:
    """Until it is terminated."""
    settings = Settings(
        host="127.0.0.1",
        http_port=free_port(),
        grpc_port=free_port(),
        metrics_endpoint=None,
        parallel_workers=0,
        load_models_at_startup=False,
        kafka_enabled=True,
        kafka_servers=brokers,
        kafka_topic_input=source,
        kafka_topic_output=target,
    )
    server = MLServer(settings)
    logging.getLogger("mlserver").setLevel(logging.WARNING)  # it tells of every message
    logging.getLogger("mlserver.kafka").setLevel(logging.WARNING)
    await server.start([ModelSettings(name=name, implementation=Dense, parameters=ModelParameters(version="1"))])


mlserver.server.KafkaServer = FromTheStart
asyncio.run(main())
