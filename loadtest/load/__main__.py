"""make loadtest: Locust against a Kafka, a Triton and a bridge that are started here for it.

short     half a minute at 2,000 events/s
steps     up to a rate, to find where the system is full
spike     ten times the rate for 30 seconds
soak      steps first, then an hour at half of what they found
agree     one stream of events, timed by Locust and by headrace bench: do they find the same latency?
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from bridge.errors import HeadraceError
from headrace.rig.kafka import KafkaCluster
from headrace.rig.process import ServerProcess, free_port
from headrace.rig.triton import TritonRig
from loadtest.bench.measure import Servers, percentiles
from loadtest.bench.subjects import Bridge
from loadtest.bench.workload import BUSY, Workload, make_models
from loadtest.dashboard import draw, prometheus
from loadtest.load.plan import STEPS
from loadtest.load.report import UNUSABLE
from loadtest.load.settings import INTENDED, WARM_UP
from serving.errors import ServingError

LOCUST = (sys.executable, "-m", "locust", "-f", str(Path(__file__).parents[1] / "locustfile.py"), "KafkaEventUser")
"""The command that starts it, for events into Kafka."""
_HIGHEST_STEP = 0.4  # of the rate at which a backlog drains, in large batches and with nothing else on the machine
_SOAK = 0.5  # of what steps have found
_KEPT = {
    "log.retention.ms": "600000",
    "log.retention.check.interval.ms": "60000",
    "log.segment.bytes": str(128 * 2**20),
}
"""Of the log: ten minutes, far more than anything is read late. An hour of it may fill a disk."""
_INTERRUPTED = 130  # exit code, as of any command that Ctrl-C ends


@dataclass(frozen=True, slots=True)
class Scenario:
    """What Locust is told.

    Attributes:
        plan: of it.
        rate: events/s; 0 where it is to be measured first.
        seconds: length of the plan, or of one of its steps.
    """

    plan: str
    rate: float
    seconds: float


SCENARIOS = {
    "short": Scenario("uniform", 2_000, 30),
    "steps": Scenario("steps", 0, 20),
    "spike": Scenario("spike", 500, 90),
    "soak": Scenario("uniform", 0, 3_600),
    "agree": Scenario("uniform", 2_000, 30),
}


def main() -> None:
    """Run one scenario."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenario", nargs="?", choices=SCENARIOS, default="short")
    parser.add_argument("--rate", type=float, help="events/s, in place of the scenario's")
    parser.add_argument("--seconds", type=float, help="length of the plan, or of one of its steps")
    parser.add_argument("--rounds", type=int, default=3, help="of agree")
    parser.add_argument("--report", type=Path, default=Path("build/loadtest"), help="folder of the report")
    parser.add_argument("--web", action="store_true", help="with Locust's web page, where it is started and stopped")
    parser.add_argument("--dashboard", type=Path, help="draw the chart's dashboard of the run there, as SVG")
    parser.add_argument("--workers", type=int, default=0, help="so many processes of Locust beside its master")
    arguments = parser.parse_args()
    if arguments.web and arguments.scenario != "short":
        parser.error("--web is for short alone: there the page says what is sent, and not a plan")
    with tempfile.TemporaryDirectory(prefix="headrace-load-") as folder, ExitStack() as stack:
        try:
            code = Rig(arguments, stack, Path(folder)).run()
        except KeyboardInterrupt:
            code = _INTERRUPTED
        except (HeadraceError, ServingError) as error:
            print(error, file=sys.stderr)
            code = UNUSABLE
    sys.exit(code)


