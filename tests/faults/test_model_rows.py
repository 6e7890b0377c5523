"""The fault catalogue, rows about the model: a scripted server of official messages for the nasty answers."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from tests.faults.conftest import double
from tests.faults.proxy import Proxy, proxy
from tests.faults.world import World, world
from tests.support import Broker, until
from tests.v2_server import V2Server, response, v2_server

RATE = 1000
both = pytest.mark.parametrize("delivery", ["exactly_once", "at_least_once"])


@contextmanager
def modelled(broker: Broker, folder: Path, seed: int, **options: Any) -> Iterator[tuple[World, V2Server, Proxy]]:
    """A world with a model server of its own behind a proxy."""
    with (
        v2_server(double) as (server, address),
        proxy(address) as between,
        world(broker, between.address, folder, seed, **options) as w,
    ):
        yield w, server, between


@both
def test_row_6_rebalance_while_batches_are_at_the_model(
    broker: Broker, tmp_path: Path, seed: int, delivery: str
) -> None:
    with modelled(broker, tmp_path, seed, delivery=delivery) as (w, server, _):

        async def slowly(rows: np.ndarray) -> Any:
            import asyncio

            await asyncio.sleep(0.3)
            return response(rows * 2)

        server.answer = slowly
        first = w.start()
        w.start_writing(RATE // 2)
        w.until_done(100)
        second = w.start()
        until(lambda: second.metric("headrace_records_total", stage="sink", outcome="result") > 0, 60)
        w.bridges.remove(second)
        assert second.terminate() == 0
        server.answer = double
        assert not first.logged("drain_incomplete")
        assert w.finish().duplicated == 0  # in either mode: it was drained and committed


@both
@pytest.mark.parametrize("kind", ["unavailable", "overloaded", "gone"])
def test_row_13_the_model_is_away(broker: Broker, tmp_path: Path, seed: int, delivery: str, kind: str) -> None:
    with modelled(broker, tmp_path, seed, delivery=delivery) as (w, server, between):
        bridge = w.start()
        w.start_writing(RATE)
        w.until_done(500)
        codes = {"unavailable": grpc.StatusCode.UNAVAILABLE, "overloaded": grpc.StatusCode.RESOURCE_EXHAUSTED}
        if kind == "gone":
            between.refusing = True
            between.cut()
        else:

            def away(_: np.ndarray) -> Any:
                raise grpc.RpcError(codes[kind])

            server.answer = away
        until(lambda: bridge.logged("model_away"), 30)
        until(lambda: bridge.metric("headrace_paused_partitions") == 3, 30, "the intake is paused")
        calls = server.calls
        time.sleep(6 + w.rng.random())  # the outage itself
        assert server.calls - calls < 30  # one probe at a time, with growing pauses
        lag = bridge.metric("headrace_consumer_lag_records", partition="0")
        assert lag > RATE, "the lag is known though nothing is fetched"
        assert bridge.get("/health/live")[0] == 200
        server.answer, between.refusing = double, False
        verdict = w.finish()
        assert verdict.letters == 0
        assert bridge.metric("headrace_rebalances_total") == 1


@both
def test_row_14_the_model_hangs(broker: Broker, tmp_path: Path, seed: int, delivery: str) -> None:
    with modelled(broker, tmp_path, seed, delivery=delivery) as (w, _, between):
        bridge = w.start()
        w.start_writing(RATE)
        w.until_done(500)
        connections = between.connections
        between.hanging = True
        until(lambda: between.connections > connections, 30, "another connection is tried")
        assert bridge.get("/health/live")[0] == 200
        between.hanging = False
        assert w.finish().letters == 0


@both
def test_row_15_answers_sliced_in_the_middle(broker: Broker, tmp_path: Path, seed: int, delivery: str) -> None:
    with modelled(broker, tmp_path, seed, delivery=delivery) as (w, _, between):
        w.start()
        w.start_writing(RATE)
        w.until_done(300)
        between.slice_after = 1500 + w.rng.randrange(3000)
        connections = between.connections
        between.cut()
        until(lambda: between.connections > connections + 5, 30, "connections are cut in mid-reply")
        between.slice_after = 0
        assert w.finish().letters == 0


@both
@pytest.mark.parametrize("code", ["INVALID_ARGUMENT", "INTERNAL"])
def test_row_16_one_poison_event_in_a_batch(
    broker: Broker, tmp_path: Path, seed: int, delivery: str, code: str
) -> None:
    with modelled(broker, tmp_path, seed, delivery=delivery, batch={"max_events": 256, "in_flight": 1}) as (
        w,
        server,
        _,
    ):

        def picky(rows: np.ndarray) -> Any:
            if (rows < 0).any():
                raise grpc.RpcError(getattr(grpc.StatusCode, code))
            return rows * 2

        server.answer = picky
        bad = 300 + w.rng.randrange(500)
        w.poison = lambda n: b'{"id":%d,"x":-1}' % n if n == bad else None
        w.write(1000)
        w.start()
        verdict = w.finish(events=1000)
        assert (verdict.results, verdict.letters) == (999, 1)
        assert [(i.event, i.letter) for i in w.history.seen if i.letter] == [(bad, "model")]
        if code == "INVALID_ARGUMENT":
            batches = w.bridges[0].metric("headrace_batch_records_count")
            extra = server.calls - batches
            assert extra <= 2 * (1 + math.log2(256))


@both
@pytest.mark.parametrize("kind", ["rows", "nan", "output", "shape"])
def test_row_18_wrong_answers(broker: Broker, tmp_path: Path, seed: int, delivery: str, kind: str) -> None:
    with modelled(broker, tmp_path, seed, delivery=delivery) as (w, server, _):
        bridge = w.start()
        w.write(300)
        w.until_done(300)
        bad = 300 + w.rng.randrange(300)

        def wrong(rows: np.ndarray) -> Any:
            if kind == "nan":
                return np.where(rows == bad, np.nan, rows * 2)
            if kind == "rows":
                return rows[:-1] * 2
            return response(rows * 2, name="z") if kind == "output" else response((rows * 2).reshape(-1))

        w.fault(f"the model answers wrongly: {kind}")
        server.answer = wrong
        w.write(300)
        if kind == "nan":
            assert w.finish(events=600).letters == 1
            assert [(i.event, i.letter) for i in w.history.seen if i.letter] == [(bad, "output")]
        elif kind == "shape":
            assert bridge.process.wait() == 1
            assert "its signature has changed" in bridge.log.read_text()
            w.bridges.remove(bridge)
            server.answer = double
            w.start()
            assert w.finish(events=600).letters == 0
        else:
            until(lambda: bridge.logged("model_away"), 30)
            assert broker.count(w.topics["letters"]) == 0
            server.answer = double
            assert w.finish(events=600).letters == 0


@both
def test_row_19_the_model_comes_back_with_another_signature(
    broker: Broker, tmp_path: Path, seed: int, delivery: str
) -> None:
    with modelled(broker, tmp_path, seed, delivery=delivery) as (w, server, _):
        bridge = w.start()
        w.write(300)
        w.until_done(300)
        w.fault("the signature changes")
        server.datatype = "INT64"
        server.version = "2"
        w.write(300)
        assert bridge.process.wait() == 1
        assert "changed its signature from x FP32" in bridge.log.read_text()
        assert broker.count(w.topics["letters"]) == 0
        w.bridges.remove(bridge)
        server.datatype = "FP32"
        w.start()
        assert w.finish(events=600).letters == 0
