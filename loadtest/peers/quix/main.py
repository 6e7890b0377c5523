"""Quix Streams: its pipelines handle one event at a time, so each is a call of its own.

main.py BROKERS SOURCE TARGET MODEL_ADDRESS MODEL FEATURES
"""

import sys
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from quixstreams import Application

brokers, source, target, address, model, features = sys.argv[1:7]
fields = [f"f{n}" for n in range(int(features))]
client = triton.InferenceServerClient(address)


def score(event: dict[str, Any]) -> dict[str, Any]:
    """One call for an event."""
    tensor = triton.InferInput("features", [1, len(fields)], "FP32")
    tensor.set_data_from_numpy(np.array([[event[field] for field in fields]], dtype=np.float32))
    answer = client.infer(model, [tensor])
    return {"score": float(answer.as_numpy("score").ravel()[0]), "model": model}


app = Application(broker_address=brokers, consumer_group=target, auto_offset_reset="earliest", auto_create_topics=False)
events = app.topic(source, value_deserializer="json", key_deserializer="bytes")
scores = app.topic(target, value_serializer="json", key_serializer="bytes")
app.dataframe(events).apply(score).to_topic(scores)
print("ready", flush=True)
app.run()
