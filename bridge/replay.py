"""Sends dead letters back to where their events came from, each once.

What has been sent is kept as the committed offset of a group of its own, with a `Ledger` beside it for what a filter
left out. Under a transaction the events and that offset are written together, so a replay that is interrupted, even
killed, goes on where it was, and two at the same time cannot send a letter twice: starting fences the one before.

    transactional producer starts -> ledger is read -> letters are read -> [ events + ledger ] -> [ events + ledger ]

An event that dies again is a new letter. It was not there when the replay began, so it is not sent again by it.
"""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from aiokafka.errors import (
    IllegalOperation,
    InvalidProducerEpoch,
    KafkaError,
    ProducerFenced,
    TransactionalIdAuthorizationFailed,
)

from bridge.config import Pipeline
from bridge.dead_letters import DeadLetter, LetterFilter, LetterReader, letter_reader
from bridge.errors import HeadraceError
from bridge.kafka import Topic, describe_topics, sentence
from bridge.ledger import Ledger
from bridge.letters import ATTEMPTS, LETTER
from bridge.partition import partition_of
from bridge.replayed import DEADLINE, ReplayWriter, kept, read_ledgers, replay_writer, transactional_id
from bridge.sink import Row

_CHUNK = 500  # letters of one transaction
_CHUNK_BYTES = 4 * 2**20
_PACE = 0.5  # a chunk holds what the rate allows in so many seconds


@dataclass
class Tally:
    """How far a replay is.

    Attributes:
        letters: in the dead-letter topic, or gone from it, at most: offsets there are.
        passed: offsets that have been passed.
        replayed: target topic -> letters sent.
        reasons: reason -> letters sent.
        left_out: letters that are not meant.
    """

    letters: int = 0
    passed: int = 0
    replayed: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    left_out: int = 0


@dataclass(frozen=True, slots=True)
class Order:
    """What to replay, and how.

    Attributes:
        wanted: which letters.
        to: topic to send to; None: where each event came from, in its own partition.
        rate: most letters in a second; None: as fast as it goes.
        dry_run: send nothing, only count.
        now: give the events the time of now instead of their own, so that no deadline sorts them out again.
        at_least_once: do without transactions.
    """

    wanted: LetterFilter
    to: str | None = None
    rate: float | None = None
    dry_run: bool = False
    now: bool = False
    at_least_once: bool = False


async def replay(config: Pipeline, order: Order, told: Callable[[Tally], None] = lambda _: None) -> Tally:
    """Send the letters of `order` that have not been sent yet.

    Args:
        config: of the pipeline that wrote them.
        order: what, and how.
        told: called now and then, for a progress bar.

    Raises:
        HeadraceError: it cannot begin, or ended early; what was sent stays sent, and the same call goes on from there.
    """
    try:
        targets = await _targets(config, order)
        async with contextlib.AsyncExitStack() as stack:
            writer = None
            if not order.dry_run:
                writer = await stack.enter_async_context(replay_writer(config, order.at_least_once))
            reader = await stack.enter_async_context(letter_reader(config))
            ledgers = await read_ledgers(config, reader)
            return await _Replay(config, order, targets, reader, ledgers, writer, told).run()
    except TransactionalIdAuthorizationFailed as error:
        raise HeadraceError(
            f"{sentence(error, config.kafka)}; allow {transactional_id(config)}, or replay with --at-least-once, "
            "after which an interrupted replay may send letters twice"
        ) from None
    except (ProducerFenced, InvalidProducerEpoch):
        raise HeadraceError(
            f"another replay of pipeline {config.name!r} has begun and taken over; what this one has sent is not sent "
            "again"
        ) from None
    except (KafkaError, IllegalOperation, TimeoutError) as error:
        said = f"Kafka did not finish within {DEADLINE:.0f} s" if isinstance(error, TimeoutError) else None
        raise HeadraceError(
            f"{said or sentence(error, config.kafka)}; what has been sent stays sent: replay again to go on from there"
        ) from None


