"""The fault catalogue, rows about Kafka and the group: real broker, real bridge processes, one checker for I1 to I8."""

import asyncio
import json
import struct
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from bridge.config.model import Kafka
from headrace.rig.kafka import KafkaCluster
from headrace.rig.topics import create_topics
from tests.faults.proxy import END_TXN, Proxy, proxied_cluster
from tests.faults.world import World, world
from tests.support import Broker, until

RATE = 1000
both = pytest.mark.parametrize("delivery", ["exactly_once", "at_least_once"])


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[KafkaCluster, Proxy]]:
    """A broker that these tests may kill and spoil, and a proxy that bridges can reach it through."""
    with proxied_cluster(tmp_path_factory.mktemp("kafka")) as (cluster, (between,)):
        yield cluster, between


@pytest.fixture
def own_world(own: tuple[KafkaCluster, Proxy], model: str, tmp_path: Path, seed: int) -> Iterator[Any]:
    """Makes a world on the broker of this module; `through` sends its bridges through the proxy."""
    cluster, between = own
    made: list[World] = []

    def make(through: bool = False, **options: Any) -> World:
        options = {"seed": seed} | options
        bootstrap = between.address if through else None
        one = World(Broker(cluster.bootstrap_servers), model, tmp_path, bridge_bootstrap=bootstrap, **options)
        made.append(one)
        return one

    yield make
    between.heal()
    for one in made:
        one.close()


@both
@pytest.mark.parametrize("kind", ["kill", "bounce"])
def test_row_1_broker_killed_or_bounced(own: Any, own_world: Any, delivery: str, kind: str) -> None:
    cluster, _ = own
    w = own_world(delivery=delivery)
    bridge = w.start()
    w.start_writing(RATE)
    w.until_done(1000)
    w.fault(f"broker {kind}")
    node = cluster.node(1)
    node.kill() if kind == "kill" else node.stop()
    time.sleep(1 + w.rng.random())
    cluster.start_node(1)
    cluster.wait_node(1)
    w.finish()
    assert bridge.process.running
    assert not any(line["level"] == "critical" for line in bridge.logs())


@both
def test_row_2_bridge_killed_in_mid_transaction(
    broker: Broker, model: str, tmp_path: Path, seed: int, delivery: str
) -> None:
    with world(broker, model, tmp_path, seed, delivery) as w:
        w.start_writing(RATE)
        for _ in range(3):
            bridge = w.start()
            before = w.results()
            w.until_done(before + 500)
            time.sleep(0.2 * w.rng.random())
            w.kill(bridge)
        w.start()
        w.finish()


@both
def test_row_3_members_join_leave_and_are_killed(
    broker: Broker, model: str, tmp_path: Path, seed: int, delivery: str
) -> None:
    with world(broker, model, tmp_path, seed, delivery, partitions=9) as w:
        w.start_writing(RATE)
        w.start(3)
        w.until_done(1000)
        w.kill(w.bridges[w.rng.randrange(3)])
        w.start()
        leaving = w.bridges.pop(w.rng.randrange(3))
        w.fault("leave")
        assert leaving.terminate() == 0
        w.start()
        w.until_done(w.results() + 500)
        verdict = w.finish()
        assert verdict.results == verdict.events


def test_row_4_aborted_transactions_are_invisible(own: Any, own_world: Any) -> None:
    _, between = own
    w = own_world(through=True)
    w.start()
    w.start_writing(RATE)
    for _ in range(4):
        w.until_done(w.results() + 300)
        w.fault("connections cut in mid-transaction")
        between.cut()
        time.sleep(0.3 * w.rng.random())
    w.finish()


