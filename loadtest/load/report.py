"""What a load test found: in the terminal, as JSON, and as a page with plots; and whether it passes."""

import http.client
import json
import math
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import gevent
from hdrh.histogram import HdrHistogram
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.table import Table

from loadtest.load.plan import Plan
from loadtest.load.settings import AWAY
from loadtest.load.steps import Step, capacity, judge, told
from loadtest.load.stream import Found, LoadError, percentile_ms
from loadtest.page import html, svg, table

PASSED, FAILED, UNUSABLE, VOID = 0, 1, 2, 3
_KINDS = ("missing", "duplicated", "disordered", "dead_letters")
_SHARES = (50.0, 90.0, 99.0, 99.9, 99.99, 100.0)


@dataclass(frozen=True, slots=True)
class Gates:
    """What a run must keep to.

    Attributes:
        max_p99_ms: of the latency.
        max_missing: events without an outcome.
        max_duplicated: outcomes that came again.
        max_dead_letters: events with a dead letter.
        max_delay_ms: p99 of the generator's own delay above which a run says nothing about the system; `AWAY` times as
            much is the limit of how long the reader may look away (p99).
    """

    max_p99_ms: float = math.inf
    max_missing: int = 0
    max_duplicated: int = 0
    max_dead_letters: int = 0
    max_delay_ms: float = 1.0

    def judge(self, found: Found, streams: int, steps: Sequence[Step] = ()) -> tuple[int, list[str]]:
        """The exit code, and a sentence for each thing that is wrong.

        Args:
            found: of all streams together.
            streams: how many there were to be.
            steps: of a run that goes on until the system is full, and perhaps the generator: each has its own verdict.
        """
        void = self._void(found, streams, steps)
        if void:
            return VOID, [f"void: {void}"]
        wrong = []
        p99 = found.latency.get_value_at_percentile(99) / 1000
        if p99 > self.max_p99_ms and not steps:
            wrong.append(f"p99 is {p99:.1f} ms, above {self.max_p99_ms:g} ms (--max-p99-ms)")
        for kind, most, words in (
            ("missing", self.max_missing, "events have no outcome (--max-missing)"),
            ("duplicated", self.max_duplicated, "outcomes came again (--max-duplicated)"),
            ("dead_letters", self.max_dead_letters, "events have a dead letter (--max-dead-letters)"),
            ("disordered", 0, "outcomes are out of order"),
        ):
            if found.outcomes[kind] > most:
                wrong.append(f"{found.outcomes[kind]:,} {words}")
        if steps and not capacity(steps):
            wrong.append(f"{told(steps)}: begin lower (--plan-rate)")
        return (FAILED if wrong else PASSED), wrong

    def _void(self, found: Found, streams: int, steps: Sequence[Step]) -> str:
        """Why the run says nothing; empty when it does."""
        delay = found.delays.get_value_at_percentile(99) / 1000
        busy = found.busy.get_value_at_percentile(99) / 1000
        refused = found.outcomes["refused"]
        if found.streams < streams:
            return f"{streams - found.streams} of {streams} workers have not told what they found"
        if not found.sent:
            return "nothing was sent"
        if found.outcomes["received"] + found.outcomes["missing"] != found.sent:
            return "the receiver has not told what became of the events"
        if refused:
            return f"{refused:,} events were not sent: Kafka did not take them"
        if steps:
            found_none = all(step.verdict in ("void", "cut short", "after") for step in steps)
            return told(steps) if found_none else ""
        if delay > self.max_delay_ms:
            return f"p99 of the generator's own delay is {delay:.2f} ms; give it a core of its own, or workers"
        if busy > AWAY * self.max_delay_ms:
            return f"the reader looked away for {busy:.1f} ms (p99); give it a core of its own, or workers"
        if found.outcomes["received"] and not found.latency.get_total_count():
            return "the run was shorter than its warm-up (--warm-up)"
        return ""


