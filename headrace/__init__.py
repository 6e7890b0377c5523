"""The command line, the rig of one machine (a real Kafka, a real Triton) and the demo.

The only package that knows both the bridge and the model side.
"""

import os

# A server is started by fork and exec. In between gRPC's handlers of forks would run, in a process whose threads are
# gone, and can end it. Set before gRPC is loaded.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