class _Replay:
    """One run."""

    def __init__(
        self,
        config: Pipeline,
        order: Order,
        targets: dict[str, Topic],
        reader: LetterReader,
        ledgers: dict[int, Ledger],
        writer: ReplayWriter | None,
        told: Callable[[Tally], None],
    ) -> None:
        self._config = config
        self._order = order
        self._targets = targets
        self._reader = reader
        self._ledgers = ledgers
        self._writer = writer
        self._told = told
        self._tally = Tally()
        self._due = 0.0  # when the rate allows the next chunk
        self._passed: dict[int, int] = {}  # partition -> one past the last letter seen

    async def run(self) -> Tally:
        reader, ledgers, tally = self._reader, self._ledgers, self._tally
        begin = {number: max(ledger.position, reader.first[number]) for number, ledger in ledgers.items()}
        self._passed = dict(begin)
        tally.letters = sum(max(0, last - begin[number]) for number, last in reader.last.items())
        rate = self._order.rate
        most = _CHUNK if rate is None else max(1, min(_CHUNK, int(rate * _PACE)))
        chunk: list[DeadLetter] = []
        size = 0
        async for letter in reader.read(begin):
            if letter.offset in ledgers[letter.partition]:
                pass  # an earlier replay has sent it
            elif letter in self._order.wanted and self._target(letter):
                chunk.append(letter)
                size += len(letter.value or b"")
                ledgers[letter.partition].mark(self._passed[letter.partition], letter.offset + 1)
            else:
                tally.left_out += 1
            tally.passed += letter.offset + 1 - self._passed[letter.partition]
            self._passed[letter.partition] = letter.offset + 1
            if len(chunk) >= most or size >= _CHUNK_BYTES:
                await self._send(chunk)
                chunk, size = [], 0
            self._told(tally)
        if chunk:
            await self._send(chunk)
        tally.passed = tally.letters
        self._told(tally)
        return tally

    def _target(self, letter: DeadLetter) -> str | None:
        """The topic it goes to, None when there is none: a record that is no dead letter of a source topic."""
        topic = self._order.to or letter.why.get("topic", "")
        return topic if topic in self._targets else None

    async def _send(self, chunk: list[DeadLetter]) -> None:
        rows: dict[tuple[str, int], list[Row]] = {}
        for letter in chunk:
            topic = self._target(letter)
            assert topic is not None, "checked before"  # noqa: S101 - for the type checker
            rows.setdefault((topic, self._partition(letter, topic)), []).append(self._row(letter))
            self._tally.replayed[topic] += 1
            self._tally.reasons[letter.why.get("reason", "?")] += 1
        ledgers = {number: self._ledgers[number] for number in {letter.partition for letter in chunk}}
        if self._writer is None:
            for number, ledger in ledgers.items():
                kept(self._config.dead_letter.topic, number, ledger)
            return
        loop = asyncio.get_running_loop()
        await asyncio.sleep(max(0.0, self._due - loop.time()))
        await self._writer.write(rows, ledgers)
        if self._order.rate is not None:
            self._due = max(self._due, loop.time()) + len(chunk) / self._order.rate

    def _partition(self, letter: DeadLetter, topic: str) -> int:
        """The event's own; by its key in another topic, or where the topic has fewer partitions now."""
        count = self._targets[topic].partitions
        came_from = letter.why.get("partition", "")
        if self._order.to is None and came_from.isdigit() and int(came_from) < count:
            return int(came_from)
        return letter.offset % count if letter.key is None else partition_of(letter.key, count)

    def _row(self, letter: DeadLetter) -> Row:
        place = f"{self._config.dead_letter.topic}/{letter.partition}/{letter.offset}"
        headers = [*letter.headers, (ATTEMPTS, letter.why.get("attempts", "0").encode()), (LETTER, place.encode())]
        now = self._order.now or letter.timestamp < 0
        return letter.key, letter.value, int(time.time() * 1000) if now else letter.timestamp, headers


async def _targets(config: Pipeline, order: Order) -> dict[str, Topic]:
    """The topics that letters may go to.

    Raises:
        HeadraceError: one does not exist, or would send letters in a circle.
    """
    alert = config.result.alert
    if order.to in (config.dead_letter.topic, config.result.topic, alert.topic if alert else ""):
        raise HeadraceError(f"--to {order.to}: that is where this pipeline writes; name a topic that it does not")
    names = [order.to] if order.to else config.source.topics
    found = await describe_topics(config.kafka, names)
    missing = [name for name, topic in found.items() if topic is None]
    if missing:
        raise HeadraceError(f"Kafka has no topic {', '.join(map(repr, missing))} to send letters to")
    return {name: topic for name, topic in found.items() if topic is not None}
