"""run, check, explain, init and schema: the commands around one pipeline's configuration."""

import asyncio
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from bridge.config import Pipeline, load
from bridge.config.reference import schema, skeleton
from bridge.config.types import format_duration, parse_duration
from bridge.errors import HeadraceError
from headrace.cli.output import JsonOption, print_json

ConfigArgument = Annotated[Path, typer.Argument(metavar="CONFIG", help="The pipeline's YAML file.")]


def add(app: typer.Typer) -> None:
    """Add these commands."""
    for command in (run, check, try_command, explain, init, schema_command):
        app.command(name=command.__name__.removesuffix("_command"))(command)


def run(
    config: ConfigArgument,
    workers: Annotated[
        int,
        typer.Option(min=1, max=64, help="So many processes, which share the partitions: one for each core to use."),
    ] = 1,
    worker: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Run a pipeline until SIGTERM or Ctrl-C, which drain it; a second one ends it at once.

    Prints `ready NAME` once partitions are assigned and the model answers.
    """
    import uvloop

    from bridge.observe.logs import configure
    from bridge.run import run as run_pipeline

    pipeline = load(config)
    configure(pipeline.observe.log)

    def ready() -> None:
        print(f"ready {pipeline.name}", flush=True)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        if worker is None and workers == 1:
            runner.run(run_pipeline(pipeline, ready))
            return
        from headrace.workers import supervise, work

        side = supervise(config, pipeline, workers, ready) if worker is None else work(pipeline, worker, ready)
        raise typer.Exit(runner.run(side))


def check(
    config: ConfigArgument,
    offline: Annotated[bool, typer.Option("--offline", help="Only the file: ask neither Kafka nor the model.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Check a configuration: the file, then the live model and topics against it.

    Exits 2 when something does not fit, 1 when something does not answer.
    """
    pipeline = load(config)
    if offline:
        print_json({"ok": True}) if as_json else print(f"{config}: the file is well formed")
        return
    report = asyncio.run(_check_live(pipeline))
    if as_json:
        found = {key: getattr(report, key) for key in ("facts", "warnings", "problems", "unreachable")}
        print_json({"ok": report.exit_code == 0, **found})
    else:
        for mark, sentences in (("ok", report.facts), ("warning", report.warnings)):
            for sentence in sentences:
                print(f"{mark}: {sentence}")
        for sentence in (*report.problems, *report.unreachable):
            print(f"{config}: {sentence}", file=sys.stderr)
    raise typer.Exit(report.exit_code)


async def _check_live(pipeline: Pipeline) -> Any:
    from bridge.check import check as check_pipeline
    from bridge.observe.logs import silence_clients
    from bridge.run import model_server

    silence_clients()
    server = model_server(pipeline)
    try:
        return await check_pipeline(pipeline, server)
    finally:
        await server.close()


def try_command(
    config: ConfigArgument,
    event: Annotated[
        str | None, typer.Option(help="The event's value; not set: the topic's newest event again.")
    ] = None,
    timeout: Annotated[str, typer.Option(help="How long to wait for the outcome.")] = "30s",
    as_json: JsonOption = False,
) -> None:
    """Send one event to a pipeline that runs, and wait for its outcome.

    Exits 0 for a result, 1 for a dead letter or when none came in time. The event is a real one: its result goes to
    whoever reads results, under the key headrace-try.
    """
    from bridge.observe.logs import silence_clients
    from bridge.trial import try_event

    pipeline = load(config)
    try:
        seconds = parse_duration(timeout)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--timeout") from None
    silence_clients()
    trial = asyncio.run(try_event(pipeline, None if event is None else event.encode(), seconds))
    if as_json:
        print_json(asdict(trial))
    elif trial.why:
        print(
            f"{trial.source} -> a dead letter after {trial.seconds:.3f} s, {trial.why['reason']}: {trial.why['error']}"
        )
    else:
        print(f"{trial.source} -> {trial.topic} after {trial.seconds:.3f} s: {trial.value}")
    raise typer.Exit(1 if trial.why else 0)


def explain(config: ConfigArgument, as_json: JsonOption = False) -> None:
    """Print every value in effect, the guarantee, and what may be done again after a crash."""
    pipeline = load(config)
    guarantee = _guarantee(pipeline)
    if as_json:
        print_json({"effective": pipeline.effective(), "guarantee": guarantee})
        return
    print(yaml.safe_dump(pipeline.effective(), sort_keys=False).rstrip())
    print()
    for name, sentence in guarantee.items():
        print(f"{name.replace('_', ' ')}: {sentence}")


def _guarantee(pipeline: Pipeline) -> dict[str, str]:
    batch = pipeline.batch
    if pipeline.delivery == "exactly_once":
        guarantee = (
            "exactly once: results, alerts, dead letters and the offset of a partition are written in one Kafka "
            "transaction; a reader with isolation level read_committed sees every outcome once, in the order of its "
            "partition"
        )
        window = (
            f"none for such a reader; after a crash the events of the open transaction, at most "
            f"{format_duration(pipeline.commit_interval)} (commit_interval) of finished ones and up to "
            f"{batch.in_flight} batches of {batch.max_events} in flight, are asked for again, and what the aborted "
            "transaction wrote is never seen"
        )
    else:
        guarantee = (
            "at least once: every event becomes a result or a dead letter before its offset is committed; "
            "results keep the order of their partition"
        )
        window = (
            f"after a crash, what was finished in the last {format_duration(pipeline.commit_interval)} "
            f"(commit_interval), what was in flight (up to {batch.in_flight} batches of {batch.max_events}) and what "
            "was not acknowledged yet is done again: its results may appear twice, with the same headrace-source header"
        )
    return {
        "guarantee": guarantee,
        "replay_window": window,
        "while_the_model_is_away": "the intake pauses and calls are repeated without end; no event is dropped for it",
        "while_kafka_is_away": "everything waits and goes on by itself; nothing is committed before it is written",
    }


def init(
    path: Annotated[Path, typer.Argument(help="The file to write.")] = Path("headrace.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite it.")] = False,
) -> None:
    """Write a commented configuration to start from."""
    if path.exists() and not force:
        raise HeadraceError(f"{path} exists already; choose another name, or --force to overwrite it")
    try:
        path.write_text(skeleton())
    except OSError as error:
        raise HeadraceError(f"{path}: cannot be written: {error.strerror}") from None
    print(f"wrote {path}; edit it, then: headrace check {path}")


def schema_command() -> None:
    """Print the JSON Schema of the configuration, for editors and validators."""
    print(json.dumps(schema(), indent=2))
