"""Whether a version folder holds a whole version: told by what is in it, never by how old it is."""

import hashlib
import os
import re
import stat
from pathlib import Path

from serving.errors import ServingError
from serving.formats import stored_model
from serving.golden import read_golden
from serving.manifest import read_manifest, verify
from serving.signature import DEFAULT_SIGNATURE

VERSION = re.compile(r"[1-9][0-9]{0,17}")
"""A version's name: a number from 1, without leading zeros, that fits into 64 bits."""
MODEL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
"""A model's name: it becomes a folder's, and an argument of Triton's processes, which a space would tear apart."""
NO_MODEL = "no model; a model's name is made of letters, digits, dots, hyphens and underscores"
NO_VERSION = "no version; a version is called by a number from 1, without leading zeros"


def misnamed(model: Path) -> list[str]:
    """Names in a model's folder that may be meant for versions, and are none."""
    return [
        path.name
        for path in sorted(model.iterdir())
        if not path.name.startswith(".")
        and not VERSION.fullmatch(path.name)
        and (path.is_dir() or path.name.lstrip("-").isdigit())
    ]


def fingerprint(folder: Path) -> str:
    """Changes whenever a file in `folder` is added, removed, written to, renamed, or given other permissions.

    Raises:
        ServingError: something in it cannot be read.
    """
    told = hashlib.sha256()
    for path in _walk(folder):
        told.update(os.fsencode(path.relative_to(folder)))
        for found in (path.lstat(), path.stat()) if path.exists() else (path.lstat(),):  # of a link, and where it leads
            told.update(f" {found.st_mode} {found.st_size} {found.st_ctime_ns}\n".encode())
    return told.hexdigest()


def check(folder: Path, within: Path, signature: str = DEFAULT_SIGNATURE) -> None:
    """Pass, where `folder` is a whole version that can be served.

    Args:
        folder: of the version.
        within: where its symbolic links may lead.
        signature: that is to be served.

    Raises:
        ServingError: what is wrong with it, in one sentence.
    """
    if not folder.is_dir():
        raise ServingError(f"{folder}: a file; a version is a folder")
    home = within.resolve()
    for path in (folder, *_walk(folder)):
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode) and not _inside(path, home):
            raise ServingError(f"{path}: a symbolic link that leads out of the repository, or nowhere")
        if not (stat.S_ISLNK(mode) or stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise ServingError(f"{path}: neither a file nor a folder")
        if not os.access(path, os.R_OK):
            raise ServingError(f"{path}: cannot be read: permission denied")
    model = stored_model(folder)
    if read_manifest(folder) is not None:
        problems = verify(folder)
        if problems:
            raise ServingError("; ".join(problems))
    model.check_files()
    model.signature(signature)
    read_golden(folder)


def _walk(folder: Path) -> list[Path]:
    """Everything below `folder`, in order; the same on every machine."""

    def failed(error: OSError) -> None:
        raise ServingError(f"{error.filename}: cannot be read: {error.strerror}")

    return sorted(
        Path(home) / name
        for home, folders, files in os.walk(folder, onerror=failed, followlinks=True)
        for name in (*folders, *files)
    )


def _inside(link: Path, home: Path) -> bool:
    try:
        return link.resolve(strict=True).is_relative_to(home)
    except OSError:
        return False
