"""The scalar types of the configuration: durations, sizes and files that must exist.

They know how a value is written by a person (`5ms`, `4MiB`) and nothing of the keys that use them.
"""

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, PlainSerializer, WithJsonSchema
from pydantic_core import core_schema

_DURATION_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_SIZE_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_QUANTITY = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*")


def parse_duration(value: Any) -> float:
    """Seconds of `5ms`, `2s`, `1.5m`; only 0 may stand without a unit.

    Raises:
        ValueError: anything else, with the accepted spelling.
    """
    if value == 0 and not isinstance(value, bool):
        return 0.0
    match = _QUANTITY.fullmatch(value) if isinstance(value, str) else None
    if match is None or match[2] not in _DURATION_UNITS:
        raise ValueError(f"a duration is a number with a unit ({', '.join(_DURATION_UNITS)}), such as 5ms or 2s")
    return float(match[1]) * _DURATION_UNITS[match[2]]


def parse_size(value: Any) -> int:
    """Bytes of `4MiB`, `512KiB`, or a whole number of bytes.

    Raises:
        ValueError: anything else, with the accepted spelling.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    match = _QUANTITY.fullmatch(value) if isinstance(value, str) else None
    if match is None or match[2] not in _SIZE_UNITS:
        raise ValueError(f"a size is a number with a unit ({', '.join(_SIZE_UNITS)}), such as 4MiB")
    return int(float(match[1]) * _SIZE_UNITS[match[2]])


def format_duration(seconds: float) -> str:
    """The shortest spelling that reads back as the same duration: `5ms`, `2s`, `1.5m`."""
    for unit in ("h", "m", "s", "ms", "us"):
        amount = seconds / _DURATION_UNITS[unit]
        if amount >= 1 and abs(amount - round(amount)) < 1e-9:
            return f"{round(amount)}{unit}"
    return "0ms" if seconds == 0 else f"{seconds * 1e3:g}ms"


def format_size(size: int) -> str:
    """The shortest exact spelling: `4MiB`, `1000B`."""
    for unit in ("GiB", "MiB", "KiB"):
        if size and size % _SIZE_UNITS[unit] == 0:
            return f"{size // _SIZE_UNITS[unit]}{unit}"
    return f"{size}B"


def _existing_file(path: Path) -> Path:
    if not path.is_file():
        raise ValueError("no such file")
    return path


def _quantity_schema(units: dict[str, Any], unit: str, bare: dict[str, Any]) -> dict[str, Any]:
    """Of a number with one of these units, or of what may stand without."""
    written = {"type": "string", "pattern": rf"^\s*\d+(\.\d+)?\s*({'|'.join(units)})\s*$"}
    return {"anyOf": [written, bare], "x-unit": unit}


Duration = Annotated[
    float,
    BeforeValidator(parse_duration),
    PlainSerializer(format_duration, return_type=str),
    WithJsonSchema(_quantity_schema(_DURATION_UNITS, "duration", {"type": "integer", "const": 0})),
]
"""Seconds, written with a unit."""

Size = Annotated[
    int,
    BeforeValidator(parse_size),
    PlainSerializer(format_size, return_type=str),
    WithJsonSchema(_quantity_schema(_SIZE_UNITS, "size", {"type": "integer", "minimum": 1})),
]
"""Bytes, written with a unit or as a whole number."""

ExistingFile = Annotated[Path, AfterValidator(_existing_file)]
"""A path to a file that is there when the configuration is read."""


class Label(str):
    """A model version by the label that TensorFlow Serving's configuration gives it; written `{label: NAME}`."""

    __slots__ = ()

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> core_schema.CoreSchema:
        """A validator before it has made it of a mapping; it is written as one."""
        written = core_schema.plain_serializer_function_ser_schema(lambda label: {"label": str(label)})
        return core_schema.is_instance_schema(cls, serialization=written)

    @classmethod
    def __get_pydantic_json_schema__(cls, core: Any, handler: Any) -> dict[str, Any]:
        """As it is written."""
        label = {"type": "string", "minLength": 1}
        return {"type": "object", "properties": {"label": label}, "required": ["label"], "additionalProperties": False}
