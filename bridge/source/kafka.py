"""Events from Kafka: a member of a consumer group over aiokafka, with every position in our own hands.

The client's traps that this works around are named where they are: nothing outside this folder depends on aiokafka's
consumer. Cancelling `getmany` would leave its fetch counter up for ever, so a poll ends by its timeout only.

A partition has one way to begin, whether it has just been assigned, its transaction failed, its offset was lost or it
could not be read: a new epoch is made, its owner claims it, and only then its committed offset is read.
"""

import asyncio
import random
from collections.abc import Sequence
from typing import Any

import structlog
from aiokafka import ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import (
    CommitFailedError,
    ConsumerStoppedError,
    CorruptRecordException,
    IllegalGenerationError,
    IllegalStateError,
    KafkaError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
    RebalanceInProgressError,
    UnknownMemberIdError,
)

from bridge.config import Pipeline
from bridge.errors import PartitionHalted, PipelineStopped
from bridge.kafka import FATAL, sentence, stop_client
from bridge.observe.telemetry import Telemetry
from bridge.offsets import PartitionEpoch
from bridge.record import Record, Segment
from bridge.retry import HALTED_SECONDS, Backoff
from bridge.source import Owner
from bridge.source.client import GroupConsumer
from bridge.source.watchdog import Watchdog

log = structlog.get_logger()

_LOST = (CommitFailedError, IllegalGenerationError, UnknownMemberIdError, RebalanceInProgressError)
_CALL_TIMEOUT = 10.0  # of a single question to the coordinator; the client itself would wait without end
_CLAIM_TIMEOUT = 30.0  # an open transaction of a former owner has to be ended first
_BEGINNING = 16  # partitions that begin side by side
_PROBE = 2.0  # seconds to wait for a single partition when it is looked for what cannot be read
_MOST_UNCOMMITTED = 16_384  # offsets of a partition; what is finished and not committed is done again after a crash
_MEMBER_SECONDS = 10.0  # three heartbeats
_HEARTBEAT_SOON = 0.5
_SHORTLY = 0.05


