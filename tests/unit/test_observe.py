"""Metrics, health and logs."""

import re
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import generate_latest

from bridge.errors import PipelineStopped
from bridge.observe.health import Health
from bridge.observe.http import ObserveServer
from bridge.observe.telemetry import DEAD_LETTER_REASONS, Telemetry


def get(address: str, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_the_contracts_names_are_there_from_the_start_at_zero() -> None:
    text = generate_latest(Telemetry("p", "1.2").registry).decode()
    for name in (
        "records_total", "batch_records", "batch_wait_seconds", "inference_seconds", "end_to_end_seconds",
        "in_flight_batches", "queue_records", "retries_total", "dead_letters_total", "commit_seconds",
        "consumer_lag_records", "rebalances_total", "paused_partitions", "last_progress_timestamp_seconds",
        "event_loop_lag_seconds", "build_info",
    ):  # fmt: skip
        assert f"# TYPE headrace_{name}" in text
    for reason in DEAD_LETTER_REASONS:
        assert f'headrace_dead_letters_total{{pipeline="p",reason="{reason}"}} 0.0' in text
    assert 'headrace_build_info{pipeline="p",version="1.2"} 1.0' in text


def test_a_whole_array_is_one_observation_each() -> None:
    telemetry = Telemetry("p")
    telemetry.end_to_end.observe(np.array([0.0005, 0.0015, 0.0015, 1000.0]))
    value = telemetry.registry.get_sample_value
    assert value("headrace_end_to_end_seconds_count", {"pipeline": "p"}) == 4
    assert value("headrace_end_to_end_seconds_sum", {"pipeline": "p"}) == pytest.approx(1000.0035)
    assert value("headrace_end_to_end_seconds_bucket", {"pipeline": "p", "le": "0.001"}) == 1
    assert value("headrace_end_to_end_seconds_bucket", {"pipeline": "p", "le": "0.002"}) == 3
    assert value("headrace_end_to_end_seconds_bucket", {"pipeline": "p", "le": "+Inf"}) == 4


def test_a_partition_that_is_gone_has_no_lag() -> None:
    telemetry = Telemetry("p")
    telemetry.lags({("t", 0): 5, ("t", 1): 6})
    telemetry.lags({("t", 1): 7})
    labels = {"pipeline": "p", "topic": "t"}
    assert telemetry.registry.get_sample_value("headrace_consumer_lag_records", labels | {"partition": "0"}) is None
    assert telemetry.registry.get_sample_value("headrace_consumer_lag_records", labels | {"partition": "1"}) == 7


def test_unknown_labels_are_refused() -> None:
    telemetry = Telemetry("p")
    for wrong in (
        lambda: telemetry.records("sink", "lost"),
        lambda: telemetry.retry("mood"),
        lambda: telemetry.dead_letters("bad"),
    ):
        with pytest.raises(ValueError, match="is no"):
            wrong()


def test_health_over_http() -> None:
    now = [100.0]
    health = Health(lambda: now[0])
    server = ObserveServer("127.0.0.1:0", health, Telemetry("p").registry)
    try:
        assert get(server.address, "/health/live") == (200, "live\n")
        assert get(server.address, "/health/ready") == (
            503,
            "waiting for the consumer group; the model has not answered yet\n",
        )
        health.assigned, health.model_missing = True, ""
        assert get(server.address, "/health/ready") == (200, "ready\n")
        health.draining = True
        assert get(server.address, "/health/ready") == (503, "draining\n")
        now[0] += 20
        assert get(server.address, "/health/live") == (503, "the event loop has not turned for 20 s\n")
        health.turn()
        assert get(server.address, "/health/live")[0] == 200
        assert "headrace_build_info" in get(server.address, "/metrics")[1]
        with pytest.raises(PipelineStopped, match="observe.address: cannot listen"):
            ObserveServer(server.address, health, Telemetry("p").registry)
    finally:
        server.close()


@pytest.mark.parametrize("page", ["runbook.md", "guarantees.md"])
def test_pages_name_metrics_that_exist(page: str) -> None:
    text = (Path(__file__).parents[2] / "docs" / page).read_text()
    known = {
        line.split()[2]
        for line in generate_latest(Telemetry("p").registry).decode().splitlines()
        if line[:6] == "# TYPE"
    }
    named = {re.sub("_(bucket|count|sum)$", "", name) for name in re.findall(r"headrace_\w+", text)}
    assert named
    assert named <= known
