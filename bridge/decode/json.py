"""JSON events: parsed in one call for the whole batch, behind a fence. Pure.

One parse of all events is faster than one each, and a trap: joined by commas, the events `1,2` and `[3` and `4]` shift
their neighbours, and results would land on other keys. So a random string, drawn for each batch, stands between two
events, and the parse counts only if exactly that string is found at every second place. An event cannot carry it
without knowing it. When it does not count, each event is parsed by itself, which finds the culprits.
"""

import random
import secrets
from collections.abc import Sequence
from itertools import compress
from typing import Any

import orjson

from bridge.mapping import Document, InputPlan, Misfit
from bridge.record import Decoded, Reject

_SCALARS = {int, float, bool, type(None)}
_EXACT = 2.0**63
_nonces = random.Random(secrets.randbits(256))
"""No nonce ever leaves the process, so that none can be told from those before; asking the kernel each time is slow."""


class JsonFormat:
    """Events that are JSON objects.

    Args:
        plan: how an object becomes rows.
        copy: fields to repeat in the result; a field that an event lacks is null there.
    """

    def __init__(self, plan: InputPlan, copy: Sequence[str] = ()) -> None:
        self._plan = plan
        self._copy = tuple(copy)

    def decode(self, values: Sequence[bytes | None]) -> Decoded:
        """See `EventFormat`."""
        parsed = parse_joined(values)
        if parsed is not None and set(map(type, parsed)) <= {dict}:
            documents: Sequence[Document] = parsed
            places: Sequence[int] = range(len(values))
            rejects: list[Reject] = []
        else:
            documents, places, rejects = parse_each(values)
        rows, misfits = self._plan.rows(documents)
        if misfits:
            documents, places = self._without(misfits, documents, places, rejects)
        try:
            copied = {field: _json_column(documents, field) for field in self._copy}
        except (orjson.JSONEncodeError, Misfit):
            misfits = self._uncopyable(documents)
            documents, places = self._without(misfits, documents, places, rejects)
            rows, _ = self._plan.rows(documents)
            copied = {field: _json_column(documents, field) for field in self._copy}
        return Decoded(rows, places, copied, rejects)

    def _uncopyable(self, documents: Sequence[Document]) -> list[Reject]:
        misfits = []
        for row, document in enumerate(documents):
            for field in self._copy:
                try:
                    _json_column([document], field)
                except (orjson.JSONEncodeError, Misfit) as error:
                    misfits.append(Reject(row, "mapping", f"field {field!r} cannot be copied: {error}"))
                    break
        return misfits

    def _without(
        self,
        misfits: Sequence[Reject],
        documents: Sequence[Document],
        places: Sequence[int],
        rejects: list[Reject],
    ) -> tuple[list[Document], list[int]]:
        good = [True] * len(documents)
        for misfit in misfits:
            good[misfit.row] = False
            rejects.append(misfit._replace(row=places[misfit.row]))
        return list(compress(documents, good)), list(compress(places, good))


def parse_joined(values: Sequence[bytes | None]) -> list[Any] | None:
    """Every event's JSON value from one parse, or None where that cannot be trusted."""
    if not values:
        return None
    nonce = f"fence-{_nonces.getrandbits(64):016x}"
    try:
        items = orjson.loads(b"[" + f',"{nonce}",'.encode().join(values) + b"]")  # type: ignore[arg-type]
    except (orjson.JSONDecodeError, TypeError):  # or one without a value
        return None
    if len(items) != 2 * len(values) - 1 or items[1::2] != [nonce] * (len(values) - 1):
        return None
    documents: list[Any] = items[0::2]
    return documents


def parse_each(values: Sequence[bytes | None]) -> tuple[list[Document], list[int], list[Reject]]:
    """The objects, their places, and a reject for each event that is not a JSON object."""
    documents: list[Document] = []
    places: list[int] = []
    rejects: list[Reject] = []
    for place, value in enumerate(values):
        if value is None:
            rejects.append(Reject(place, "decode", "the event has no value (a tombstone)"))
            continue
        try:
            document = orjson.loads(value)
        except orjson.JSONDecodeError as error:
            rejects.append(Reject(place, "decode", f"the event is not JSON: {error}"))
            continue
        if type(document) is dict:
            documents.append(document)
            places.append(place)
        else:
            rejects.append(Reject(place, "decode", f"the event is {_KINDS[type(document)]}, not a JSON object"))
    return documents, places, rejects


_KINDS = {list: "an array", str: "a string", int: "a number", float: "a number", bool: "a boolean", type(None): "null"}


def _json_column(documents: Sequence[Document], field: str) -> list[bytes]:
    """Each document's value of `field` as JSON.

    Raises:
        Misfit: a whole number beyond 64 bits, which the parser has rounded.
        orjson.JSONEncodeError: a value nested deeper than can be written.
    """
    values = [_get(document, field) for document in documents]
    types = set(map(type, values))
    if float in types and any(type(value) is float and abs(value) >= _EXACT for value in values):
        raise Misfit("the number is too large to be repeated exactly")
    if values and types <= _SCALARS:
        return orjson.dumps(values)[1:-1].split(b",")
    return [orjson.dumps(value) for value in values]


def _get(document: Document, field: str) -> Any:
    value: Any = document
    for part in field.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value
