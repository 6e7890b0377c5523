"""Which dead letters of a partition have been replayed, small enough to travel with a committed offset. Pure.

Kafka keeps a short text with every committed offset, and that is where this lives: so it moves with the offset, in the
same transaction as the replayed events, and needs no store of its own.

    offset    0 1 2 3 4 5 6 7 8 9
    replayed  x x x . x x . . x .       position 3, runs (4, 6) and (8, 9)

A filter leaves letters out, so a position alone does not tell: the runs beyond it do.
"""

import zlib
from base64 import b85decode, b85encode
from bisect import insort
from collections.abc import Iterator

MOST_CHARACTERS = 4096
"""Of the text: offset.metadata.max.bytes, as Kafka has it by default."""


class Ledger:
    """What has been replayed of one partition of the dead-letter topic.

    Args:
        position: everything below it has been.
        text: as `text` gave it, with the same position; empty when nothing beyond the position has been.

    Raises:
        ValueError: the text is not a ledger's.
    """

    def __init__(self, position: int = 0, text: str = "") -> None:
        self.position = position
        """The first offset that has not been replayed; what the group commits."""
        self._runs: list[tuple[int, int]] = []  # apart from each other and from the position, ascending
        edge = position
        numbers = list(_read(text))
        for gap, length in zip(numbers[::2], numbers[1::2], strict=True):
            self._runs.append((edge + gap, edge + gap + length))
            edge += gap + length

    def __contains__(self, offset: int) -> bool:
        """Whether the letter at `offset` has been replayed."""
        return offset < self.position or any(start <= offset < stop for start, stop in self._runs)

    def mark(self, start: int, stop: int) -> None:
        """Every letter at the offsets `start` to `stop` (exclusive) has been replayed, or there is none there."""
        insort(self._runs, (start, stop))
        joined: list[tuple[int, int]] = []
        for first, last in self._runs:
            if first <= self.position:
                self.position = max(self.position, last)
            elif joined and first <= joined[-1][1]:
                joined[-1] = (joined[-1][0], max(joined[-1][1], last))
            else:
                joined.append((first, last))
        self._runs = joined

    @property
    def text(self) -> str:
        """What to commit beside the position; it may be longer than `MOST_CHARACTERS` when the runs are many."""
        if not self._runs:
            return ""
        packed = bytearray()
        edge = self.position
        for start, stop in self._runs:
            for number in (start - edge, stop - start):
                packed += _packed(number)
            edge = stop
        return "1" + b85encode(zlib.compress(bytes(packed), 9)).decode()

    def __repr__(self) -> str:
        return f"<Ledger position={self.position} runs={len(self._runs)}>"


def _packed(number: int) -> bytes:
    """Seven bits a byte, the lowest first; the high bit says that more follow."""
    packed = bytearray()
    while number > 0x7F:
        packed.append(number & 0x7F | 0x80)
        number >>= 7
    packed.append(number)
    return bytes(packed)


def _read(text: str) -> Iterator[int]:
    if not text:
        return
    if text[0] != "1":
        raise ValueError("a ledger of another version")
    try:
        packed = zlib.decompress(b85decode(text[1:]))
    except zlib.error as error:
        raise ValueError(str(error)) from None
    number = shift = 0
    for byte in packed:
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            yield number
            number = shift = 0
