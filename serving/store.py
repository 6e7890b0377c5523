"""Where a model repository is: a folder, or an object store with a copy of it in a folder.

An object store has no rename and no links. So all work is done on the copy, and what has changed there is taken over
into the store: of a new version the manifest first, since from then on everybody can tell what is still missing, and
since only one of several that publish at once can create it.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import time
import urllib.parse
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
_PATIENCE = 60.0  # seconds that a command waits for another one
_TOKENS = ("ETag", "etag", "md5Hash", "content_md5", "mtime", "LastModified", "last_modified", "created")


class Repository(Protocol):
    """A model repository, wherever it is.

    Attributes:
        name: what people call it: its folder or URL.
        folder: the models.
        pause: seconds between two looks at it that do nobody harm.
    """

    name: str
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

    def close(self) -> None:
        """Let go of it."""
        ...


class Folder:
    """A `Repository` that is a folder.

    Args:
        folder: of models.
    """

    pause = 0.05

    def __init__(self, folder: Path) -> None:
        self.name = str(folder)
        self.folder = folder

    def pull(self) -> None:
        """See `Repository`: there is nothing to do."""

    def push(self) -> None:
        """See `Repository`: there is nothing to do."""

    def remove(self, version: Path) -> None:
        """See `Repository`."""
        _remove_version(version)

    def close(self) -> None:
        """See `Repository`: there is nothing to do."""


class Store:
    """A `Repository` in an object store, by fsspec.

    Args:
        url: such as s3://bucket/models.
        home: for the copy, in a folder of its own; a process has it to itself as long as it lasts.
        insists: whether a decision that could not be taken over is taken over later, as a watcher's is, which would
            come to it again. A command's has failed.

    Raises:
        ServingError: there is no such kind of store, what reads it is not installed, or another process has the copy.
    """

    pause = 2.0

    def __init__(self, url: str, home: Path, *, insists: bool) -> None:
        try:
            import fsspec
        except ImportError:
            raise ServingError(f"{url}: fsspec is not installed here; pip install 'headrace[serving]'") from None
        self.name = url
        self._insists = insists
        # Of folders, stores know nothing; and asked to make one, some make the bucket.
        self._is_folder = url.startswith(("file://", "local://"))
        options = {"auto_mkdir": True} if self._is_folder else {}
        try:
            self._store, root = fsspec.core.url_to_fs(url, use_listings_cache=False, **options)
        except (ImportError, ValueError) as error:
            raise ServingError(f"{url}: {error}") from None
        self._root = PurePosixPath(root)
        # The same URL may be another place: by another endpoint, say.
        place = hashlib.sha256(self._store.to_json().encode()).hexdigest()[:8]
        self.folder = home / f"{urllib.parse.quote(url, safe='')}-{place}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise ServingError(f"{self.folder}: cannot hold a copy of {url}: {error.strerror}") from None
        self._wait_for_lock()
        try:
            self._known: dict[str, list[str]] = json.loads((self.folder / _STATE).read_text())
        except (OSError, ValueError):
            self._known = {}
        """Path -> what told its content in the store, and what tells it here: for both as of the last time."""

    def pull(self) -> None:
        """See `Repository`."""
        with self._reported("read"):
            found = self._list()
            if self._known and not found:
                # A bucket that is gone, or other credentials: not what people mean who remove versions.
                raise ServingError(
                    f"{self.name}: it holds nothing any more, and held {len(self._known)} files; if that is meant, "
                    f"remove {self.folder}"
                )
            for path in [path for path in self._known if path not in found]:
                self._forget(path)
            for path, token in found.items():
                place = self.folder / path
                before, here = self._known.get(path, ["", ""])
                if before == token and self._insists and _is_mark(path):
                    continue  # whatever was decided here since is still to be taken over
                if before != token or not place.is_file() or here != _told(place):
                    self._fetch(path, token)
            for place in [*self._here()]:
                path = str(place.relative_to(self.folder))
                if path not in self._known and not self._awaited(path):
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
                    self._store.put_file(str(here[path]), self._at(path))
                    self._known[path] = ["", _told(here[path])]
            # A decision that was taken back here. That anything else is missing here takes it from nobody.
            for path in [path for path in self._known if path not in here and _is_mark(path)]:
                self._remove(path)
            if changed:
                self._learn(changed)
            self._save()

    def remove(self, version: Path) -> None:
        """See `Repository`; the manifest last, so that what is left is never taken for a whole version."""
        with self._reported("written"):
            gone = version.relative_to(self.folder)
            paths = [path for path in self._known if PurePosixPath(path).is_relative_to(gone)]
            for path in sorted(paths, key=_is_manifest):
                self._remove(path)
            self._save()
        _remove_version(version)

    def close(self) -> None:
        """See `Repository`."""
        os.close(self._lock)

    def _wait_for_lock(self) -> None:
        until = time.monotonic() + _PATIENCE
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # it ends with the process
                return
            except OSError:
                if time.monotonic() > until:
                    os.close(self._lock)
                    raise ServingError(
                        f"{self.folder}: another command on {self.name} has been at work for {_PATIENCE:.0f} s; "
                        "wait for it, or set XDG_CACHE_HOME"
                    ) from None
                time.sleep(0.1)

    def _list(self) -> dict[str, str]:
        """Path -> what tells its content."""
        self._store.invalidate_cache()
        try:
            found = self._store.find(str(self._root), detail=True)
        except FileNotFoundError:
            if not self._is_folder and not self.name.startswith("memory://"):
                raise ServingError(f"{self.name}: there is no such bucket") from None
            found = {}
        paths = {
            str(PurePosixPath(name).relative_to(self._root)): _token(info)
            for name, info in found.items()
            # Some tools keep empty objects for folders.
            if info.get("type") == "file" and not name.endswith("/") and PurePosixPath(name) != self._root
        }
        return {path: token for path, token in paths.items() if not _is_hidden(path)}

    def _fetch(self, path: str, token: str) -> None:
        place, aside = self.folder / path, self.folder / _ASIDE
        if ".." in PurePosixPath(path).parts:
            raise ServingError(f"{self.name}: {path!r} leads out of the repository")
        place.parent.mkdir(parents=True, exist_ok=True)
        self._store.get_file(self._at(path), str(aside))
        os.replace(aside, place)  # noqa: PTH105
        self._known[path] = [token, _told(place)]

    def _awaited(self, path: str) -> bool:
        """Whether what the store does not have yet is still to be taken over."""
        if _is_mark(path):
            return self._insists
        # The rest of a version whose publication has begun, and was interrupted.
        manifest = str(PurePosixPath(*PurePosixPath(path).parts[:2], MANIFEST))
        return manifest in self._known and _is_manifest(manifest)

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
        for home, _, files in os.walk(self.folder):
            for name in files:
                path = Path(home) / name
                if not _is_hidden(str(path.relative_to(self.folder))):
                    yield path

    def _create(self, path: str, place: Path) -> None:
        ours = place.read_bytes()
        try:
            self._store.pipe_file(self._at(path), ours, mode="create")
        except FileExistsError:
            if self._store.cat_file(self._at(path)) != ours:  # it may be ours: only the answer was lost
                version = PurePosixPath(path).parent
                shutil.rmtree(place.parent)
                raise ServingError(
                    f"{self.name}: somebody has published {version} meanwhile; publish it again, as the next one"
                ) from None
        self._known[path] = ["", _told(place)]

    def _remove(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):  # somebody else was faster
            self._store.rm_file(self._at(path))
        del self._known[path]

    def _learn(self, paths: list[str]) -> None:
        """What tells in the store what was just written; where it might be another's, the next look finds out."""
        found = self._list()
        for path in paths:
            token, place = found.get(path, ""), self.folder / path
            ours = token.startswith(f"{place.stat().st_size} ")
            if ours and _is_mark(path):  # others write the same ones
                ours = self._store.cat_file(self._at(path)) == place.read_bytes()
            if ours:
                self._known[path][0] = token

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
        except Exception as error:
            with contextlib.suppress(OSError):
                self._save()
            if isinstance(error, ServingError):
                raise
            raise ServingError(f"{self.name}: cannot be {done}: {error or repr(error)}") from None


