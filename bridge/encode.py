"""From a model's answer to the bytes of each result. Pure.

A whole column is turned into JSON by one call and split; a result is then one `%` of a template.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from bridge.expression import Expression
from bridge.record import Decoded, Outcome, Part, Reject
from bridge.tensors import TensorSpec


class ResultEncoder:
    """Writes results as JSON objects: copied fields, output fields, `model`, `model_version`.

    Args:
        model: the model's name.
        outputs: result field -> output tensor.
        copy: fields of the event that the result repeats.
        alert: condition on the output fields, or None.
    """

    def __init__(
        self, model: str, outputs: Mapping[str, TensorSpec], copy: Sequence[str] = (), alert: Expression | None = None
    ) -> None:
        self._model = model
        self._outputs = dict(outputs)
        self._copy = tuple(copy)
        self._alert = alert
        self._templates: dict[str, bytes] = {}

    def encode(self, size: int, decoded: Decoded, parts: Sequence[Part]) -> Outcome:
        """The outcome of a batch of `size` events, of which `parts` were predicted.

        The caller has checked that every output of a part has as many rows as the part; rejects other than those found
        here and in `decoded` are its own to add.
        """
        if len(parts) == 1 and len(parts[0].rows) == size:
            values, hits, wrong = self._encode_part(decoded, parts[0])
            if not wrong:
                return Outcome(values, hits if hits is not None and hits.any() else None, decoded.rejects)
        merged: list[bytes | None] = [None] * size
        alerts = np.zeros(size, dtype=bool)
        rejects = list(decoded.rejects)
        for part in parts:
            values, hits, wrong = self._encode_part(decoded, part)
            places = decoded.places[part.rows.start : part.rows.stop]
            for row, (place, value) in enumerate(zip(places, values, strict=True)):
                if row in wrong:
                    rejects.append(Reject(place, "output", wrong[row], part.prediction.version, part.attempts))
                else:
                    merged[place] = value
                    alerts[place] = hits is not None and hits[row]
        return Outcome(merged, alerts if alerts.any() else None, rejects)

    def _encode_part(
        self, decoded: Decoded, part: Part
    ) -> tuple[list[bytes], npt.NDArray[np.bool_] | None, dict[int, str]]:
        rows = slice(part.rows.start, part.rows.stop)
        columns: list[Sequence[bytes]] = [decoded.copied[field][rows] for field in self._copy]
        arrays: dict[str, npt.NDArray[Any]] = {}
        wrong: dict[int, str] = {}
        for field, spec in self._outputs.items():
            array = part.prediction.outputs[spec.name]
            arrays[field] = array.reshape(len(array)) if _is_scalar(array) else array
            columns.append(_json_column(field, arrays[field], wrong))
        values = list(map(self._template(part.prediction.version).__mod__, zip(*columns, strict=True)))
        hits = self._alert.evaluate(arrays) if self._alert is not None and values else None
        return values, hits, wrong

    def _template(self, version: str) -> bytes:
        template = self._templates.get(version)
        if template is None:
            fields = [_escaped(field) + b":%b" for field in (*self._copy, *self._outputs)]
            fields += [b'"model":' + _escaped(self._model), b'"model_version":' + _escaped(version)]
            template = self._templates[version] = b"{" + b",".join(fields) + b"}"
        return template


def _escaped(text: str) -> bytes:
    return orjson.dumps(text).replace(b"%", b"%%")


def _is_scalar(array: npt.NDArray[Any]) -> bool:
    return array.ndim == 1 or (array.ndim == 2 and array.shape[1] == 1)


def _json_column(field: str, array: npt.NDArray[Any], wrong: dict[int, str]) -> list[bytes]:
    """Each row's JSON; rows without a valid one are noted in `wrong`."""
    if len(array) == 0:
        return []
    if array.dtype == object:
        return [_json_strings(field, row, item, wrong) for row, item in enumerate(array)]
    array = np.ascontiguousarray(array)
    if array.ndim == 1:
        text = orjson.dumps(array, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]
        unclear, values = b"null" in text, text.split(b",")
    else:
        values = [orjson.dumps(row, option=orjson.OPT_SERIALIZE_NUMPY) for row in array]
        unclear = any(b"null" in value for value in values)
    if unclear:  # what JSON cannot hold
        finite = np.isfinite(array).reshape(len(array), -1).all(axis=1)
        for row in np.nonzero(~finite)[0].tolist():
            wrong.setdefault(row, f"the model's output {field!r} is not a finite number")
    return values


def _json_strings(field: str, row: int, item: Any, wrong: dict[int, str]) -> bytes:
    try:
        if isinstance(item, bytes):
            return orjson.dumps(item.decode())
        return orjson.dumps(np.vectorize(bytes.decode, otypes=[object])(item).tolist())
    except UnicodeDecodeError:
        wrong.setdefault(row, f"the model's output {field!r} is not valid UTF-8 text")
        return b"null"
