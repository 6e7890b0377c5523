"""Locust users for Headrace: events into Kafka and their outcomes back, and calls straight to the model server.

    locust -f loadtest/locustfile.py KafkaEventUser --bootstrap localhost:9092 --source pages --result fraud-scores …
    locust -f loadtest/locustfile.py TritonUser --model-address localhost:8001 --model-name fraud …

A KafkaEventUser is a unit of load: --rate-per-user events a second, sent when they are due, whether answers come or
not. More users, more events; Locust's web page and its workers do the rest. With --plan the rate follows the plan.
"""

import math
import signal
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import gevent
import grpc.experimental.gevent as grpc_gevent
from locust import User, constant, events, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.runners import MasterRunner, WorkerRunner

from loadtest.load import plan as plans
from loadtest.load.report import UNUSABLE, Gates, Observer, write
from loadtest.load.settings import WARM_UP, Settings
from loadtest.load.stream import Found, LoadError, Stream, check_events, partitions

grpc_gevent.init_gevent()

_PLANS = ("none", "uniform", "poisson", "steps", "spike", "replay")
_READY, _FAILED, _RATE = "headrace-ready", "headrace-failed", "headrace-rate"
_END, _FOUND = "headrace-end", "headrace-found"
_PATIENCE = 1_800.0  # seconds for the workers' receivers to see a backlog through


@events.init_command_line_parser.add_listener
def options(parser: LocustArgumentParser) -> None:
    """What a load test of Headrace can be told."""
    add = parser.add_argument_group("headrace").add_argument
    add("--bootstrap", default="localhost:9092", env_var="HEADRACE_BOOTSTRAP", help="Kafka: host:port")
    add("--source", default="events", help="Topic of the events")
    add("--result", default="results", help="Topic of the results")
    add("--dead-letter", default="dead-letters", help="Topic of the dead letters")
    add("--events", default="", help="File of events to repeat, one JSON object in each line")
    add(
        "--kafka-option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="Of librdkafka, such as sasl.username=me",
    )
    add("--linger-ms", type=int, default=5, help="Of the producer")
    add("--warm-up", type=float, default=WARM_UP, help="Seconds at the start whose latencies do not count")
    add("--rate-per-user", type=float, default=100.0, help="Events/s of one KafkaEventUser, without a plan")
    add("--plan", choices=_PLANS, default="none", help="How the rate goes; none: by the number of users")
    add("--plan-rate", type=float, default=1000.0, help="Events/s of the plan; of steps the highest")
    add("--plan-seconds", type=float, default=60.0, help="Length of the plan; of steps that of one step")
    add("--plan-steps", type=int, default=plans.STEPS, help="Of steps: so many, evenly up to the highest rate")
    add("--plan-file", default="", help="Of replay: CSV with the columns seconds, events_per_second")
    add("--plan-speed", type=float, default=1.0, help="Of replay: so many times faster")
    add("--observe", default="", help="URLs of bridges' /metrics, with commas: lag and batches in the report")
    add("--report", default="", help="Write NAME.html, NAME.json and NAME.svg")
    add("--max-p99-ms", type=float, default=math.inf, help="Fail when p99 is above")
    add("--max-missing", type=int, default=0, help="Fail when more events have no outcome")
    add("--max-duplicated", type=int, default=0, help="Fail when more outcomes come again")
    add("--max-dead-letters", type=int, default=0, help="Fail when more events get a dead letter")
    add(
        "--max-delay-ms",
        type=float,
        default=1.0,
        help="The run, of steps a step, is void when p99 of the generator's own delay is above",
    )
    add("--patience", type=float, default=30.0, help="Seconds without another outcome to wait for the last ones")
    add("--model-address", default="localhost:8001", help="Of the model server, for TritonUser: host:port")
    add("--model-name", default="fraud", help="Of the model, for TritonUser")
    add("--rows", type=int, default=64, help="Rows of one call of a TritonUser")


def planned(options: Any) -> plans.Plan:
    """The plan that was asked for."""
    rate, seconds = options.plan_rate, options.plan_seconds
    for name in ("plan_rate", "plan_seconds", "plan_steps", "plan_speed"):
        if not getattr(options, name) > 0:
            raise plans.PlanError(f"--{name.replace('_', '-')} {getattr(options, name):g}: must be above 0")
    match options.plan:
        case "steps":
            return plans.steps(rate, options.plan_steps, seconds)
        case "spike":
            return plans.spike(rate, seconds)
        case "replay":
            if not options.plan_file:
                raise plans.PlanError("--plan-file: required by --plan replay, a CSV file of a recorded day")
            return plans.replay(Path(options.plan_file), options.plan_speed)
        case _:
            return plans.uniform(rate, seconds)


