"""The command line, the rig of one machine (a real Kafka, a real Triton) and the demo.

The only package that knows both the bridge and the model side.
"""
