"""`headrace run` as a process, on a real Kafka and a real Triton."""

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from headrace.rig.kafka import KafkaCluster
from headrace.rig.process import free_port
from headrace.rig.triton import TritonRig
from tests.support import Bridge, Broker, header, headrace, pipeline, running, until, values

FIELDS = [f"f{n}" for n in range(30)]
MAPPED = {"inputs": {"features": FIELDS}}


def dense(broker: Broker, triton: TritonRig, topics: dict[str, str], **sections: Any) -> dict[str, Any]:
    """A pipeline for the model `dense`, whose score is the mean of 30 fields."""
    model = MAPPED | sections.pop("model", {})
    result = {"copy": ["id"]} | sections.pop("result", {})
    return pipeline(broker.bootstrap, triton.address, "dense", topics, model=model, result=result, **sections)


def event(number: int) -> bytes:
    """An event whose score is its number."""
    return json.dumps({"id": number} | dict.fromkeys(FIELDS, number)).encode()


def numbered(count: int, partitions: int = 3, first: int = 0) -> list[tuple[int, bytes, bytes]]:
    return [(n % partitions, str(n).encode(), event(n)) for n in range(first, first + count)]


def assert_complete(broker: Broker, topics: dict[str, str], count: int, duplicates: bool = False) -> None:
    """Every event has its own result, on its own key, in order; once, unless duplicates are allowed."""
    records = broker.read(topics["results"])
    for record, result in zip(records, values(records), strict=True):
        assert record.key == str(result["id"]).encode()
        assert result["score"] == pytest.approx(result["id"], rel=1e-5)
        assert header(record, "trace") == f"t-{result['id']}"
        source = header(record, "headrace-source").split("/")
        assert int(source[1]) == record.partition == result["id"] % 3
    assert {result["id"] for result in values(records)} == set(range(count))
    if not duplicates:
        assert len(records) == count
        for partition in range(3):
            places = [int(header(r, "headrace-source").split("/")[2]) for r in records if r.partition == partition]
            assert places == sorted(places)
    assert broker.read(topics["letters"]) == []


def test_events_become_results_alerts_and_metrics(broker: Broker, triton: TritonRig, tmp_path: Path) -> None:
    topics = broker.topics()
    broker.produce(topics["events"], numbered(3000))
    config = dense(broker, triton, topics, result={"alert": {"when": "score >= 2900", "topic": topics["alerts"]}})
    with running(config, tmp_path) as bridge:
        until(lambda: broker.count(topics["results"]) == 3000)
        assert bridge.get("/health/live") == (200, "live\n")
        until(lambda: bridge.get("/health/ready")[0] == 200)
        until(lambda: bridge.metric("headrace_records_total", stage="sink", outcome="result") == 3000)
        assert bridge.metric("headrace_dead_letters_total", reason="decode") == 0
        assert bridge.metric("headrace_end_to_end_seconds_count") == 3000
        assert bridge.metric("headrace_inference_seconds_count", model="dense", version="1", code="OK") > 0
        until(lambda: bridge.metric("headrace_consumer_lag_records", partition="0") == 0)
        assert bridge.get("/nowhere")[0] == 404
        assert bridge.terminate() == 0
    assert_complete(broker, topics, 3000)
    assert sorted(r["id"] for r in values(broker.read(topics["alerts"]))) == list(range(2900, 3000))
    assert broker.committed(config["name"], topics["events"]) == {0: 1000, 1: 1000, 2: 1000}
    assert not any(line["level"] in ("warning", "error") for line in bridge.logs())


def test_one_event_is_tried(broker: Broker, triton: TritonRig, tmp_path: Path) -> None:
    topics = broker.topics()
    config = dense(broker, triton, topics, delivery="exactly_once")
    with running(config, tmp_path) as bridge:
        empty = headrace("try", str(bridge.path))
        assert empty.returncode == 1
        assert "has no event to take again; give one with --event" in empty.stderr

        good = headrace("try", str(bridge.path), "--event", event(7).decode(), "--json")
        assert good.returncode == 0, good.stderr
        found = json.loads(good.stdout)
        assert found["outcome"] == "result"
        assert json.loads(found["value"])["score"] == pytest.approx(7, rel=1e-5)
        (record,) = broker.read(topics["results"])
        assert header(record, "headrace-source") == found["source"]
        assert record.key == b"headrace-try"

        again = headrace("try", str(bridge.path))  # the topic's last event
        assert again.returncode == 0, again.stderr
        assert f" -> {topics['results']} after " in again.stdout
        assert broker.count(topics["results"]) >= 2

        bad = headrace("try", str(bridge.path), "--event", '{"id": 8}')
        assert bad.returncode == 1
        assert "a dead letter after" in bad.stdout
        assert "mapping: " in bad.stdout
        assert bridge.terminate() == 0
    nobody = headrace("try", str(bridge.path), "--event", "{}", "--timeout", "500ms")
    assert nobody.returncode == 1
    assert "no outcome of " in nobody.stderr
    assert "does the bridge run" in nobody.stderr
    usage = headrace("try", str(bridge.path), "--timeout", "soon")
    assert usage.returncode == 2
    assert "a duration is a number with a unit" in usage.stderr


