"""What a topic that refuses outcomes means."""

import asyncio

import pytest
from aiokafka.errors import PolicyViolationError

from bridge.config import parse
from bridge.errors import PipelineStopped
from bridge.retry import HALTED_SECONDS
from bridge.sink.refusal import after_refusal
from tests.support import pipeline

CONFIG = parse(
    pipeline("memory:1", "memory:2", "m", {"events": "events-1", "results": "results-1", "letters": "letters-1"}), {}
)


def test_letters_that_cannot_be_written_halt_their_partitions_and_results_the_pipeline() -> None:
    error = PolicyViolationError("no")
    after, because = asyncio.run(after_refusal(CONFIG, {}, "letters-1", 0, 0, error))
    assert (after, "letters-1/0 refuses what is to be written" in because) == (HALTED_SECONDS, True)
    with pytest.raises(PipelineStopped, match="results-1/0 refuses"):
        asyncio.run(after_refusal(CONFIG, {}, "results-1", 0, 0, error))
