"""models: what a repository holds, what serves, and putting versions in and taking them back."""

import contextlib
import json
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from headrace.cli.output import JsonOption, print_json, print_table, size_text
from headrace.cli.repository import RepositoryArgument
from headrace.cli.watch import watch
from serving.completeness import NO_VERSION, misnamed
from serving.errors import ServingError
from serving.marks import Mark, pin, pinned, restore, withdraw, withdrawn
from serving.repository import Version, models, numbers, serving_order, size_of, versions
from serving.store import Repository, repository_at

app = typer.Typer(help="Model versions in a repository.", no_args_is_help=True)
app.command()(watch)

OptionalRepository = Annotated[
    str | None, typer.Argument(metavar="[REPOSITORY]", help="The folder of models, or its URL in an object store.")
]
ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="The model's name.")]
ServerOption = Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Also ask this Triton what it serves.")]
WaitOption = Annotated[
    str | None, typer.Option("--server", metavar="HOST:PORT", help="Wait until this Triton serves accordingly.")
]
_PATIENCE = 60.0


@app.command("list")
def list_models(
    repository: OptionalRepository = None, server: ServerOption = None, as_json: JsonOption = False
) -> None:
    """List the versions of every model: state, quality, size, age, and whether their files are what they must be.

    With --server alone: what that server has loaded, wherever its repository is.
    """
    states, traffic = _told(server)
    if repository is None:
        _list_served(states, traffic, server, as_json)
        return
    folder = repository_at(repository).folder
    found = list(versions(folder))
    pins = {model.name: pinned(model) for model in models(folder)}
    serving: dict[str, int] = {}
    for (model, number), told in states.items():
        if told == "READY":
            serving[model] = max(int(number), serving.get(model, 0))
    state = {
        version.folder: _state(version, states, pins[version.model], serving.get(version.model)) for version in found
    }
    if as_json:
        print_json(
            [
                {
                    "model": version.model,
                    "version": version.number,
                    "state": state[version.folder],
                    "pinned": pins[version.model] == version.number,
                    "withdrawn": version.mark.reason if version.mark else None,
                    "files": _files(version),
                    "quality": version.manifest.quality if version.manifest else {},
                    "bytes": version.size,
                    "rows": traffic.get((version.model, str(version.number))),
                    "description": version.manifest.description if version.manifest else "",
                }
                for version in found
            ]
        )
        return
    columns = ("model", "version", "state", "rows", "quality", "size", "age", "files", "description")
    rows = [
        (
            version.model,
            version.number,
            state[version.folder],
            traffic.get((version.model, str(version.number))),
            ", ".join(f"{k} {v}" for k, v in version.manifest.quality.items()) if version.manifest else "",
            size_text(version.size),
            _age(version.folder),
            _files(version),
            version.manifest.description if version.manifest else "",
        )
        for version in found
    ]
    print_table(repository, columns, rows)
    if not models(folder):
        print(f"{repository}: no model in it", file=sys.stderr)
    _tell_misnamed(folder)


@app.command()
def verify(repository: RepositoryArgument, as_json: JsonOption = False) -> None:
    """Check every version: whole, readable, and as its manifest says. Exits 1 when one is not."""
    folder = repository_at(repository).folder
    found = list(versions(folder))
    if as_json:
        print_json([{"model": v.model, "version": v.number, "problems": v.problems} for v in found])
    else:
        for version in found:
            print("\n".join(version.problems) or f"{version.folder}: {_files(version)}")
        _tell_misnamed(folder)
    if any(version.problems for version in found):
        raise typer.Exit(1)


@app.command("publish")
def publish_command(
    source: Annotated[Path, typer.Argument(metavar="PATH", help="A SavedModel, or a version's folder.")],
    repository: RepositoryArgument,
    model: Annotated[str | None, typer.Option(help="The model's name; else its manifest says it.")] = None,
    version: Annotated[int | None, typer.Option(min=1, help="Its number; else the next one.")] = None,
    new_contract: Annotated[
        bool, typer.Option("--new-contract", help="It may have other inputs and outputs than the version before.")
    ] = False,
    server: WaitOption = None,
) -> None:
    """Put a version into a repository, whole or not at all. A watcher takes it from there."""
    from serving.publish import publish

    if server is not None:
        _told(server)  # one that does not answer is said before anything is published
    at = repository_at(repository)
    target = publish(source, at.folder, model, version, new_contract)
    at.push()
    print(f"published {target.parent.name} {target.name}")
    newest = _newest(target.parent)
    if newest != int(target.name):
        print(f"{target.parent.name}: {newest} serves; it is newer, or pinned")
    elif server is not None:
        _wait(server, at, target.parent, newest)