def test_a_pinned_version_that_is_not_there_is_waited_for_and_named(
    broker: Broker, triton: TritonRig, tmp_path: Path
) -> None:
    topics = broker.topics()
    broker.produce(topics["events"], numbered(3))
    with running(dense(broker, triton, topics, model={"version": 7}), tmp_path, ready=False) as bridge:
        until(lambda: bridge.logged("observing"))
        until(lambda: "model 'dense' version 7 at " in bridge.get("/health/ready")[1])
        assert bridge.get("/health/ready")[0] == 503
        assert bridge.get("/health/live") == (200, "live\n")
        assert bridge.terminate() == 0
    assert broker.count(topics["results"], topics["letters"]) == 0


BAD = {
    "decode": [b"no json", b"[1,2]", None, b"1,2", b"[3", b"4]", b'{"a":1},{"a":2}', b'"open', b'{"f0":NaN}', b"\xff\x00"],
    "mapping": [
        json.dumps({"id": 1}).encode(),
        json.dumps(dict.fromkeys(FIELDS, 1) | {"f3": None}).encode(),
        json.dumps(dict.fromkeys(FIELDS, 1) | {"f3": "1"}).encode(),
        json.dumps(dict.fromkeys(FIELDS, 1) | {"f3": [1]}).encode(),
        json.dumps(dict.fromkeys(FIELDS, 1) | {"f3": 1e300}).encode(),
    ],
}  # fmt: skip


