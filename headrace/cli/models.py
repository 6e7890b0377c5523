"""models: what a repository holds, and what a server has loaded."""

from pathlib import Path
from typing import Annotated

import typer

from headrace.cli.output import JsonOption, print_json, print_table, size_text
from serving.repository import Version, versions

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
    found = list(versions(repository))
    state = {version.folder: states.get((version.model, str(version.number)), "not loaded") for version in found}
    if as_json:
        print_json(
            [
                {
                    "model": version.model,
                    "version": version.number,
                    "state": state[version.folder] if server else None,
                    "files": _files(version),
                    "quality": version.manifest.quality if version.manifest else {},
                    "bytes": version.size,
                    "description": version.manifest.description if version.manifest else "",
                }
                for version in found
            ]
        )
        return
    columns = ["model", "version", *(["state"] if server else []), "quality", "size", "files", "description"]
    rows = [
        (
            version.model,
            version.number,
            *([state[version.folder]] if server else []),
            ", ".join(f"{k} {v}" for k, v in version.manifest.quality.items()) if version.manifest else "",
            size_text(version.size),
            _files(version),
            version.manifest.description if version.manifest else "",
        )
        for version in found
    ]
    print_table(str(repository), columns, rows)


def _files(version: Version) -> str:
    return "; ".join(version.problems) or ("as in the manifest" if version.manifest else "no manifest")