def _remove_version(version: Path) -> None:
    """Take a version out of a folder at once, and its files at leisure."""
    if version.is_symlink() or version.is_file():
        version.unlink()
        return
    aside = version.with_name(f".{version.name}.gone")
    version.rename(aside)
    shutil.rmtree(aside)


def repository_at(where: str | Path) -> Repository:
    """A repository by its folder or URL, as it is now; for one command.

    Raises:
        ServingError: it cannot be read.
    """
    if "://" not in str(where):
        return Folder(Path(where))
    # Kept, so that the next command fetches only what is new.
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "headrace" / "repositories"
    store = Store(str(where), cache, insists=False)
    try:
        store.pull()
    except ServingError:
        store.close()
        raise
    return store


def repository_for_watching(where: str, home: Path) -> Repository:
    """A repository by its folder or URL; a copy of an object store lies in `home`, and nothing is fetched yet."""
    return Store(where, home, insists=True) if "://" in where else Folder(Path(where))


def _is_manifest(path: str) -> bool:
    parts = PurePosixPath(path).parts
    return len(parts) == 3 and parts[2] == MANIFEST and VERSION.fullmatch(parts[1]) is not None


def _is_mark(path: str) -> bool:
    return MARKS in PurePosixPath(path).parts


def _is_hidden(path: str) -> bool:
    """On its way in or out, or a tool's own; marks are not."""
    return any(part.startswith(".") and part not in (MARKS, "..") for part in PurePosixPath(path).parts)


def _token(info: dict[str, Any]) -> str:
    told = next((str(info[key]) for key in _TOKENS if info.get(key) is not None), "")
    return f"{info.get('size')} {told}"


def _told(place: Path) -> str:
    found = place.stat()
    return f"{found.st_size} {found.st_mtime_ns}"
