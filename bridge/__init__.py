"""Kafka -> batches -> a model server over gRPC -> Kafka, with exactly one outcome for every event.

The way of an event: source -> decode -> batch -> infer -> encode -> sink. Acknowledgements flow back as calls on
the offsets tracker. This package never imports the model side (`serving`) nor the command line (`headrace`).
"""
