"""Load tests and benchmarks. Nothing of the product imports this."""
