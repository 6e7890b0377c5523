"""`headrace run --workers N`: several processes in one group under one supervisor."""

import os
import signal
from pathlib import Path

import psutil
import pytest

from headrace.rig.triton import TritonRig
from tests.integration.test_pipeline import assert_complete, dense, numbered
from tests.support import Bridge, Broker, running, until


def workers(bridge: Bridge) -> dict[int, int]:
    """Number -> process id, as last started."""
    return {line["worker"]: line["pid"] for line in bridge.logs() if line["event"] == "worker_started"}


def gone(pids: list[int]) -> bool:
    return not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in pids)


def test_workers_share_the_partitions_and_end_together(broker: Broker, triton: TritonRig, tmp_path: Path) -> None:
    topics = broker.topics()
    with running(dense(broker, triton, topics), tmp_path, "--workers", "2") as bridge:
        until(lambda: bridge.metric("headrace_consumer_lag_records", worker="1") == 0, what="worker 1 has partitions")
        until(lambda: bridge.metric("headrace_consumer_lag_records", worker="2") == 0, what="worker 2 has partitions")
        assert bridge.get("/health/live") == (200, "live\n")
        assert bridge.get("/health/ready") == (200, "ready\n")
        broker.produce(topics["events"], numbered(3000))
        until(lambda: broker.count(topics["results"]) == 3000)
        pids = list(workers(bridge).values())
        assert len(pids) == 2
        for pid in pids:  # a service manager signals all of them at once, and then the supervisor tells the workers
            os.kill(pid, signal.SIGTERM)
        assert bridge.terminate() == 0
        assert gone(pids)
    assert [line["event"] for line in bridge.logs()].count("drained") == 2
    assert_complete(broker, topics, 3000)
    assert broker.committed(bridge.config["name"], topics["events"]) == {0: 1000, 1: 1000, 2: 1000}


def test_a_worker_that_is_killed_is_started_again(broker: Broker, triton: TritonRig, tmp_path: Path) -> None:
    topics = broker.topics()
    config = dense(broker, triton, topics, source={"topics": [topics["events"]], "session_timeout": "6s"})
    with running(config, tmp_path, "--workers", "2") as bridge:
        before = workers(bridge)
        os.kill(before[1], signal.SIGKILL)
        until(lambda: workers(bridge)[1] != before[1], what="started again")
        assert workers(bridge)[2] == before[2]
        assert bridge.metric("headrace_worker_restarts_total") == 1
        until(lambda: bridge.get("/health/ready")[0] == 200)
        os.kill(before[2], signal.SIGSTOP)
        until(lambda: bridge.get("/health/live") == (503, "worker 2: does not answer\n"))
        os.kill(before[2], signal.SIGCONT)
        until(lambda: bridge.get("/health/live") == (200, "live\n"))
        broker.produce(topics["events"], numbered(300))
        until(lambda: broker.count(topics["results"]) == 300)
        assert bridge.terminate() == 0
    assert_complete(broker, topics, 300)


def test_what_stops_one_worker_for_good_stops_all(broker: Broker, triton: TritonRig, tmp_path: Path) -> None:
    topics = broker.topics()
    config = dense(broker, triton, topics, model={"inputs": {"feature": ["f1"]}})
    with running(config, tmp_path, "--workers", "2", ready=False) as bridge:
        until(lambda: not bridge.process.running)
        assert bridge.process.wait() == 2
        assert gone(list(workers(bridge).values()))
        assert "model.inputs.feature: model 'dense' has no input of that name" in bridge.log.read_text()


def test_workers_end_with_a_killed_supervisor(broker: Broker, triton: TritonRig, tmp_path: Path) -> None:
    topics = broker.topics()
    with running(dense(broker, triton, topics), tmp_path, "--workers", "2") as bridge:
        pids = list(workers(bridge).values())
        bridge.process.kill()
        until(lambda: gone(pids), what="they drain and end")
    assert [line["event"] for line in bridge.logs()].count("drained") == 2


@pytest.mark.parametrize("option", ["0", "65", "two"])
def test_a_wrong_number_of_workers_is_a_usage_error(option: str, tmp_path: Path) -> None:
    bridge = Bridge({"name": "x"}, tmp_path, "--workers", option)
    assert bridge.process.wait() == 2
    assert "--workers" in bridge.log.read_text()
