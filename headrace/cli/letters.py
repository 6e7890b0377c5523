"""dlq: look at dead letters."""

import asyncio
import json
from collections import Counter
from datetime import UTC, datetime
from typing import Annotated

import typer
from aiokafka.errors import KafkaError

from bridge.config import Pipeline, load
from bridge.dead_letters import DeadLetter, read_dead_letter, read_dead_letters
from bridge.errors import HeadraceError
from bridge.kafka import sentence
from bridge.observe.logs import silence_clients
from bridge.observe.telemetry import DEAD_LETTER_REASONS
from headrace.cli.output import JsonOption, print_json, print_table
from headrace.cli.pipeline import ConfigArgument

app = typer.Typer(help="Dead letters: the events that could get no result.", no_args_is_help=True)


@app.command("list")
def list_letters(
    config: ConfigArgument,
    limit: Annotated[int, typer.Option(help="Most letters to list, the newest of each partition.")] = 50,
    reason: Annotated[str | None, typer.Option(help="Only those that died for this reason.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List the dead letters of a pipeline."""
    silence_clients()
    pipeline = load(config)
    if reason is not None and reason not in DEAD_LETTER_REASONS:
        known = ", ".join(DEAD_LETTER_REASONS)
        raise typer.BadParameter(f"{reason!r} is no reason; there are {known}", param_hint="--reason")
    letters, reasons = asyncio.run(_collect(pipeline, limit, reason))
    if as_json:
        print_json(
            {"total": sum(reasons.values()), "reasons": reasons, "letters": [item.as_json() for item in letters]}
        )
        return
    rows = [
        (
            f"{item.partition}/{item.offset}",
            item.why.get("reason"),
            _when(item.why.get("timestamp")),
            f"{item.why.get('topic')}/{item.why.get('partition')}/{item.why.get('offset')}",
            item.why.get("error"),
        )
        for item in letters
    ]
    print_table(
        f"{sum(reasons.values())} dead letters in {pipeline.dead_letter.topic}"
        + (f" ({', '.join(f'{count} {name}' for name, count in reasons.most_common())})" if reasons else ""),
        ("letter", "reason", "event time", "event", "why"),
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
    silence_clients()
    pipeline = load(config)
    place = letter.split("/")
    if len(place) != 2 or not all(part.isdigit() for part in place):
        raise typer.BadParameter(f"{letter!r} is not PARTITION/OFFSET, such as 0/17", param_hint="LETTER")
    try:
        found = asyncio.run(read_dead_letter(pipeline, int(place[0]), int(place[1])))
    except KafkaError as error:
        raise HeadraceError(sentence(error, pipeline.kafka)) from None
    if as_json:
        print_json(found.as_json())
        return
    for name, value in found.why.items():
        print(f"{name:14} {_when(value) if name == 'timestamp' else value}")
    document = found.as_json()
    for header, value in document["headers"].items():
        print(f"{'header':14} {header}: {value}")
    print(f"{'key':14} {document['key']}")
    print(f"{'value':14} {_pretty(found.value)}")


async def _collect(pipeline: Pipeline, limit: int, reason: str | None) -> tuple[list[DeadLetter], Counter[str]]:
    letters: dict[int, list[DeadLetter]] = {}
    reasons: Counter[str] = Counter()
    try:
        async for letter in read_dead_letters(pipeline):
            if reason in (None, letter.why.get("reason")):
                reasons[letter.why.get("reason", "?")] += 1
                kept = letters.setdefault(letter.partition, [])
                kept.append(letter)
                del kept[:-limit]
    except KafkaError as error:
        raise HeadraceError(sentence(error, pipeline.kafka)) from None
    newest = sorted(
        (item for kept in letters.values() for item in kept), key=lambda item: (item.partition, item.offset)
    )
    return newest[-limit:], reasons


def _when(milliseconds: str | None) -> str:
    if milliseconds is None or not milliseconds.lstrip("-").isdigit():
        return "?"
    return datetime.fromtimestamp(int(milliseconds) / 1000, UTC).isoformat(timespec="milliseconds")


def _pretty(value: bytes | None) -> str:
    if value is None:
        return "(none: a tombstone)"
    try:
        return json.dumps(json.loads(value), indent=2, ensure_ascii=False)
    except ValueError:
        return value.decode(errors="backslashreplace")
