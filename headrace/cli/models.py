"""models: what a repository holds, and what a server has loaded."""

from pathlib import Path
from typing import Annotated

import typer

from headrace.cli.output import JsonOption, print_json, print_table, size_text
from serving.repository import versions

app = typer.Typer(help="Model versions in a repository.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keeps `list` a sub-command although it is the only one."""


@app.command("list")
def list_models(
    repository: Annotated[Path, typer.Argument(metavar="REPOSITORY", help="The folder of models.")],
    server: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Also ask this Triton what it serves.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the versions of every model, with their quality and whether their files are what their manifest says."""
    states: dict[tuple[str, str], str] = {}
    if server is not None:
        from serving.control import TritonControl

        control = TritonControl(server)
        try:
            states = control.states()
        finally:
            control.close()
    rows = []
    for version in versions(repository):
        manifest = version.manifest
        rows.append(
            {
                "model": version.model,
                "version": version.number,
                "state": states.get((version.model, str(version.number)), "not loaded") if server else None,
                "files": "; ".join(version.problems) or ("as in the manifest" if manifest else "no manifest"),
                "quality": manifest.quality if manifest else {},
                "bytes": version.size,
                "description": manifest.description if manifest else "",
            }
        )
    if as_json:
        print_json(rows)
        return
    columns = ["model", "version", *(["state"] if server else []), "quality", "size", "files", "description"]
    table = [
        (
            row["model"],
            row["version"],
            *([row["state"]] if server else []),
            ", ".join(f"{name} {value}" for name, value in dict(row["quality"]).items()),  # type: ignore[call-overload]
            size_text(int(str(row["bytes"]))),
            row["files"],
            row["description"],
        )
        for row in rows
    ]
    print_table(str(repository), columns, table)
