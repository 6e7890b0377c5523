"""A coordinator that has moved or is loading does not say that nothing is committed."""

import asyncio
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import GroupAuthorizationFailedError, GroupLoadInProgressError, NotCoordinatorForGroupError
from aiokafka.protocol.commit import OffsetFetchResponse_v1, OffsetFetchResponse_v3

from bridge.committed import OffsetsConsumer

TP = TopicPartition("t", 0)


class Coordinator:
    """Gives one scripted answer."""

    group_id = "g"

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.dead = False

    async def ensure_coordinator_known(self) -> None: ...

    async def _send_req(self, request: Any) -> Any:
        return self.answer

    def coordinator_dead(self) -> None:
        self.dead = True


def ask(answer: Any) -> tuple[Any, Coordinator]:
    coordinator = Coordinator(answer)

    async def run() -> Any:
        consumer = OffsetsConsumer(bootstrap_servers="none:1")
        consumer._coordinator = coordinator
        consumer._closed = True  # it has never been started
        try:
            return await consumer.committed(TP)
        except Exception as error:
            return error

    return asyncio.run(run()), coordinator


@pytest.mark.parametrize(
    ("answer", "kind", "dead"),
    [
        (OffsetFetchResponse_v3(0, [], 16), NotCoordinatorForGroupError, True),
        (OffsetFetchResponse_v3(0, [], 14), GroupLoadInProgressError, False),
        (OffsetFetchResponse_v3(0, [], 30), GroupAuthorizationFailedError, False),
        (OffsetFetchResponse_v3(0, [("t", [(0, -1, "", 14)])], 0), GroupLoadInProgressError, False),
        (OffsetFetchResponse_v1([("t", [(0, -1, "", 16)])]), NotCoordinatorForGroupError, True),
    ],
)
def test_a_refusal_is_an_error(answer: Any, kind: type[Exception], dead: bool) -> None:
    found, coordinator = ask(answer)
    assert (type(found), coordinator.dead) == (kind, dead)


def test_an_offset_and_none() -> None:
    assert ask(OffsetFetchResponse_v3(0, [("t", [(0, 7, "text", 0)])], 0))[0] == 7
    assert ask(OffsetFetchResponse_v3(0, [("t", [(0, -1, "", 0)])], 0))[0] is None
    assert ask(OffsetFetchResponse_v1([("t", [(0, 3, "", 0)])]))[0] == 3
