"""The demo: real data through a real Kafka and a real Triton, with a new model version on the way, and checked."""
