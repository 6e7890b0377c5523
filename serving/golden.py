"""Golden requests: what a version must answer before it may serve. They lie beside the model, in golden.json."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from serving.arrays import Arrays
from serving.datatypes import DATA_TYPES, STRING
from serving.errors import ServingError
from serving.signature import Signature, Tensor

FILE = "golden.json"


class Golden(BaseModel):
    """Requests and the answers to them.

    Attributes:
        tolerance: by how much a number that is not whole may differ, absolutely and relatively.
        inputs: tensor -> its rows.
        outputs: tensor -> the rows of the answer.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    tolerance: float = Field(default=1e-4, ge=0)
    inputs: dict[str, list[Any]]
    outputs: dict[str, list[Any]]


def read_golden(version: Path) -> Golden | None:
    """The golden requests of a version folder, None where it has none.

    Raises:
        ServingError: they are there, but cannot be read.
    """
    path = version / FILE
    if not path.is_file():
        return None
    try:
        return Golden.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ServingError(f"{path}: cannot be read: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise ServingError(f"{path}: {'.'.join(map(str, first['loc'])) or 'document'}: {first['msg']}") from None


def ask_golden(golden: Golden, signature: Signature, run: Callable[[Arrays], Arrays]) -> None:
    """Ask the golden requests.

    Args:
        golden: the requests.
        signature: of the version.
        run: one call of the version.

    Raises:
        ServingError: an answer is not what it must be, or not a number, or there is none.
    """
    answers = run(golden_inputs(golden, signature))
    for name, rows in golden.outputs.items():
        if name not in answers:
            raise ServingError(f"golden requests: the version has no output {name!r}")
        problem = difference(np.asarray(answers[name]), rows, golden.tolerance)
        if problem:
            raise ServingError(f"golden requests: output {name!r}: {problem}")


def golden_inputs(golden: Golden, signature: Signature) -> Arrays:
    """The requests as arrays.

    Raises:
        ServingError: an input is missing, or cannot be of the signature's type.
    """
    return {tensor.name: _array(tensor, golden.inputs) for tensor in signature.inputs}


def difference(answer: npt.NDArray[Any], expected: Sequence[Any], tolerance: float) -> str | None:
    """What is wrong with an answer, in words; None when nothing is."""
    try:
        return _difference(answer, expected, tolerance)
    except (ValueError, TypeError) as error:
        return f"what is expected cannot be compared with it: {error}"


def _difference(answer: npt.NDArray[Any], expected: Sequence[Any], tolerance: float) -> str | None:
    if answer.dtype == object:
        found = [value.decode(errors="replace") for value in answer.ravel().tolist()]
        wanted = np.asarray(expected, dtype=object).ravel().tolist()
        wrong = [place for place, pair in enumerate(zip(found, wanted, strict=False)) if pair[0] != pair[1]]
    else:
        numbers, goal = answer.astype(np.float64).ravel(), np.asarray(expected, np.float64).ravel()
        found, wanted = numbers.tolist(), goal.tolist()
        if len(found) == len(wanted):
            slack = 0.0 if answer.dtype.kind in "iub" else tolerance  # a whole number is right or wrong
            wrong = np.flatnonzero(~np.isclose(numbers, goal, rtol=slack, atol=slack)).tolist()
    if len(found) != len(wanted):
        return f"{len(found)} values where {len(wanted)} are expected"
    if wrong:
        return f"value {wrong[0]} is {found[wrong[0]]!r} where {wanted[wrong[0]]!r} is expected"
    return None


def _array(tensor: Tensor, inputs: dict[str, list[Any]]) -> npt.NDArray[Any]:
    if tensor.name not in inputs:
        raise ServingError(f"golden requests: nothing for the input {tensor.name!r}")
    try:
        array = np.asarray(inputs[tensor.name], dtype=DATA_TYPES[tensor.datatype].numpy)
        shape = tensor.shape if array.ndim == len(tensor.shape) else (*tensor.shape, 1)
        if array.ndim != len(shape) or any(
            size not in (-1, found) for size, found in zip(shape, array.shape, strict=True)
        ):
            raise ValueError(f"shape {list(array.shape)} where {list(tensor.shape)} is expected")  # noqa: TRY301
        if tensor.datatype == STRING and not all(isinstance(value, str) for value in array.ravel().tolist()):
            raise ValueError("texts are expected, in rows of one length")  # noqa: TRY301
        return array
    except (ValueError, OverflowError, TypeError) as error:
        raise ServingError(f"golden requests: input {tensor.name!r}: {error}") from None


def plain(array: npt.NDArray[Any]) -> list[Any]:
    """An array as JSON can hold it; texts are UTF-8."""
    if array.dtype.kind in "OSU":
        return [_text(item) for item in array.tolist()]
    return array.tolist()  # type: ignore[no-any-return]


def _text(item: Any) -> Any:
    if isinstance(item, list):
        return [_text(inner) for inner in item]
    return item.decode(errors="replace") if isinstance(item, bytes) else item
