"""What a model repository holds: models, and their versions."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from serving.completeness import VERSION, check
from serving.errors import ServingError
from serving.manifest import Manifest, read_manifest
from serving.marks import Mark, pinned, withdrawn
from serving.modelconfig import read_config


@dataclass(frozen=True, slots=True)
class Version:
    """One version on disk.

    Attributes:
        model: the model's name.
        number: the version's.
        folder: where it is.
        manifest: what it says of itself; None without one.
        size: bytes of its files.
        problems: a sentence for each thing that is wrong with it.
        mark: why it does not serve, where somebody has decided so.
    """

    model: str
    number: int
    folder: Path
    manifest: Manifest | None
    size: int
    problems: tuple[str, ...]
    mark: Mark | None


def versions(repository: Path) -> Iterator[Version]:
    """Every version of every model, in order.

    Raises:
        ServingError: there is no such folder.
    """
    for model in models(repository):
        marks = withdrawn(model)
        for number in sorted(numbers(model)):
            yield _read(model, number, marks.get(number))


def models(repository: Path) -> list[Path]:
    """The folders of the models, in order.

    Raises:
        ServingError: there is no such folder.
    """
    if not repository.is_dir():
        raise ServingError(f"{repository}: no such model repository; a repository is a folder of models")
    return sorted(path for path in repository.iterdir() if path.is_dir() and not path.name.startswith("."))


def numbers(model: Path) -> set[int]:
    """The numbers of the versions in a model's folder, whole or not."""
    return {int(path.name) for path in model.iterdir() if VERSION.fullmatch(path.name)}


def serving_order(model: Path) -> Iterator[int]:
    """The versions that may serve, by their files, the configuration, and what people and watchers have decided.

    Returns:
        The one that serves, or will; then what may follow it, newest first.

    Raises:
        ServingError: the configuration, or a decision, cannot be read.
    """
    if not model.is_dir():
        return
    config, pin = read_config(model), pinned(model)
    for number in sorted(numbers(model) - set(withdrawn(model)), reverse=True):
        if (pin is not None and number > pin) or (config.only is not None and number not in config.only):
            continue
        with contextlib.suppress(ServingError):  # not whole: it does not serve
            check(model / str(number), model.parent, config.signature)
            yield number


def _read(model: Path, number: int, mark: Mark | None) -> Version:
    folder, manifest, problems = model / str(number), None, []
    try:
        check(folder, model.parent, read_config(model).signature)
        manifest = read_manifest(folder)
    except ServingError as error:
        problems.append(str(error))
    size = size_of(folder)
    return Version(model.name, number, folder, manifest, size, tuple(problems), mark)


def size_of(folder: Path) -> int:
    """Bytes of its files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