@app.command()
def rollback(
    repository: RepositoryArgument,
    model: ModelArgument,
    reason: Annotated[str, typer.Option(help="Why, for those who look later.")] = "taken back by hand",
    server: WaitOption = None,
) -> None:
    """Take the version that serves back; the one before serves again at once, until something newer is published."""
    at = repository_at(repository)
    folder = _model(at, model)
    order = list(islice(serving_order(folder), 2))
    if len(order) < 2:
        raise ServingError(f"{folder}: no version before {order[0] if order else 'none'} that could serve instead")
    if pinned(folder) == order[0]:
        raise ServingError(f"{folder}: version {order[0]} is pinned; headrace models pin says which serves instead")
    withdraw(folder, order[0], Mark(by="rollback", reason=reason, at=time.time()))
    at.push()
    print(f"{model}: {order[0]} is withdrawn, {order[1]} serves")
    if server is not None:
        _wait(server, at, folder, order[1])


@app.command("restore")
def restore_command(
    repository: RepositoryArgument, model: ModelArgument, version: int, server: WaitOption = None
) -> None:
    """Let a version serve again that was taken back or refused."""
    at = repository_at(repository)
    folder = _model(at, model)
    if version not in withdrawn(folder):
        there = ", ".join(map(str, sorted(withdrawn(folder)))) or "none is"
        raise ServingError(f"{folder}: version {version} is not withdrawn; {there}")
    restore(folder, version)
    at.push()
    print(f"{model}: {version} may serve again")
    if server is not None:
        _wait(server, at, folder, _newest(folder))


@app.command("pin")
def pin_command(
    repository: RepositoryArgument,
    model: ModelArgument,
    version: Annotated[str, typer.Argument(metavar="VERSION", help="A number, or `newest` to take the pin away.")],
    server: WaitOption = None,
) -> None:
    """Have one version serve, whatever is newer."""
    at = repository_at(repository)
    folder = _model(at, model)
    number = None if version == "newest" else _number(version)
    if number is not None and number not in numbers(folder):
        there = ", ".join(map(str, sorted(numbers(folder)))) or "none"
        raise ServingError(f"{folder}: no version {number}; there are {there}")
    if number in withdrawn(folder):
        raise ServingError(f"{folder}: version {number} is withdrawn; headrace models restore lets it serve again")
    pin(folder, number)
    at.push()
    print(f"{model}: {f'pinned to {number}' if number else 'the newest serves'}")
    if server is not None:
        _wait(server, at, folder, _newest(folder))


@app.command()
def prune(
    repository: RepositoryArgument,
    keep: Annotated[int, typer.Option(min=2, help="Versions of each model that may serve, to keep.")] = 3,
    yes: Annotated[bool, typer.Option("--yes", help="Remove them; else they are only listed.")] = False,
) -> None:
    """Remove old versions. The newest that may serve stay, so does what is newer than those."""
    at = repository_at(repository)
    gone = []
    for folder in models(at.folder):
        kept = list(islice(serving_order(folder), keep))
        if len(kept) == keep:
            gone += [folder / str(number) for number in sorted(numbers(folder)) if number < kept[-1]]
    for version in gone:
        size = size_of(version)
        if yes:
            at.remove(version)
            restore(version.parent, int(version.name))
            at.push()
        print(f"{at.name}/{version.relative_to(at.folder)}: {size_text(size)}{' removed' if yes else ''}")
    if not gone:
        print("nothing to remove")
    elif not yes:
        print("nothing is removed yet; --yes removes them")


@app.command()
def config(
    repository: RepositoryArgument,
    base: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The same folder, as the server sees it; else as it is here.")
    ] = None,
) -> None:
    """Print the model config file of a TensorFlow Serving that runs without a watcher.

    It names the versions that may serve, and `stable`, the one that does: start the server with
    --allow_version_labels_for_unavailable_models, since a label may otherwise go to loaded versions only.
    """
    from serving.tfserving import config_file

    print(config_file(repository_at(repository).folder, base), end="")