def test_every_bad_event_is_its_own_dead_letter(broker: Broker, triton: TritonRig, tmp_path: Path) -> None:
    topics = broker.topics()
    bad = [(reason, value) for reason, found in BAD.items() for value in found]
    records: list[tuple[int, bytes | None, bytes | None]] = []
    for number in range(600):
        records.append((number % 3, str(number).encode(), event(number)))
        if number % 40 == 0:
            reason, value = bad[number // 40]
            records.append((number % 3, f"{reason}-{number // 40}".encode(), value))
    broker.produce(topics["events"], records)
    with running(dense(broker, triton, topics), tmp_path) as bridge:
        until(lambda: broker.count(topics["results"], topics["letters"]) == len(records))
        assert bridge.metric("headrace_dead_letters_total", reason="decode") == len(BAD["decode"])
        assert bridge.terminate() == 0
    letters = broker.read(topics["letters"])
    assert {letter.key.decode().split("-")[0] + header(letter, "headrace-reason") for letter in letters} == {
        "decodedecode",
        "mappingmapping",
    }
    by_key = {letter.key: letter for letter in letters}
    for place, (reason, value) in enumerate(bad):
        letter = by_key[f"{reason}-{place}".encode()]
        assert letter.value == value
        assert header(letter, "trace") == f"t-{reason}-{place}"
        assert header(letter, "headrace-topic") == topics["events"]
        if reason == "mapping":
            assert "field 'f" in header(letter, "headrace-error")
    results = broker.read(topics["results"])
    assert sorted(r["id"] for r in values(results)) == list(range(600))
    assert all(
        record.key == str(result["id"]).encode() for record, result in zip(results, values(results), strict=True)
    )


def test_a_vector_a_nested_field_and_a_renamed_output(broker: Broker, triton: TritonRig, tmp_path: Path) -> None:
    topics = broker.topics()
    good = {"payload": {"v": [1] * 30}}
    short = {"payload": {"v": [1] * 29}}
    broker.produce(topics["events"], [(0, b"a", json.dumps(good).encode()), (0, b"b", json.dumps(short).encode())])
    config = dense(
        broker,
        triton,
        topics,
        model={"inputs": {"features": "payload.v"}, "outputs": {"mean": "score"}},
        result={"copy": []},
    )
    with running(config, tmp_path):
        until(lambda: broker.count(topics["results"], topics["letters"]) == 2)
    assert values(broker.read(topics["results"])) == [{"mean": 1.0, "model": "dense", "model_version": "1"}]
    (letter,) = broker.read(topics["letters"])
    assert header(letter, "headrace-error") == "field 'payload.v' has 29 elements, but tensor 'features' needs 30"


def test_every_type_of_tensor_from_json_and_back(broker: Broker, triton: TritonRig, tmp_path: Path) -> None:
    topics = broker.topics()
    one = {"text": "né", "count": 4, "small": -7, "flag": True, "vector": [1, 2.5, -3], "matrix": [[1, 2], [3, 4]]}
    poison = one | {"count": -1}
    broker.produce(
        topics["events"], [(0, b"%d" % n, json.dumps(poison if n == 5 else one).encode()) for n in range(20)]
    )
    with running(pipeline(broker.bootstrap, triton.address, "types", topics), tmp_path):
        until(lambda: broker.count(topics["results"], topics["letters"]) == 20)
    results = broker.read(topics["results"])
    assert [record.key for record in results] == [b"%d" % n for n in range(20) if n != 5]
    assert values(results)[0] == {
        "text": "Né", "count": 5, "small": 7, "flag": False, "vector": [2, 5, -6], "matrix": [[1, 2], [3, 4]],
        "model": "types", "model_version": "1",
    }  # fmt: skip
    (letter,) = broker.read(topics["letters"])
    assert (letter.key, header(letter, "headrace-reason")) == (b"5", "model")
    assert "the count is negative" in header(letter, "headrace-error")


def test_raw_events(broker: Broker, triton: TritonRig, tmp_path: Path) -> None:
    import struct

    topics = broker.topics()
    rows = [struct.pack("<30f", *[n] * 30) for n in range(500)]
    broker.produce(topics["events"], [(n % 3, b"%d" % n, row) for n, row in enumerate(rows)] + [(0, b"bad", b"123")])
    config = pipeline(broker.bootstrap, triton.address, "dense", topics, event={"format": "raw"})
    with running(config, tmp_path):
        until(lambda: broker.count(topics["results"], topics["letters"]) == 501)
    results = broker.read(topics["results"])
    assert all(float(r.key) == pytest.approx(v["score"]) for r, v in zip(results, values(results), strict=True))
    (letter,) = broker.read(topics["letters"])
    assert (letter.key, letter.value, header(letter, "headrace-reason")) == (b"bad", b"123", "decode")


def test_numbers_that_are_none_become_output_letters(broker: Broker, triton: TritonRig, tmp_path: Path) -> None:
    topics = broker.topics()
    broker.produce(topics["events"], [(0, b"%d" % n, json.dumps({"x": n - 2}).encode()) for n in range(6)])
    with running(pipeline(broker.bootstrap, triton.address, "log", topics), tmp_path):
        until(lambda: broker.count(topics["results"], topics["letters"]) == 6)
    assert [record.key for record in broker.read(topics["results"])] == [b"3", b"4", b"5"]
    letters = broker.read(topics["letters"])
    assert [(letter.key, header(letter, "headrace-reason")) for letter in letters] == [
        (b"0", "output"),
        (b"1", "output"),
        (b"2", "output"),
    ]
    assert header(letters[0], "headrace-error") == "the model's output 'y' is not a finite number"
    assert header(letters[0], "headrace-model-version") == "1"


def test_a_server_that_loses_rows_is_never_matched_to_events(broker: Broker, triton: TritonRig, tmp_path: Path) -> None:
    topics = broker.topics()
    broker.produce(topics["events"], [(0, b"%d" % n, json.dumps({"x": n}).encode()) for n in range(6)])
    with running(pipeline(broker.bootstrap, triton.address, "short", topics), tmp_path) as bridge:
        until(lambda: bridge.metric("headrace_retries_total", cause="model") >= 3)
        assert bridge.get("/health/ready")[0] == 503
        assert bridge.logged("model_away")
        (said,) = [line for line in bridge.logs() if line["event"] == "model_away"]
        assert "answered output 'y' of shape [5, 1] to 6 rows" in said["error"]
    assert broker.count(topics["results"], topics["letters"]) == 0


def test_the_models_own_limit_caps_the_batch(broker: Broker, triton: TritonRig, tmp_path: Path) -> None:
    topics = broker.topics()
    broker.produce(topics["events"], [(0, b"%d" % n, json.dumps({"x": n + 1}).encode()) for n in range(100)])
    with running(pipeline(broker.bootstrap, triton.address, "small", topics), tmp_path) as bridge:
        until(lambda: broker.count(topics["results"]) == 100)
        assert bridge.logged("batch_capped")


def test_large_events_and_many_fields(broker: Broker, triton: TritonRig, tmp_path: Path) -> None:
    topics = broker.topics(**{"max.message.bytes": str(8 * 2**20)})
    fields = [f"g{n}" for n in range(1000)]
    large = json.dumps(dict.fromkeys(fields, 1) | {"pad": "p" * 5_000_000}).encode()
    wide = json.dumps(dict.fromkeys(fields, 2)).encode()
    broker.produce(topics["events"], [(0, b"large", large), *((0, b"%d" % n, wide) for n in range(300))])
    config = pipeline(broker.bootstrap, triton.address, "wide", topics, model={"inputs": {"features": fields}})
    with running(config, tmp_path):
        until(lambda: broker.count(topics["results"], topics["letters"]) == 301)
    assert {value["sum"] for value in values(broker.read(topics["results"]))} == {2000.0}
    (letter,) = broker.read(topics["letters"])
    assert (letter.key, letter.value, header(letter, "headrace-reason")) == (b"large", large, "too_large")
    # With room for it, it is an event as any other.
    topics = broker.topics(**{"max.message.bytes": str(8 * 2**20)})
    broker.produce(topics["events"], [(0, b"large", large)])
    config = pipeline(
        broker.bootstrap,
        triton.address,
        "wide",
        topics,
        model={"inputs": {"features": fields}},
        batch={"max_bytes": "8MiB"},
    )
    with running(config, tmp_path):
        until(lambda: broker.count(topics["results"]) == 1)


def test_a_hundred_thousand_events_at_once(broker: Broker, triton: TritonRig, tmp_path: Path) -> None:
    topics = broker.topics()
    broker.produce(topics["events"], numbered(100_000), linger_ms=20, max_batch_size=500_000)
    with running(dense(broker, triton, topics), tmp_path) as bridge:
        until(lambda: broker.count(topics["results"]) == 100_000, 120)
        assert bridge.metric("headrace_batch_records_count") < 2000  # batches grew by themselves
        assert bridge.terminate() == 0
    assert_complete(broker, topics, 100_000)


# Small batches, one call at a time: some thousand events a second, so that 60,000 outlast what a test does meanwhile.
SLOWLY = {"max_events": 8, "in_flight": 1}


def test_a_sigterm_under_load_drains(broker: Broker, triton: TritonRig, tmp_path: Path) -> None:
    topics = broker.topics()
    broker.produce(topics["events"], numbered(60_000), linger_ms=20, max_batch_size=500_000)
    config = dense(broker, triton, topics, batch=SLOWLY)
    ends = []
    with running(config, tmp_path) as bridge:
        until(lambda: broker.count(topics["results"]) > 5_000)
        begun = time.monotonic()
        assert bridge.terminate() == 0
        ends.append(time.monotonic() - begun)
        assert bridge.logged("drained")
    done = broker.count(topics["results"])
    assert done < 60_000
    assert sum(broker.committed(config["name"], topics["events"]).values()) == done  # nothing is done twice
    assert ends[0] < 20
    del config["batch"]
    with running(config, tmp_path):
        until(lambda: broker.count(topics["results"]) >= 60_000)
    assert_complete(broker, topics, 60_000)


def test_a_kill_in_mid_stream_loses_nothing(broker: Broker, triton: TritonRig, tmp_path: Path) -> None:
    topics = broker.topics()
    broker.produce(topics["events"], numbered(60_000), linger_ms=20, max_batch_size=500_000)
    config = dense(broker, triton, topics, batch=SLOWLY)
    config["source"]["session_timeout"] = "6s"
    for target in (5_000, 20_000):
        with running(config, tmp_path) as bridge:
            until(lambda target=target: broker.count(topics["results"]) > target)
            bridge.process.kill()
        committed = sum(broker.committed(config["name"], topics["events"]).values())
        assert (
            0 < committed <= broker.count(topics["results"]) < 60_000
        )  # in mid-stream, never ahead of what is written
    del config["batch"]
    with running(config, tmp_path) as bridge:
        until(lambda: sum(broker.committed(config["name"], topics["events"]).values()) == 60_000, 120)
    assert_complete(broker, topics, 60_000, duplicates=True)


def test_a_model_outage_longer_than_a_session(broker: Broker, models: Path, tmp_path: Path) -> None:
    topics = broker.topics()
    port, http = free_port(), free_port()
    config = dense(broker, TritonRig(models, port), topics)
    broker.produce(topics["events"], numbered(300))
    # Started without a model: it waits for it, and says what it waits for.
    with running(config, tmp_path, ready=False) as bridge:
        until(lambda: bridge.logged("model_not_ready"))
        assert bridge.get("/health/live")[0] == 200
        assert bridge.get("/health/ready")[0] == 503
        with TritonRig(models, port, http, models=("dense",)) as rig:
            bridge.wait_ready()
            broker.produce(topics["events"], numbered(300, first=300))
            until(lambda: broker.count(topics["results"]) == 600)
            rig.process.kill()
            gone = time.monotonic()
            broker.produce(topics["events"], numbered(20_000, first=600), linger_ms=20)
            until(lambda: bridge.logged("model_away"))
            until(lambda: bridge.get("/health/ready")[0] == 503)
            until(lambda: time.monotonic() - gone > 12, 30)
            assert bridge.get("/health/live")[0] == 200
            assert bridge.metric("headrace_paused_partitions") == 3
            assert bridge.metric("headrace_rebalances_total") == 1  # membership is kept
        with TritonRig(models, port, http, models=("dense",)):
            until(lambda: broker.count(topics["results"]) == 20_600, 60)
            until(lambda: bridge.get("/health/ready")[0] == 200)
            assert bridge.terminate() == 0
    assert_complete(broker, topics, 20_600)


def test_a_broker_that_comes_late_and_goes_away(triton: TritonRig, tmp_path: Path) -> None:
    data, port = tmp_path / "kafka", free_port()
    with KafkaCluster(port=port, data=data):
        broker = Broker(f"127.0.0.1:{port}")
        topics = broker.topics()
    config = dense(broker, triton, topics)
    with running(config, tmp_path, ready=False) as bridge:
        until(lambda: bridge.logged("kafka_not_ready"))
        (said,) = [line for line in bridge.logs() if line["event"] == "kafka_not_ready"]
        assert f"Kafka at 127.0.0.1:{port} does not answer" in said["error"]
        with KafkaCluster(port=port, data=data) as cluster:
            bridge.wait_ready()
            broker.produce(topics["events"], numbered(20_000), linger_ms=20)
            until(lambda: broker.count(topics["results"]) > 1000)
            cluster.node(1).kill()
            time.sleep(3)  # the outage itself
            assert bridge.get("/health/live")[0] == 200
            cluster.start_node(1)
            cluster.wait_node(1)
            until(lambda: sum(broker.committed(config["name"], topics["events"]).values()) == 20_000, 120)
            assert bridge.terminate() == 0
            assert_complete(broker, topics, 20_000, duplicates=True)


def test_three_members_share_join_and_leave(broker: Broker, triton: TritonRig, tmp_path: Path) -> None:
    topics = broker.topics()
    config = dense(broker, triton, topics, batch=SLOWLY)
    broker.produce(topics["events"], numbered(60_000), linger_ms=20, max_batch_size=500_000)

    def consumed(bridge: Bridge) -> bool:
        assert broker.count(topics["results"]) < 60_000, "the stream ended before the members had met"
        return bridge.metric("headrace_records_total", stage="source", outcome="consumed") > 0

    with running(config, tmp_path) as first:
        until(lambda: consumed(first))
        with running(config, tmp_path) as second:
            until(lambda: consumed(second))
            with running(config, tmp_path) as third:
                until(lambda: consumed(third))
                assert third.terminate() == 0
            assert broker.count(topics["results"]) < 60_000
            assert second.terminate() == 0
        until(lambda: sum(broker.committed(config["name"], topics["events"]).values()) == 60_000, 120)
        assert first.terminate() == 0
    assert_complete(broker, topics, 60_000)


def test_a_second_signal_ends_at_once(broker: Broker, models: Path, tmp_path: Path) -> None:
    topics = broker.topics()
    with TritonRig(models, models=("dense",)) as rig:
        config = dense(broker, rig, topics, drain_timeout="40s")
        with running(config, tmp_path) as bridge:
            rig.process.signal(signal.SIGSTOP)  # it hangs: it accepts, and never answers
            broker.produce(topics["events"], numbered(3))
            until(lambda: bridge.metric("headrace_in_flight_batches") > 0)
            bridge.process.signal(signal.SIGTERM)
            until(lambda: bridge.logged("draining"))
            assert bridge.terminate(timeout=10) == 1
            rig.process.signal(signal.SIGCONT)
