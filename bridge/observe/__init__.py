"""What an operator sees of a pipeline: metrics, health over HTTP, and logs."""
