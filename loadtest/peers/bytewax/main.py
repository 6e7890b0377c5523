"""Bytewax, batched by its `collect` operator, as its documentation advises for calls to other services.

main.py BROKERS SOURCE TARGET MODEL_ADDRESS MODEL FEATURES
"""

import sys
from collections.abc import Iterator
from datetime import timedelta

import bytewax.operators as op
import grpc
import numpy as np
import orjson
from bytewax.connectors.kafka import KafkaSinkMessage, KafkaSourceMessage
from bytewax.connectors.kafka import operators as kafka
from bytewax.dataflow import Dataflow
from bytewax.run import cli_main
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

brokers, source, target, address, model, features = sys.argv[1:7]
fields = [f"f{n}" for n in range(int(features))]
stub = service_pb2_grpc.GRPCInferenceServiceStub(grpc.insecure_channel(address))


def score(keyed: tuple[str, list[KafkaSourceMessage]]) -> Iterator[KafkaSinkMessage]:
    """One call for a batch."""
    messages = keyed[1]
    documents = [orjson.loads(message.value) for message in messages]
    rows = np.array([[document[field] for field in fields] for document in documents], dtype=np.float32)
    request = pb.ModelInferRequest(model_name=model, raw_input_contents=[rows.tobytes()])
    request.inputs.add(name="features", datatype="FP32", shape=rows.shape)
    answer = stub.ModelInfer(request)
    scores = np.frombuffer(answer.raw_output_contents[0], np.float32).tolist()
    for message, value in zip(messages, scores, strict=True):
        yield KafkaSinkMessage(message.key, orjson.dumps({"score": value, "model": model}), partition=message.partition)


flow = Dataflow("scores")
events = kafka.input("events", flow, brokers=[brokers], topics=[source], batch_size=1000)
keyed = op.map("partition", events.oks, lambda message: (str(message.partition), message))
batches = op.collect("batch", keyed, timeout=timedelta(milliseconds=10), max_size=256)
kafka.output("scores", op.flat_map("score", batches, score), brokers=[brokers], topic=target)
print("ready", flush=True)
cli_main(flow, workers_per_process=1)