@both
def test_row_5_coordinators_move(model: str, tmp_path: Path, seed: int, delivery: str, three: KafkaCluster) -> None:
    broker = Broker(three.bootstrap_servers)
    with world(broker, model, tmp_path, seed, delivery, partitions=6) as w:
        bridge = w.start()
        w.start_writing(RATE // 2)
        w.until_done(300)
        for number in w.rng.sample([1, 2, 3], 2):
            w.fault(f"broker {number} leaves in order, its coordinators move")
            three.node(number).stop()
            w.until_done(w.results() + 200)
            three.start_node(number)
            three.wait_node(number)
        w.finish()
        assert bridge.process.running


@pytest.fixture(scope="module")
def three() -> Iterator[KafkaCluster]:
    """Three brokers."""
    with KafkaCluster(brokers=3) as cluster:
        yield cluster


@both
def test_row_7_a_zombie_wakes(broker: Broker, model: str, tmp_path: Path, seed: int, delivery: str) -> None:
    with world(broker, model, tmp_path, seed, delivery) as w:
        w.start_writing(RATE)
        zombie = w.start()
        w.until_done(500 + w.rng.randrange(500))
        w.freeze(zombie)
        w.start()  # gets the partitions once the session has timed out
        w.until_done(w.results() + 1000)
        w.thaw(zombie)
        w.until_done(w.results() + 500)
        w.finish()
        assert zombie.process.running  # it has joined again


@both
@pytest.mark.parametrize("kind", ["cut", "hang", "slow", "refuse"])
def test_row_8_network_between_bridge_and_broker(own: Any, own_world: Any, delivery: str, kind: str) -> None:
    _, between = own
    w = own_world(through=True, delivery=delivery)
    bridge = w.start()
    w.start_writing(RATE)
    w.until_done(500)
    w.fault(f"network: {kind}")
    if kind == "slow":
        between.delay = 0.1
    elif kind == "hang":
        between.hanging = True
    else:
        between.refusing = kind == "refuse"
        between.cut()
    before, connections, begun = _cpu(bridge), between.connections, time.monotonic()
    time.sleep(4 + w.rng.random())
    spent, made = _cpu(bridge) - before, (between.connections - connections) / (time.monotonic() - begun)
    between.heal()
    w.finish()
    # Several clients in the bridge, each of which tries again ten times a second.
    assert made < 150, f"{made} connections a second: a busy loop"
    if kind in ("hang", "refuse"):
        assert spent < 3.0, f"{spent} s of CPU while nothing could be done"


def _cpu(bridge: Any) -> float:
    import psutil

    times = psutil.Process(bridge.process.pid).cpu_times()
    return float(times.user + times.system)


def test_row_9_the_answer_to_a_commit_is_lost(own: Any, own_world: Any) -> None:
    _, between = own
    w = own_world(through=True)
    bridge = w.start()
    w.start_writing(RATE)
    before = between.swallowed
    for number in range(3):
        w.until_done(w.results() + 300)
        w.fault("EndTxn answer lost")
        between.swallow = END_TXN
        until(lambda number=number: between.swallowed == before + number + 1, 20, "an answer was swallowed")
    w.finish()
    assert bridge.process.running


def test_row_9_no_answer_to_a_commit_comes_for_longer_than_its_deadline(own: Any, own_world: Any) -> None:
    """The client asks again by itself, so one lost answer is not enough for an outcome that nobody knows."""
    _, between = own
    w = own_world(through=True, partitions=1)
    bridge = w.start()
    w.write(300)
    w.until_done(300)
    w.fault("no answer to EndTxn comes")
    between.swallow_all = END_TXN
    w.write(300)
    until(lambda: bridge.logged("partition_restarts"), 60, "the outcome of the transaction is unknown")
    between.heal()
    w.write(300)
    w.finish(events=900)


@both
def test_row_10_what_the_result_topic_would_not_take(
    broker: Broker, model: str, tmp_path: Path, seed: int, delivery: str
) -> None:
    with world(broker, model, tmp_path, seed, delivery, result={"copy": ["id", "pad"]}) as w:
        large = {w.rng.randrange(300, 600) for _ in range(3)}
        w.poison = lambda n: json.dumps({"id": n, "x": n, "pad": "p" * 3000}).encode() if n in large else None
        w.start()
        w.write(100)
        w.until_done(100)
        # The topic takes less than when the bridge started: the broker refuses, and that is looked up.
        asyncio.run(_configure(broker.bootstrap, w.topics["results"], {"max.message.bytes": "2000"}))
        w.write(900)
        verdict = w.finish(events=1000)
        assert verdict.letters == len(large)
        assert {item.letter for item in w.history.seen if item.letter} == {"too_large"}


async def _configure(bootstrap: str, topic: str, values: dict[str, str]) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, values)])
    await admin.close()


