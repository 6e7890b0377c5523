"""What the model server is pointed at: a folder of its own, in which only whole and wanted versions ever are.

The repository that people write to may hold anything at any moment. A version is copied from there aside, checked as a
copy, and renamed to its place, so that the server never reads a file that somebody may still be writing.
"""

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from serving.completeness import VERSION, check
from serving.errors import ServingError
from serving.files import copy_folder
from serving.signature import DEFAULT_SIGNATURE

_ASIDE = ".incoming"


class View:
    """The server's own model repository.

    Args:
        root: its folder, made if need be; nobody else writes to it.
        flat: whether saved_model.pb lies in a version's folder itself, as TensorFlow Serving wants it.

    Raises:
        ServingError: the folder cannot be written to, or another watcher fills it.
    """

    def __init__(self, root: Path, flat: bool = False) -> None:
        self.root = root
        self._flat = flat
        try:
            root.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(root / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise ServingError(f"{root}: cannot be the server's own folder: {error.strerror}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # it ends with the process
        except OSError:
            os.close(self._lock)
            raise ServingError(f"{root}: another watcher fills it; give each server a folder of its own") from None
        shutil.rmtree(root / _ASIDE, ignore_errors=True)  # of a watcher that was killed

    def close(self) -> None:
        """Leave it to another watcher."""
        os.close(self._lock)

    def versions(self, model: str) -> set[int]:
        """The versions of a model in it."""
        folder = self.root / model
        if not folder.is_dir():
            return set()
        return {int(path.name) for path in folder.iterdir() if path.is_dir() and VERSION.fullmatch(path.name)}

    def add(self, model: str, number: int, source: Path, signature: str = DEFAULT_SIGNATURE) -> None:
        """Copy a version in, whole or not at all.

        Args:
            model: its name.
            number: the version's.
            source: its folder.
            signature: that is to be served.

        Raises:
            ServingError: what was copied is not a whole version.
            OSError: it cannot be copied: no space, or something else that is not the version's fault.
        """
        aside = self.root / _ASIDE / model / str(number)
        shutil.rmtree(aside, ignore_errors=True)
        aside.parent.mkdir(parents=True, exist_ok=True)
        try:
            copy_folder(source, aside)
            check(aside, aside, signature)
            if self._flat and (aside / "model.savedmodel").is_dir():
                for path in (aside / "model.savedmodel").iterdir():
                    os.rename(path, aside / path.name)  # noqa: PTH104
                (aside / "model.savedmodel").rmdir()
            (self.root / model).mkdir(exist_ok=True)
            later = self._later(model)
            for path in (*aside.rglob("*"), aside):
                os.utime(path, (later, later))
            os.rename(aside, self.root / model / str(number))  # noqa: PTH104
            os.utime(self.root / model, (later, later))
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def drop(self, model: str, number: int) -> None:
        """Take a version out."""
        gone = self.root / _ASIDE / model / f"{number}.gone"
        gone.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(gone, ignore_errors=True)
        later = self._later(model)
        try:
            os.rename(self.root / model / str(number), gone)  # noqa: PTH104  # at once, then at leisure
        except FileNotFoundError:
            return
        os.utime(self.root / model, (later, later))
        shutil.rmtree(gone, ignore_errors=True)

    def _later(self, model: str) -> float:
        """A time later than any in the model's folder, in seconds since 1970.

        Triton looks at a model again only when its files are newer than at the last time. Copies keep times, and clocks
        jump: one file from the future would keep out all that comes.
        """
        folder = self.root / model
        times = [path.lstat().st_mtime for path in (folder, *folder.rglob("*")) if path.exists()]
        return max(time.time(), 1.0 + max(times, default=0.0))

    def config(self, model: str) -> str | None:
        """The model's configuration, None where there is none."""
        try:
            return (self.root / model / "config.pbtxt").read_text()
        except FileNotFoundError:
            return None

    @contextlib.contextmanager
    def configured(self, model: str, config: str) -> Iterator[None]:
        """Give the model this configuration; the one before comes back, as it was, when the block fails."""
        folder = self.root / model
        folder.mkdir(exist_ok=True)
        path, before, aside = folder / "config.pbtxt", folder / ".config.before", folder / ".config.new"
        aside.write_text(config)
        if path.exists():
            shutil.copy2(path, before)  # with its time of change: the server would load everything again
        os.replace(aside, path)  # noqa: PTH105
        try:
            yield
        except BaseException:
            if before.exists():
                os.replace(before, path)  # noqa: PTH105
            raise
        before.unlink(missing_ok=True)