@dataclass
class Observer:
    """Asks the bridges for their lag and the size of their batches, once a second.

    Attributes:
        urls: of their /metrics.
        seen: second since 1970 -> lag in events, and the mean size of the batches since.
    """

    urls: Sequence[str]
    seen: dict[int, tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Begin.

        Raises:
            LoadError: what is given is no URL.
        """
        for url in self.urls:
            if not url.startswith(("http://", "https://")):
                raise LoadError(f"--observe {url}: is no URL, such as http://{url}/metrics")
        self._last = (0.0, 0.0)
        self._greenlet = gevent.spawn(self._run)

    def stop(self) -> None:
        """Ask no more."""
        self._greenlet.kill()

    def _run(self) -> None:
        while True:
            lag = total = count = 0.0
            for url in self.urls:
                try:
                    with urllib.request.urlopen(url, timeout=2) as answer:  # noqa: S310 - the user's own bridges
                        families = list(text_string_to_metric_families(answer.read().decode()))
                except (OSError, http.client.HTTPException, ValueError):
                    break  # of this second nothing is known
                for sample in (sample for family in families for sample in family.samples):
                    lag += sample.value if sample.name == "headrace_consumer_lag_records" else 0.0
                    total += sample.value if sample.name == "headrace_batch_records_sum" else 0.0
                    count += sample.value if sample.name == "headrace_batch_records_count" else 0.0
            else:
                batches = count - self._last[1]
                self.seen[int(time.time())] = (lag, (total - self._last[0]) / batches if batches > 0 else math.nan)
                self._last = (total, count)
            gevent.sleep(1)


def write(found: Found, streams: int, gates: Gates, observer: Observer | None, name: str, plan: Plan = ()) -> int:
    """Print it, write NAME.json, .html and .svg when there is a name; the exit code.

    Args:
        found: of all streams together.
        streams: how many there were to be.
        gates: what it must keep to.
        observer: of the bridges.
        name: of the files, without their ending.
        plan: whose phases are steps, each to be judged by itself.
    """
    steps = judge(found, plan, gates.max_p99_ms) if plan else []
    code, wrong = gates.judge(found, streams, steps)
    verdict = {PASSED: "passed", FAILED: "failed", VOID: "void"}[code]
    document = {
        "verdict": verdict,
        "wrong": wrong,
        "sent": found.sent,
        **{kind: found.outcomes[kind] for kind in ("received", *_KINDS)},
        "events_per_second": round(_rate(found), 1),
        "latency_ms": percentiles(found.latency),
        "generator_delay_ms": percentiles(found.delays),
        "reader_busy_ms": percentiles(found.busy),
        "steps": [{**asdict(step), "p50": _number(step.p50), "p99": _number(step.p99)} for step in steps],
        "capacity": capacity(steps) or None,
        "told": told(steps) if steps else "",
        "versions": _since_start(found),
        "seconds": _seconds(found, observer),
    }
    shown = Table(title=f"load test: {verdict}", title_justify="left", show_header=False)
    for title, text in _summary(document):
        shown.add_row(title, text)
    console = Console(stderr=True, width=None if Console(stderr=True).is_terminal else 120)
    console.print(shown)
    if steps:
        console.print(document["told"])
        console.print(_table(document))
    for sentence in wrong:
        console.print(sentence, style="bold red")
    if name:
        base = Path(name)
        base.parent.mkdir(parents=True, exist_ok=True)
        base.with_suffix(".json").write_text(json.dumps(document) + "\n")
        base.with_suffix(".html").write_text(page(document))
        base.with_suffix(".svg").write_text(svg(picture(document)))
        console.print(f"wrote {base.with_suffix('.html')}, .json and .svg")
    return code


def percentiles(histogram: HdrHistogram) -> dict[str, float]:
    """Milliseconds."""
    return {f"{share:g}": round(histogram.get_value_at_percentile(share) / 1000, 3) for share in _SHARES}


def page(document: dict[str, Any]) -> str:
    """The report as HTML."""
    latency, delay = document["latency_ms"], document["generator_delay_ms"]
    rows = [[f"p{share}", f"{latency[share]:,.1f}", f"{delay[share]:,.3f}"] for share in latency]
    wrong = "".join(f"<p><strong>{sentence}</strong></p>" for sentence in document["wrong"])
    return html(
        f"Load test: {document['verdict']}",
        [
            wrong,
            table(["", ""], [list(pair) for pair in _summary(document)]),
            *([f"<p>{document['told']}</p>", table(_STEP, _cells(document))] if document["steps"] else []),
            svg(picture(document)),
            "<h2>Latency, from when an event was due until its outcome was read</h2>",
            table(["", "latency, ms", "of it the generator's own delay, ms"], rows),
        ],
    )


def picture(document: dict[str, Any]) -> Any:
    """Throughput, latency over time, percentiles, lag and batch size, with model versions marked."""
    from matplotlib.figure import Figure

    seconds = document["seconds"]
    at = [row["second"] for row in seconds]
    figure = Figure(figsize=(12, 7), layout="constrained")
    (flow, latency), (shares, lag) = figure.subplots(2, 2)
    flow.plot(at, [row["sent"] for row in seconds], color="#9a8c98", label="sent")
    flow.plot(at, [row["received"] for row in seconds], color="#2a6f97", label="outcomes")
    flow.set_title("events/s")
    for share, color in (("p50", "#2a6f97"), ("p99", "#e09f3e"), ("max", "#bbb")):
        latency.plot(at, [row[share] for row in seconds], color=color, label=share)
    latency.set_title("latency, ms")
    if any(row["p50"] for row in seconds):
        latency.set_yscale("log")
    names = [f"p{name}" for name in document["latency_ms"]]
    shares.plot(names, list(document["latency_ms"].values()), marker="o", color="#2a6f97", label="latency")
    shares.plot(
        names,
        list(document["generator_delay_ms"].values()),
        marker=".",
        color="#9a8c98",
        label="generator's own delay",
    )
    if document["sent"]:
        shares.set_yscale("log")
    shares.set_title("percentiles, ms")
    lag.plot(at, [row["lag"] for row in seconds], color="#2a6f97", label="lag, events")
    lag.set_title("lag, and events in a batch")
    batch = lag.twinx()
    batch.plot(at, [row["batch"] for row in seconds], color="#e09f3e", label="events in a batch")
    for axis in (flow, latency, lag):
        axis.set_xlabel("seconds")
        for version, moment in document["versions"].items():
            axis.axvline(moment, color="#555", linestyle=":")
            axis.annotate(
                f" version {version}", (moment, 1), xycoords=("data", "axes fraction"), fontsize="small", va="top"
            )
    for axis in (flow, latency, shares, lag, batch):
        axis.spines[["top"]].set_visible(False)
        axis.legend(frameon=False, fontsize="small", loc="upper left" if axis is not batch else "upper right")
    return figure


_STEP = ("events/s", "outcomes/s", "p50, ms", "p99, ms", "sent late", "reader away", "")


def _cells(document: dict[str, Any]) -> list[list[str]]:
    """The steps, a row for each."""
    rows = []
    for step in document["steps"]:
        times = ("-" if step[share] is None else f"{step[share]:,.0f}" for share in ("p50", "p99"))
        shares = (f"{step[name]:.2%}" for name in ("late", "away"))
        rows.append([f"{step['rate']:,.0f}", f"{step['outcomes']:,.0f}", *times, *shares, step["verdict"]])
    return rows


def _table(document: dict[str, Any]) -> Table:
    shown = Table()
    for title in _STEP:
        shown.add_column(title, justify="right")
    for row in _cells(document):
        shown.add_row(*row)
    return shown


def _summary(document: dict[str, Any]) -> list[tuple[str, str]]:
    latency, delay = document["latency_ms"], document["generator_delay_ms"]
    return [
        ("events", f"{document['sent']:,}"),
        *((kind.replace("_", " "), f"{document[kind]:,}") for kind in _KINDS),
        ("events/s", f"{document['events_per_second']:,.0f}"),
        ("latency p50, p99, p99.9", ", ".join(f"{latency[share]:,.1f} ms" for share in ("50", "99", "99.9"))),
        ("generator's own delay, p99", f"{delay['99']:,.2f} ms"),
        ("model versions", ", ".join(document["versions"]) or "none"),
    ]


def _rate(found: Found) -> float:
    return found.sent / max(1, len(found.sending))


def _since_start(found: Found) -> dict[str, float]:
    """When each version first answered, seconds since the run began."""
    began = min([*found.sending, *found.arriving], default=0)
    return {version: round(at - began, 1) for version, at in found.versions.items()}


def _seconds(found: Found, observer: Observer | None) -> list[dict[str, float | None]]:
    """One row for each second of the run."""
    known = [*found.sending, *found.arriving]
    if not known:
        return []
    began = min(known)
    seen = observer.seen if observer else {}
    return [
        {
            "second": second - began,
            "sent": found.sending[second],
            "received": int(found.arriving[second].sum()) if second in found.arriving else 0,
            **{
                name: _number(percentile_ms(found.arriving[second], share)) if second in found.arriving else None
                for name, share in (("p50", 0.5), ("p99", 0.99), ("max", 1.0))
            },
            "lag": _number(seen.get(second, (math.nan, math.nan))[0]),
            "batch": _number(seen.get(second, (math.nan, math.nan))[1]),
        }
        for second in range(began, max(known) + 1)
    ]


def _number(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 2)
