"""Sends events when they are due. A process of its own: nothing else may make it late.

Reads a line for each change: `rate 1500`, and `end`. Writes a line of JSON every second, and the last one at the end.
"""

import contextlib
import gc
import os
import time
from itertools import count, cycle
from pathlib import Path

from confluent_kafka import Producer
from hdrh.histogram import HdrHistogram

from loadtest.load.orders import Orders, tell
from loadtest.load.plan import Spacing
from loadtest.load.settings import INTENDED, LONGEST_US, Settings

_LOOK = 0.02  # between two looks at what it is told, and at what Kafka refuses
_REST = 0.0004  # the shortest sleep: so late an event may be sent, and waking up is most of what the sender costs


def main() -> None:
    """Send until told to end."""
    settings = Settings.of_command_line()
    # Not to wait for a core behind what it measures; only root may. The client's threads come before others too, and
    # the one that sends before all: it sleeps most of the time.
    with contextlib.suppress(OSError):
        os.nice(-10)
    producer = Producer(
        {
            "bootstrap.servers": settings.bootstrap,
            "linger.ms": settings.linger_ms,
            "batch.size": 512 * 1024,
            "queue.buffering.max.messages": 1_000_000,
            # What is sent twice or in another order must not be ours. Idempotence would see to it too, but with five
            # requests at once, for which events then wait.
            "message.send.max.retries": 0,
            "delivery.report.only.error": True,
            **settings.security,
        }
    )
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    gc.disable()  # it makes no cycles, and looking for them takes milliseconds
    values = cycle([line.encode() for line in Path(settings.events).read_text().splitlines() if line])
    delays = HdrHistogram(1, LONGEST_US, 3)
    clock, orders = time.time, Orders()
    spacing = Spacing(settings.poisson, settings.seed, clock())
    numbers = count()
    sending: dict[int, int] = {}
    late: dict[int, int] = {}
    prefix, total, ended = f"{settings.run}-", 0, False
    limit = settings.late_ms * 1000
    told = looked = clock()
    refused: list[str] = []  # never sent, or not acknowledged; the receiver will miss them, as it should
    while not ended:
        now = clock()
        for at in spacing.due(now):
            number = next(numbers)
            try:
                producer.produce(
                    settings.source,
                    next(values),
                    f"{prefix}{number}",
                    number % settings.partitions,
                    timestamp=int(at * 1000),
                    headers=[(INTENDED, b"%d" % (at * 1e9))],
                    on_delivery=lambda error, _: refused.append(error.str()),
                )
            except BufferError:
                refused.append("the producer's queue is full")
            second, delay = int(at), int((clock() - at) * 1e6)
            delays.record_value(max(1, delay))
            sending[second] = sending.get(second, 0) + 1
            if delay > limit:
                late[second] = late.get(second, 0) + 1
            total += 1
        if now - looked >= _LOOK:
            looked = now
            producer.poll(0)
            match orders.next():
                case ["rate", rate]:
                    spacing.set_rate(float(rate), clock())
                case ["end", *_]:
                    ended = True
        if now - told >= 1:
            told = now
            tell({"sent": total, "sending": sending, "late": late})
            sending, late = {}, {}
        time.sleep(max(_REST, min(_LOOK, spacing.wait(clock()))))
    unsent = len(refused) + producer.flush(60)
    final = {"refused": unsent, "why": refused[:1], "delays": delays.encode().decode()}
    tell({"sent": total, "sending": sending, "late": late, **final})


if __name__ == "__main__":
    main()
