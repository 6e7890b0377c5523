"""Events that are too large never reach a format: they are rejects at once. Pure."""

from collections.abc import Sequence

from bridge.record import Decoded, EventFormat, Reject


class SizeLimit:
    """`EventFormat` around another.

    Args:
        inner: reads what is not too large.
        limit: most bytes of a value.
    """

    def __init__(self, inner: EventFormat, limit: int) -> None:
        self._inner = inner
        self._limit = limit

    def decode(self, values: Sequence[bytes | None]) -> Decoded:
        """See `EventFormat`."""
        limit = self._limit
        if max(map(len, filter(None, values)), default=0) <= limit:
            return self._inner.decode(values)
        large = {place: len(value) for place, value in enumerate(values) if value is not None and len(value) > limit}
        places = [place for place in range(len(values)) if place not in large]
        decoded = self._inner.decode([values[place] for place in places])
        rejects = [reject._replace(row=places[reject.row]) for reject in decoded.rejects]
        for place, size in large.items():
            sentence = f"the event has {size} bytes, more than batch.max_bytes ({limit})"
            rejects.append(Reject(place, "too_large", sentence))
        return Decoded(decoded.rows, [places[place] for place in decoded.places], decoded.copied, rejects)
