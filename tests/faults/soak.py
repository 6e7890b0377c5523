"""A seeded schedule of faults over bridges under load, judged by the checker: `make faults SEED=1 MINUTES=20`.

Three real brokers with three copies of everything, a real Triton, bridges that reach both through proxies, a producer
that writes unique numbered events straight to the brokers. Faults are drawn from the seed, one or two at a time; each is
healed, and then progress must resume. In the end every topic is read from its beginning as a read_committed reader does.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from headrace.rig.kafka import KafkaCluster
from headrace.rig.triton import TritonRig
from tests.faults.proxy import Proxy, proxied_cluster, proxy
from tests.faults.world import World, world
from tests.support import Broker, until

RESUME = 60.0
"""I7: progress resumes within so many seconds after a fault has ended."""
Heal = Callable[[], None]


@dataclass
class Report:
    """What a run was, and what came out.

    Attributes:
        faults: kind -> how often.
        resumed: kind -> seconds from the end of the fault to the next committed offset, median and most.
        unknown: events whose write is neither known to have succeeded nor to have failed.
        repeats: events that were seen more than once.
        violations: a sentence each; none when the promise was kept.
    """

    seed: int
    delivery: str
    minutes: float
    rate: int
    bridges: int
    partitions: int
    events: int = 0
    unknown: int = 0
    results: int = 0
    letters: int = 0
    poison: int = 0
    lost: int = 0
    repeats: int = 0
    disordered: int = 0
    events_per_second: float = 0.0
    seconds_to_settle: float = 0.0
    faults: dict[str, int] = field(default_factory=dict)
    resumed: dict[str, tuple[float, float]] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)

    def table(self) -> str:
        """For people."""
        head = (
            f"{self.delivery}, seed {self.seed}: {self.events:,} events in {self.minutes:g} minutes "
            f"({self.events_per_second:,.0f}/s), {self.bridges} bridges, {self.partitions} partitions\n"
            f"results {self.results:,}, dead letters {self.letters:,} of {self.poison:,} poison events, "
            f"unknown writes {self.unknown:,}\n"
            f"lost {self.lost}, seen twice {self.repeats}, out of order {self.disordered}; "
            f"settled {self.seconds_to_settle:.0f} s after the last fault\n"
        )
        rows = [f"{'fault':28} {'times':>5}  progress after its end: median, most"]
        rows += [
            f"{kind:28} {count:5}  {self.resumed[kind][0]:.1f} s, {self.resumed[kind][1]:.1f} s"
            for kind, count in sorted(self.faults.items())
        ]
        return head + "\n".join(rows) + "".join(f"\nVIOLATED {text}" for text in self.violations)


def poison(number: int) -> bytes | None:
    """Two events of a thousand: one that cannot be decoded, one that the model refuses."""
    if number % 1000 == 7:
        return b'{"id": %d, "x": ' % number
    if number % 1000 == 503:
        return b'{"id": %d, "x": -1}' % number
    return None


class Soak:
    """One run over parts that are there."""

    def __init__(
        self,
        report: Report,
        w: World,
        cluster: KafkaCluster,
        ways: Sequence[Proxy],
        model: Proxy,
        triton: TritonRig | None,
    ) -> None:
        self.report = report
        self.w = w
        self.cluster = cluster
        self.ways = ways
        self.model = model
        self.triton = triton
        self.rng = random.Random(report.seed)
        self.resumed: defaultdict[str, list[float]] = defaultdict(list)
        self.kinds: dict[str, Callable[[], Heal]] = {
            "bridge killed": self.kill_bridge,
            "bridge stopped briefly": lambda: self.freeze_bridge(2.0),
            "bridge stopped for long": lambda: self.freeze_bridge(9.0),
            "bridge leaves, another joins": self.replace_bridge,
            "broker killed": lambda: self.end_broker(kill=True),
            "broker restarted": lambda: self.end_broker(kill=False),
            "network to brokers cut": self.cut_brokers,
            "network to brokers hangs": self.hang_brokers,
            "network to one broker hangs": self.hang_one_broker,
            "network to brokers slow": self.slow_brokers,
            "network to model cut": self.cut_model,
            "network to model hangs": self.hang_model,
            "model away": self.refuse_model,
        }
        if triton is not None:
            self.kinds["model server killed"] = self.kill_triton

    # --- faults: each does it, and gives what ends it ---

    def kill_bridge(self) -> Heal:
        bridge = self.rng.choice(self.w.bridges)
        bridge.process.kill()
        self.w.bridges.remove(bridge)
        return self._start_bridge

    def freeze_bridge(self, least: float) -> Heal:
        bridge = self.rng.choice(self.w.bridges)
        self.w.freeze(bridge)
        time.sleep(least)
        return lambda: self.w.thaw(bridge)

    def replace_bridge(self) -> Heal:
        bridge = self.rng.choice(self.w.bridges)
        self.w.bridges.remove(bridge)
        self._start_bridge()
        bridge.process.terminate()

        def heal() -> None:
            self.w.thaw(bridge)  # another fault may have stopped it
            code = bridge.process.wait()
            if code != 0:
                self.report.violations.append(f"a bridge that was asked to leave ended with {code}: {bridge.log}")

        return heal

    def end_broker(self, kill: bool) -> Heal:
        number = self.rng.randint(1, len(self.cluster.nodes))
        process = self.cluster.node(number)
        process.kill() if kill else process.stop()

        def heal() -> None:
            self.cluster.start_node(number)
            self.cluster.wait_node(number)

        return heal

    def cut_brokers(self) -> Heal:
        for way in self.ways:
            way.cut()
        return lambda: None

    def hang_brokers(self) -> Heal:
        for way in self.ways:
            way.hanging = True
        return self._heal_ways

    def hang_one_broker(self) -> Heal:
        self.rng.choice(list(self.ways)).hanging = True
        return self._heal_ways

    def slow_brokers(self) -> Heal:
        for way in self.ways:
            way.delay = 0.02 + 0.1 * self.rng.random()
        return self._heal_ways

    def cut_model(self) -> Heal:
        self.model.cut()
        return lambda: None

    def hang_model(self) -> Heal:
        self.model.hanging = True
        return self.model.heal

    def refuse_model(self) -> Heal:
        self.model.refusing = True
        self.model.cut()
        return self.model.heal

    def kill_triton(self) -> Heal:
        assert self.triton is not None
        triton = self.triton
        triton.process.kill_all()

        def heal() -> None:
            triton.launch()
            triton.wait_ready()

        return heal

    def _heal_ways(self) -> None:
        for way in self.ways:
            way.heal()

    def _start_bridge(self) -> None:
        self.w.start(ready=False)

    # --- the run ---

    def run(self) -> None:
        w, report = self.w, self.report
        w.poison = poison
        w.window = 2 * 16_384  # what may wait to be committed, and how far that goes while the watcher is cut off
        w.start(report.bridges, ready=False)
        for bridge in w.bridges:
            bridge.wait_ready()
        w.watch()
        w.start_writing(report.rate)
        begun = time.monotonic()
        self._progress(begun, "start")
        while time.monotonic() - begun < report.minutes * 60:
            self._one()
        w.stop_writing()
        report.events_per_second = w.written / (time.monotonic() - begun)
        settling = time.monotonic()
        w.settle(timeout=180)
        report.seconds_to_settle = time.monotonic() - settling
        self._judge()

    def _one(self) -> None:
        """One fault or two at once, their end, and the progress after it."""
        kinds = self.rng.sample(list(self.kinds), 2 if self.rng.random() < 0.3 else 1)
        heals = []
        for kind in kinds:
            self.w.fault(kind)
            print(f"{time.monotonic() - self.w.began:7.1f} s  {kind}", file=sys.stderr, flush=True)
            heals.append(self.kinds[kind]())
        time.sleep(self.rng.uniform(1, 8))
        for heal in heals:
            heal()
        self.w.fault(f"end of {' and '.join(kinds)}")
        ended = time.monotonic()
        for kind in kinds:
            self.report.faults[kind] = self.report.faults.get(kind, 0) + 1
        seconds = self._progress(ended, " and ".join(kinds))
        for kind in kinds:
            self.resumed[kind].append(seconds)
        time.sleep(self.rng.uniform(1, 5))
        for bridge in [one for one in self.w.bridges if not one.process.running]:
            self.report.violations.append(f"a bridge has ended by itself: {bridge.log}")
            self.w.bridges.remove(bridge)
            self._start_bridge()

    def _progress(self, since: float, after: str) -> float:
        """Seconds until events of a second more than now are committed."""
        start = self._done()
        until(
            lambda: self._done() >= start + self.report.rate,
            RESUME + 30,
            f"I7: progress after {after}; {self.w.report()}",
        )
        return time.monotonic() - since

    def _done(self) -> int:
        return sum(offsets[-1] for offsets in list(self.w.history.committed.values()) if offsets)

    def _judge(self) -> None:
        w, report = self.w, self.report
        verdict = w.verdict()
        report.events, report.results, report.letters = verdict.events, verdict.results, verdict.letters
        report.unknown = Counter(w.history.writes.values())["info"]
        report.lost, report.repeats, report.disordered = verdict.lost, verdict.duplicated, verdict.disordered
        report.violations += verdict.violations
        bad = {number for number in range(w.written) if poison(number)}
        report.poison = len(bad)
        blamed = {item.event for item in w.history.seen if item.letter} - bad
        spared = {item.event for item in w.history.seen if not item.letter} & bad
        if blamed:
            report.violations.append(f"{len(blamed)} good events got a dead letter, the first {sorted(blamed)[:5]}")
        if spared:
            report.violations.append(f"{len(spared)} poison events got a result, the first {sorted(spared)[:5]}")
        for kind, seconds in self.resumed.items():
            report.resumed[kind] = (sorted(seconds)[len(seconds) // 2], max(seconds))


def soak(report: Report, folder: Path, triton: TritonRig, killable: bool) -> Report:
    """Run a schedule; the report, filled in.

    Args:
        report: what to do.
        folder: for logs and data.
        triton: serves the model `double`.
        killable: whether the schedule may kill it.
    """
    with proxied_cluster(folder / "kafka", brokers=3) as (cluster, ways), proxy(triton.address) as model:
        options: dict[str, Any] = {
            "bridge_bootstrap": ",".join(way.address for way in ways),
            "model_name": "double",
            # Many small calls would only heat the machine that everything shares.
            "batch": {"max_events": 256, "max_wait": "20ms"},
        }
        broker = Broker(cluster.bootstrap_servers)
        with world(broker, model.address, folder, report.seed, report.delivery, report.partitions, **options) as w:
            Soak(report, w, cluster, ways, model, triton if killable else None).run()
    return report


def main() -> None:
    parser = argparse.ArgumentParser(prog="make faults", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--rate", type=int, default=2200, help="events in a second")
    parser.add_argument("--bridges", type=int, default=3)
    parser.add_argument("--partitions", type=int, default=9)
    parser.add_argument("--delivery", choices=["exactly_once", "at_least_once"], default="exactly_once")
    parser.add_argument("--out", type=Path, help="write the report there, as JSON")
    asked = parser.parse_args()
    report = Report(asked.seed, asked.delivery, asked.minutes, asked.rate, asked.bridges, asked.partitions)
    folder = Path(tempfile.mkdtemp(prefix="headrace-faults-"))
    models = folder / "models"
    subprocess.run([sys.executable, str(Path(__file__).parents[1] / "models.py"), str(models)], check=True)
    with TritonRig(models, models=("double",)) as triton:
        soak(report, folder, triton, killable=True)
    print(report.table())
    if asked.out:
        asked.out.write_text(json.dumps(asdict(report), indent=2) + "\n")
    if report.violations:
        print(f"seed {report.seed}; the logs are in {folder}", file=sys.stderr)
        sys.exit(1)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
