"""Reads every outcome, and when it came. A process of its own, so that reading waits for nothing.

Writes `ready` once it reads, then a line of JSON ten times a second: the latencies of what came. Told `end N` it waits
until the outcomes of N events are there, or none comes any more, and writes what is wrong with them.
"""

import contextlib
import math
import os
import time

import orjson
from confluent_kafka import Consumer, TopicPartition
from hdrh.histogram import HdrHistogram

from loadtest.load.orders import Orders, tell
from loadtest.load.reading import Reading
from loadtest.load.settings import AWAY, LONGEST_US, Settings

_TELL = 0.1
_MOST = 200  # at one look, so that the next one is soon


def main() -> None:
    """Read until told to end."""
    settings = Settings.of_command_line()
    with contextlib.suppress(OSError):
        os.nice(-10)  # not to wait for a core behind what it measures; only root may
    consumer = _consumer(settings)
    reading, orders = Reading(settings), Orders()
    print("ready", flush=True)
    busy = HdrHistogram(1, LONGEST_US, 3)  # between two looks: what comes meanwhile is read so much later
    looks = away = 0
    told = time.time()
    expected: int | None = None
    earliest = latest = math.inf  # to end
    while time.monotonic() < latest:
        first = consumer.poll(0.02)  # to ask for many would wait for many
        now, before = time.time(), reading.received
        for message in [first, *consumer.consume(_MOST, 0)] if first else []:
            reading.take(message, now)
        if now - told >= _TELL:
            if first and first.error() is None and first.topic() == settings.result:
                reading.note_version(str(orjson.loads(first.value()).get("model_version")), now)
            tell({"second": int(now), "counts": reading.fresh(), "looks": looks, "away": away})
            told, looks, away = now, 0, 0
        match orders.next():
            case ["end", count]:
                expected = int(count)
                earliest = time.monotonic() + 1.0  # for what may come twice
        if first:
            took = max(1, int((time.time() - now) * 1e6))
            busy.record_value(took)
            looks, away = looks + 1, away + (took > settings.late_ms * AWAY * 1000)
        # Others' outcomes do not count: there may always be more of them.
        if expected is not None and (reading.received > before or latest == math.inf):
            latest = time.monotonic() + settings.patience
        if expected is not None and reading.complete(expected) and time.monotonic() > earliest:
            break
    tell({"second": int(time.time()), "counts": reading.fresh(), "looks": looks, "away": away})
    tell({**reading.verdict(expected or 0), "busy": busy.encode().decode()})
    consumer.close()


def _consumer(settings: Settings) -> Consumer:
    """Of both topics, from their ends on: what came before is not ours."""
    consumer = Consumer(
        {
            "bootstrap.servers": settings.bootstrap,
            "group.id": f"loadtest-{settings.run}",
            "isolation.level": "read_committed",
            "fetch.wait.max.ms": 10,
            "enable.auto.commit": False,
            **settings.security,
        }
    )
    places = []
    for topic in (settings.result, settings.dead_letter):
        for number in consumer.list_topics(topic, 10).topics[topic].partitions:
            place = TopicPartition(topic, number)
            place.offset = consumer.get_watermark_offsets(place, timeout=10)[1]
            places.append(place)
    consumer.assign(places)
    return consumer


if __name__ == "__main__":
    main()
