"""Dead letters that are sent back, each once: on a real Kafka, interrupted, filtered, and by two at a time."""

import asyncio
import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import yaml
from aiokafka import AIOKafkaProducer
from aiokafka.errors import InvalidProducerEpoch, ProducerFenced

from bridge.config import Pipeline, load
from bridge.dead_letters import LetterFilter, LetterReader
from bridge.errors import HeadraceError
from bridge.ledger import Ledger
from bridge.replay import Order, replay
from bridge.replayed import ReplayWriter, read_ledgers, replay_group, replay_writer
from tests.support import Broker, header, headrace, pipeline, running, until
from tests.v2_server import v2_server

REASONS = ("decode", "mapping", "model")


class Letters:
    """A pipeline whose dead-letter topic holds letters that were not written by a bridge."""

    def __init__(self, broker: Broker, folder: Path, count: int) -> None:
        self.broker = broker
        self.topics = broker.topics(partitions=3)
        document = pipeline(broker.bootstrap, "127.0.0.1:1", "m", self.topics)
        self.name = document["name"]
        self.path = folder / "pipeline.yaml"
        self.path.write_text(yaml.safe_dump(document))
        self.config: Pipeline = load(self.path)
        self.write(range(count))

    def write(self, numbers: range, **why: str) -> None:
        """Letters of events `n`: of partition n % 3, of reason n % 3, of version n % 2, ten seconds apart."""

        async def produce() -> None:
            producer = AIOKafkaProducer(bootstrap_servers=self.broker.bootstrap)
            await producer.start()
            for n in numbers:
                fields = {
                    "reason": REASONS[n % 3], "error": "it failed", "topic": self.topics["events"],
                    "partition": str(n % 3), "offset": str(n), "timestamp": str(1_000_000 + n * 10_000), "model": "m",
                    "model-version": str(n % 2), "attempts": "2", "pipeline": self.name,
                } | why  # fmt: skip
                headers = [("trace", b"t"), *((f"headrace-{name}", text.encode()) for name, text in fields.items())]
                await producer.send(self.topics["letters"], b"v%d" % n, b"%d" % n, headers=headers)
            await producer.stop()

        asyncio.run(produce())

    def replay(self, order: Order | None = None, **wanted: Any) -> int:
        done = asyncio.run(replay(self.config, order or Order(LetterFilter(self.name, **wanted))))
        return sum(done.replayed.values())

    def events(self) -> list[Any]:
        return self.broker.read(self.topics["events"])

    def sent(self) -> list[int]:
        return sorted(int(record.key) for record in self.events())


@pytest.fixture
def letters(broker: Broker, tmp_path: Path) -> Callable[[int], Letters]:
    return lambda count: Letters(broker, tmp_path, count)


def test_they_go_back_where_they_came_from_and_only_once(letters: Callable[[int], Letters]) -> None:
    w = letters(1200)
    assert w.replay() == 1200
    assert w.replay() == 0
    records = w.events()
    for record in records:
        n = int(record.key)
        assert (record.partition, record.value, record.timestamp) == (n % 3, b"v%d" % n, 1_000_000 + n * 10_000)
        assert dict(record.headers) == {
            "trace": b"t",
            "headrace-attempts": b"2",
            "headrace-letter": f"{w.topics['letters']}/0/{n}".encode(),
        }
    in_order = [[int(record.key) for record in records if record.partition == number] for number in range(3)]
    assert in_order == [list(range(number, 1200, 3)) for number in range(3)]
    w.write(range(1200, 1210))
    assert w.replay() == 10
    assert w.sent() == list(range(1210))


def test_filters_leave_the_others_for_later(letters: Callable[[int], Letters]) -> None:
    w = letters(60)
    w.write(range(60, 63), pipeline="another")
    assert w.replay(reason="model") == 20
    assert w.replay(since=1_000_000 + 30 * 10_000, until=1_000_000 + 40 * 10_000) == 7
    assert w.replay(model_version="1") == 16
    assert w.replay(partition=0) == 8
    assert w.replay(key=b"10") == 1
    assert w.sent() == sorted({n for n in range(60) if n % 3 == 2 or 30 <= n < 40 or n % 2 or n % 3 == 0 or n == 10})
    assert w.replay() == 60 - (20 + 7 + 16 + 8 + 1)
    assert w.sent() == list(range(60))
    assert w.replay() == 0  # those of the other pipeline are not ours


