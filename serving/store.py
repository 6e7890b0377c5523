"""Where a model repository is: a folder, or an object store with a copy of it in a folder.

An object store has no rename and no links. So all work is done on the copy, and what has changed there is taken over
into the store: of a new version the manifest first, since from then on everybody can tell what is still missing, and
since only one of several that publish at once can create it.
"""

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from serving.completeness import VERSION
from serving.errors import ServingError
from serving.manifest import FILE as MANIFEST
from serving.marks import FOLDER as MARKS

_STATE = ".store.json"
_LOCK = ".store.lock"
_ASIDE = ".store.incoming"
_TOKENS = ("ETag", "etag", "md5Hash", "content_md5", "mtime", "LastModified", "last_modified", "created")


class Repository(Protocol):
    """A model repository, wherever it is.

    Attributes:
        folder: the models.
        pause: seconds between two looks at it that do nobody harm.
    """

    folder: Path
    pause: float

    def pull(self) -> None:
        """Bring the folder to what the repository holds.

        Raises:
            ServingError: the repository cannot be read.
        """
        ...

    def push(self) -> None:
        """Take over into the repository what has changed in the folder since.

        Raises:
            ServingError: the repository cannot be written to, or somebody else has published this version meanwhile.
        """
        ...

    def remove(self, version: Path) -> None:
        """Take a version out of both.

        Raises:
            ServingError: the repository cannot be written to.
        """
        ...


class Folder:
    """A `Repository` that is a folder.

    Args:
        folder: of models.
    """

    pause = 0.05

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def pull(self) -> None:
        """See `Repository`: there is nothing to do."""

    def push(self) -> None:
        """See `Repository`: there is nothing to do."""

    def remove(self, version: Path) -> None:
        """See `Repository`."""
        remove_version(version)


