"""Faust, in batches by its `take`.

main.py BROKERS SOURCE TARGET MODEL_ADDRESS MODEL FEATURES
"""

import sys
import tempfile

import faust
import numpy as np
import tritonclient.grpc.aio as triton

brokers, source, target, address, model, features = sys.argv[1:7]
fields = [f"f{n}" for n in range(int(features))]
app = faust.App(
    target,
    broker=f"kafka://{brokers}",
    consumer_auto_offset_reset="earliest",
    topic_disable_leader=True,
    web_enabled=False,
    datadir=tempfile.mkdtemp(),
)
events = app.topic(source, value_type=dict, value_serializer="json", key_type=bytes, key_serializer="raw")
scores = app.topic(target, value_serializer="json", key_type=bytes, key_serializer="raw")


@app.agent(events)
async def score(stream: faust.Stream) -> None:
    """One call for a batch."""
    client = triton.InferenceServerClient(address)
    async for batch in stream.take_events(256, within=0.01):
        rows = np.array([[event.value[field] for field in fields] for event in batch], dtype=np.float32)
        tensor = triton.InferInput("features", list(rows.shape), "FP32")
        tensor.set_data_from_numpy(rows)
        answer = (await client.infer(model, [tensor])).as_numpy("score").ravel().tolist()
        for event, value in zip(batch, answer, strict=True):
            await scores.send(key=event.key, value={"score": value, "model": model})


@app.task
async def ready() -> None:
    """Say so."""
    print("ready", flush=True)


sys.argv = ["faust", "worker", "--loglevel", "warn", "--without-web"]
app.main()
