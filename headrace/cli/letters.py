"""dlq: look at dead letters, and send them back."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Coroutine
from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar

import typer
from aiokafka.errors import KafkaError

from bridge.config import Pipeline, load
from bridge.config.types import parse_duration
from bridge.dead_letters import DeadLetter, LetterFilter, letter_reader
from bridge.errors import HeadraceError
from bridge.kafka import sentence
from bridge.ledger import Ledger
from bridge.observe.logs import silence_clients
from bridge.observe.telemetry import DEAD_LETTER_REASONS
from bridge.replay import Order, Tally
from bridge.replay import replay as replay_letters
from bridge.replayed import read_ledgers
from headrace.cli.output import JsonOption, print_json, print_table
from headrace.cli.pipeline import ConfigArgument

app = typer.Typer(help="Dead letters: the events that could get no result.", no_args_is_help=True)
T = TypeVar("T")


def _reason(text: str | None) -> str | None:
    if text is not None and text not in DEAD_LETTER_REASONS:
        raise typer.BadParameter(f"{text!r} is no reason; there are {', '.join(DEAD_LETTER_REASONS)}")
    return text


def _moment(text: str) -> int:
    """Milliseconds since 1970 of `2h` (so long ago) or `2026-11-25T10:00` (UTC where no zone is given)."""
    try:
        return int((time.time() - parse_duration(text)) * 1000)
    except ValueError:
        pass
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is no time; write how long ago, such as 30m or 2h, or a time such as 2026-11-25T10:00+01:00"
        ) from None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


ReasonOption = Annotated[
    str | None, typer.Option(help="Only those that died for this reason.", callback=_reason, metavar="REASON")
]
SinceOption = Annotated[
    int | None,
    typer.Option(help="Only events from this time on: 2h (ago), 2026-11-25T10:00.", parser=_moment, metavar="TIME"),
]
UntilOption = Annotated[int | None, typer.Option(help="Only events before this time.", parser=_moment, metavar="TIME")]
VersionOption = Annotated[
    str | None, typer.Option("--model-version", help="Only those that this version of the model refused.")
]
PartitionOption = Annotated[int | None, typer.Option(min=0, help="Only events of this partition of their topic.")]
KeyOption = Annotated[str | None, typer.Option(help="Only events with this key.")]


@app.command("list")
def list_letters(
    config: ConfigArgument,
    limit: Annotated[int, typer.Option(min=0, help="Most letters to list, the newest ones.")] = 50,
    reason: ReasonOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    model_version: VersionOption = None,
    partition: PartitionOption = None,
    key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the dead letters of a pipeline, and which have been replayed."""
    pipeline = load(config)
    wanted = LetterFilter(None, reason, since, until, model_version, partition, None if key is None else key.encode())
    letters, reasons, ledgers = _asked(pipeline, _collect(pipeline, limit, wanted))
    if as_json:
        found = [item.as_json() | {"replayed": item.offset in ledgers[item.partition]} for item in letters]
        print_json({"total": sum(reasons.values()), "reasons": reasons, "letters": found})
        return
    rows = [
        (
            f"{item.partition}/{item.offset}",
            item.why.get("reason"),
            _when(item),
            f"{item.why.get('topic')}/{item.why.get('partition')}/{item.why.get('offset')}",
            "yes" if item.offset in ledgers[item.partition] else "",
            item.why.get("error"),
        )
        for item in letters
    ]
    print_table(
        f"{sum(reasons.values())} dead letters in {pipeline.dead_letter.topic}{_by_reason(reasons)}",
        ("letter", "reason", "event time", "event", "replayed", "why"),
        rows,
    )


@app.command()
def show(
    config: ConfigArgument,
    letter: Annotated[
        str, typer.Argument(help="Its place in the dead-letter topic, PARTITION/OFFSET, as list shows it.")
    ],
    as_json: JsonOption = False,
) -> None:
    """Show one dead letter: the event, and why it died."""
    pipeline = load(config)
    place = letter.split("/")
    if len(place) != 2 or not all(part.isdigit() for part in place):
        raise typer.BadParameter(f"{letter!r} is not PARTITION/OFFSET, such as 0/17", param_hint="LETTER")
    found, replayed = _asked(pipeline, _one(pipeline, int(place[0]), int(place[1])))
    if as_json:
        print_json(found.as_json() | {"replayed": replayed})
        return
    for name, value in found.why.items():
        print(f"{name:14} {_when(found) if name == 'timestamp' else value}")
    print(f"{'replayed':14} {'yes' if replayed else 'no'}")
    document = found.as_json()
    for header, value in document["headers"].items():
        print(f"{'header':14} {header}: {value}")
    print(f"{'key':14} {document['key']}")
    print(f"{'value':14} {_pretty(found.value)}")