def test_what_is_killed_goes_on_where_it_was(letters: Callable[[int], Letters]) -> None:
    w = letters(400)
    command = [sys.executable, "-m", "headrace", "dlq", "replay", str(w.path), "--rate", "100"]
    for share in (0.2, 0.5):
        process = subprocess.Popen(command, start_new_session=True)
        until(lambda share=share: len(w.sent()) > share * 400)
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = headrace("dlq", "replay", str(w.path), "--json")
    assert done.returncode == 0, done.stderr
    assert 0 < json.loads(done.stdout)["replayed"] < 200
    assert w.sent() == list(range(400))


def test_a_second_replay_takes_over(letters: Callable[[int], Letters]) -> None:
    w = letters(400)
    process = subprocess.Popen(
        [sys.executable, "-m", "headrace", "dlq", "replay", str(w.path), "--rate", "50"],
        stderr=subprocess.PIPE,
        text=True,
    )
    until(lambda: len(w.sent()) > 50)
    assert w.replay() < 350
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "another replay of pipeline" in said, said
    assert "Traceback" not in said
    assert w.sent() == list(range(400))


def test_the_ledger_is_read_when_the_replay_before_can_add_nothing_to_it_any_more(
    letters: Callable[[int], Letters], monkeypatch: pytest.MonkeyPatch
) -> None:
    w = letters(20)

    async def meanwhile(config: Pipeline, reader: LetterReader) -> dict[int, Ledger]:
        """The replay before is about to commit a chunk while this one starts."""
        found = await read_ledgers(config, reader)
        with pytest.raises((ProducerFenced, InvalidProducerEpoch)):
            await before.write({(w.topics["events"], 0): [(b"0", b"v0", 1, [])]}, {0: Ledger(1)})
        return found

    async def run() -> int:
        nonlocal before
        async with replay_writer(w.config, at_least_once=False) as before:
            monkeypatch.setattr("bridge.replay.read_ledgers", meanwhile)
            return sum((await replay(w.config, Order(LetterFilter(w.name)))).replayed.values())

    before: ReplayWriter
    assert asyncio.run(run()) == 20
    assert w.sent() == list(range(20))


def test_a_letter_of_nothing_at_all_goes_back_too(letters: Callable[[int], Letters]) -> None:
    w = letters(1)

    async def produce() -> None:
        producer = AIOKafkaProducer(bootstrap_servers=w.broker.bootstrap)
        await producer.start()
        why = {"topic": w.topics["events"], "partition": "2", "pipeline": w.name, "reason": "decode"}
        builder = producer.create_batch()
        headers = [(f"headrace-{name}", text.encode()) for name, text in why.items()]
        builder.append(timestamp=1, key=None, value=None, headers=headers)
        await (await producer.send_batch(builder, w.topics["letters"], partition=0))
        await producer.stop()

    asyncio.run(produce())
    assert w.replay() == 2
    assert [(r.key, r.value) for r in w.events() if r.partition == 2] == [(None, None)]


def test_a_dry_run_sends_nothing_and_tells_what_it_would(letters: Callable[[int], Letters]) -> None:
    w = letters(9)
    done = headrace("dlq", "replay", str(w.path), "--dry-run", "--reason", "model")
    assert done.returncode == 0, done.stderr
    assert f"would replay 3 dead letters to {w.topics['events']} (3 model)\n6 left out" in done.stdout
    assert w.sent() == []
    assert w.replay() == 9


