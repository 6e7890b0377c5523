"""Events from Kafka: a member of a consumer group over aiokafka, with every position in our own hands.

The client's traps that this works around are named where they are: nothing outside this file depends on aiokafka's
consumer. Cancelling `getmany` would leave its fetch counter up for ever, so a poll ends by its timeout only.
"""

import asyncio
import random
from collections.abc import Sequence
from typing import Any

import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import (
    CommitFailedError,
    IllegalGenerationError,
    IllegalStateError,
    KafkaError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
    RebalanceInProgressError,
    UnknownMemberIdError,
)

from bridge.config import Pipeline
from bridge.errors import PipelineStopped
from bridge.kafka import FATAL, client_options, sentence, stop_client
from bridge.observe.telemetry import Telemetry
from bridge.offsets import PartitionEpoch
from bridge.record import Segment
from bridge.retry import Backoff
from bridge.source import Drain

log = structlog.get_logger()

_NEVER_MS = 2**31 - 1
_LOST = (CommitFailedError, IllegalGenerationError, UnknownMemberIdError, RebalanceInProgressError)
_CALL_TIMEOUT = 10.0  # of a single question to the coordinator; the client itself would wait without end


class KafkaSource:
    """`Source` over aiokafka.

    An assignment makes epochs and returns at once, so that heartbeats go on; where each partition begins is found out
    by a task of its own, and until then nothing of that partition is delivered.
    """

    def __init__(self, config: Pipeline, telemetry: Telemetry) -> None:
        self._config = config
        self._telemetry = telemetry
        self._epochs: dict[TopicPartition, PartitionEpoch] = {}
        self._unsettled = asyncio.Event()
        self._out_of_range: set[PartitionEpoch] = set()
        self._settler: asyncio.Task[None] | None = None
        self._committing = asyncio.Lock()
        self._backoff = Backoff(0.1, 5.0, random.Random())
        self._failing = False
        self._drain: Drain | None = None
        self._joined = False
        self._consumer = AIOKafkaConsumer(
            **client_options(config.kafka),
            group_id=config.group,
            enable_auto_commit=False,
            auto_offset_reset="none",  # a lost offset is decided by source.start, never by a silent jump to latest
            isolation_level="read_committed",
            session_timeout_ms=int(config.source.session_timeout * 1000),
            rebalance_timeout_ms=60_000,
            heartbeat_interval_ms=int(min(3.0, config.source.session_timeout / 3) * 1000),
            # A paused intake must not be expelled from the group; that the loop turns is what /health/live watches.
            max_poll_interval_ms=_NEVER_MS,
            fetch_max_wait_ms=250,
        )

    @property
    def assigned(self) -> bool:
        """See `Source`."""
        return self._joined and all(epoch.ready for epoch in self._epochs.values())

    async def start(self, tasks: asyncio.TaskGroup, drain: Drain) -> None:
        """See `Source`."""
        self._drain = drain
        while True:
            try:
                await self._consumer.start()
                break
            except FATAL as error:
                raise PipelineStopped(sentence(error, self._config.kafka)) from error
            except KafkaError as error:
                await self._wait_after(error)
        self._healed()
        self._settler = tasks.create_task(self._settle(), name="settle")
        self._consumer.subscribe(self._config.source.topics, listener=_Listener(self))

    async def poll(self, max_records: int, timeout: float) -> Sequence[Segment]:
        """See `Source`."""
        try:
            polled = await self._consumer.getmany(timeout_ms=int(timeout * 1000), max_records=max_records)
        except OffsetOutOfRangeError as error:
            self._restart(error)
            return []
        except NoOffsetForPartitionError:
            self._rewind()
            await asyncio.sleep(0.05)  # it is being settled
            return []
        except FATAL as error:
            raise PipelineStopped(sentence(error, self._config.kafka)) from error
        except (KafkaError, AssertionError) as error:
            # Records already drained from other partitions are gone from the client, its positions advanced.
            self._rewind()
            await self._wait_after(error)
            return []
        except Exception as error:
            places = ", ".join(f"{tp.topic}/{tp.partition}/{epoch.next_offset}" for tp, epoch in self._epochs.items())
            raise PipelineStopped(
                f"a record cannot be read: {type(error).__name__}: {error}; it is at or after one of {places}"
            ) from error
        self._healed()
        segments = []
        for tp, records in polled.items():
            epoch = self._epochs.get(tp)
            # Records may come before the partition is settled; the seek that settles it brings them again.
            if epoch is not None and epoch.ready and epoch.alive and records:
                segments.append(Segment(epoch, epoch.deliver([record.offset for record in records]), records))
        return segments

    async def commit(self, timeout: float) -> None:
        """See `Source`."""
        try:
            async with asyncio.timeout(timeout), self._committing:
                await self._commit()
        except _LOST as error:
            log.warning("commit_refused", reason="the group has moved on", error=type(error).__name__)
        except FATAL as error:
            raise PipelineStopped(sentence(error, self._config.kafka)) from error
        except (KafkaError, TimeoutError) as error:
            self._telemetry.retry("commit")
            log.warning("commit_failed", error=str(error) or type(error).__name__)

    def lag(self) -> dict[tuple[str, int], int]:
        """See `Source`."""
        lags: dict[tuple[str, int], int] = {}
        assigned = self._consumer.assignment()
        for tp, epoch in self._epochs.items():
            if tp in assigned and epoch.position is not None:
                high = self._consumer.highwater(tp)
                if high is not None:
                    lags[tp.topic, tp.partition] = max(0, high - epoch.position)
        return lags

    async def stop(self) -> None:
        """See `Source`."""
        if self._settler:
            self._settler.cancel()
        problem = await stop_client(self._consumer, _CALL_TIMEOUT)
        if problem:
            log.warning("leave_failed", error=problem)

    async def revoked(self) -> None:
        """The group takes all partitions back: finish, commit, and only then let go of the epochs."""
        epochs = list(self._epochs.values())
        for epoch in epochs:
            epoch.ready = False  # the gate: nothing more is delivered
        try:
            if self._drain and epochs:
                await self._drain(self._config.drain_timeout)
            await self.commit(_CALL_TIMEOUT)
        finally:
            # No await between the commit and this: an outcome that came in between would be marked, yet never
            # committed by us nor seen by the next owner.
            for epoch in epochs:
                epoch.alive = False
            self._epochs = {}
            self._joined = False

    def accepted(self, partitions: Sequence[TopicPartition]) -> None:
        """The group gave us these partitions."""
        self._telemetry.rebalances.inc()
        self._epochs = {tp: PartitionEpoch(tp.topic, tp.partition) for tp in partitions}
        self._joined = True
        self._out_of_range.clear()
        self._unsettled.set()
        log.info("partitions_assigned", partitions=[f"{tp.topic}/{tp.partition}" for tp in sorted(partitions)])

    async def _commit(self) -> None:
        positions: dict[TopicPartition, int] = {}
        epochs = dict(self._epochs)
        for tp, epoch in epochs.items():
            position = epoch.position
            if epoch.alive and position is not None and position != epoch.committed:
                positions[tp] = position
        if positions:
            with self._telemetry.commit_seconds.time():
                await self._consumer.commit(positions)
            for tp, position in positions.items():
                epochs[tp].committed = position

    async def _settle(self) -> None:
        """Find out where every partition begins; one that cannot be asked holds up no other."""
        while True:
            await self._unsettled.wait()
            self._unsettled.clear()
            for tp, epoch in list(self._epochs.items()):
                if epoch.ready or not epoch.alive:
                    continue
                try:
                    async with asyncio.timeout(_CALL_TIMEOUT):
                        await self._begin(tp, epoch)
                except FATAL as error:
                    raise PipelineStopped(sentence(error, self._config.kafka)) from error
                except (KafkaError, TimeoutError) as error:
                    self._unsettled.set()
                    await self._wait_after(error)

    async def _begin(self, tp: TopicPartition, epoch: PartitionEpoch) -> None:
        reset = epoch in self._out_of_range
        committed = None if reset else await self._consumer.committed(tp)
        offset = committed
        if offset is None:
            offset = await self._start_offset(
                tp, "its offset is out of the log's range" if reset else "it has no offset"
            )
        if epoch.alive and self._epochs.get(tp) is epoch:
            if reset:
                log.error("offset_out_of_range", topic=tp.topic, partition=tp.partition, goes_on_at=offset)
            self._consumer.seek(tp, offset)
            epoch.committed = committed
            epoch.start_at(offset)
            self._out_of_range.discard(epoch)

    async def _start_offset(self, tp: TopicPartition, why: str) -> int:
        start = self._config.source.start
        if start == "fail":
            raise PipelineStopped(
                f"group {self._config.group!r} cannot begin in {tp.topic}/{tp.partition}: {why} there, and "
                "source.start is fail; set it to earliest or latest, or reset the group's offsets"
            )
        ask = self._consumer.beginning_offsets if start == "earliest" else self._consumer.end_offsets
        offsets: dict[TopicPartition, int] = await ask([tp])
        return offsets[tp]

    def _restart(self, error: OffsetOutOfRangeError) -> None:
        """The log no longer holds the position: begin again by `source.start`, and say so loudly."""
        partitions = [tp for tp in (error.args[0] if error.args else {}) if tp in self._epochs]
        for tp in partitions:
            old = self._epochs[tp]
            if old.ready and old.alive:
                self._telemetry.records("source", "out_of_range").inc()
                # A new epoch: what is in flight of the old one must not hold or move the new position.
                old.alive = False
                self._epochs[tp] = PartitionEpoch(tp.topic, tp.partition)
                self._out_of_range.add(self._epochs[tp])
        self._unsettled.set()
        self._rewind()

    def _rewind(self) -> None:
        for tp, epoch in self._epochs.items():
            if epoch.ready and epoch.next_offset is not None:
                try:
                    self._consumer.seek(tp, epoch.next_offset)
                except IllegalStateError:
                    continue  # not assigned any more

    async def _wait_after(self, error: BaseException) -> None:
        if not self._failing:
            self._failing = True
            log.warning("kafka_away", error=sentence(error, self._config.kafka), action="trying again")
        self._telemetry.retry("kafka")
        await asyncio.sleep(self._backoff.next())

    def _healed(self) -> None:
        if self._failing:
            self._failing = False
            log.info("kafka_back")
        self._backoff.reset()

    def __repr__(self) -> str:
        return f"<KafkaSource group={self._config.group} assigned={self.assigned} {list(self._epochs.values())}>"


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]
    """Hands the client's callbacks on; the client swallows what they raise, so what gets here is at least logged."""

    def __init__(self, source: KafkaSource) -> None:
        self._source = source

    async def on_partitions_revoked(self, revoked: Any) -> None:
        try:
            await self._source.revoked()
        except Exception:
            log.exception("revoke_failed")

    async def on_partitions_assigned(self, assigned: Any) -> None:
        try:
            self._source.accepted(list(assigned))
        except Exception:
            log.exception("assign_failed")
