"""make loadtest: Locust against a Kafka, a Triton and a bridge that are started here for it.

short     half a minute at 2,000 events/s
steps     up to a rate, to find where the system is full
spike     ten times the rate for 30 seconds
soak      an hour at half of what it can do
agree     the same rate by Locust and by headrace bench: do they find the same latency?
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from headrace.rig.kafka import KafkaCluster
from headrace.rig.triton import TritonRig
from loadtest.bench.measure import Servers
from loadtest.bench.subjects import Bridge
from loadtest.bench.workload import Workload, make_models
from loadtest.dashboard import draw, prometheus

HERE = Path(__file__).parents[1]
_PORT = 19464


@dataclass(frozen=True, slots=True)
class Scenario:
    """What Locust is told.

    Attributes:
        plan: of it.
        rate: events/s, where it is not a share of the capacity.
        seconds: length of the plan.
        share: of the capacity, which is then measured first.
    """

    plan: str
    rate: float
    seconds: float
    share: float = 0.0


SCENARIOS = {
    "short": Scenario("uniform", 2_000, 30),
    "steps": Scenario("steps", 0, 20, share=1.2),
    "spike": Scenario("spike", 0, 120, share=0.08),
    "soak": Scenario("uniform", 0, 3_600, share=0.5),
    "agree": Scenario("uniform", 2_000, 40),
}


def main() -> None:
    """Run one scenario."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenario", nargs="?", choices=SCENARIOS, default="short")
    parser.add_argument("--rate", type=float, help="events/s, in place of the scenario's")
    parser.add_argument("--seconds", type=float, help="length of the plan, or of one of its steps")
    parser.add_argument("--report", type=Path, default=Path("build/loadtest"), help="folder of the report")
    parser.add_argument("--web", action="store_true", help="with Locust's web page, where it is started and stopped")
    parser.add_argument(
        "--dashboard", type=Path, help="draw the chart's dashboard of the run there, as SVG (Prometheus)"
    )
    parser.add_argument("--workers", type=int, default=0, help="so many processes of Locust beside its master")
    arguments = parser.parse_args()
    chosen, console = SCENARIOS[arguments.scenario], Console(stderr=True)
    workload = Workload()
    with tempfile.TemporaryDirectory(prefix="headrace-load-") as folder, ExitStack() as stack:
        home = Path(folder)
        console.print("starting Kafka and Triton …")
        make_models(home / "models", [workload])
        kafka = stack.enter_context(KafkaCluster())
        triton = stack.enter_context(TritonRig(home / "models"))
        servers = Servers(kafka, triton.address, triton, home)
        rate = arguments.rate or chosen.rate
        if not rate:
            console.print("measuring what it can do …")
            capacity = servers.drain(Bridge(), workload, 200_000).events_per_second
            rate = capacity * chosen.share
            console.print(f"capacity {capacity:,.0f} events/s, of which {chosen.share:.0%}: {rate:,.0f} events/s")
        seconds = arguments.seconds or chosen.seconds
        theirs = None
        if arguments.scenario == "agree":
            console.print(f"headrace bench at {rate:,.0f} events/s …")
            theirs = servers.hold(Bridge(), workload, rate, seconds).latency_ms
        (home / "events.jsonl").write_bytes(b"\n".join(workload.values()))
        servers.create({"load": workload.partitions})
        bridge = Bridge(sections={"observe": {"address": f"127.0.0.1:{_PORT}"}})
        with servers.running(bridge, workload, "load") as (_, target):
            watched = _Watched(stack, arguments.dashboard, home)
            report = arguments.report / arguments.scenario
            command = _command(arguments, chosen.plan, rate, seconds, kafka.bootstrap_servers, target, home, report)
            code = _locust(command, arguments.workers)
            watched.draw(target)
        if theirs is not None:
            ours = json.loads(report.with_suffix(".json").read_text())["latency_ms"]
            for share in ("50", "99"):
                console.print(f"p{share}: {ours[share]:.1f} ms by Locust, {theirs[share]:.1f} ms by headrace bench")
    sys.exit(code)


class _Watched:
    """A Prometheus that sees the run, where its dashboard is to be drawn."""

    def __init__(self, stack: ExitStack, out: Path | None, home: Path) -> None:
        self._out, self._began = out, time.time()
        labels = {"namespace": "loadtest", "pod": "bridge"}
        self._url = stack.enter_context(prometheus([f"127.0.0.1:{_PORT}"], labels, home)) if out else ""

    def draw(self, pipeline: str) -> None:
        """Of the run that has ended."""
        if self._out:
            variables = {"namespace": "loadtest", "pipeline": pipeline}
            self._out.write_text(draw(self._url, self._began, time.time(), variables))


def _command(
    arguments: argparse.Namespace,
    plan: str,
    rate: float,
    seconds: float,
    bootstrap: str,
    target: str,
    home: Path,
    report: Path,
) -> list[str]:
    web = ["--web-host", "127.0.0.1"] if arguments.web else ["--headless", "--only-summary"]
    planned = [] if arguments.web else ["--plan", plan, "--plan-rate", str(rate), "--plan-seconds", str(seconds)]
    return [
        sys.executable, "-m", "locust", "-f", str(HERE / "locustfile.py"), "KafkaEventUser", *web, *planned,
        "--loglevel", "WARNING",
        "--bootstrap", bootstrap, "--source", "load", "--result", target, "--dead-letter", f"{target}-dead",
        "--events", str(home / "events.jsonl"), "--linger-ms", "1" if rate < 5_000 else "5",
        # To be asked for its metrics costs a bridge milliseconds, which headrace bench does not ask it for.
        *(["--observe", f"http://127.0.0.1:{_PORT}/metrics"] if arguments.scenario != "agree" else []),
        "--report", str(report),
    ]  # fmt: skip


def _locust(command: Sequence[str], workers: int) -> int:
    if not workers:
        return subprocess.run(command, check=False).returncode
    master = subprocess.Popen([*command, "--master", "--expect-workers", str(workers)])
    others = [subprocess.Popen([*command[:6], "--worker", "--loglevel", "WARNING"]) for _ in range(workers)]
    code = master.wait()
    for process in others:
        process.terminate()
        process.wait()
    return code


if __name__ == "__main__":
    main()
