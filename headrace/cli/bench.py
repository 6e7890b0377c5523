"""bench: how fast the bridge is on this machine, beside a plain copy of the topic and beside peers."""

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bridge.config import load
from bridge.errors import HeadraceError
from headrace.cli.output import JsonOption, print_json, print_table


def add(app: typer.Typer) -> None:
    """Add this command."""
    app.command()(bench)


def bench(
    scenario: Annotated[
        list[str] | None, typer.Argument(metavar="[SCENARIO]…", help="What to measure; backlog when none is named.")
    ] = None,
    events: Annotated[int, typer.Option(min=1_000, help="Events of a backlog.")] = 400_000,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds, each of all measurements.")] = 5,
    seconds: Annotated[float, typer.Option(min=1.0, help="How long a fixed rate is held.")] = 20.0,
    peer: Annotated[
        list[str] | None, typer.Option("--peer", help="Measure this peer too, or `all`; may be given several times.")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="Measure this pipeline, with its model server and events, on a Kafka started here."),
    ] = None,
    sample: Annotated[
        Path | None, typer.Option(help="With --config: events to repeat, one in each line; else the topic's last ones.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write the figures there as JSON, and beside it a page with plots (.html).")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure throughput, CPU and latency on a real Kafka and a real Triton started here, or on a pipeline of yours.

    Scenarios: backlog, rates, heavy, delivery, batch, size, features, partitions, workers, depth, model, swap, poison;
    or all. Workers needs root, depth the disk for 25 times the events.
    Figures are medians over the rounds with the least and the most. They differ from machine to machine: compare the
    ratios.
    """
    try:
        from loadtest.bench.own import OwnEvents
        from loadtest.bench.run import run
        from loadtest.bench.scenarios import OWN, SCENARIOS
        from loadtest.bench.subjects import Peer, peers
    except ImportError as error:
        raise HeadraceError(
            f"the benchmark needs {error.name}: pip install 'headrace[loadtest,local,serving]' brings it"
        ) from None

    names = _chosen("scenario", scenario or ["backlog"], list(OWN if config else SCENARIOS))
    own = None
    if config and peer:
        raise typer.BadParameter("peers know only made-up events; leave --config out", param_hint="--peer")
    if config:
        pipeline = load(config)
        own = (pipeline, OwnEvents.of(pipeline, sample))
    elif sample:
        raise typer.BadParameter("it needs --config, which says what the events mean", param_hint="--sample")
    known: dict[str, Peer] = peers()
    chosen = [known[name] for name in _chosen("peer", peer or [], list(known))]
    missing = [found.name for found in chosen if not found.installed]
    if missing:
        raise HeadraceError(f"the peers {', '.join(missing)} are not installed; make peers installs them")
    if out and (out.suffix == ".html" or not out.parent.is_dir()):
        raise typer.BadParameter(f"{out} is no JSON file in a folder that exists", param_hint="--out")
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
    )
    started = time.strftime("%Y-%m-%d %H:%M")
    with bar as progress:
        task = progress.add_task("", total=None)

        def told(what: str, done: int, total: int) -> None:
            progress.update(task, description=what, completed=done, total=total)

        results = run(names, events, rounds, seconds, told, chosen, own)
    _show(results, as_json, out, f"headrace bench, {started}: {events:,} events, {rounds} rounds")


def _show(results: Any, as_json: bool, out: Path | None, title: str) -> None:
    from loadtest.bench import report

    if as_json:
        print_json(report.as_json(results))
    else:
        for name, rows in results.items():
            titles, body = report.table(rows)
            print_table(f"{name}: median (least to most)", titles, body)
    if out:
        try:
            out.write_text(json.dumps(report.as_json(results), indent=1) + "\n")
            out.with_suffix(".html").write_text(report.page(results, title))
        except OSError as error:
            raise HeadraceError(f"--out {out}: cannot be written: {error.strerror}") from None
    failures = [f"{name}: {row.label}: {row.failure}" for name, rows in results.items() for row in rows if row.failure]
    if failures:
        raise HeadraceError("\n".join(failures))


def _chosen(what: str, names: list[str], known: list[str]) -> list[str]:
    if names == ["all"]:
        return known
    for name in names:
        if name not in known:
            raise typer.BadParameter(f"{name!r} is no {what}; there are {', '.join(known) or 'none'}", param_hint=what)
    return list(dict.fromkeys(names))
