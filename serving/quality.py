"""How good a model is on labelled data. Pure."""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def roc_auc(labels: Floats, scores: Floats) -> float:
    """The probability that a positive is scored above a negative, ties counted half; nan without both kinds."""
    positives = labels > 0.5
    count = int(positives.sum())
    if count in (0, len(labels)):
        return float("nan")
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return float((ranks[positives].sum() - count * (count + 1) / 2) / (count * (len(labels) - count)))


def rmse(labels: Floats, predictions: Floats) -> float:
    """Root mean squared error, in the labels' unit."""
    return float(np.sqrt(np.mean((labels - predictions) ** 2)))


METRICS = {"roc_auc": roc_auc, "rmse": rmse}
"""Name in a manifest -> function of (labels, predictions)."""