def test_row_11_a_corrupt_batch_stops_its_partition_alone(own: Any, own_world: Any) -> None:
    cluster, _ = own
    w = own_world(delivery="at_least_once", commit_interval="30s")  # longer than it takes until it is halted
    for _ in range(3):
        w.write(100)  # a batch of its own in each partition
    bad = w.rng.randrange(3)
    path = cluster._data / "node-1" / "logs" / f"{w.topics['events']}-{bad}" / "00000000000000000000.log"
    spoilt = _spoil(path)
    bridge = w.start()
    w.write(300)
    good = [p for p in range(3) if p != bad]
    until(lambda: bridge.logged("partition_restarts"), 30)
    assert w.committed().get(bad) == spoilt  # what stands before it is not answered again
    until(lambda: w.broker.count(w.topics["results"]) >= 400 + spoilt, 60, "the other partitions go on")
    (said,) = [line for line in bridge.logs() if line["event"] == "partition_restarts"]
    assert (said["partition"], said["level"]) == (bad, "error")
    assert "cannot be read" in said["because"]
    assert bridge.metric("headrace_halted_partitions") == 1
    assert f"{w.topics['events']}/{bad}/{spoilt} " in said["because"]
    assert bridge.terminate() == 0
    assert w.committed() == {**dict.fromkeys(good, 200), bad: spoilt}  # the offset does not pass the spoilt batch
    w.verdict()
    counts = Counter(item.source[0] for item in w.history.seen)
    assert counts == {**dict.fromkeys(good, 200), bad: spoilt}  # what stands before it has its outcome


def _spoil(path: Path) -> int:
    """Flip one byte near the end of the log: in the last batch of it. That batch's first offset."""
    data = bytearray(path.read_bytes())
    offset = at = 0
    while at < len(data):
        offset, length = struct.unpack_from(">qi", data, at)
        at += 12 + length
    data[-20] ^= 0xFF
    with path.open("r+b") as file:
        file.seek(len(data) - 20)
        file.write(data[-20:-19])
    return offset


@pytest.mark.parametrize("start", ["earliest", "latest", "fail"])
def test_row_12_a_committed_offset_out_of_range(
    broker: Broker, model: str, tmp_path: Path, seed: int, start: str
) -> None:
    with world(broker, model, tmp_path, seed, "exactly_once", source={"start": start}) as w:
        if start == "fail":
            asyncio.run(_commit(w, dict.fromkeys(range(3), 0)))
        w.write(300)
        asyncio.run(_commit(w, {1: 5000 + w.rng.randrange(5000)}))
        bridge = w.start(ready=False)
        if start == "fail":
            assert bridge.process.wait() == 1
            assert "source.start is fail" in bridge.log.read_text()
            return
        until(lambda: bridge.logged("offset_out_of_range"), 30)
        if start == "earliest":
            until(lambda: w.committed() == {0: 100, 1: 100, 2: 100}, 30)
            w.history.committed.clear()
            w.finish(events=300)
        else:
            w.write(30)
            until(lambda: broker.count(w.topics["results"]) > 0, 30)
        (said,) = [line for line in bridge.logs() if line["event"] == "offset_out_of_range"]
        assert said["level"] == "error"
        assert bridge.metric("headrace_records_total", stage="source", outcome="out_of_range") == 1


@both
def test_row_12_a_start_at_the_end_is_chosen_once(
    broker: Broker, model: str, tmp_path: Path, seed: int, delivery: str
) -> None:
    """What comes before anything has been finished is not skipped by whoever begins next."""
    with world(broker, model, tmp_path, seed, delivery, source={"start": "latest"}) as w:
        w.write(30)  # before the pipeline: not for it
        first = w.start()
        w.history.writes.clear()
        w.history.places.clear()
        w.freeze(first)
        w.write(300)
        w.start(ready=False)
        w.kill(first)
        assert w.finish(events=300).results == 300


