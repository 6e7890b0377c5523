"""Locust users for Headrace: events into Kafka and their outcomes back, and calls straight to the model server.

    locust -f loadtest/locustfile.py --bootstrap localhost:9092 --source pages --result fraud-scores …

A KafkaEventUser is a unit of load: --rate-per-user events a second, sent when they are due, whether answers come or
not. More users, more events; Locust's web page, its shapes and its workers do the rest. With --plan, users follow it.
"""

import math
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
from loadtest.load.report import Gates, Observer, write
from loadtest.load.settings import Settings
from loadtest.load.stream import Found, Stream

grpc_gevent.init_gevent()

_PLANS = ("none", "uniform", "poisson", "steps", "spike", "soak", "replay")


@events.init_command_line_parser.add_listener
def options(parser: LocustArgumentParser) -> None:
    """What a load test of Headrace can be told."""
    add = parser.add_argument_group("headrace").add_argument
    add("--bootstrap", default="localhost:9092", env_var="HEADRACE_BOOTSTRAP", help="Kafka: host:port")
    add("--source", default="events", help="Topic of the events")
    add("--result", default="results", help="Topic of the results")
    add("--dead-letter", default="dead-letters", help="Topic of the dead letters")
    add("--events", default="", help="File of events to repeat, one JSON object in each line")
    add("--linger-ms", type=int, default=5, help="Of the producer")
    add("--warm-up", type=float, default=2.0, help="Seconds at the start whose latencies do not count")
    add("--rate-per-user", type=float, default=100.0, help="Events/s of one KafkaEventUser")
    add("--plan", choices=_PLANS, default="none", help="How the rate goes; none: by the number of users")
    add("--plan-rate", type=float, default=1000.0, help="Events/s of the plan; of steps the highest")
    add("--plan-seconds", type=float, default=60.0, help="Length of the plan; of steps that of one step")
    add("--plan-file", default="", help="Of replay: CSV with the columns seconds, events_per_second")
    add("--plan-speed", type=float, default=1.0, help="Of replay: so many times faster")
    add(
        "--observe",
        default="",
        help="URLs of bridges' /metrics, with commas: lag and batches in the report",
    )
    add("--report", default="", help="Write NAME.html and NAME.json")
    add("--max-p99-ms", type=float, default=math.inf, help="Fail when p99 is above")
    add("--max-missing", type=int, default=0, help="Fail when more events have no outcome")
    add("--model-address", default="localhost:8001", help="Of the model server, for TritonUser: host:port")
    add("--model-name", default="fraud", help="Of the model, for TritonUser")
    add("--rows", type=int, default=64, help="Rows of one call of a TritonUser")
    add("--triton", action="store_true", help="TritonUsers alone: the ceiling, without Kafka and bridge")


def planned(options: Any) -> plans.Plan:
    """The plan that was asked for."""
    rate, seconds = options.plan_rate, options.plan_seconds
    match options.plan:
        case "steps":
            return plans.steps(rate, 8, seconds)
        case "spike":
            return plans.spike(rate, seconds)
        case "replay":
            return plans.replay(Path(options.plan_file), options.plan_speed)
        case _:
            return plans.uniform(rate, seconds)


class Load:
    """The stream of this process, which its users share, and what all processes have found."""

    def __init__(self) -> None:
        self.users = 0
        self.stream: Stream | None = None
        self.found = Found()
        self.observer: Observer | None = None
        self.began = time.time()

    def users_changed(self, by: int, environment: Environment) -> None:
        """A user has come or gone."""
        self.users += by
        if self.stream is not None:
            self.stream.rate(self.users * environment.parsed_options.rate_per_user)


LOAD = Load()


class KafkaEventUser(User):
    """A unit of load: events into Kafka at a rate of its own."""

    wait_time = constant(1)

    def on_start(self) -> None:
        """Count from now on."""
        LOAD.users_changed(1, self.environment)

    def on_stop(self) -> None:
        """Count no more."""
        LOAD.users_changed(-1, self.environment)

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
    """Users and shape as the options ask for."""
    from loadtest.load.shape import PlanShape  # here: Locust would take any shape of this file for the one to use

    options = environment.parsed_options
    environment.user_classes = [TritonUser] if options.triton else [KafkaEventUser]
    if options.plan != "none" and not isinstance(environment.runner, WorkerRunner):
        environment.shape_class = PlanShape(planned(options), options.rate_per_user)
        environment.shape_class.runner = environment.runner


@events.test_start.add_listener
def begin(environment: Environment, **_: Any) -> None:
    """Sender and receiver, where there are users."""
    options = environment.parsed_options
    LOAD.found, LOAD.began = Found(), time.time()
    if options.observe and not isinstance(environment.runner, WorkerRunner):
        LOAD.observer = Observer(options.observe.split(","))
    if options.triton or isinstance(environment.runner, MasterRunner):
        return
    settings = Settings(
        bootstrap=options.bootstrap,
        source=options.source,
        result=options.result,
        dead_letter=options.dead_letter,
        run=uuid.uuid4().hex[:12],
        events=options.events,
        poisson=options.plan == "poisson",
        linger_ms=options.linger_ms,
        warm_up=options.warm_up,
    )
    name = f"{options.source} -> {options.result}"

    def fire(milliseconds: float) -> None:
        environment.events.request.fire(
            request_type="kafka", name=name, response_time=milliseconds, response_length=0, exception=None, context={}
        )

    LOAD.stream = Stream(settings, fire)
    LOAD.users_changed(0, environment)


@events.test_stop.add_listener
def end(environment: Environment, **_: Any) -> None:
    """Wait for the last outcomes; what has none is a failure."""
    options = environment.parsed_options
    if LOAD.stream is not None:
        found, LOAD.stream = LOAD.stream.finish(), None
        LOAD.found.add(found)
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
    if isinstance(environment.runner, MasterRunner):
        gevent.sleep(1)  # for the workers' last reports, which carry what they have found
    if LOAD.observer is not None:
        LOAD.observer.stop()
    if options.triton or isinstance(environment.runner, WorkerRunner):
        return
    gates = Gates(options.max_p99_ms, options.max_missing)
    environment.process_exit_code = write(LOAD.found, gates, LOAD.observer, options.report)


@events.report_to_master.add_listener
def report(client_id: str, data: dict[str, Any]) -> None:
    """A worker's part, once it has ended."""
    if LOAD.found.sent:
        data["headrace"] = LOAD.found.encode()
        LOAD.found = Found()


@events.worker_report.add_listener
def gather(client_id: str, data: dict[str, Any]) -> None:
    """At the master."""
    if "headrace" in data:
        LOAD.found.add(Found.decode(data["headrace"]))