def test_another_topic_another_time_and_no_transactions(letters: Callable[[int], Letters]) -> None:
    w = letters(9)
    everything = LetterFilter(w.name)
    with pytest.raises(HeadraceError, match="that is where this pipeline writes"):
        w.replay(Order(everything, to=w.topics["results"]))
    with pytest.raises(HeadraceError, match="Kafka has no topic 'nowhere'"):
        w.replay(Order(everything, to="nowhere"))
    assert w.replay(Order(everything, to=w.topics["alerts"], now=True, at_least_once=True)) == 9
    records = w.broker.read(w.topics["alerts"])
    assert sorted(int(record.key) for record in records) == list(range(9))
    assert all(record.timestamp > 1_600_000_000_000 for record in records)
    assert w.replay() == 0  # what has been sent anywhere has been sent
    for option, text in (("--since", "yesterday"), ("--reason", "none")):
        refused = headrace("dlq", "replay", str(w.path), option, text)
        assert (refused.returncode, "Traceback" in refused.stderr) == (2, False)
        assert repr(text) in refused.stderr


def test_a_topic_made_again_is_replayed_again(letters: Callable[[int], Letters]) -> None:
    w = letters(3)
    assert w.replay() == 3
    asyncio.run(_make_again(w))
    w.write(range(2))
    assert w.replay() == 2


async def _make_again(w: Letters) -> None:
    from aiokafka.admin import AIOKafkaAdminClient

    from bridge.config.model import Kafka
    from headrace.rig.topics import create_topics

    admin = AIOKafkaAdminClient(bootstrap_servers=w.broker.bootstrap)
    await admin.start()
    await admin.delete_topics([w.topics["letters"]])
    await admin.close()
    await asyncio.sleep(1)
    await create_topics(Kafka(bootstrap_servers=w.broker.bootstrap), {w.topics["letters"]: 1})


@pytest.mark.parametrize("delivery", ["exactly_once", "at_least_once"])
def test_through_a_pipeline_whose_model_is_mended(broker: Broker, tmp_path: Path, delivery: str) -> None:
    def picky(rows: np.ndarray) -> Any:
        if (rows < limit).any():
            raise grpc.RpcError(grpc.StatusCode.INVALID_ARGUMENT)
        return rows * 2

    limit = 30.0
    topics = broker.topics()
    with v2_server(picky) as (_, address):
        config = pipeline(broker.bootstrap, address, "m", topics, delivery=delivery, result={"copy": ["x"]})
        path = tmp_path / "p.yaml"
        path.write_text(yaml.safe_dump(config))
        with running(config, tmp_path) as bridge:
            broker.produce(topics["events"], [(n % 3, b"%d" % n, b'{"x":%d}' % n) for n in range(90)])
            until(lambda: sum(broker.committed(config["name"], topics["events"]).values()) >= 90)
            assert len(broker.read(topics["letters"])) == 30
            limit = 10.0  # the model is better now, but not good
            replayed = headrace("dlq", "replay", str(path))
            assert "replayed 30 dead letters" in replayed.stdout, replayed.stderr
            # Ten die again: 30 + 10 letters, and 80 results.
            until(lambda: len(broker.read(topics["letters"])) == 40)
            until(lambda: len(broker.read(topics["results"])) == 80)
            assert bridge.terminate() == 0
        again = broker.read(topics["letters"])[30:]
        assert {int(record.key) for record in again} == set(range(10))
        attempts = Counter(int(header(record, "headrace-attempts")) for record in broker.read(topics["letters"])[:30])
        assert all(int(header(record, "headrace-attempts")) > min(attempts) for record in again)
        limit = 0.0
        listed = json.loads(headrace("dlq", "list", str(path), "--json").stdout)["letters"]
        assert [letter["replayed"] for letter in listed] == [True] * 30 + [False] * 10
        shown = headrace("dlq", "show", str(path), "0/0").stdout if delivery == "at_least_once" else ""
        assert not shown or "replayed       yes" in shown
        with running(config, tmp_path):
            assert json.loads(headrace("dlq", "replay", str(path), "--json").stdout)["replayed"] == 10
            until(lambda: len(broker.read(topics["results"])) == 90)
        assert sorted(int(record.key) for record in broker.read(topics["results"])) == list(range(90))
        assert broker.committed(replay_group(load(path)), topics["letters"])[0] >= 40