class Store:
    """A `Repository` in an object store, by fsspec.

    Args:
        url: such as s3://bucket/models.
        folder: for the copy; of this process alone as long as it runs.

    Raises:
        ServingError: there is no such kind of store, or what reads it is not installed.
    """

    pause = 2.0

    def __init__(self, url: str, folder: Path) -> None:
        try:
            import fsspec
        except ImportError:
            raise ServingError(f"{url}: fsspec is not installed here; pip install 'headrace[serving]'") from None
        try:
            self._store, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise ServingError(f"{url}: {error}") from None
        self._url = url
        self._root = PurePosixPath(root)
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        try:
            self._known: dict[str, list[str]] = json.loads((folder / _STATE).read_text())
        except (FileNotFoundError, ValueError):
            self._known = {}
        """Path -> what told its content in the store, and what tells it here: for both as of the last time."""

    def pull(self) -> None:
        """See `Repository`."""
        with self._reported("read"):
            found = self._list()
            for path in [path for path in self._known if path not in found]:
                self._forget(path)
            for path, token in found.items():
                place = self.folder / path
                if self._known.get(path, [""])[0] != token or not place.is_file():
                    self._fetch(path, token)
            for place in [*self._here()]:
                path = str(place.relative_to(self.folder))
                # Of a version that was never published; but what has been decided here is taken over next time.
                if path not in self._known and MARKS not in place.parts:
                    place.unlink()
                    self._prune(place)
            self._save()

    def push(self) -> None:
        """See `Repository`."""
        with self._reported("written"):
            here = {str(path.relative_to(self.folder)): path for path in self._here()}
            changed = [path for path, place in here.items() if self._known.get(path, ["", ""])[1] != _told(place)]
            # The manifest of a version that the store has not yet is created before anything else of it is written.
            new = [path for path in changed if path not in self._known and _is_manifest(path)]
            for path in new:
                self._create(path, here[path])
            for path in changed:
                if path not in new:
                    self._make_room(path)
                    self._store.put_file(str(here[path]), self._at(path))
                    self._note(path, here[path])
            if changed:
                found = self._list()
                for path in changed:
                    self._known[path][0] = found.get(path, "")
            # A decision that was taken back here. That anything else is missing here takes it from nobody.
            for path in [path for path in self._known if path not in here and MARKS in PurePosixPath(path).parts]:
                self._store.rm_file(self._at(path))
                del self._known[path]
            self._save()

    def remove(self, version: Path) -> None:
        """See `Repository`."""
        with self._reported("written"):
            gone = version.relative_to(self.folder)
            for path in [path for path in self._known if PurePosixPath(path).is_relative_to(gone)]:
                self._store.rm_file(self._at(path))
                del self._known[path]
            self._save()
        remove_version(version)

    def close(self) -> None:
        """Leave the copy to another process."""
        os.close(self._lock)

    def _list(self) -> dict[str, str]:
        """Path -> what tells its content."""
        self._store.invalidate_cache()
        try:
            found = self._store.find(str(self._root), detail=True)
        except FileNotFoundError:
            found = {}
        return {
            str(PurePosixPath(name).relative_to(self._root)): _token(info)
            for name, info in found.items()
            if PurePosixPath(name) != self._root
        }

    def _fetch(self, path: str, token: str) -> None:
        place, aside = self.folder / path, self.folder / _ASIDE
        if not place.resolve().is_relative_to(self.folder.resolve()):
            raise ServingError(f"{self._url}: {path!r} leads out of the repository")
        place.parent.mkdir(parents=True, exist_ok=True)
        self._store.get_file(self._at(path), str(aside))
        os.replace(aside, place)  # noqa: PTH105
        self._known[path] = [token, _told(place)]

    def _forget(self, path: str) -> None:
        place = self.folder / path
        place.unlink(missing_ok=True)
        del self._known[path]
        self._prune(place)

    def _prune(self, place: Path) -> None:
        """Folders that are empty without it."""
        for folder in place.parents:
            if folder == self.folder:
                break
            try:
                folder.rmdir()
            except OSError:
                break  # something else is in it

    def _here(self) -> Iterator[Path]:
        for home, folders, files in os.walk(self.folder):
            # What is hidden is on its way in or out; but for the marks.
            folders[:] = [name for name in folders if not name.startswith(".") or name == MARKS]
            yield from (Path(home) / name for name in files if not name.startswith("."))

    def _create(self, path: str, place: Path) -> None:
        self._make_room(path)
        try:
            self._store.pipe_file(self._at(path), place.read_bytes(), mode="create")
        except FileExistsError:
            version = PurePosixPath(path).parent
            shutil.rmtree(place.parent)
            raise ServingError(
                f"{self._url}: somebody has published {version} meanwhile; publish it again, as the next one"
            ) from None
        self._note(path, place)

    def _make_room(self, path: str) -> None:
        self._store.makedirs(self._at(str(PurePosixPath(path).parent)), exist_ok=True)

    def _note(self, path: str, place: Path) -> None:
        self._known[path] = ["", _told(place)]

    def _at(self, path: str) -> str:
        return str(self._root / path)

    def _save(self) -> None:
        aside = self.folder / _ASIDE
        aside.write_text(json.dumps(self._known))
        os.replace(aside, self.folder / _STATE)  # noqa: PTH105

    @contextlib.contextmanager
    def _reported(self, done: str) -> Iterator[None]:
        """Every kind of store fails in its own way; what has been done by then is remembered."""
        try:
            yield
        except ServingError:
            self._save()
            raise
        except Exception as error:  # noqa: BLE001
            self._save()
            raise ServingError(f"{self._url}: cannot be {done}: {error or repr(error)}") from None


def remove_version(version: Path) -> None:
    """Take a version out of a folder at once, and its files at leisure."""
    if version.is_symlink() or version.is_file():
        version.unlink()
        return
    aside = version.with_name(f".{version.name}.gone")
    version.rename(aside)
    shutil.rmtree(aside)


def repository_at(where: str) -> Repository:
    """A repository by its folder or URL, as it is now.

    Raises:
        ServingError: it cannot be read.
    """
    if "://" not in where:
        return Folder(Path(where))
    store = Store(where, _cache() / where.replace("://", "/").strip("/"))
    store.pull()
    return store


def repository_for_watching(where: str, home: Path) -> Repository:
    """A repository by its folder or URL; a copy of an object store lies in `home`, and nothing is fetched yet."""
    return Store(where, home / "repository") if "://" in where else Folder(Path(where))


def _cache() -> Path:
    """Where copies are kept, so that the next command fetches only what is new."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "headrace" / "repositories"


def _is_manifest(path: str) -> bool:
    parts = PurePosixPath(path).parts
    return len(parts) == 3 and parts[2] == MANIFEST and VERSION.fullmatch(parts[1]) is not None


def _token(info: dict[str, Any]) -> str:
    told = next((str(info[key]) for key in _TOKENS if info.get(key) is not None), "")
    return f"{info.get('size')} {told}"


def _told(place: Path) -> str:
    found = place.stat()
    return f"{found.st_size} {found.st_mtime_ns}"
