"""Faust, batched by its `take_events`, one call for a batch; each batch is acknowledged before the next begins.

main.py BROKERS SOURCE TARGET MODEL_ADDRESS MODEL FEATURES
"""

import asyncio
import sys
from typing import Any

import faust
import numpy as np
import orjson
import tritonclient.grpc.aio as triton

brokers, source, target, address, model, features = sys.argv[1:7]
fields = [f"f{n}" for n in range(int(features))]
app = faust.App(
    target,
    broker=[f"kafka://{broker}" for broker in brokers.split(",")],
    store="memory://",
    datadir=f"{target}-faust",  # in the working folder, which goes away
    consumer_auto_offset_reset="earliest",
    topic_partitions=6,
)
events = app.topic(source, key_type=bytes, value_type=bytes, key_serializer="raw", value_serializer="raw")
scores = app.topic(target, key_type=bytes, value_type=bytes, key_serializer="raw", value_serializer="raw")


@app.agent(events)
async def score(stream: Any) -> None:
    """One call for a batch."""
    client = triton.InferenceServerClient(address)
    async for batch in stream.take_events(256, within=0.02):
        documents = [orjson.loads(event.value) for event in batch]
        rows = np.array([[document[field] for field in fields] for document in documents], dtype=np.float32)
        tensor = triton.InferInput("features", rows.shape, "FP32")
        tensor.set_data_from_numpy(rows)
        answer = await client.infer(model, [tensor])
        sent = []
        # Sent one after the other: when they are gathered, Faust loses the order of a partition.
        for event, value in zip(batch, answer.as_numpy("score").ravel().tolist(), strict=True):
            result = orjson.dumps({"score": value, "model": model})
            sent.append(await scores.send(key=event.key, value=result, partition=event.message.partition))
        await asyncio.gather(*sent)


@app.task
async def tell() -> None:
    """Say that it is ready; Faust makes log lines of what is printed in the usual way."""
    print("ready", file=sys.__stdout__, flush=True)


sys.argv[1:] = ["worker", "-l", "warn", "--without-web"]
app.main()