class Load:
    """The stream of this process, which its users share, and what has been found."""

    def __init__(self) -> None:
        self.users = 0
        self.rate = 0.0
        self.ready = 0  # streams, of this process or, where it is the master, of its workers
        self.stream: Stream | None = None
        self.found = Found()
        self.observer: Observer | None = None

    def set_rate(self, rate: float) -> None:
        """Of the stream, events/s; Locust's shape says it before there is one."""
        self.rate = rate
        if self.stream is not None:
            self.stream.rate(rate)

    def count_ready(self) -> None:
        """One more stream waits for a rate."""
        self.ready += 1


LOAD = Load()


class KafkaEventUser(User):
    """A unit of load: events into Kafka at a rate of its own."""

    wait_time = constant(1)

    def on_start(self) -> None:
        """Count from now on."""
        self._count(1)

    def on_stop(self) -> None:
        """Count no more."""
        self._count(-1)

    def _count(self, by: int) -> None:
        LOAD.users += by
        options = self.environment.parsed_options
        if options.plan == "none":
            LOAD.set_rate(LOAD.users * options.rate_per_user)

    @task
    def stand_by(self) -> None:
        """The stream does the work."""


class TritonUser(User):
    """One call after the other, straight to the model server, each of so many rows."""

    wait_time = constant(0)

    def on_start(self) -> None:
        """Connect, and make the request."""
        from loadtest.load.calls import Caller

        options = self.environment.parsed_options
        self._caller = Caller(options.model_address, options.model_name, options.rows, options.events)

    @task
    def call(self) -> None:
        """Ask once."""
        began, failure = time.perf_counter(), None
        try:
            self._caller.ask()
        except Exception as error:  # noqa: BLE001 - whatever it is, Locust counts it
            failure = error
        self.environment.events.request.fire(
            request_type="grpc",
            name=f"{self.environment.parsed_options.model_name}, {self._caller.rows} rows",
            response_time=(time.perf_counter() - began) * 1000,
            response_length=0,
            exception=failure,
            context={},
        )


@events.init.add_listener
def set_up(environment: Environment, **_: Any) -> None:
    """The plan, and what master and workers tell each other."""
    from loadtest.load.shape import PlanShape  # here: Locust would take any shape of this file for the one to use

    options, runner = environment.parsed_options, environment.runner
    hear_ctrl_c()
    if isinstance(runner, WorkerRunner):
        runner.register_message(_RATE, lambda environment, msg, **_: LOAD.set_rate(msg.data))
        runner.register_message(_END, lambda environment, msg, **_: gevent.spawn(_finish, environment))
        return
    if isinstance(runner, MasterRunner):
        runner.register_message(_READY, lambda environment, msg, **_: LOAD.count_ready())
        runner.register_message(_FAILED, lambda environment, msg, **_: _give_up(environment, msg.data))
        runner.register_message(_FOUND, lambda environment, msg, **_: LOAD.found.add(Found.decode(msg.data)))
    if options.plan == "none":
        return

    def processes() -> int:
        return runner.worker_count if isinstance(runner, MasterRunner) else 1

    def ready() -> int:
        return LOAD.ready if KafkaEventUser in environment.user_classes else processes()

    def tell(rate: float) -> None:
        if isinstance(runner, MasterRunner):
            runner.send_message(_RATE, rate / max(1, processes()))
        else:
            LOAD.set_rate(rate)

    try:
        environment.shape_class = PlanShape(planned(options), processes, ready, tell)
    except plans.PlanError as error:
        print(error, file=sys.stderr)
        raise SystemExit(UNUSABLE) from None
    environment.shape_class.runner = runner


def hear_ctrl_c() -> None:
    """In the main greenlet: left to itself, whichever runs just then gets it, and some go on as if nothing were."""

    def interrupt() -> None:
        raise KeyboardInterrupt  # from a signal handler of gevent's it goes to the main greenlet

    gevent.signal_handler(signal.SIGINT, interrupt)


