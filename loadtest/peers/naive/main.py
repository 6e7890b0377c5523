"""One record, one call, one acknowledged write: what most tutorials show first.

main.py BROKERS SOURCE TARGET MODEL_ADDRESS MODEL FEATURES
"""

import asyncio
import json
import sys

import numpy as np
import tritonclient.grpc.aio as triton
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

brokers, source, target, address, model, features = sys.argv[1:7]
fields = [f"f{n}" for n in range(int(features))]


async def main() -> None:
    """Until it is terminated."""
    client = triton.InferenceServerClient(address)
    consumer = AIOKafkaConsumer(source, bootstrap_servers=brokers, group_id=target, auto_offset_reset="earliest")
    producer = AIOKafkaProducer(bootstrap_servers=brokers)
    await consumer.start()
    await producer.start()
    print("ready", flush=True)
    async for message in consumer:
        document = json.loads(message.value)
        tensor = triton.InferInput("features", [1, len(fields)], "FP32")
        tensor.set_data_from_numpy(np.array([[document[field] for field in fields]], dtype=np.float32))
        answer = await client.infer(model, [tensor])
        result = {"score": float(answer.as_numpy("score").ravel()[0]), "model": model}
        await producer.send_and_wait(target, json.dumps(result).encode(), message.key, message.partition)


asyncio.run(main())