async def _commit(w: World, offsets: dict[int, int]) -> None:
    from aiokafka import AIOKafkaConsumer

    consumer = AIOKafkaConsumer(
        bootstrap_servers=w.broker.bootstrap, group_id=w.config["name"], enable_auto_commit=False
    )
    await consumer.start()
    consumer.assign([TopicPartition(w.topics["events"], p) for p in range(3)])
    await consumer.commit({TopicPartition(w.topics["events"], p): offset for p, offset in offsets.items()})
    await consumer.stop()


@both
def test_row_17_undecodable_events(broker: Broker, model: str, tmp_path: Path, seed: int, delivery: str) -> None:
    bad = [
        b"{",
        b"[1]",
        b'{"id":1}',
        b'{"id":1,"x":"1"}',
        b'1},{"id":2,"x":2',
        b'{"id":1,"x":1}]',
        b"\xff",
        b'{"id":1,"x":[1,2]}',
    ]
    with world(broker, model, tmp_path, seed, delivery) as w:
        places = {w.rng.randrange(1000): value for value in bad * 3}
        w.poison = places.get
        w.start()
        w.write(1000)
        verdict = w.finish(events=1000)
        assert (verdict.results, verdict.letters) == (1000 - len(places), len(places))
        assert {item.event for item in w.history.seen if item.letter} == set(places)


@both
def test_row_20_dead_letters_cannot_be_written(
    broker: Broker, model: str, tmp_path: Path, seed: int, delivery: str
) -> None:
    with world(broker, model, tmp_path, seed, delivery) as w:
        bad = 300 + 3 * w.rng.randrange(20)  # of partition 0
        w.poison = lambda n: b"no json" if n == bad else None
        bridge = w.start()
        w.write(90)
        w.until_done(90)
        asyncio.run(_administer(broker, lambda admin: admin.delete_topics([w.topics["letters"]])))
        w.write(1410)
        until(lambda: (w.committed().get(1), w.committed().get(2)) == (500, 500), 60, "the other partitions go on")
        w.write(300)
        until(lambda: (w.committed().get(1), w.committed().get(2)) == (600, 600), 60, "the other partitions go on")
        assert w.committed().get(0, 0) <= bad // 3
        until(lambda: bridge.metric("headrace_halted_partitions") == 1, 60, "the partition shows as halted")
        w.fault("letters can be written again")
        asyncio.run(create_topics(Kafka(bootstrap_servers=broker.bootstrap), {w.topics["letters"]: 1}))
        assert w.finish(events=1800).letters == 1


async def _administer(broker: Broker, what: Any) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=broker.bootstrap)
    await admin.start()
    await what(admin)
    await admin.close()


@both
def test_row_21_sigterm_under_load(broker: Broker, model: str, tmp_path: Path, seed: int, delivery: str) -> None:
    with world(broker, model, tmp_path, seed, delivery) as w:
        w.start_writing(RATE)
        for _ in range(3):
            bridge = w.start()
            w.until_done(w.results() + 200 + w.rng.randrange(300))
            w.bridges.remove(bridge)
            begun = time.monotonic()
            assert bridge.terminate() == 0
            assert time.monotonic() - begun < 20
            assert bridge.logged("drained")
        w.start()
        verdict = w.finish()
        assert verdict.duplicated == 0  # also at least once: a clean stop repeats nothing


@pytest.mark.parametrize("delivery", ["exactly_once"])
def test_row_22_one_instance_id_twice(broker: Broker, model: str, tmp_path: Path, seed: int, delivery: str) -> None:
    with world(broker, model, tmp_path, seed, delivery, source={"instance_id": "one"}) as w:
        older = w.start()
        w.start_writing(RATE)
        w.until_done(300)
        w.fault("a second instance of the same name")
        w.start()
        assert older.process.wait() == 1
        w.bridges.remove(older)
        assert "has taken over source.instance_id 'one'" in older.log.read_text()
        w.finish()