@app.command()
def replay(
    config: ConfigArgument,
    reason: ReasonOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    model_version: VersionOption = None,
    partition: PartitionOption = None,
    key: KeyOption = None,
    to: Annotated[
        str | None, typer.Option(metavar="TOPIC", help="Send them there instead of to where their events came from.")
    ] = None,
    rate: Annotated[float | None, typer.Option(min=0.1, help="Most letters in a second.")] = None,
    now: Annotated[
        bool, typer.Option("--now", help="Give the events the time of now, so that model.deadline lets them pass.")
    ] = False,
    at_least_once: Annotated[
        bool, typer.Option("--at-least-once", help="Do without transactions, where the brokers do not allow them.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Send nothing; tell what would be sent.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Send dead letters back to where their events came from, each once.

    What is interrupted goes on where it was when it is called again. A letter that dies again counts its attempts on.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    pipeline = load(config)
    wanted = LetterFilter(
        pipeline.name, reason, since, until, model_version, partition, None if key is None else key.encode()
    )
    order = Order(wanted, to, rate, dry_run, now, at_least_once)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=as_json or not console.is_terminal) as progress:
        bar = progress.add_task("dead letters", total=None)

        def told(tally: Tally) -> None:
            progress.update(bar, completed=tally.passed, total=tally.letters)

        silence_clients()
        tally = asyncio.run(replay_letters(pipeline, order, told))
    sent = sum(tally.replayed.values())
    if as_json:
        found = {"replayed": sent, "topics": tally.replayed, "reasons": tally.reasons, "left_out": tally.left_out}
        print_json(found | {"dry_run": dry_run})
        return
    where = f" to {', '.join(tally.replayed)}" if sent else ""
    print(f"{'would replay' if dry_run else 'replayed'} {sent} dead letters{where}{_by_reason(tally.reasons)}")
    if tally.left_out:
        print(
            f"{tally.left_out} left out, by the filter or because they are no letters of this pipeline and its topics"
        )


def _asked(pipeline: Pipeline, asking: Coroutine[Any, Any, T]) -> T:
    silence_clients()
    try:
        return asyncio.run(asking)
    except KafkaError as error:
        raise HeadraceError(sentence(error, pipeline.kafka)) from None


async def _collect(
    pipeline: Pipeline, limit: int, wanted: LetterFilter
) -> tuple[list[DeadLetter], Counter[str], dict[int, Ledger]]:
    letters: dict[int, list[DeadLetter]] = {}
    reasons: Counter[str] = Counter()
    async with letter_reader(pipeline) as reader:
        ledgers = await read_ledgers(pipeline, reader)
        async for letter in reader.read():
            if letter in wanted:
                reasons[letter.why.get("reason", "?")] += 1
                kept = letters.setdefault(letter.partition, [])
                kept.append(letter)
                if len(kept) > limit:
                    del kept[0]
    found = [item for kept in letters.values() for item in kept]
    newest = sorted(found, key=lambda item: item.timestamp)[max(0, len(found) - limit) :]
    return sorted(newest, key=lambda item: (item.partition, item.offset)), reasons, ledgers


async def _one(pipeline: Pipeline, partition: int, offset: int) -> tuple[DeadLetter, bool]:
    async with letter_reader(pipeline) as reader:
        letter = await reader.at(partition, offset)
        ledgers = await read_ledgers(pipeline, reader)
    return letter, offset in ledgers[partition]


def _by_reason(reasons: Counter[str]) -> str:
    return f" ({', '.join(f'{count} {name}' for name, count in reasons.most_common())})" if reasons else ""


def _when(letter: DeadLetter) -> str:
    if letter.timestamp < 0:
        return "?"
    return datetime.fromtimestamp(letter.timestamp / 1000, UTC).isoformat(timespec="milliseconds")


def _pretty(value: bytes | None) -> str:
    if value is None:
        return "(none: a tombstone)"
    try:
        return json.dumps(json.loads(value), indent=2, ensure_ascii=False)
    except ValueError:
        return value.decode(errors="backslashreplace")
