"""Many requests, one call: joins requests along the batch dimension where their shapes allow. Pure.

An error of the joined call must not fail a neighbour: then each request of it is run by itself, and only the culprit
gets the error.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from serving.arrays import Arrays

Run = Callable[[Arrays], Arrays]


def run_joined(requests: Sequence[Arrays], run: Run, *, batches: bool) -> list[Arrays | Exception]:
    """The answer of each request, or the error it caused.

    Args:
        requests: input tensor -> array of shape (rows, ...).
        run: one call of the model.
        batches: whether rows of several requests may go into one call.
    """
    answers: dict[int, Arrays | Exception] = {}
    groups: dict[Any, list[int]] = {}
    for place, inputs in enumerate(requests):
        key = tuple((name, array.dtype.str, array.shape[1:]) for name, array in sorted(inputs.items()))
        groups.setdefault(key if batches else place, []).append(place)
    for places in groups.values():
        answers.update(zip(places, _run_group([requests[place] for place in places], run), strict=True))
    return [answers[place] for place in range(len(requests))]


def _run_group(requests: Sequence[Arrays], run: Run) -> list[Arrays | Exception]:
    if len(requests) > 1:
        counts = [len(next(iter(inputs.values()))) for inputs in requests]
        joined = {name: np.concatenate([inputs[name] for inputs in requests]) for name in requests[0]}
        try:
            return list(_split(_checked(run(joined), sum(counts)), counts))
        except Exception:  # noqa: BLE001, S110 - whatever it is, it is found again below, at its own request
            pass
    return [_run_one(inputs, run) for inputs in requests]


def _run_one(inputs: Arrays, run: Run) -> Arrays | Exception:
    try:
        return run(inputs)
    except Exception as error:  # noqa: BLE001 - it becomes this request's answer
        return error


def _checked(outputs: Arrays, rows: int) -> Arrays:
    for name, array in outputs.items():
        if array.shape[:1] != (rows,):
            raise ValueError(f"output {name!r} has shape {array.shape} for {rows} rows")
    return outputs


def _split(outputs: Arrays, counts: Sequence[int]) -> list[Arrays]:
    edges = np.cumsum(counts)[:-1]
    pieces = {name: np.split(array, edges) for name, array in outputs.items()}
    return [{name: parts[place] for name, parts in pieces.items()} for place in range(len(counts))]
