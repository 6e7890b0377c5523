"""The command line: which commands there are, and how a failure reaches the user.

Exit codes: 0 done or drained; 1 failed at run time; 2 wrong configuration or usage.
"""

import sys
from typing import Annotated

import typer

from bridge.errors import ConfigError, HeadraceError
from headrace.cli import bench, demo, letters, models, pipeline, rig
from serving.errors import ServingError

app = typer.Typer(
    name="headrace",
    help="Model serving for event streams: Kafka -> a model server over gRPC -> Kafka, one outcome for every event.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
pipeline.add(app)
app.add_typer(letters.app, name="dlq")
app.add_typer(models.app, name="models")
rig.add(app)
demo.add(app)
bench.add(app)


def _version(asked: bool) -> None:
    if asked:
        import importlib.metadata

        print(f"headrace {importlib.metadata.version('headrace')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options of every command."""


def main() -> None:
    """The entry point; a user's mistake ends in a sentence, never in a traceback."""
    try:
        app()
    except ConfigError as error:
        print("\n".join(error.sentences), file=sys.stderr)
        sys.exit(2)
    except (HeadraceError, ServingError) as error:
        print(error, file=sys.stderr)
        sys.exit(1)
    except PermissionError as error:
        print(f"{error.filename}: {error.strerror}", file=sys.stderr)
        sys.exit(1)


__all__ = ["app", "main"]