@app.command()
def diff(repository: RepositoryArgument, model: ModelArgument, old: int, new: int, as_json: JsonOption = False) -> None:
    """Compare two versions: signature, size, quality, and their answers to the old one's golden requests."""
    from serving.compare import compare

    folder = _model(repository_at(repository), model)
    for number in (old, new):
        if number not in numbers(folder):
            there = ", ".join(map(str, sorted(numbers(folder)))) or "none"
            raise ServingError(f"{folder}: no version {number}; there are {there}")
    found = compare(folder / str(old), folder / str(new))
    if as_json:
        print_json(found)
        return
    rows = [(name, *map(_cell, pair)) for name, pair in found.items()]
    print_table(f"{model}", ("", str(old), str(new)), rows)


def _list_served(
    states: dict[tuple[str, str], str], traffic: dict[tuple[str, str], int], server: str | None, as_json: bool
) -> None:
    if server is None:
        raise typer.BadParameter("say which: a repository, or a server by --server", param_hint="REPOSITORY")
    found = [
        {"model": model, "version": number, "state": told, "rows": traffic.get((model, str(number)))}
        for model, number, told in sorted((model, int(n), told) for (model, n), told in states.items() if n)
    ]
    if as_json:
        print_json(found)
    else:
        print_table(server, ("model", "version", "state", "rows"), [tuple(row.values()) for row in found])


def _tell_misnamed(repository: Path) -> None:
    for model in models(repository):
        for name in misnamed(model):
            print(f"{model / name}: {NO_VERSION}", file=sys.stderr)


def _told(server: str | None) -> tuple[dict[tuple[str, str], str], dict[tuple[str, str], int]]:
    """What a server says of (model, version): its state, and the rows it has answered."""
    if server is None:
        return {}, {}
    from serving.control import TritonControl

    control = TritonControl(server)
    try:
        return control.states(), control.traffic()
    finally:
        control.close()


def _state(version: Version, states: dict[tuple[str, str], str], pin: int | None, serving: int | None) -> str:
    """What becomes of it; with a server, what that says."""
    told = states.get((version.model, str(version.number)))
    parts = [f"{told}, serves" if version.number == serving else told] if told else []
    if version.mark is not None:
        parts = [part for part in parts if version.number == serving]
        parts.append(f"{'withdrawn' if version.mark.by == 'rollback' else 'refused'}: {version.mark.reason}")
    if pin == version.number:
        parts.append("pinned")
    return "; ".join(parts) or ("not loaded" if states else "")


def _newest(model: Path) -> int:
    """The version that serves, or will."""
    number = next(serving_order(model), None)
    if number is None:
        raise ServingError(f"{model}: no version that can serve")
    return number


def _wait(server: str, at: Repository, model: Path, number: int) -> None:
    """Until the server's newest version is this one; or, from a watcher, why it is not."""
    from serving.control import TritonControl

    control, begun = TritonControl(server), time.monotonic()
    try:
        while time.monotonic() - begun < _PATIENCE:
            if max(control.ready().get(model.name, {0})) == number:
                print(f"{model.name}: {number} serves, {time.monotonic() - begun:.1f} s later")
                return
            with contextlib.suppress(ServingError):  # away for a moment: it is done, and can be waited for
                at.pull()
            mark = withdrawn(model).get(number)
            newest = _newest(model) if mark is None else number
            if newest != number:
                print(f"{model.name}: {newest} serves; it has come meanwhile")
                return
            if mark is not None:
                raise ServingError(f"{model.name}: version {number} was refused: {mark.reason}")
            time.sleep(at.pause)
    finally:
        control.close()
    raise ServingError(f"{model.name}: version {number} does not serve after {_PATIENCE:.0f} s; does a watcher run?")


def _model(at: Repository, name: str) -> Path:
    known = [model.name for model in models(at.folder)]
    if name not in known:
        raise ServingError(f"{at.name}: no model {name!r}; there are {', '.join(known) or 'none'}")
    return at.folder / name


def _number(text: str) -> int:
    if not text.isdigit():
        raise typer.BadParameter(f"{text!r} is no version; a number, or newest", param_hint="VERSION")
    return int(text)


def _age(folder: Path) -> str:
    seconds = max(0.0, time.time() - folder.lstat().st_mtime)
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _files(version: Version) -> str:
    return "; ".join(version.problems) or ("as in the manifest" if version.manifest else "no manifest")


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else json.dumps(value)
