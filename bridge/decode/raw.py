"""Raw events: the value is already one row of the model's only input, as little-endian bytes. Pure."""

from collections.abc import Sequence

from bridge.errors import ConfigError
from bridge.record import Decoded, Reject
from bridge.tensors import DATA_TYPES, ModelSpec, TensorSpec


class RawFormat:
    """Events that are rows of `spec`, a tensor of fixed size."""

    def __init__(self, spec: TensorSpec) -> None:
        self._name = spec.name
        self._size = spec.row_bytes
        self._spec = spec

    @classmethod
    def compile(cls, model: ModelSpec) -> "RawFormat":
        """The format for `model`.

        Raises:
            ConfigError: the model has several inputs, or one without a fixed size.
        """
        listed = ", ".join(map(str, model.inputs))
        if len(model.inputs) != 1:
            raise ConfigError(f"event.format raw needs a model with one input, but {model.name!r} has {listed}")
        spec = model.inputs[0]
        if spec.datatype not in DATA_TYPES or not spec.fixed:
            raise ConfigError(f"event.format raw needs an input of fixed size, but {model.name!r} has {listed}")
        return cls(spec)

    def decode(self, values: Sequence[bytes | None]) -> Decoded:
        """See `EventFormat`."""
        try:
            fits = set(map(len, values)) <= {self._size}  # type: ignore[arg-type]
        except TypeError:  # a tombstone has no value
            fits = False
        if fits:
            return Decoded({self._name: values}, range(len(values)), {}, [])  # type: ignore[dict-item]
        rows: list[bytes] = []
        places: list[int] = []
        rejects: list[Reject] = []
        for place, value in enumerate(values):
            if value is None:
                rejects.append(Reject(place, "decode", "the event has no value (a tombstone)"))
            elif len(value) != self._size:
                sentence = f"the event has {len(value)} bytes, but a row of {self._spec} has {self._size}"
                rejects.append(Reject(place, "decode", sentence))
            else:
                rows.append(value)
                places.append(place)
        return Decoded({self._name: rows}, places, {}, rejects)