class KafkaSource:
    """`Source` over aiokafka.

    Args:
        config: the configuration.
        telemetry: where rebalances, commits and retries are counted.
        watchdog_period: seconds between two looks at the client.
    """

    def __init__(self, config: Pipeline, telemetry: Telemetry, watchdog_period: float = 2.0) -> None:
        self._config = config
        self._telemetry = telemetry
        self._watchdog_period = watchdog_period
        self._epochs: dict[TopicPartition, PartitionEpoch] = {}
        self._restarting: set[PartitionEpoch] = set()
        self._begins: dict[PartitionEpoch, asyncio.Task[None]] = {}
        self._tasks: asyncio.TaskGroup | None = None
        self._beginning = asyncio.Semaphore(_BEGINNING)
        self._watching: asyncio.Task[None] | None = None
        self._committing = asyncio.Lock()
        self._backoff = Backoff(0.1, 5.0, random.Random())
        self._failing = False
        self._owner: Owner | None = None
        self._joined = False
        self._revoking = False
        self._generation = 0
        self._polled = 0.0  # when the flow last asked
        self._ends: dict[TopicPartition, int] = {}
        self._consumer = GroupConsumer(config)

    @property
    def assigned(self) -> bool:
        """See `Source`."""
        return self._joined and all(epoch.ready or epoch in self._restarting for epoch in self._epochs.values())

    async def start(self, tasks: asyncio.TaskGroup, owner: Owner) -> None:
        """See `Source`."""
        self._tasks = tasks
        self._owner = owner
        await self._connect(self._consumer)
        self._watching = tasks.create_task(self._watch(), name="watchdog")

    async def poll(self, max_records: int, timeout: float) -> Sequence[Segment]:
        """See `Source`."""
        wanted = [
            tp
            for tp, epoch in self._epochs.items()
            if epoch.ready and not epoch.paused and epoch.uncommitted < _MOST_UNCOMMITTED
        ]
        if not wanted and self._epochs:
            # No partition at all would mean every partition to the client, and it would not fetch for the others.
            await asyncio.sleep(min(timeout, _SHORTLY))
            return []
        self._polled = asyncio.get_running_loop().time()
        try:
            polled = await self._consumer.getmany(*wanted, timeout_ms=int(timeout * 1000), max_records=max_records)
        except OffsetOutOfRangeError as error:
            self._out_of_range(error)
            return []
        except NoOffsetForPartitionError:
            self._rewind()
            await asyncio.sleep(_SHORTLY)  # it has not begun yet
            return []
        except FATAL as error:
            raise PipelineStopped(sentence(error, self._config.kafka)) from error
        except (IllegalStateError, ConsumerStoppedError):
            await asyncio.sleep(_SHORTLY)  # the group has just taken partitions away, or the client is being replaced
            return []
        except CorruptRecordException as error:
            return await self._isolate(error, max_records)
        except (KafkaError, AssertionError) as error:
            # Records already drained from other partitions are gone from the client, its positions advanced.
            self._rewind()
            await self._wait_after(error)
            return []
        except Exception as error:  # noqa: BLE001 - the client raises all kinds over what it cannot parse
            return await self._isolate(error, max_records)
        self._healed()
        return self._segments(polled)

    async def commit(self, timeout: float) -> None:
        """See `Source`."""
        if self._config.delivery == "exactly_once":
            return  # offsets are committed with the results
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

    def restart(self, epoch: PartitionEpoch, after: float, because: str) -> None:
        """See `Source`."""
        tp = TopicPartition(epoch.topic, epoch.partition)
        if self._epochs.get(tp) is not epoch:
            return
        say = log.error if after >= HALTED_SECONDS else log.warning
        say("partition_restarts", topic=tp.topic, partition=tp.partition, because=because, after=after)
        self._kill(epoch)
        self._renew(tp, after)

    def lag(self) -> dict[tuple[str, int], int]:
        """See `Source`."""
        lags: dict[tuple[str, int], int] = {}
        assigned = self._consumer.assignment()
        for tp, epoch in self._epochs.items():
            if tp in assigned and epoch.position is not None:
                known = [end for end in (self._consumer.highwater(tp), self._ends.get(tp)) if end is not None]
                if known:
                    done = epoch.position if epoch.pending else max(epoch.position, self._consumer.read_up_to(tp) or 0)
                    lags[tp.topic, tp.partition] = max(0, max(known) - done)
        return lags

    async def stop(self) -> None:
        """See `Source`."""
        if self._watching:
            self._watching.cancel()
        for epoch in list(self._epochs.values()):
            self._kill(epoch)
        problem = await stop_client(self._consumer, _CALL_TIMEOUT)
        if problem:
            log.warning("leave_failed", error=problem)

    async def revoked(self) -> None:
        """The group takes all partitions back: finish, commit, and only then let go of the epochs."""
        epochs = list(self._epochs.values())
        self._revoking = True  # the gate: nothing more is delivered, also of what is just beginning
        for epoch in epochs:
            epoch.ready = False
        try:
            if self._owner and epochs:
                await self._owner.drain(self._config.drain_timeout)
            await self.commit(_CALL_TIMEOUT)
        finally:
            # No await between the commit and this: an outcome that came in between would be marked, yet never
            # committed by us nor seen by the next owner.
            for epoch in (*epochs, *self._epochs.values()):  # a write that failed meanwhile has made a new one
                self._kill(epoch)
            self._epochs = {}
            self._joined = self._revoking = False

    def accepted(self, partitions: Sequence[TopicPartition]) -> None:
        """The group gave us these partitions."""
        self._telemetry.rebalances.inc()
        self._generation += 1
        self._consumer.heard = asyncio.get_running_loop().time()
        for epoch in self._epochs.values():
            self._kill(epoch)
        self._epochs = {}
        for tp in partitions:
            self._renew(tp, 0.0)
        self._restarting.clear()
        self._count_halted()
        self._joined = True
        log.info("partitions_assigned", partitions=[f"{tp.topic}/{tp.partition}" for tp in sorted(partitions)])

    async def _connect(self, consumer: GroupConsumer) -> None:
        while True:
            try:
                await consumer.start()
                break
            except FATAL as error:
                raise PipelineStopped(sentence(error, self._config.kafka)) from error
            except KafkaError as error:
                await self._wait_after(error)
        self._healed()
        self._consumer = consumer
        consumer.watch_heartbeats()
        consumer.subscribe(self._config.source.topics, listener=_Listener(self))

    def instance_taken(self) -> bool:
        """Whether another process has joined under our instance id, which stops the pipeline.

        This client knows no error for it: it is told that its member id is unknown, as after a session that has timed
        out, and would take the id back, and be thrown out again, for ever. But the session had not timed out.
        """
        instance, session = self._config.source.instance_id, self._config.source.session_timeout
        silent = asyncio.get_running_loop().time() - self._consumer.heard
        if not (instance and self._consumer.expelled and silent < session):
            return False

        async def stop() -> None:
            raise PipelineStopped(
                f"another member of group {self._config.group!r} has taken over source.instance_id {instance!r}; "
                "give every instance an id of its own"
            )

        assert self._tasks is not None, "started"  # noqa: S101 - for the type checker
        self._tasks.create_task(stop(), name="instance fenced")
        return True

    def _segments(self, polled: dict[TopicPartition, Sequence[Record]]) -> list[Segment]:
        segments = []
        for tp, records in polled.items():
            epoch = self._epochs.get(tp)
            # Records may come before the partition has begun; the seek that begins it brings them again.
            if epoch is not None and epoch.ready and epoch.alive and records:
                segments.append(Segment(epoch, epoch.deliver([record.offset for record in records]), records))
        return segments

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

    def _kill(self, epoch: PartitionEpoch) -> None:
        if epoch.alive:
            epoch.alive = False
            if epoch in self._begins:
                self._begins[epoch].cancel()
            self._restarting.discard(epoch)
            if self._owner:
                self._owner.released(epoch)

    def _renew(self, tp: TopicPartition, after: float, reset: bool = False) -> None:
        epoch = self._epochs[tp] = PartitionEpoch(tp.topic, tp.partition, self._generation)
        self._restarting.add(epoch)
        self._count_halted()
        assert self._tasks is not None, "started"  # noqa: S101 - for the type checker
        beginning = self._begin(tp, epoch, after, reset)
        try:
            begins = self._tasks.create_task(beginning, name=f"begin {tp.topic}/{tp.partition}")
        except RuntimeError:
            beginning.close()  # the pipeline is ending
            return
        self._begins[epoch] = begins
        begins.add_done_callback(lambda _: self._begins.pop(epoch, None))

    def _count_halted(self) -> None:
        self._telemetry.halted("source", len(self._restarting))

    async def _begin(self, tp: TopicPartition, epoch: PartitionEpoch, after: float, reset: bool) -> None:
        """Claim the partition, and find out where it begins; one that cannot be asked holds up no other."""
        said = ""
        backoff = Backoff(0.1, 5.0, random.Random())
        while epoch.alive:
            await asyncio.sleep(after)
            if not self._member():
                after = _HEARTBEAT_SOON
                continue
            try:
                async with self._beginning:
                    if epoch.alive:
                        await self._claim(tp, epoch, reset)
                        break
            except PartitionHalted as error:
                after = HALTED_SECONDS
                self._restarting.add(epoch)  # the others do not wait for it to be ready
                self._count_halted()
                if str(error) != said:
                    log.error("partition_halted", topic=tp.topic, partition=tp.partition, because=str(error))  # noqa: TRY400
                said = str(error)
            except FATAL as error:
                raise PipelineStopped(sentence(error, self._config.kafka)) from error
            except (KafkaError, TimeoutError) as error:
                after = backoff.next()
                self._trouble(error)
        self._restarting.discard(epoch)
        self._count_halted()

    def _member(self) -> bool:
        """Whether the group has said lately that we are its member.

        A claim fences the owner before. One that cannot hear the group may have lost its partitions to others; were it
        to claim them all the same, it would disturb who has them now again and again.
        """
        silent = asyncio.get_running_loop().time() - self._consumer.heard
        return silent < min(_MEMBER_SECONDS, self._config.source.session_timeout / 2)

    async def _claim(self, tp: TopicPartition, epoch: PartitionEpoch, reset: bool) -> None:
        assert self._owner is not None, "started"  # noqa: S101 - for the type checker
        async with asyncio.timeout(_CLAIM_TIMEOUT):
            await self._owner.claim(epoch)
        try:
            async with asyncio.timeout(_CALL_TIMEOUT):
                committed = None if reset else await self._consumer.committed(tp)
                if committed is None:
                    why = "its offset is out of the log's range" if reset else "it has no offset"
                    committed = await self._start_offset(tp, why)
                    # Kept from here on: whoever begins next, before anything is finished, must not choose again, or it
                    # would choose a later end of the log and skip what has been delivered.
                    await self._consumer.commit({tp: committed})
            if epoch.alive and not self._revoking and self._epochs.get(tp) is epoch:
                if reset:
                    log.error("offset_out_of_range", topic=tp.topic, partition=tp.partition, goes_on_at=committed)
                self._consumer.seek(tp, committed)
                epoch.committed = committed
                epoch.start_at(committed)
        finally:
            if not epoch.ready and epoch.alive:
                self._owner.released(epoch)  # it will be claimed again

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

    def _out_of_range(self, error: OffsetOutOfRangeError) -> None:
        """The log no longer holds the position: begin again by `source.start`, and say so loudly."""
        for tp in error.args[0] if error.args else {}:
            epoch = self._epochs.get(tp)
            if epoch is not None and epoch.ready and epoch.alive:
                self._telemetry.records("source", "out_of_range").inc()
                # A new epoch: what is in flight of the old one must not hold or move the new position.
                self._kill(epoch)
                self._renew(tp, 0.0, reset=True)
        self._rewind()

    async def _isolate(self, error: Exception, max_records: int) -> list[Segment]:
        """Some partition holds what cannot be read: deliver what stands before it, and when that is done halt it."""
        self._rewind()
        segments: list[Segment] = []
        for tp, epoch in list(self._epochs.items()):
            taken = 0
            while epoch.ready and epoch.alive and not epoch.paused and taken < max_records:
                try:
                    polled = await self._consumer.getmany(tp, timeout_ms=int(_PROBE * 1000), max_records=1)
                except FATAL as refused:
                    raise PipelineStopped(sentence(refused, self._config.kafka)) from refused
                except Exception as unread:  # noqa: BLE001 - as above
                    if isinstance(unread, KafkaError) and not isinstance(unread, CorruptRecordException):
                        break
                    if not (taken or epoch.pending):
                        await self.commit(_CALL_TIMEOUT)  # not yet due, and the next epoch begins at what is committed
                    if taken or epoch.uncommitted:
                        break  # what stands before it gets its outcome and its commit first; then it is found again
                    self.restart(epoch, HALTED_SECONDS, self._unreadable(tp, epoch, unread))
                else:
                    found = self._segments(polled)
                    if not found:
                        break
                    segments += found
                    taken += 1
        self._rewind()
        if not segments:
            await self._wait_after(error)
        return segments

    def _unreadable(self, tp: TopicPartition, epoch: PartitionEpoch, error: Exception) -> str:
        return (
            f"the record at or after {tp.topic}/{tp.partition}/{epoch.next_offset} cannot be read: "
            f"{type(error).__name__}: {error}; mend the log, or move the group's offset past it"
        )

    def _rewind(self) -> None:
        for tp, epoch in self._epochs.items():
            if epoch.ready and epoch.next_offset is not None:
                try:
                    self._consumer.seek(tp, epoch.next_offset)
                except IllegalStateError:
                    continue  # not assigned any more

    async def _watch(self) -> None:
        """Look at the client now and then; one that is stuck is replaced, since it does not heal by itself."""
        watchdog = Watchdog(asyncio.get_running_loop().time)
        while True:
            await asyncio.sleep(self._watchdog_period)
            await self._look_for_ends()
            signs = self._signs()
            stuck = watchdog.look(self._consumer.ended, self._joined, signs)
            if stuck is None:
                try:
                    self._consumer.check_coordinator()
                except FATAL as error:
                    raise PipelineStopped(sentence(error, self._config.kafka)) from error
                except KafkaError as error:
                    self._trouble(error)
                continue
            if not await self._brokers_answer(list(signs)):
                continue
            log.error("consumer_stuck", because=stuck, action="replacing the client")
            self._telemetry.rebuilds.inc()
            await self.revoked()
            self._consumer.wake()
            await stop_client(self._consumer, _CALL_TIMEOUT)
            await self._connect(GroupConsumer(self._config))
            watchdog = Watchdog(asyncio.get_running_loop().time)

    async def _look_for_ends(self) -> None:
        """Where the partitions end that are not asked for: without an answer to a fetch the client does not know."""
        resting = asyncio.get_running_loop().time() - self._polled > self._watchdog_period
        assigned = self._consumer.assignment()
        wanted = [tp for tp, epoch in self._epochs.items() if tp in assigned and (resting or epoch.paused)]
        try:
            async with asyncio.timeout(_CALL_TIMEOUT):
                self._ends = await self._consumer.end_offsets(wanted) if wanted else {}
        except (KafkaError, TimeoutError):
            pass  # the lag that was known stays

    def _signs(self) -> dict[TopicPartition, Any]:
        """For each partition that is asked for, what changes with every answer of its broker."""
        now = asyncio.get_running_loop().time()
        if now - self._polled > 2 * self._watchdog_period:
            return {}  # the flow does not ask: what has been fetched lies there
        signs: dict[TopicPartition, Any] = {}
        assigned = self._consumer.assignment()
        for tp, epoch in self._epochs.items():
            if epoch.ready and not epoch.paused and tp in assigned:
                signs[tp] = (self._consumer.sign(tp), epoch.next_offset)
        return signs

    async def _brokers_answer(self, wanted: Sequence[TopicPartition]) -> bool:
        """Whether the fault is the client's: the brokers tell it where the partitions end."""
        try:
            async with asyncio.timeout(_CALL_TIMEOUT):
                await self._consumer.end_offsets(list(wanted) or [TopicPartition(self._config.source.topics[0], 0)])
        except (KafkaError, TimeoutError):
            return False
        return True

    async def _wait_after(self, error: BaseException) -> None:
        self._trouble(error)
        await asyncio.sleep(self._backoff.next())

    def _trouble(self, error: BaseException) -> None:
        if not self._failing:
            self._failing = True
            log.warning("kafka_away", error=sentence(error, self._config.kafka), action="trying again")
        self._telemetry.retry("kafka")

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
        if self._source.instance_taken():
            raise asyncio.CancelledError  # ends the client's own task, which would join again and throw the other out
        try:
            await self._source.revoked()
        except Exception:
            log.exception("revoke_failed")

    async def on_partitions_assigned(self, assigned: Any) -> None:
        try:
            self._source.accepted(list(assigned))
        except Exception:
            log.exception("assign_failed")
