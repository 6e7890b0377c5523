"""From the rows of a batch to their answers, through outages and refused rows.

An outage is waited out and never costs an event: the call is repeated without end, with growing, jittered pauses. A
refusal of the data is narrowed down by halves: both halves are asked at once, and what is refused alone gets a dead
letter. Before that the model is asked for its signature again, so that a changed model is not blamed on the events.
"""

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog

from bridge.errors import PipelineStopped, first_cause
from bridge.infer import Disposition, InferenceError, ModelServer
from bridge.observe.health import Health
from bridge.observe.telemetry import Telemetry
from bridge.record import Decoded, Part, Reject
from bridge.retry import Backoff
from bridge.tensors import ModelSpec

log = structlog.get_logger()

_FIRST_DELAY = {Disposition.RETRY: 0.1, Disposition.ABSENT: 1.0}
_IDLE = 5.0  # seconds without a call after which the server is asked whether it is still there
_MOST_DELAY = {Disposition.RETRY: 5.0, Disposition.ABSENT: 10.0}


class Abandoned(Exception):
    """The partitions of the batch are not ours any more."""


@dataclass(frozen=True, slots=True)
class Predicted:
    """What the model made of a batch: answers for runs of its rows, and rejects for rows it refuses.

    Attributes:
        parts: in the order of the rows.
        rejects: `row` is the event's place in the batch.
    """

    parts: Sequence[Part]
    rejects: Sequence[Reject]


class Predictor:
    """Asks `server` until there is an answer.

    Args:
        server: the model server.
        model: as it described itself when the flow was planned.
        outputs: the output tensors that results need.
        telemetry: where calls and retries are recorded.
        health: told whether the model answers.
        rng: for the jitter.
    """

    def __init__(
        self,
        server: ModelServer,
        model: ModelSpec,
        outputs: Sequence[str],
        telemetry: Telemetry,
        health: Health,
        rng: random.Random,
    ) -> None:
        self._server = server
        self._model = model
        self._outputs = outputs
        self._telemetry = telemetry
        self._health = health
        self._rng = rng
        self._calls = 0
        self._version = ""
        self._open = 0  # batches that are being asked, or wait to be asked again

    async def predict(self, decoded: Decoded, abandoned: Callable[[], bool]) -> Predicted:
        """The answers for all rows of `decoded`.

        Raises:
            Abandoned: `abandoned` said so while the server was away.
            PipelineStopped: the server refuses in a way that waiting does not cure.
        """
        if not decoded.places:
            return Predicted([], [])
        parts: list[Part] = []
        rejects: list[Reject] = []
        self._open += 1
        try:
            await self._narrow(decoded, range(len(decoded.places)), 0, abandoned, parts, rejects)
        except BaseExceptionGroup as group:
            # The halves run side by side; what ended them is what ends the batch, a reason to stop first of all.
            raise first_cause(group) from None
        finally:
            self._open -= 1
        parts.sort(key=lambda part: part.rows.start)
        return Predicted(parts, rejects)

    async def watch(self) -> None:
        """While no event comes, ask now and then whether the model is ready, so that health is not of the past."""
        while True:
            before = self._calls
            await asyncio.sleep(_IDLE)
            if self._calls == before and not self._open:
                try:
                    await self._server.describe()
                except InferenceError as error:
                    self._away(error)
                else:
                    self._answers()

    async def _narrow(
        self,
        decoded: Decoded,
        rows: range,
        attempts: int,
        abandoned: Callable[[], bool],
        parts: list[Part],
        rejects: list[Reject],
    ) -> None:
        try:
            part = await self._ask(decoded, rows, attempts, abandoned)
        except InferenceError as error:
            attempts += 1
            if len(rows) == 1:
                await self._same_signature()
                version = self._model.versions[-1] if self._model.versions else ""
                rejects.append(Reject(decoded.places[rows.start], "model", str(error), version, attempts))
                return
            middle = rows.start + len(rows) // 2
            async with asyncio.TaskGroup() as both:
                for half in (range(rows.start, middle), range(middle, rows.stop)):
                    both.create_task(self._narrow(decoded, half, attempts, abandoned, parts, rejects))
        else:
            parts.append(part)

    async def _ask(self, decoded: Decoded, rows: range, attempts: int, abandoned: Callable[[], bool]) -> Part:
        """One answer, however long it takes.

        Raises:
            InferenceError: of disposition DATA only.
        """
        whole = len(rows) == len(decoded.places)
        chunks = decoded.rows if whole else {k: v[rows.start : rows.stop] for k, v in decoded.rows.items()}
        backoff: Backoff | None = None
        while True:
            attempts += 1
            self._calls += 1
            started = time.perf_counter()
            try:
                prediction = await self._server.infer(self._model, chunks, len(rows), self._outputs)
            except InferenceError as error:
                self._record(started, "", error.code)
                if error.disposition is Disposition.DATA:
                    raise
                if error.disposition is Disposition.STOP:
                    raise PipelineStopped(str(error)) from error
                self._away(error)
                if backoff is None:
                    first, most = _FIRST_DELAY[error.disposition], _MOST_DELAY[error.disposition]
                    backoff = Backoff(first, most, self._rng)
                await asyncio.sleep(backoff.next())
                if abandoned():
                    raise Abandoned from None
            else:
                self._record(started, prediction.version, "OK")
                self._answers()
                self._follow(prediction.version)
                return Part(rows, prediction, attempts)

    async def _same_signature(self) -> None:
        """Make sure that the model still is the one the events were mapped for."""
        backoff = Backoff(0.1, 5.0, self._rng)
        while True:
            try:
                now = await self._server.describe()
            except InferenceError as error:
                if error.disposition is Disposition.STOP:
                    raise PipelineStopped(str(error)) from error
                self._away(error)
                await asyncio.sleep(backoff.next())
                continue
            if (list(now.inputs), list(now.outputs)) != (list(self._model.inputs), list(self._model.outputs)):
                before = ", ".join(map(str, (*self._model.inputs, *self._model.outputs)))
                after = ", ".join(map(str, (*now.inputs, *now.outputs)))
                raise PipelineStopped(
                    f"model {now.name!r} changed its signature from {before} to {after}; "
                    "check the mapping with headrace check, then start again"
                )
            return

    def _away(self, error: InferenceError) -> None:
        self._telemetry.retry("model")
        if self._health.model_ready:
            self._health.model_ready = False
            log.warning("model_away", error=str(error), action="intake paused, trying again")

    def _answers(self) -> None:
        if not self._health.model_ready:
            self._health.model_ready = True
            log.info("model_answers")

    def _follow(self, version: str) -> None:
        if version != self._version:
            log.info("model_version", model=self._model.name, before=self._version or None, now=version)
            self._version = version

    def _record(self, started: float, version: str, code: str) -> None:
        self._telemetry.inference(self._model.name, version, code).observe(time.perf_counter() - started)

    def __repr__(self) -> str:
        return f"<Predictor {self._server!r} ready={self._health.model_ready}>"