def test_row_22_one_transactional_id_twice(broker: Broker, model: str, tmp_path: Path, seed: int) -> None:
    with world(broker, model, tmp_path, seed) as w:
        bridge = w.start()
        w.write(300)
        w.until_done(300)
        name = f"{w.config['name']}-{w.config['name']}-{w.topics['events']}-0"

        async def rogue() -> None:
            producer = AIOKafkaProducer(bootstrap_servers=broker.bootstrap, transactional_id=name)
            await producer.start()
            await producer.stop()

        def fence() -> bool:
            asyncio.run(rogue())
            asyncio.run(w._write(range(w.written, w.written + 3)))
            w._written += 3
            time.sleep(0.5)
            return not bridge.process.running

        until(fence, 60, "the bridge has given up")
        assert bridge.process.wait() == 1
        assert f"another producer uses the transactional id '{name}'" in bridge.log.read_text()
        w.bridges.remove(bridge)
        w.start()
        w.finish()


@both
def test_row_23_a_foreign_open_transaction_on_the_input(
    broker: Broker, model: str, tmp_path: Path, seed: int, delivery: str
) -> None:
    with world(broker, model, tmp_path, seed, delivery) as w:
        bridge = w.start()
        w.write(90)
        w.until_done(90)

        async def hold() -> None:
            foreign = AIOKafkaProducer(
                bootstrap_servers=broker.bootstrap, transactional_id=f"foreign-{w.topics['events']}"
            )
            await foreign.start()
            await foreign.begin_transaction()
            await (await foreign.send(w.topics["events"], b'{"id":-1,"x":1}', b"-1", 0))
            await w._write(range(90, 390))
            # What stands behind the open transaction is not to be read yet, and it shows as lag.
            for _ in range(30):
                await asyncio.sleep(0.1)
                if await asyncio.to_thread(bridge.metric, "headrace_consumer_lag_records", partition="0") == 101:
                    break
            assert await asyncio.to_thread(bridge.metric, "headrace_consumer_lag_records", partition="0") == 101
            await foreign.abort_transaction()
            await foreign.stop()

        asyncio.run(hold())
        w._written = 390
        assert w.finish().results == 390
        assert bridge.metric("headrace_consumer_rebuilds_total") == 0


@both
def test_row_24_partitions_are_added_and_a_topic_made_again(
    broker: Broker, model: str, tmp_path: Path, seed: int, delivery: str
) -> None:
    with world(broker, model, tmp_path, seed, delivery) as w:
        bridge = w.start()
        w.write(300)
        w.until_done(300)

        async def grow(admin: Any) -> None:
            for topic in ("results", "events"):
                await admin.create_partitions({w.topics[topic]: NewPartitions(5)})

        asyncio.run(_administer(broker, grow))
        w.partitions = 5
        w.write(500)
        w.finish(events=800)

        asyncio.run(_administer(broker, lambda admin: admin.delete_topics([w.topics["events"]])))
        time.sleep(1)
        asyncio.run(create_topics(Kafka(bootstrap_servers=broker.bootstrap), {w.topics["events"]: 5}))
        before = broker.count(w.topics["results"])
        w.history.places.clear()
        w.history.committed.clear()
        w.write(100)
        ids = set(range(800, 900))

        def again() -> bool:
            found = [json.loads(r.value)["id"] for r in broker.read(w.topics["results"])]
            return ids <= set(found) and sum(i in ids for i in found) == 100

        until(again, 90, f"the events of the new topic have results; {before} before; {w.report()}")
        assert bridge.process.running


def test_row_25_idle_for_long(model: str, tmp_path: Path, seed: int) -> None:
    forgetful = {
        "producer.id.expiration.ms": "3000",
        "producer.id.expiration.check.interval.ms": "500",
        "transactional.id.expiration.ms": "4000",
        "transaction.remove.expired.transaction.cleanup.interval.ms": "500",
    }
    with (
        KafkaCluster(properties=lambda _: forgetful) as cluster,
        world(Broker(cluster.bootstrap_servers), model, tmp_path, seed) as w,
    ):
        bridge = w.start()
        w.write(30)
        w.until_done(30)
        time.sleep(7)  # the broker forgets the producer's id and its transactional id
        w.write(30)
        w.finish(events=60)
        assert bridge.process.running
