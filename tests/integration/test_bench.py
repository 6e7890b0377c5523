"""`headrace bench`, as a user runs it."""

import json
from pathlib import Path

import yaml

from headrace.rig.triton import TritonRig
from tests.integration.test_pipeline import dense, numbered
from tests.support import Broker, headrace


def test_a_backlog_is_measured_beside_a_copy(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    done = headrace("bench", "--events", "100000", "--rounds", "1", "--json", "--out", str(out), timeout=240)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found == json.loads(out.read_text())
    rows = {row["case"]: row for row in found["backlog"]}
    assert list(rows) == ["copy, json", "headrace, json", "copy, raw", "headrace, raw"]
    for row in rows.values():
        (figures,) = row["rounds"]
        assert figures["events_per_second"] > 0
        assert set(figures["cpu_us"]) == {"subject", "model", "kafka"}
        assert figures["cpu_us"]["subject"] > 0
    assert rows["headrace, json"]["rounds"][0]["cpu_us"]["model"] > 0
    assert "<svg" in out.with_suffix(".html").read_text()


def test_what_is_not_there_is_named_with_what_is() -> None:
    done = headrace("bench", "backlok")
    assert done.returncode == 2
    assert "'backlok' is no scenario; there are backlog, rates," in " ".join(done.stderr.replace("│", " ").split())
    done = headrace("bench", "--peer", "nobody")
    assert done.returncode == 2
    assert "'nobody' is no peer; there are bytewax," in " ".join(done.stderr.replace("│", " ").split())


def test_a_pipeline_of_ones_own_is_measured_with_its_own_events(
    broker: Broker, triton: TritonRig, tmp_path: Path
) -> None:
    topics = broker.topics()
    events = numbered(300)
    broker.produce(topics["events"], events)
    config = dense(broker, triton, topics, result={"alert": {"when": "score > 10", "topic": topics["alerts"]}})
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(config))
    common = ("bench", "--config", str(path), "--events", "60000", "--rounds", "1", "--json")
    done = headrace(*common, timeout=240)
    assert done.returncode == 0, done.stderr
    rows = {row["case"]: row["rounds"][0] for row in json.loads(done.stdout)["backlog"]}
    assert list(rows) == ["copy", "headrace"]
    assert set(rows["headrace"]["cpu_us"]) == {"subject", "kafka"}
    assert broker.count(topics["results"], topics["letters"], topics["alerts"]) == 0
    assert broker.committed(config["name"], topics["events"]) == {}

    done = headrace(*common, "size")
    assert done.returncode == 2
    assert "'size' is no scenario; there are backlog, rates, delivery, batch, workers" in done.stderr.replace("│", " ")
    empty = tmp_path / "none.txt"
    empty.write_text("\n")
    done = headrace(*common, "--sample", str(empty))
    assert (done.returncode, "there is no event in it" in done.stderr) == (1, True)
