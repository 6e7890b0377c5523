"""The Kafka consumer of a member, and what has to be known of its inner life that its interface does not tell.

Reaches into aiokafka's private parts; written against 0.14.
"""

import asyncio
from collections import OrderedDict
from typing import Any

from aiokafka import TopicPartition
from aiokafka.consumer.fetcher import FetchResult, PartitionRecords
from aiokafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor
from aiokafka.errors import ConsumerStoppedError

from bridge.committed import OffsetsConsumer
from bridge.config import Pipeline
from bridge.kafka import client_options

_NEVER_MS = 2**31 - 1
_PACE = 0.01  # seconds


class GroupConsumer(OffsetsConsumer):
    """A member of the pipeline's group.

    Attributes:
        heard: when the coordinator last answered a heartbeat, or let us in, in the loop's time; 0 when it has not.
    """

    def __init__(self, config: Pipeline) -> None:
        source = config.source
        super().__init__(
            **client_options(config.kafka),
            group_id=config.group,
            group_instance_id=source.instance_id,
            # One alone: this client joins once for each it offers, with another list every time, and several members
            # that do so keep each other from ever settling. A class of its own for each consumer, since the client
            # keeps the last assignment in the class.
            partition_assignment_strategy=(type("Sticky", (StickyPartitionAssignor,), {}),),
            enable_auto_commit=False,
            auto_offset_reset="none",  # a lost offset is decided by source.start, never by a silent jump to latest
            isolation_level="read_committed",
            session_timeout_ms=int(source.session_timeout * 1000),
            rebalance_timeout_ms=60_000,
            heartbeat_interval_ms=int(min(3.0, source.session_timeout / 3) * 1000),
            # A paused intake must not be expelled from the group; that the loop turns is what /health/live watches.
            max_poll_interval_ms=_NEVER_MS,
            fetch_max_wait_ms=250,
        )
        self.heard = 0.0

    async def start(self) -> None:
        """As the client's own; from then on `getmany` gives records as `bridge.record.Record` describes them."""
        await super().start()
        self._fetcher._records = _Fetched()
        self._pace_fetches()

    def _pace_fetches(self) -> None:
        """Let 10 ms pass between the beginnings of two fetches from one broker; see decision 12.

        A fetch is answered as soon as there is one record. Under a steady load each would bring a few, and the cost of
        fetches, small batches and small writes would keep every core busy, with each event waiting for all of it. A
        fetch that had to wait for a record has mostly waited longer than this already: then the next one goes at once.
        """
        fetch, loop, sent = self._fetcher._proc_fetch_request, asyncio.get_running_loop(), dict[int, float]()

        async def paced(assignment: Any, node: int, request: Any) -> bool:
            try:
                await asyncio.sleep(sent.get(node, 0.0) + _PACE - loop.time())
            except asyncio.CancelledError:
                return False  # as the client's own: its close waits for this, and would end at a cancellation
            sent[node] = loop.time()
            more: bool = await fetch(assignment, node, request)
            return more

        self._fetcher._proc_fetch_request = paced

    def watch_heartbeats(self) -> None:
        """From now on keep `heard` up to date; once started."""
        coordinator, loop = self._coordinator, asyncio.get_running_loop()
        beat = coordinator._do_heartbeat

        async def timed() -> bool:
            answered: bool = await beat()
            if answered:
                self.heard = loop.time()
            return answered

        coordinator._do_heartbeat = timed

    @property
    def expelled(self) -> bool:
        """Whether the group has said that it does not know this member."""
        return not self._coordinator.member_id

    @property
    def ended(self) -> str | None:
        """Which of the inner tasks has ended: none may while the client is in use."""
        if self._coordinator._coordination_task.done():
            return "task of group coordination"
        if self._fetcher._fetch_task.done():
            return "task of fetching"
        return None

    def check_coordinator(self) -> None:
        """Raise what the coordinator has refused, which otherwise waits for the next poll, and that may be far."""
        self._coordinator.check_errors()

    def wake(self) -> None:
        """Whoever waits for an assignment gets a ConsumerStoppedError; stopping alone would let it wait for ever."""
        self._subscription.abort_waiters(ConsumerStoppedError())

    def read_up_to(self, tp: TopicPartition) -> int | None:
        """Where the next fetch begins, beyond transaction markers too; None where that is not known."""
        subscription = self._subscription.subscription
        assignment = subscription.assignment if subscription is not None else None
        if assignment is None or tp not in assignment.tps:
            return None
        state = assignment.state_value(tp)
        return int(state.position) if state.has_valid_position else None

    def sign(self, tp: TopicPartition) -> Any:
        """Something that changes with every answer to a fetch, and all the time while fetched records lie here."""
        lying = asyncio.get_running_loop().time() if tp in self._fetcher._records else None
        return self.last_poll_timestamp(tp), lying


class _Fetched(OrderedDict[TopicPartition, Any]):
    """What has been fetched and not polled yet, as the fetcher keeps it."""

    def __setitem__(self, tp: TopicPartition, result: Any) -> None:
        if type(result) is FetchResult:
            result._partition_records.__class__ = _AsParsed
        super().__setitem__(tp, result)


class _AsParsed(PartitionRecords):  # type: ignore[misc]
    """Hands records out as they were parsed; a second object for each, with its topic, costs as much as parsing it."""

    def _consumer_record(self, tp: TopicPartition, record: Any) -> Any:
        return record
