"""demo: everything at once, on this machine."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

Model = StrEnum("Model", ["fraud", "maintenance", "personalization", "credit"])
REPOSITORY = Path(__file__).parents[2] / "model_repository"


def add(app: typer.Typer) -> None:
    """Add this command."""
    app.command()(demo)


def demo(
    model: Annotated[Model, typer.Option(help="Which example.")] = Model.fraud,
    events: Annotated[int, typer.Option(min=8, help="How many events to stream.")] = 60_000,
    rate: Annotated[float, typer.Option(min=0, help="Events a second; 0 streams as fast as it goes.")] = 3_000,
    keep: Annotated[bool, typer.Option("--keep", help="Leave everything running at the end, until Ctrl-C.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="End with one JSON object on standard output.")] = False,
    repository: Annotated[Path, typer.Option(help="The model repository.")] = REPOSITORY,
) -> None:
    """Stream real data through a real Kafka and a real Triton, and swap the model version in mid-stream.

    It reads every outcome back and matches it with its event; exits 1 if any is lost, doubled or out of order.
    """
    from headrace.demo.run import demo as run_demo

    if not run_demo(model.value, events, rate, keep, as_json, repository):
        raise typer.Exit(1)
