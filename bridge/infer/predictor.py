"""From the rows of a batch to their answers, through outages and refused rows.

An outage is waited out and never costs an event: the call is repeated without end, with growing, jittered pauses. A
refusal of the data is narrowed down by halves: both halves are asked at once, and what is refused alone gets a dead
letter. No event is blamed for an outage or a changed model: before the letter, some other request must have been
answered since the trouble began (a row that was answered before is asked again if need be), and the model must still
have its signature.
"""

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog

from bridge.errors import PipelineStopped, first_cause
from bridge.infer import Disposition, InferenceError, ModelServer
from bridge.infer.circuit import Circuit
from bridge.observe.health import Health
from bridge.observe.telemetry import Telemetry
from bridge.record import Decoded, Part, Prediction, Reject, Rows
from bridge.retry import Backoff
from bridge.tensors import ModelSpec

log = structlog.get_logger()

_FIRST_DELAY = {Disposition.RETRY: 0.1, Disposition.UNSURE: 0.1, Disposition.ABSENT: 1.0}
_IDLE = 5.0  # seconds without a call after which the server is asked whether it is still there
_MOST_DELAY = {Disposition.RETRY: 5.0, Disposition.UNSURE: 5.0, Disposition.ABSENT: 10.0}
_UNSURE_TRIES = 3  # of a call that the server fails over, before a single event is looked for


class Abandoned(Exception):
    """The partitions of the batch are not ours any more."""


class _Refused(Exception):
    """Some of the rows asked for are to blame for the failure."""

    def __init__(self, error: InferenceError, attempts: int) -> None:
        super().__init__(str(error))
        self.error = error
        self.attempts = attempts


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
        self._answered = 0
        self._good: Rows | None = None  # rows of the last call that was answered
        self._circuit = Circuit(Backoff(0.1, 5.0, rng))
        self._version = ""
        self._open = 0  # batches that are being asked, or wait to be asked again

    @property
    def paused(self) -> bool:
        """Whether the server is away, so that no more events should be taken in; some batch is there to probe it."""
        return self._circuit.open and self._open > 0

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
            whole = range(len(decoded.places))
            await self._narrow(decoded, whole, 0, self._answered, abandoned, parts, rejects)
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
        since: int,
        abandoned: Callable[[], bool],
        parts: list[Part],
        rejects: list[Reject],
    ) -> None:
        """Ask for `rows`, by halves when they are refused.

        Args:
            decoded: the batch.
            rows: which of its rows.
            attempts: calls that have carried them so far.
            since: how many calls had been answered when the batch was first asked.
            abandoned: see `predict`.
            parts: where answers go.
            rejects: where refused events go.
        """
        try:
            part = await self._ask(decoded, rows, attempts, since, abandoned)
        except _Refused as refused:
            attempts, error = refused.attempts, refused.error
            if len(rows) == 1:
                version = self._model.versions[-1] if self._model.versions else ""
                rejects.append(Reject(decoded.places[rows.start], "model", str(error), version, attempts))
                return
            middle = rows.start + len(rows) // 2
            async with asyncio.TaskGroup() as both:
                for half in (range(rows.start, middle), range(middle, rows.stop)):
                    both.create_task(self._narrow(decoded, half, attempts, since, abandoned, parts, rejects))
        else:
            parts.append(part)

    async def _ask(
        self, decoded: Decoded, rows: range, attempts: int, since: int, abandoned: Callable[[], bool]
    ) -> Part:
        """One answer, however long it takes.

        Raises:
            _Refused: some of the rows are to blame; a single row certainly is.
        """
        whole = len(rows) == len(decoded.places)
        chunks = decoded.rows if whole else {k: v[rows.start : rows.stop] for k, v in decoded.rows.items()}
        backoff: Backoff | None = None
        unsure = 0
        while True:
            async with self._circuit.turn():
                if backoff is not None and abandoned():
                    raise Abandoned
                attempts += 1
                try:
                    prediction = await self._call(chunks, len(rows))
                except InferenceError as error:
                    # Without its traceback, which would hold this frame, and with it the batch, in a cycle.
                    failed = error.with_traceback(None)
                else:
                    await self._follow(prediction.version)
                    return Part(rows, prediction, attempts)
            if failed.disposition is Disposition.STOP:
                raise PipelineStopped(str(failed)) from failed
            unsure += failed.disposition is Disposition.UNSURE
            suspect = failed.disposition is Disposition.DATA or unsure >= _UNSURE_TRIES
            if suspect and (len(rows) > 1 or await self._guilty(failed, since)):
                raise _Refused(failed, attempts)
            if not suspect or self._good is not None:
                # A suspect is not acquitted while nothing has ever been answered: other events must come to be asked.
                self._circuit.failed()
            self._away(failed)
            if backoff is None:
                first, most = _FIRST_DELAY.get(failed.disposition, 0.1), _MOST_DELAY.get(failed.disposition, 5.0)
                backoff = Backoff(first, most, self._rng)
            if not self._circuit.open:
                await asyncio.sleep(backoff.next())
            if abandoned():
                raise Abandoned

    async def _call(self, chunks: Rows, count: int) -> Prediction:
        self._calls += 1
        started = time.perf_counter()
        try:
            prediction = await self._server.infer(self._model, chunks, count, self._outputs)
        except InferenceError as error:
            self._record(started, "", error.code)
            if error.disposition is Disposition.DATA:
                self._circuit.answered()
            raise
        self._record(started, prediction.version, "OK")
        self._answered += 1
        self._good = chunks
        self._circuit.answered()
        self._answers()
        return prediction

    async def _guilty(self, error: InferenceError, since: int) -> bool:
        """Whether it is this event that fails: the model is what it was, and other requests are answered meanwhile."""
        await self._same_signature()
        if self._answered > since:
            return True
        if self._good is None:
            # Nothing has ever been answered: a refusal is taken at its word, a mere failure is not.
            return error.disposition is Disposition.DATA
        try:
            await self._call({name: rows[:1] for name, rows in self._good.items()}, 1)
        except InferenceError:
            return False
        return True

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
        ready, self._health.model_missing = not self._health.model_missing, str(error) or repr(error)
        if ready:
            log.warning("model_away", error=str(error), action="intake paused, trying again")

    def _answers(self) -> None:
        if self._health.model_missing:
            self._health.model_missing = ""
            log.info("model_answers")

    async def _follow(self, version: str) -> None:
        if version != self._version:
            before, self._version = self._version, version
            log.info("model_version", model=self._model.name, before=before or None, now=version)
            if before:
                await self._same_signature()

    def _record(self, started: float, version: str, code: str) -> None:
        self._telemetry.inference(self._model.name, version, code).observe(time.perf_counter() - started)

    def __repr__(self) -> str:
        return f"<Predictor {self._server!r} {self._health!r}>"
