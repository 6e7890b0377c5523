"""`headrace run`: one pipeline with its real clients, from the first connection to the drained end."""

import asyncio
import gc
import importlib.metadata
import os
import random
import signal
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import structlog
from aiokafka.errors import KafkaError

from bridge.config import Pipeline
from bridge.errors import ConfigError, PipelineStopped, first_cause
from bridge.flow import Flow
from bridge.infer import Disposition, InferenceError, ModelServer
from bridge.infer.predictor import Predictor
from bridge.infer.tfserving import TensorFlowServing
from bridge.infer.triton import TritonServer
from bridge.kafka import FATAL, Topic, describe_topics, sentence
from bridge.observe.health import Health
from bridge.observe.http import ObserveServer
from bridge.observe.telemetry import Telemetry
from bridge.plan import Plan, check_topics
from bridge.retry import Backoff
from bridge.sink import Sink
from bridge.sink.kafka import KafkaSink
from bridge.sink.transactional import TransactionalSink
from bridge.source.kafka import KafkaSource
from bridge.tensors import ModelSpec

log = structlog.get_logger()
T = TypeVar("T")

_SUPERVISED_REPEAT = 2.0
"""A service manager signals the supervisor and the workers at once, and the supervisor tells the workers again."""

_COLLECT_EVERY = 20_000  # objects more than before


def model_server(config: Pipeline) -> ModelServer:
    """The client for the kind of server the configuration names."""
    return TensorFlowServing(config.model) if config.model.server == "tfserving" else TritonServer(config.model)


async def run(config: Pipeline, on_ready: Callable[[], None], on_observe: Callable[[str], None] | None = None) -> None:
    """Run until SIGTERM or SIGINT, then drain. A second signal ends the process at once.

    Args:
        config: the configuration.
        on_ready: called once, when partitions are assigned and the model answers.
        on_observe: of a supervisor; told the host:port of health and metrics, where there are any.

    Raises:
        ConfigError: the configuration does not fit the live model or topics.
        PipelineStopped: something that cannot heal by itself.
    """
    stop = asyncio.Event()
    on_signals(stop, _SUPERVISED_REPEAT if on_observe else 0.0)
    _calm_the_collector()
    telemetry = Telemetry(config.name, importlib.metadata.version("headrace"))
    health = Health()
    observe = ObserveServer(config.observe.address, health, telemetry.registry) if config.observe.address else None
    if observe:
        log.info("observing", address=observe.address)
        if on_observe:
            on_observe(observe.address)
    server = model_server(config)
    try:
        async with asyncio.TaskGroup() as tasks:
            pulse = tasks.create_task(_pulse(health, telemetry), name="pulse")
            flow = await _unless(stop, _prepare(config, server, telemetry, health, on_ready))
            if flow is not None:
                await flow.run(stop)
            pulse.cancel()
    except BaseExceptionGroup as group:
        raise first_cause(group) from None
    finally:
        await server.close()
        if observe:
            observe.close()


async def _prepare(
    config: Pipeline, server: ModelServer, telemetry: Telemetry, health: Health, on_ready: Callable[[], None]
) -> Flow:
    async with asyncio.TaskGroup() as both:
        describing = both.create_task(_reach_model(server, telemetry, health))
        inspecting = both.create_task(_reach_topics(config, telemetry))
    model, topics = describing.result(), inspecting.result()
    health.model_missing = ""
    plan = Plan.compile(config, model)
    if plan.max_events < config.batch.max_events:
        log.info("batch_capped", max_events=plan.max_events, because=f"max_batch_size of model {model.name}")
    log.info("model_found", model=model.name, versions=list(model.versions), inputs=list(map(str, model.inputs)))
    for version in model.versions:
        telemetry.inference(model.name, version, "OK")  # label sets exist from the start
    outputs = {name: topics[name] for name in _outputs(config)}
    sink: Sink = (TransactionalSink if config.delivery == "exactly_once" else KafkaSink)(config, outputs, telemetry)
    return Flow(
        config,
        plan,
        KafkaSource(config, telemetry),
        Predictor(server, model, plan.outputs, telemetry, health, random.Random()),
        sink,
        outputs,
        telemetry,
        health,
        on_ready,
    )


async def _reach_model(server: ModelServer, telemetry: Telemetry, health: Health) -> ModelSpec:
    backoff = Backoff(0.2, 5.0, random.Random())
    said = ""
    while True:
        try:
            return await server.describe()
        except InferenceError as error:
            if error.disposition is Disposition.STOP:
                raise PipelineStopped(str(error)) from error
            telemetry.retry("model")
            health.model_missing = str(error)
            if error.code != said:
                said = error.code
                log.warning("model_not_ready", error=str(error), action="trying again")
        await asyncio.sleep(backoff.next())


async def _reach_topics(config: Pipeline, telemetry: Telemetry) -> dict[str, Topic]:
    backoff = Backoff(0.2, 5.0, random.Random())
    names = [*config.source.topics, *_outputs(config)]
    said = ""
    while True:
        try:
            topics = await describe_topics(config.kafka, names)
        except FATAL as error:
            raise PipelineStopped(sentence(error, config.kafka)) from error
        except KafkaError as error:
            problem = sentence(error, config.kafka)
        else:
            missing = [name for name, topic in topics.items() if topic is None]
            found = {name: topic for name, topic in topics.items() if topic is not None}
            if not missing:
                problems = check_topics(config, topics)
                if problems:
                    raise ConfigError(*problems)
                return found
            problem = f"Kafka has no topic {', '.join(map(repr, missing))}"
        telemetry.retry("kafka")
        if problem != said:
            said = problem
            log.warning("kafka_not_ready", error=problem, action="trying again")
        await asyncio.sleep(backoff.next())


async def _pulse(health: Health, telemetry: Telemetry) -> None:
    """Twice a second: that the loop turns, and how late it is."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + 0.5
        await asyncio.sleep(0.5)
        health.turn()
        telemetry.loop_lag.set(max(0.0, loop.time() - due))


def _calm_the_collector() -> None:
    """Look for cycles rarely, and never among what was there at the start.

    Events in flight are many small objects that live for moments and make no cycles. With Python's own thresholds the
    collector walks over them at every 700th.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECT_EVERY, 10, 10)


def _outputs(config: Pipeline) -> list[str]:
    alert = config.result.alert
    return [config.result.topic, config.dead_letter.topic, *([alert.topic] if alert else [])]


async def _unless(stop: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | None:
    """The result of `work`, or None when `stop` is set first."""
    working, stopping = asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        return await working if working.done() else None
    except BaseExceptionGroup as group:
        raise first_cause(group) from None
    finally:
        stopping.cancel()
        working.cancel()
        await asyncio.gather(working, stopping, return_exceptions=True)


def on_signals(stop: asyncio.Event, repeat: float = 0.0) -> None:
    """Have SIGTERM and SIGINT set `stop`, and a second of them end the process at once.

    Args:
        stop: is set.
        repeat: seconds within which another signal is taken for the same one, sent twice.
    """
    loop = asyncio.get_running_loop()
    first = float("inf")

    def signalled() -> None:
        nonlocal first
        if not stop.is_set():
            first = loop.time()
            stop.set()
        elif loop.time() >= first + repeat:
            os._exit(1)  # the second signal: whoever sends it does not want to wait for the drain

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signalled)
