"""From the fields of events to the rows of a model's inputs, and the plan of the outputs. Pure.

Compiled once for a model; a batch then costs one `struct.pack` per row, which checks types and ranges in C. Only when
that fails is the batch gone through value by value, to find the culprits and name the field.
"""

import struct
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any

from bridge.errors import ConfigError
from bridge.record import Reject
from bridge.tensors import DATA_TYPES, ModelSpec, TensorSpec, encode_bytes

Document = Mapping[str, Any]
RESERVED = ("model", "model_version")
"""Fields that every result carries."""

_JSON_TYPES = {
    bool: "a boolean",
    int: "a number",
    float: "a number",
    str: "a string",
    list: "an array",
    dict: "an object",
}
_MISFITS = (struct.error, OverflowError, KeyError, TypeError, ValueError)


class Misfit(ValueError):
    """A value that does not fit its tensor; the message is one sentence that names the field."""


class TensorPlan:
    """How one input tensor's row is made from a document.

    Args:
        spec: the tensor, of fixed shape.
        fields: the fields it is made of; one field, or as many as the row has elements.
    """

    def __init__(self, spec: TensorSpec, fields: Sequence[str]) -> None:
        self.spec = spec
        self.fields = tuple(fields)
        # Several fields, or a single one for a single element, are scalars stacked; else one field holds the row.
        self._stacked = len(fields) > 1 or spec.elements == 1
        self._pack = self._compile()

    def pack(self, documents: Sequence[Document]) -> list[bytes]:
        """A row of bytes for each document.

        Raises:
            struct.error, OverflowError, KeyError, TypeError, ValueError: some document does not fit; see `explain`.
        """
        return self._pack(documents)

    def explain(self, document: Document) -> bytes:
        """The row of one document, slowly.

        Raises:
            Misfit: what does not fit, in one sentence.
        """
        values: list[tuple[str, Any]] = []
        for field in self.fields:
            value = _reach(document, field)
            if self._stacked and not (isinstance(value, list) and len(value) == 1 and len(self.fields) == 1):
                values.append((field, value))
            else:
                values.extend(_flatten(field, value, self.spec.shape, self.spec))
        for field, value in values:
            self._check(field, value)
        return self._join([value for _, value in values])

    def _compile(self) -> Callable[[Sequence[Document]], list[bytes]]:
        spec = self.spec
        plain = all("." not in field for field in self.fields)
        if spec.datatype in ("BYTES", "BOOL") or len(spec.shape) > 1 or not plain:
            return lambda documents: [self.explain(document) for document in documents]
        pack = struct.Struct(f"<{spec.elements}{DATA_TYPES[spec.datatype].code}").pack
        get = itemgetter(*self.fields)
        if len(self.fields) == 1 and self._stacked:
            return lambda documents: [pack(get(document)) for document in documents]
        # One vector field, or a tuple of scalars: either way `get` gives the row's elements.
        return lambda documents: [pack(*get(document)) for document in documents]

    def _check(self, field: str, value: Any) -> None:
        datatype = self.spec.datatype
        kind = _JSON_TYPES.get(type(value), type(value).__name__)
        if value is None:
            raise Misfit(f"field {field!r} is null")
        if datatype == "BYTES":
            if not isinstance(value, str):
                raise Misfit(f"field {field!r} is {kind}, but tensor {self.spec.name!r} (BYTES) needs a string")
            return
        if datatype == "BOOL":
            if not isinstance(value, bool):
                raise Misfit(f"field {field!r} is {kind}, but tensor {self.spec.name!r} (BOOL) needs true or false")
            return
        if not isinstance(value, int | float):
            raise Misfit(f"field {field!r} is {kind}, but tensor {self.spec.name!r} ({datatype}) needs a number")
        try:
            struct.pack("<" + DATA_TYPES[datatype].code, value)
        except (struct.error, OverflowError):
            if isinstance(value, float) and "INT" in datatype:
                text = f"is {value!r}, but tensor {self.spec.name!r} ({datatype}) needs a whole number"
            else:
                text = f"is {_short(value)}, out of range of tensor {self.spec.name!r} ({datatype})"
            raise Misfit(f"field {field!r} {text}") from None

    def _join(self, values: Sequence[Any]) -> bytes:
        if self.spec.datatype == "BYTES":
            return encode_bytes([value.encode() for value in values])
        return struct.pack(f"<{self.spec.elements}{DATA_TYPES[self.spec.datatype].code}", *values)


