"""models watch: brings what is dropped into a repository to a model server."""

import threading
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from bridge.config.types import parse_duration
from headrace.cli.repository import RepositoryArgument
from headrace.cli.signals import until_stopped


class Kind(StrEnum):
    """What a model server is."""

    TRITON = "triton"
    TFSERVING = "tfserving"


def watch(
    repository: RepositoryArgument,
    server: Annotated[str, typer.Option(metavar="HOST:PORT", help="The model server to bring versions to.")],
    view: Annotated[
        Path, typer.Option(metavar="DIR", help="That server's own models: a folder that the watcher alone fills.")
    ],
    kind: Annotated[Kind, typer.Option(help="What the server is.")] = Kind.TRITON,
    base: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The same folder as a TensorFlow Serving sees it; else --view.")
    ] = None,
    settle: Annotated[
        str, typer.Option(help="How long a version without a manifest must be still until it is taken for whole.")
    ] = "3s",
    observe: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Health and metrics over HTTP.")] = None,
) -> None:
    """Bring every good version that is dropped into a repository to a server, and no other, until SIGTERM or Ctrl-C.

    A Triton runs with --model-control-mode=explicit and no models; a TensorFlow Serving with an empty model config
    file, and the label `stable` moves to what has proved itself. Prints `ready` once all there is is loaded.
    """
    from pydantic import ValidationError

    from bridge.config.model import Log, Observe
    from bridge.observe.logs import configure
    from headrace.watching import Watching
    from serving.control import TritonControl
    from serving.store import repository_for_watching
    from serving.tfserving import TensorFlowServingControl
    from serving.view import View

    configure(Log())
    try:
        seconds = parse_duration(settle)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--settle") from None
    try:
        Observe(address=observe)
    except ValidationError as error:
        raise typer.BadParameter(error.errors()[0]["msg"], param_hint="--observe") from None
    place = Path(repository)
    if "://" not in repository and (
        view.resolve().is_relative_to(place.resolve()) or place.resolve().is_relative_to(view.resolve())
    ):
        raise typer.BadParameter(f"{view} and {repository} must not lie in each other", param_hint="--view")
    if base is not None and kind is not Kind.TFSERVING:
        raise typer.BadParameter("only a TensorFlow Serving is told where its models are", param_hint="--base")
    at = repository_for_watching(repository, view / ".copy")
    made = View(view, flat=kind is Kind.TFSERVING)
    control = TensorFlowServingControl(server, view, base) if kind is Kind.TFSERVING else TritonControl(server)
    watching = Watching(at, made, control, seconds, observe=observe)
    stop = threading.Event()

    def announce() -> None:
        while not stop.is_set():
            if watching.settled.wait(0.2):
                print("ready", flush=True)
                return

    with until_stopped(stop):
        threading.Thread(target=announce, daemon=True).start()
        watching.run(stop)
    watching.close()
