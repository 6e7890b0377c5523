"""Locust as its users start it, on a real Kafka and a real Triton: what a run says, and how it ends."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from headrace.rig.triton import TritonRig
from loadtest.load.__main__ import LOCUST
from loadtest.load.settings import INTENDED
from tests.integration.test_pipeline import dense, event
from tests.support import Broker, running, until

ROOT = Path(__file__).parents[2]


def locust(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*LOCUST, "--headless", *arguments], capture_output=True, text=True, timeout=120, cwd=ROOT)


@pytest.fixture
def topics(broker: Broker) -> dict[str, str]:
    return broker.topics()


@pytest.fixture
def arguments(broker: Broker, topics: dict[str, str], tmp_path: Path) -> list[str]:
    """A run of four seconds; whether the machine is fast enough to say how fast is not asked here."""
    (tmp_path / "events.jsonl").write_bytes(b"\n".join(map(event, range(10))))
    found = {
        "bootstrap": broker.bootstrap,
        "source": topics["events"],
        "result": topics["results"],
        "dead-letter": topics["letters"],
        "events": str(tmp_path / "events.jsonl"),
        "plan": "uniform",
        "plan-rate": "200",
        "plan-seconds": "4",
        "warm-up": "0.5",
        "max-delay-ms": "1000",
        "report": str(tmp_path / "report"),
    }
    return [word for key, value in found.items() for word in (f"--{key}", value)]


def report(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return found


def test_every_outcome_of_a_run_is_accounted_for(
    broker: Broker, triton: TritonRig, topics: dict[str, str], arguments: list[str], tmp_path: Path
) -> None:
    with running(dense(broker, triton, topics), tmp_path) as bridge:
        (metrics,) = [line["address"] for line in bridge.logs() if line["event"] == "observing"]
        done = locust(*arguments, "--observe", f"http://{metrics}/metrics")
        assert done.returncode == 0, done.stdout + done.stderr
        found = report(tmp_path)
        assert found["verdict"] == "passed"
        assert 500 < found["sent"] <= 1_000
        assert found["received"] == found["sent"] == broker.count(topics["results"])
        assert found["missing"] == found["duplicated"] == found["disordered"] == found["dead_letters"] == 0
        assert 0 < found["latency_ms"]["50"] <= found["latency_ms"]["99"]
        assert list(found["versions"]) == ["1"]
        assert sum(second["sent"] for second in found["seconds"]) == found["sent"]
        assert any(second["lag"] is not None for second in found["seconds"])
        assert "<svg" in (tmp_path / "report.html").read_text()

        slow = locust(*arguments, "--max-p99-ms", "0.1")
        assert slow.returncode == 1
        assert "above 0.1 ms (--max-p99-ms)" in " ".join(slow.stderr.split())


@contextmanager
def workers(port: str) -> Iterator[None]:
    processes = [subprocess.Popen([*LOCUST, "--worker", "--master-port", port], cwd=ROOT) for _ in range(2)]
    try:
        yield
    finally:
        for process in processes:
            process.terminate()
            process.wait()


def test_workers_begin_together_and_their_steps_end_in_one_report(
    broker: Broker, triton: TritonRig, topics: dict[str, str], arguments: list[str], tmp_path: Path
) -> None:
    port = ["--master-bind-port", "15557"]
    with running(dense(broker, triton, topics), tmp_path), workers("15557"):
        steps = ["--plan", "steps", "--plan-steps", "3", "--plan-rate", "150", "--plan-seconds", "4"]
        done = locust(*arguments, *steps, "--master", "--expect-workers", "2", *port)
        assert done.returncode == 0, done.stdout + done.stderr
        found = report(tmp_path)
        assert [step["rate"] for step in found["steps"]] == [50, 100, 150]
        assert found["steps"][0]["verdict"] == "kept up"  # of the others a busy machine may say otherwise
        assert found["capacity"] >= 50
        assert found["told"] in " ".join(done.stderr.split())
        assert 1_000 < found["sent"] <= 1_250
        assert found["received"] == found["sent"] == broker.count(topics["results"])
        began: dict[bytes, float] = {}  # stream -> when its first event was due
        for record in broker.read(topics["results"]):
            due = next(int(value) / 1e9 for name, value in record.headers if name == INTENDED)
            stream = record.key.split(b"-")[0]
            began[stream] = min(due, began.get(stream, due))
        assert len(began) == 2  # each worker has a stream of its own
        assert max(began.values()) - min(began.values()) < 1  # and begins when all are ready


def test_what_ctrl_c_ends_is_judged_by_what_was_sent_until_then(
    broker: Broker, triton: TritonRig, topics: dict[str, str], arguments: list[str], tmp_path: Path
) -> None:
    master = ["--master", "--expect-workers", "2", "--master-bind-port", "15558", "--plan-seconds", "60"]
    with running(dense(broker, triton, topics), tmp_path), workers("15558"):
        process = subprocess.Popen([*LOCUST, "--headless", *arguments, *master], cwd=ROOT)
        try:
            until(lambda: broker.count(topics["results"]) > 100)
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
        finally:
            process.kill()
            process.wait()
    found = report(tmp_path)
    assert found["verdict"] == "passed"
    assert 100 < found["sent"] == found["received"] < 10_000


def test_ctrl_c_is_heard_whichever_greenlet_runs() -> None:
    script = """
import os, signal, gevent
from loadtest.locustfile import hear_ctrl_c

def deaf():
    try:
        os.kill(os.getpid(), signal.SIGINT)
        gevent.sleep(0.01)
    except KeyboardInterrupt:
        pass
    gevent.sleep(60)

hear_ctrl_c()
try:
    gevent.spawn(deaf).join()
except KeyboardInterrupt:
    print("heard")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, cwd=ROOT)
    assert done.stdout == "heard\n", done.stderr


def test_events_without_an_outcome_fail_a_run(arguments: list[str], tmp_path: Path) -> None:
    done = locust(*arguments, "--patience", "1")
    assert done.returncode == 1, done.stdout + done.stderr
    found = report(tmp_path)
    assert found["missing"] == found["sent"] > 0
    assert found["verdict"] == "failed"
    assert "have no outcome (--max-missing)" in " ".join(done.stderr.split())


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        (["--source", "nowhere"], "has no topic 'nowhere'"),
        (["--events", "/nowhere.jsonl"], "--events /nowhere.jsonl: cannot be read: No such file or directory"),
        (["--bootstrap", "127.0.0.1:1"], "Kafka at 127.0.0.1:1 does not answer"),
        (["--plan", "none", "--events", ""], "--events (not given): names no file with an event in each line"),
        (["--kafka-option", "me"], "--kafka-option me: is not NAME=VALUE"),
        (["--plan", "spike"], "a spike of 30 s does not fit in 4 s; make the run longer"),
        (["--plan", "replay"], "--plan-file: required by --plan replay"),
        (["--plan-rate", "-5"], "--plan-rate -5: must be above 0"),
        (["--observe", "bridge:9464"], "--observe bridge:9464: is no URL, such as http://bridge:9464/metrics"),
    ],
)
def test_a_users_mistake_ends_in_a_sentence(arguments: list[str], changed: list[str], sentence: str) -> None:
    done = locust(*arguments, *changed)
    assert done.returncode == 2, done.stdout + done.stderr
    assert sentence in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
