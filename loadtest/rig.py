"""What the measurements share: events of 30 numbers, a dense model on Triton, and a bridge between them."""

import os
import subprocess
import sys
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import yaml
from aiokafka import AIOKafkaProducer

from bridge.config.model import Kafka
from headrace.rig.process import ServerProcess
from headrace.rig.topics import create_topics

FEATURES = 30
PARTITIONS = 6
_MODEL = """
import numpy as np, sys, tensorflow as tf
rng = np.random.default_rng(1)
class Dense(tf.Module):
    def __init__(self):
        self.first = tf.Variable(rng.normal(0, 0.2, (30, 64)).astype("f"))
        self.second = tf.Variable(rng.normal(0, 0.2, (64, 1)).astype("f"))
    @tf.function(input_signature=[tf.TensorSpec([None, 30], tf.float32, "features")])
    def score(self, features):
        return {"score": tf.sigmoid(tf.nn.relu(features @ self.first) @ self.second)[:, 0]}
    @tf.function(input_signature=[tf.TensorSpec([None, 30], tf.float32, "features")])
    def picky(self, features):
        with tf.control_dependencies([tf.debugging.assert_less(features, 1e6, "a feature is out of range")]):
            return self.score(features)
module = Dense()
for name in ("score", "picky"):
    tf.saved_model.save(module, f"{sys.argv[1]}/{name}", signatures={"serving_default": getattr(module, name)})
"""


def make_model(folder: Path, picky: bool = False) -> None:
    """A model folder with one version of a network 30-64-1.

    Args:
        folder: of the model.
        picky: whether it refuses rows with a value of a million or more, as a poison event has.
    """
    version = folder / "1" / "model.savedmodel"
    made = folder.parent / f".{folder.name}"
    subprocess.run([sys.executable, "-c", _MODEL, str(made)], check=True, capture_output=True)
    version.parent.mkdir(parents=True)
    (made / ("picky" if picky else "score")).rename(version)
    (folder / "config.pbtxt").write_text('platform: "tensorflow_savedmodel"\n')


def payloads(form: str = "json") -> list[bytes]:
    """2,000 events."""
    values = np.random.default_rng(7).normal(0, 1, (2000, FEATURES))
    if form == "raw":
        return [row.astype("<f4").tobytes() for row in values]
    return [orjson.dumps({f"f{n}": value for n, value in enumerate(row)}) for row in values.tolist()]


def poisoned(event: bytes) -> bytes:
    """The same event, one that a picky model refuses."""
    return orjson.dumps(orjson.loads(event) | {"f0": 1e9})


async def write_events(
    bootstrap: str, topic: str, events: int, form: str = "json", poison: Collection[int] = ()
) -> None:
    """Fill a new topic; event n is in partition n modulo `PARTITIONS`, under the key n.

    Args:
        bootstrap: the brokers.
        topic: its name.
        events: how many.
        form: json or raw.
        poison: which of them a picky model refuses.
    """
    await create_topics(Kafka(bootstrap_servers=bootstrap), {topic: PARTITIONS})
    values = payloads(form)
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, max_batch_size=512 * 1024)
    await producer.start()
    now = int(time.time() * 1000)
    for partition in range(PARTITIONS):
        builder = producer.create_batch()
        for number in range(partition, events, PARTITIONS):
            value = values[number % len(values)]
            if number in poison:
                value = poisoned(value)
            record = {"timestamp": now, "key": str(number).encode(), "value": value, "headers": []}
            if builder.append(**record) is None:
                await (await producer.send_batch(builder, topic, partition=partition))
                builder = producer.create_batch()
                builder.append(**record)
        await (await producer.send_batch(builder, topic, partition=partition))
    await producer.stop()


def pipeline(
    bootstrap: str, model: str, source: str, target: str, sections: dict[str, Any] | None = None
) -> dict[str, Any]:
    """A configuration from `source` to `target`, whose name is `target` too."""
    sections = sections or {}
    config: dict[str, Any] = {
        "name": target,
        "kafka": {"bootstrap_servers": bootstrap},
        "source": {"topics": [source]},
        "model": {"address": model, "name": "dense"},
        "result": {"topic": target},
        "dead_letter": {"topic": f"{target}-dead"},
        "observe": {"address": "127.0.0.1:0"},
        **sections,
    }
    if sections.get("event", {}).get("format") != "raw":
        config["model"]["inputs"] = {"features": [f"f{n}" for n in range(FEATURES)]}
    return config


def start_bridge(config: dict[str, Any], home: Path) -> ServerProcess:
    """`headrace run` with this configuration, not waited for; its log is `home`/NAME.log."""
    path = home / f"{config['name']}.yaml"
    path.write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "headrace", "run", str(path)]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    return ServerProcess("the bridge", command, home / f"{config['name']}.log", environment)