@events.test_start.add_listener
def begin(environment: Environment, **_: Any) -> None:
    """Sender and receiver, where there are users of Kafka."""
    options, runner = environment.parsed_options, environment.runner
    LOAD.found = Found()
    if KafkaEventUser not in environment.user_classes:
        return
    try:
        if options.observe and not isinstance(runner, WorkerRunner):
            LOAD.observer = Observer(options.observe.split(","))
        if isinstance(runner, MasterRunner):
            return
        LOAD.stream = _stream(environment)
        LOAD.set_rate(LOAD.rate)
        LOAD.count_ready()
        if isinstance(runner, WorkerRunner):
            runner.send_message(_READY, None)
    except LoadError as error:
        if isinstance(runner, WorkerRunner):
            runner.send_message(_FAILED, str(error))
        else:
            _give_up(environment, str(error))


def _give_up(environment: Environment, why: str) -> None:
    """A test that cannot begin."""
    if environment.process_exit_code != UNUSABLE:
        print(why, file=sys.stderr)
    environment.process_exit_code = UNUSABLE
    gevent.spawn(environment.runner.quit)  # once it has started: to end it in the middle of that ends nothing


def _stream(environment: Environment) -> Stream:
    options = environment.parsed_options
    for option in options.kafka_option:
        if "=" not in option:
            raise LoadError(f"--kafka-option {option}: is not NAME=VALUE, such as sasl.username=me")
    security = dict(option.split("=", 1) for option in options.kafka_option)
    check_events(options.events)
    settings = Settings(
        bootstrap=options.bootstrap,
        source=options.source,
        partitions=partitions(options.bootstrap, security, options.source, options.result, options.dead_letter),
        result=options.result,
        dead_letter=options.dead_letter,
        run=uuid.uuid4().hex[:12],
        events=options.events,
        poisson=options.plan == "poisson",
        linger_ms=options.linger_ms,
        late_ms=options.max_delay_ms,
        warm_up=options.warm_up,
        patience=options.patience,
        security=security,
    )
    name = f"{options.source} -> {options.result}"

    def fire(milliseconds: float) -> None:
        environment.events.request.fire(
            request_type="kafka", name=name, response_time=milliseconds, response_length=0, exception=None, context={}
        )

    return Stream(settings, fire)


@events.test_stop.add_listener
def end(environment: Environment, **_: Any) -> None:
    """Wait for the last outcomes, and judge them."""
    options, runner = environment.parsed_options, environment.runner
    _finish(environment)
    if KafkaEventUser not in environment.user_classes or isinstance(runner, WorkerRunner):
        return
    streams, LOAD.ready = LOAD.ready, 0  # for the next test of Locust's page
    if environment.process_exit_code == UNUSABLE:
        return  # it has not begun
    if isinstance(runner, MasterRunner):
        # A master that quits tells its workers only after this; and then they could tell nothing any more.
        runner.send_message(_END, None)
        until = time.monotonic() + _PATIENCE
        while LOAD.found.streams < min(streams, runner.worker_count) and time.monotonic() < until:
            gevent.sleep(0.2)
    if LOAD.observer is not None:
        LOAD.observer.stop()
    gates = Gates(
        max_p99_ms=options.max_p99_ms,
        max_missing=options.max_missing,
        max_duplicated=options.max_duplicated,
        max_dead_letters=options.max_dead_letters,
        max_delay_ms=options.max_delay_ms,
    )
    steps = planned(options) if options.plan == "steps" else ()
    environment.process_exit_code = write(LOAD.found, streams, gates, LOAD.observer, options.report, steps)


@events.quitting.add_listener
def end_first(environment: Environment, **_: Any) -> None:
    """Where Ctrl-C ends it, Locust takes its exit code before it ends the test."""
    if environment.runner is not None and not isinstance(environment.runner, WorkerRunner):
        environment.runner.stop()  # nothing, where it has stopped


def _finish(environment: Environment) -> None:
    """End the stream of this process, if it has one; what has no outcome is a failure for Locust too."""
    if LOAD.stream is None:
        return
    stream, LOAD.stream, LOAD.rate = LOAD.stream, None, 0.0
    found = stream.finish()
    for problem in ("missing", "duplicated", "disordered", "dead_letters"):
        for number in range(found.outcomes[problem]):
            environment.events.request.fire(
                request_type="kafka",
                name=problem,
                response_time=None,
                response_length=0,
                exception=RuntimeError(problem),
                context={"number": number},
            )
    if isinstance(environment.runner, WorkerRunner):
        environment.runner.send_message(_FOUND, found.encode())
    else:
        LOAD.found.add(found)
