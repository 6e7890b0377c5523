"""Version folders with something wrong: how each comes about, and what is said of it."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from serving.golden import FILE as GOLDEN


def a_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("a version")


def nothing(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def link_out(folder: Path) -> None:
    target = folder / "model.savedmodel" / "saved_model.pb"
    outside = folder.parents[2] / "outside.pb"
    target.rename(outside)
    target.symlink_to(outside)


def link_nowhere(folder: Path) -> None:
    (folder / "model.savedmodel" / "more").symlink_to("nowhere")


def no_index(folder: Path) -> None:
    next(folder.rglob("variables.index")).unlink()


def no_shard(folder: Path) -> None:
    next(folder.rglob("variables.data-*")).unlink()


def a_pickle(folder: Path) -> None:
    (folder / "model.savedmodel" / "saved_model.pb").write_bytes(
        b"\x80\x04\x95\x0c\x00\x00\x00\x00\x00\x00\x00cos\nsystem\n."
    )


def a_pipe(folder: Path) -> None:
    os.mkfifo(folder / "pipe")


def bad_golden(folder: Path) -> None:
    (folder / GOLDEN).write_text("{")


SPOILED: dict[str, tuple[Callable[[Path], object], str]] = {
    "a file where a folder should be": (a_file, "a file; a version is a folder"),
    "nothing in it": (nothing, "no SavedModel"),
    "a link out of the repository": (link_out, "a symbolic link that leads out of the repository"),
    "a link that leads nowhere": (link_nowhere, "a symbolic link that leads out of the repository, or nowhere"),
    "no index of the variables": (no_index, "variables.index: missing; the SavedModel has been copied in part"),
    "no variables": (no_shard, "0 of its data files are here; it has been copied in part"),
    "a pickle in disguise": (a_pickle, "not a SavedModel, or copied in part"),
    "a pipe": (a_pipe, "neither a file nor a folder"),
    "golden requests that cannot be read": (bad_golden, "golden.json: document: Invalid JSON"),
}
"""What is wrong -> (makes it so, in a whole version without a manifest; words of the reason)."""