class InputPlan:
    """How all input tensors of a model are made from documents."""

    def __init__(self, tensors: Sequence[TensorPlan]) -> None:
        self.tensors = tuple(tensors)

    @classmethod
    def compile(cls, model: ModelSpec, inputs: Mapping[str, str | list[str]] | None) -> "InputPlan":
        """The plan for `model` under the configuration's `model.inputs`.

        Raises:
            ConfigError: a sentence for each input that does not fit, naming both sides.
        """
        known = {spec.name: spec for spec in model.inputs}
        mapping = inputs or {name: name for name in known}
        problems = [
            f"model.inputs.{name}: model {model.name!r} has no input of that name; it has {_list(model.inputs)}"
            for name in mapping
            if name not in known
        ]
        plans: list[TensorPlan] = []
        for spec in model.inputs:
            fields = mapping.get(spec.name)
            if fields is None:
                problems.append(
                    f"model.inputs: nothing feeds the input {spec} of model {model.name!r}; add {spec.name}"
                )
                continue
            problem = _input_problem(model, spec, fields)
            if problem:
                problems.append(problem)
            else:
                plans.append(TensorPlan(spec, [fields] if isinstance(fields, str) else fields))
        if problems:
            raise ConfigError(*problems)
        return cls(plans)

    def rows(self, documents: Sequence[Document]) -> tuple[dict[str, list[bytes]], list[Reject]]:
        """The rows of the documents that fit, and a reject (`row` counts documents) for each other."""
        try:
            return {plan.spec.name: plan.pack(documents) for plan in self.tensors}, []
        except _MISFITS:
            return self._rows_one_by_one(documents)

    def _rows_one_by_one(self, documents: Sequence[Document]) -> tuple[dict[str, list[bytes]], list[Reject]]:
        columns: dict[str, list[bytes]] = {plan.spec.name: [] for plan in self.tensors}
        rejects: list[Reject] = []
        for row, document in enumerate(documents):
            try:
                chunks = [plan.explain(document) for plan in self.tensors]
            except Misfit as misfit:
                rejects.append(Reject(row, "mapping", str(misfit)))
            else:
                for column, chunk in zip(columns.values(), chunks, strict=True):
                    column.append(chunk)
        return columns, rejects


def compile_outputs(
    model: ModelSpec, outputs: Mapping[str, str] | None, copied: Sequence[str]
) -> dict[str, TensorSpec]:
    """Result field -> output tensor, under the configuration's `model.outputs` and `result.copy`.

    Raises:
        ConfigError: a sentence for each that does not fit, naming both sides.
    """
    known = {spec.name: spec for spec in model.outputs}
    mapping = outputs or {name: name for name in known}
    problems = [
        f"model.outputs.{field}: model {model.name!r} has no output {tensor!r}; it has {_list(model.outputs)}"
        for field, tensor in mapping.items()
        if tensor not in known
    ]
    for field in mapping:
        if field in RESERVED:
            problems.append(f"model.outputs.{field}: every result carries a field of that name already")
        if field in copied:
            problems.append(f"result.copy: {field!r} is also a field of model.outputs")
    problems += [
        f"result.copy: every result carries a field {field!r} already" for field in copied if field in RESERVED
    ]
    for field, tensor in mapping.items():
        spec = known.get(tensor)
        if spec is not None and spec.datatype not in DATA_TYPES and spec.datatype != "BYTES":
            problems.append(f"model.outputs.{field}: tensor {spec} has a type that results cannot hold")
    if problems:
        raise ConfigError(*problems)
    return {field: known[tensor] for field, tensor in mapping.items()}


def _input_problem(model: ModelSpec, spec: TensorSpec, fields: str | list[str]) -> str | None:
    where = f"model.inputs.{spec.name}"
    if spec.datatype not in DATA_TYPES and spec.datatype != "BYTES":
        return f"{where}: tensor {spec} of model {model.name!r} has a type that events cannot fill"
    if not spec.fixed:
        return f"{where}: tensor {spec} of model {model.name!r} has no fixed row shape; export it with one"
    if isinstance(fields, list) and len(fields) != spec.elements and len(fields) > 1:
        return (
            f"{where}: {len(fields)} fields ({', '.join(fields)}) are given, but tensor {spec} of model "
            f"{model.name!r} takes {spec.elements} in each row"
        )
    return None


def _reach(document: Document, path: str) -> Any:
    value: Any = document
    reached = ""
    for part in path.split("."):
        if not isinstance(value, dict):
            raise Misfit(f"field {path!r} is missing: {reached!r} is no object")
        if part not in value:
            raise Misfit(f"field {path!r} is missing")
        value = value[part]
        reached = f"{reached}.{part}" if reached else part
    return value


def _flatten(field: str, value: Any, shape: Sequence[int], spec: TensorSpec) -> list[tuple[str, Any]]:
    if not shape:
        return [(field, value)]
    if value is None:
        raise Misfit(f"field {field!r} is null")
    if not isinstance(value, list):
        kind = _JSON_TYPES.get(type(value), type(value).__name__)
        raise Misfit(f"field {field!r} is {kind}, but tensor {spec.name!r} needs an array of {shape[0]}")
    if len(value) != shape[0]:
        raise Misfit(f"field {field!r} has {len(value)} elements, but tensor {spec.name!r} needs {shape[0]}")
    return [pair for i, item in enumerate(value) for pair in _flatten(f"{field}[{i}]", item, shape[1:], spec)]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:36]}…"


def _list(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(map(str, specs)) or "none"
