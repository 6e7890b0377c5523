"""Real servers on this machine: Kafka from Maven's jars on a Java out of a wheel, Triton out of a wheel."""
