"""The loop that a good engineer writes in an hour: consume up to 1,000, one call, produce. No guarantee at all.

main.py BROKERS SOURCE TARGET MODEL_ADDRESS MODEL FEATURES
"""

import sys

import grpc
import numpy as np
import orjson
from confluent_kafka import Consumer, Producer
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

brokers, source, target, address, model, features = sys.argv[1:7]
fields = [f"f{n}" for n in range(int(features))]
stub = service_pb2_grpc.GRPCInferenceServiceStub(grpc.insecure_channel(address))
consumer = Consumer({"bootstrap.servers": brokers, "group.id": target, "auto.offset.reset": "earliest"})
producer = Producer({"bootstrap.servers": brokers, "linger.ms": 5, "queue.buffering.max.messages": 1_000_000})
consumer.subscribe([source])
print("ready", flush=True)
while True:
    messages = consumer.consume(1000, 0.05)
    if not messages:
        continue
    documents = [orjson.loads(message.value()) for message in messages]
    rows = np.array([[document[field] for field in fields] for document in documents], dtype=np.float32)
    request = pb.ModelInferRequest(model_name=model, raw_input_contents=[rows.tobytes()])
    request.inputs.add(name="features", datatype="FP32", shape=rows.shape)
    answer = stub.ModelInfer(request)
    scores = np.frombuffer(answer.raw_output_contents[0], np.float32).tolist()
    for message, score in zip(messages, scores, strict=True):
        value = orjson.dumps({"score": score, "model": model, "model_version": answer.model_version})
        producer.produce(target, value, message.key(), message.partition(), timestamp=message.timestamp()[1])
    producer.poll(0)
