"""What flows through a measurement: events of one kind, and the models that score them."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import orjson
from confluent_kafka import Producer

_DISTINCT = 2_000
_BATCH = 10_000
_LOOK = 0.02  # seconds between two looks at whether to stop
_REST = 0.0004  # so late an event may be written; what comes in lumps is batched better, and is no fixed rate
BUSY = 1_000.0
"""Events/s from which they are sent together, as anybody would."""
POISON = 1e9
"""The value of the first feature that a picky model refuses."""


class Events(Hashable, Protocol):
    """What may flow; event n has the key n, and is in partition n modulo `partitions`."""

    @property
    def partitions(self) -> int:
        """Of the topic."""
        ...

    @property
    def poison(self) -> float:
        """Share of events that the model refuses."""
        ...

    def topic(self, events: int) -> str:
        """A name for a topic with so many of these events."""
        ...

    def values(self) -> list[bytes]:
        """Events to repeat."""
        ...

    def poisoned(self, number: int) -> bool:
        """Whether event `number` is one that the model refuses."""
        ...


@dataclass(frozen=True)
class Workload:
    """Made-up `Events`.

    Attributes:
        form: JSON objects with fields f0, f1, …; or raw rows of little-endian floats.
        features: numbers in an event, rows of the model's only input.
        padding: bytes of a text field beside them; JSON only.
        partitions: of the topic.
        poison: share of events that the model refuses; needs the model `picky`.
        model: `dense` (features-64-1), `picky` (the same, refuses values above a million), `wide` (10 ms a batch).
    """

    form: Literal["json", "raw"] = "json"
    features: int = 30
    padding: int = 0
    partitions: int = 6
    poison: float = 0.0
    model: Literal["dense", "picky", "wide"] = "dense"

    @property
    def model_name(self) -> str:
        """The model's name in the repository."""
        return f"{self.model}-{self.features}"

    def topic(self, events: int) -> str:
        """See `Events`."""
        parts = (self.form, self.features, self.padding, self.partitions, self.poison, events)
        return "events-" + "-".join(map(str, parts))

    def values(self) -> list[bytes]:
        """See `Events`: 2,000, or fewer where they are large."""
        rows = np.random.default_rng(7).normal(0, 1, (max(50, min(_DISTINCT, 200_000 // self.features)), self.features))
        if self.form == "raw":
            return [row.astype("<f4").tobytes() for row in rows]
        text = {"text": "x" * self.padding} if self.padding else {}
        return [orjson.dumps({f"f{n}": value for n, value in enumerate(row)} | text) for row in rows.tolist()]

    def poisoned(self, number: int) -> bool:
        """See `Events`; spread evenly."""
        return int((number + 1) * self.poison) > int(number * self.poison)


def spoil(event: bytes) -> bytes:
    """The same JSON event, as one that a picky model refuses."""
    return orjson.dumps(orjson.loads(event) | {"f0": POISON})


def write_backlog(bootstrap: str, topic: str, workload: Events, events: int) -> None:
    """Fill a topic that exists."""
    producer = _producer(bootstrap, linger_ms=20)
    stamp = int(time.time() * 1000)
    value_of = _values(workload)
    for number in range(events):
        while True:
            try:
                producer.produce(topic, value_of(number), str(number), number % workload.partitions, timestamp=stamp)
                break
            except BufferError:
                producer.poll(0.1)
        if number % _BATCH == 0:
            producer.poll(0)
    _flush(producer)


def feed(
    bootstrap: str, topic: str, workload: Events, rate: float, seconds: float, stop: threading.Event | None = None
) -> tuple[float, int]:
    """Write at a fixed rate, whether anybody keeps up or not, for so many seconds or until `stop` is set.

    Returns:
        When the first event was due, in seconds since 1970, and how many were written: event n was due n / rate later.
    """
    producer = _producer(bootstrap, linger_ms=1 if rate < BUSY else 5)
    value_of = _values(workload)
    begun, written, events = time.time(), 0, int(rate * seconds)
    while written < events and not (stop and stop.is_set()):
        due = min(events, int((time.time() - begun) * rate) + 1)
        for number in range(written, due):
            stamp = int((begun + number / rate) * 1000)
            producer.produce(topic, value_of(number), str(number), number % workload.partitions, timestamp=stamp)
        written = due
        producer.poll(0)
        time.sleep(max(_REST, min(_LOOK, begun + written / rate - time.time())))
    _flush(producer)
    return begun, written


def _producer(bootstrap: str, linger_ms: int) -> Producer:
    return Producer(
        {
            "bootstrap.servers": bootstrap,
            "linger.ms": linger_ms,
            "batch.size": 512 * 1024,
            "message.max.bytes": 8 * 2**20,
            "queue.buffering.max.messages": 500_000,
        }
    )


def _flush(producer: Producer) -> None:
    left = producer.flush(120)
    if left:
        raise SystemExit(f"Kafka has not taken {left} events within 120 s")


def _values(workload: Events) -> Callable[[int], bytes]:
    """Event n's value, for any n."""
    values = workload.values()
    if not workload.poison:
        return lambda number: values[number % len(values)]
    spoilt = spoil(values[0])
    return lambda number: spoilt if workload.poisoned(number) else values[number % len(values)]


_CONFIG = """platform: "tensorflow_savedmodel"
version_policy { latest { num_versions: 2 } }
"""

_MAKE_MODELS = """
import json, sys
import numpy as np, tensorflow as tf

class Network(tf.Module):
    def __init__(self, features, widths, picky):
        rng = np.random.default_rng(1)
        sizes = [features, *widths, 1]
        self.layers = [tf.Variable(rng.normal(0, a ** -0.5, (a, b)).astype("f")) for a, b in zip(sizes, sizes[1:])]
        spec = tf.TensorSpec([None, features], tf.float32, "features")
        self.score = tf.function(self.guarded if picky else self.plain, input_signature=[spec])
    def plain(self, features):
        for layer in self.layers[:-1]:
            features = tf.nn.relu(features @ layer)
        return {"score": tf.sigmoid(features @ self.layers[-1])[:, 0]}
    def guarded(self, features):
        with tf.control_dependencies([tf.debugging.assert_less(features, 1e6, "a feature is out of range")]):
            return self.plain(features)

for model in json.loads(sys.argv[1]):
    network = Network(model["features"], model["widths"], model["picky"])
    tf.saved_model.save(network, model["folder"], signatures={"serving_default": network.score})
"""


def make_models(repository: Path, workloads: Sequence[Workload]) -> None:
    """One version of every model that these workloads need, in a model repository that does not exist yet."""
    models = []
    for workload in {w.model_name: w for w in workloads}.values():
        folder = repository / workload.model_name
        (folder / "1").mkdir(parents=True)
        (folder / "config.pbtxt").write_text(_CONFIG)
        models.append(
            {
                "folder": str(folder / "1" / "model.savedmodel"),
                "features": workload.features,
                "widths": [1024, 1024, 512] if workload.model == "wide" else [64],
                "picky": workload.model == "picky",
            }
        )
    done = subprocess.run([sys.executable, "-c", _MAKE_MODELS, json.dumps(models)], capture_output=True, check=False)
    if done.returncode:
        raise SystemExit(f"the models cannot be made:\n{done.stderr.decode()[-2000:]}")