class Rig:
    """A Kafka, a Triton and bridges, and Locust against them.

    Args:
        arguments: of the command line.
        stack: ends the servers.
        home: a folder for their files.
    """

    def __init__(self, arguments: argparse.Namespace, stack: ExitStack, home: Path) -> None:
        self._arguments, self._home, self._console = arguments, home, Console(stderr=True)
        self._port = free_port()  # of the bridge's metrics
        self._workload = Workload()
        self._console.print("starting Kafka and Triton …")
        make_models(home / "models", [self._workload])
        kafka = stack.enter_context(KafkaCluster(properties=lambda _: _KEPT))
        triton = stack.enter_context(TritonRig(home / "models"))
        self._servers = Servers(kafka, triton.address, triton, home)
        (home / "events.jsonl").write_bytes(b"\n".join(self._workload.values()))
        labels = {"namespace": "loadtest", "pod": "bridge"}
        seen = [f"127.0.0.1:{self._port}"]
        self._prometheus = stack.enter_context(prometheus(seen, labels, home)) if arguments.dashboard else ""

    def run(self) -> int:
        """The scenario; Locust's exit code."""
        name = self._arguments.scenario
        rate = self._arguments.rate or SCENARIOS[name].rate
        seconds = self._arguments.seconds or SCENARIOS[name].seconds
        match name:
            case "agree":
                return self._agree(rate, seconds)
            case "steps":
                return self._locust(name, rate or self._highest_step(), seconds)
            case "soak" if not rate:
                code = self._locust("steps", self._highest_step(), SCENARIOS["steps"].seconds)
                if code:
                    return code
                rate = self._found("steps")["capacity"] * _SOAK
        return self._locust(name, rate, seconds)

    def _highest_step(self) -> float:
        self._console.print("measuring what it can do …")
        capacity = self._servers.drain(Bridge(), self._workload, 200_000).events_per_second
        rate = capacity * _HIGHEST_STEP
        self._console.print(f"a backlog drains at {capacity:,.0f} events/s; steps up to {rate:,.0f} …")
        return rate

    def _agree(self, rate: float, seconds: float) -> int:
        """The latency of the same events by Locust and by the reader of headrace bench, so many times."""
        self._servers.drain(Bridge(), self._workload, 400_000)  # so that Kafka's JVM is warm
        shown, code = Table("by", "p50, ms", "p99, ms"), 0
        for _ in range(self._arguments.rounds):
            theirs: list[tuple[float, float]] = []  # when an event was due, and how long its outcome took; seconds
            code = max(code, self._locust("agree", rate, seconds, theirs))
            if not theirs:
                return code
            warm = min(due for due, _ in theirs) + WARM_UP
            found = percentiles([took * 1000 for due, took in theirs if due >= warm])
            for name, latency in (("Locust", self._found("agree")["latency_ms"]), ("headrace bench", found)):
                shown.add_row(name, f"{latency['50']:.1f}", f"{latency['99']:.1f}")
        self._console.print(shown)
        return code

    def _listen(self, process: ServerProcess, target: str, ended: Event, into: list[tuple[float, float]]) -> None:
        """As headrace bench reads results."""
        for message, at in self._servers.outcomes(process, target, self._workload, ended.is_set):
            due = next(int(value) / 1e9 for name, value in message.headers() or () if name == INTENDED)
            into.append((due, at - due))

    def _found(self, name: str) -> dict[str, Any]:
        """The report of a scenario that has run."""
        report: dict[str, Any] = json.loads(self._report(name).read_text())
        return report

    def _report(self, name: str) -> Path:
        return Path(self._arguments.report) / f"{name}.json"

    def _locust(self, name: str, rate: float, seconds: float, also: list[tuple[float, float]] | None = None) -> int:
        """A scenario by Locust against a bridge of its own; Locust's exit code.

        Args:
            name: of the scenario.
            rate: events/s.
            seconds: length of the plan, or of one of its steps.
            also: where `_listen` puts what it finds.
        """
        source = f"load-{time.time_ns()}"
        self._servers.create({source: self._workload.partitions})
        bridge = Bridge(sections={"observe": {"address": f"127.0.0.1:{self._port}"}})
        began = time.time()
        with self._servers.running(bridge, self._workload, source) as (process, target), ThreadPoolExecutor(1) as pool:
            ended = Event()
            listening = pool.submit(self._listen, process, target, ended, also) if also is not None else None
            command = [*self._command(name, rate, seconds), "--source", source, "--result", target]
            command += ["--dead-letter", f"{target}-dead"]
            self._report(name).unlink(missing_ok=True)  # that of a run before says nothing of this one
            with _processes(command, self._arguments.workers) as locust:
                try:
                    code = self._wait(locust, name, seconds * (STEPS if name == "steps" else 1))
                finally:
                    ended.set()
            if listening:
                listening.result()
            if self._prometheus:
                variables = {"namespace": "loadtest", "pipeline": target}
                self._arguments.dashboard.write_text(draw(self._prometheus, began, time.time(), variables))
        return code

    def _wait(self, locust: subprocess.Popen[bytes], name: str, seconds: float) -> int:
        """For Locust to end; its exit code."""
        if self._arguments.web:
            self._console.print("http://127.0.0.1:8089 is Locust's page; Ctrl-C ends it")
        try:
            with Progress(console=self._console, transient=True, disable=self._arguments.web) as progress:
                shown, began = progress.add_task(name, total=seconds), time.monotonic()
                while locust.poll() is None:
                    progress.update(shown, completed=time.monotonic() - began)
                    time.sleep(0.5)
            return locust.returncode
        except KeyboardInterrupt:
            locust.wait()  # it has heard it too, and says what it has found so far
            raise

    def _command(self, name: str, rate: float, seconds: float) -> list[str]:
        arguments, plan = self._arguments, SCENARIOS[name].plan
        # Without Locust's own table, which counts the warm-up too and knows latencies to 7 % only.
        headless = ["--headless", "--only-summary", "--skip-log-setup"]
        planned = ["--plan", plan, "--plan-rate", str(rate), "--plan-seconds", str(seconds)]
        highest = rate * (10 if plan == "spike" else 1)
        # To be asked for its metrics costs a bridge milliseconds, which headrace bench does not ask it for.
        observed = ["--observe", f"http://127.0.0.1:{self._port}/metrics"] if name != "agree" else []
        return [
            *LOCUST, *(["--web-host", "127.0.0.1"] if arguments.web else [*headless, *planned]), *observed,
            "--loglevel", "WARNING",
            "--bootstrap", self._servers.kafka.bootstrap_servers,
            "--events", str(self._home / "events.jsonl"), "--linger-ms", "1" if highest < BUSY else "5",
            "--report", str(self._report(name).with_suffix("")),
        ]  # fmt: skip


@contextmanager
def _processes(command: Sequence[str], workers: int) -> Iterator[subprocess.Popen[bytes]]:
    """Locust as one process, or as a master and so many workers."""
    distributed = ["--master", "--expect-workers", str(workers)] if workers else []
    worker = [*LOCUST, "--worker", "--loglevel", "WARNING"]
    # Ctrl-C is for the master, which ends them.
    others = [subprocess.Popen(worker, start_new_session=True) for _ in range(workers)]
    processes = [subprocess.Popen([*command, *distributed]), *others]
    try:
        yield processes[0]
    finally:
        for process in processes:
            process.terminate()
            process.wait()


if __name__ == "__main__":
    main()
