"""What people and watchers have decided about the versions of a model: kept in the model's folder, in `.headrace/`.

    pin                  a number: no newer version serves
    withdrawn/3.json     version 3 does not serve, and why: taken back by a person, or refused by a watcher

Each is one small file that is written aside and renamed, so that any number of watchers and people can read and write.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from serving.errors import ServingError

FOLDER = ".headrace"


class Mark(BaseModel):
    """Why a version does not serve.

    Attributes:
        by: `rollback` for a person, `watcher` for one that has found something wrong with it.
        reason: one sentence.
        at: when, in seconds since 1970.
        fingerprint: of the files that were found wrong: with other files it is looked at again. None is for good.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    by: Literal["rollback", "watcher"]
    reason: str
    at: float
    fingerprint: str | None = None


def withdrawn(model: Path) -> dict[int, Mark]:
    """The versions of a model that do not serve.

    Raises:
        ServingError: a mark cannot be read.
    """
    found = {}
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        for path in sorted((model / FOLDER / "withdrawn").iterdir()):
            if path.suffix == ".json" and path.stem.isdigit():
                try:
                    found[int(path.stem)] = Mark.model_validate_json(path.read_bytes())
                except FileNotFoundError:
                    continue  # it has just been taken away
                except (OSError, ValidationError) as error:
                    raise ServingError(f"{path}: cannot be read: {error}") from None
    return found


def withdraw(model: Path, number: int, mark: Mark) -> None:
    """Say that a version is not to serve.

    Raises:
        ServingError: it cannot be written.
    """
    _write(model / FOLDER / "withdrawn" / f"{number}.json", mark.model_dump_json(indent=1) + "\n")


def restore(model: Path, number: int) -> None:
    """Take that back."""
    with _told(model), contextlib.suppress(FileNotFoundError):
        (model / FOLDER / "withdrawn" / f"{number}.json").unlink()


def pinned(model: Path) -> int | None:
    """The version that is to serve, whatever is newer; None when the newest is.

    Raises:
        ServingError: the pin cannot be read.
    """
    path = model / FOLDER / "pin"
    try:
        return int(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise ServingError(f"{path}: cannot be read: {error}") from None


def pin(model: Path, number: int | None) -> None:
    """Pin a version, or with None the newest from now on.

    Raises:
        ServingError: it cannot be written.
    """
    if number is not None:
        _write(model / FOLDER / "pin", f"{number}\n")
        return
    with _told(model), contextlib.suppress(FileNotFoundError):
        (model / FOLDER / "pin").unlink()


def _write(path: Path, text: str) -> None:
    with _told(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, aside = tempfile.mkstemp(dir=path.parent, prefix=".")
        with os.fdopen(handle, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(aside, 0o644)  # noqa: PTH101 - other users' watchers read it
        os.replace(aside, path)  # noqa: PTH105


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ServingError(f"{path}: cannot be written: {error.strerror or error}") from None
