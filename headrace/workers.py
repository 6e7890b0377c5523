"""`headrace run --workers N`: processes of one pipeline, members of one group, under one supervisor.

    supervisor  -- starts -->  worker 1 … N, each a `headrace run` of its own
                <- observing ADDRESS, ready NAME - their standard output

A worker that is killed or crashes is started again; one that stops with a sentence, because of something that cannot
heal, stops them all, since the others would meet the same. The supervisor never touches an event.
"""

import asyncio
import contextlib
import http.client
import random
import signal
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import structlog
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from bridge.config import Pipeline
from bridge.errors import HeadraceError
from bridge.observe.http import ObserveServer
from bridge.retry import Backoff
from bridge.run import on_signals, run
from headrace.rig.process import die_with_parent

log = structlog.get_logger()

_LOOPBACK = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # whatever the environment says of proxies

CRASHED = 70
"""Exit code of a worker that ends with an error nobody has foreseen."""

_SENTENCES = (1, 2)  # exit codes of a worker that has said why it stops
_ENDING = 45.0  # seconds beyond drain_timeout that a worker is given to end: commit, leave, close
_STEADY = 60.0  # seconds of running after which a death is no longer one in a series
_ANSWER = 1.0
_SILENT = (504, "does not answer")


class _Stopped(Exception):
    """A worker has ended with an exit code of its own choice."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class Worker:
    """One process, started again when it dies.

    Args:
        number: from 1.
        path: the configuration file.
        drain: seconds its own drain may take.
        changed: told when it gets ready.
        died: told when it has died and will be started again.
    """

    def __init__(
        self, number: int, path: Path, drain: float, changed: Callable[[], None], died: Callable[[], None]
    ) -> None:
        self.number = number
        # -P: nothing in the folder we were started in may get in the way of our modules.
        self._command = [sys.executable, "-P", "-m", "headrace", "run", str(path), "--worker", str(number)]
        self._limit = drain + _ENDING
        self._changed = changed
        self._died = died
        self._process: asyncio.subprocess.Process | None = None
        self.address: str | None = None
        """host:port of its endpoints; None while it is not running."""
        self.ready = False
        """It has partitions, or none for now, and the model answers."""
        self.drained = True
        """Its last end was an orderly one."""

    async def keep(self) -> None:
        """Keep it running; a cancellation lets it drain.

        Raises:
            _Stopped: it ended by itself, with a sentence on standard error.
        """
        loop = asyncio.get_running_loop()
        backoff = Backoff(0.5, 30.0, random.Random())
        while True:
            started = loop.time()
            try:
                code = await self._run()
            except OSError as error:  # no memory or no processes left, perhaps because of what has killed it
                log.error("worker_not_started", worker=self.number, error=str(error))  # noqa: TRY400
                code = CRASHED
            if code in _SENTENCES:
                raise _Stopped(code)
            if loop.time() - started > _STEADY:
                backoff.reset()
            pause = backoff.next()
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            log.error("worker_died", worker=self.number, how=how, started_again_after=round(pause, 1))
            self._died()
            await asyncio.sleep(pause)

    def get(self, path: str) -> tuple[int, str] | None:
        """Status and text of one of its endpoints; None when it is not running, 504 when it is silent."""
        if self.address is None:
            return None
        try:
            with _LOOPBACK.open(f"http://{self.address}{path}", timeout=_ANSWER) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except (OSError, http.client.HTTPException) as error:
            silent = isinstance(error, TimeoutError) or isinstance(getattr(error, "reason", None), TimeoutError)
            return _SILENT if silent else None

    async def _run(self) -> int:
        process = self._process = await asyncio.create_subprocess_exec(
            *self._command,
            stdout=asyncio.subprocess.PIPE,
            # Its own session: Ctrl-C in a terminal reaches the supervisor alone, which tells the workers once.
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
        log.info("worker_started", worker=self.number, pid=process.pid)
        try:
            assert process.stdout is not None, "piped"  # noqa: S101 - for the type checker
            async for line in process.stdout:
                self._said(line.decode().strip())
            return await process.wait()
        except asyncio.CancelledError:
            await self._end(process)
            raise
        finally:
            self.address, self.ready = None, False

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(self._limit):
                self.drained = await process.wait() == 0
        except TimeoutError:
            log.error("worker_killed", worker=self.number, because=f"it did not end within {self._limit:.0f} s")  # noqa: TRY400
            self.drained = False
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    def _said(self, line: str) -> None:
        word, _, rest = line.partition(" ")
        if word == "observing":
            self.address = rest
        elif word == "ready":
            self.ready = True
            self._changed()

    def __repr__(self) -> str:
        return f"<Worker {self.number} {self.address} {'ready' if self.ready else 'not ready'}>"


def _ask(workers: Sequence[Worker], path: str) -> Iterator[tuple[Worker, tuple[int, str] | None]]:
    """Every worker's answer, all asked at the same time: probes have little patience."""
    with ThreadPoolExecutor(len(workers)) as pool:
        yield from zip(workers, pool.map(lambda worker: worker.get(path), workers), strict=True)


class _Health:
    """Alive while no worker is stuck; ready when all are."""

    def __init__(self, workers: Sequence[Worker]) -> None:
        self._workers = workers

    def live(self) -> tuple[bool, str]:
        """One that is being started again is no reason to restart them all; one that is stuck is."""
        return self._all("/health/live", "live", missing_is_good=True)

    def ready(self) -> tuple[bool, str]:
        """Whether every worker is."""
        return self._all("/health/ready", "ready", missing_is_good=False)

    def _all(self, path: str, good: str, missing_is_good: bool) -> tuple[bool, str]:
        problems = []
        for worker, answer in _ask(self._workers, path):
            if answer is None:
                if not missing_is_good:
                    problems.append(f"worker {worker.number}: starting")
            elif answer[0] != 200:
                problems.append(f"worker {worker.number}: {answer[1].strip()}")
        return (False, "; ".join(problems)) if problems else (True, good)


class _Metrics:
    """The metrics of all workers, each sample with the number of its worker."""

    def __init__(self, workers: Sequence[Worker]) -> None:
        self._workers = workers

    def collect(self) -> Iterator[Metric]:
        """For the registry."""
        merged: dict[str, Metric] = {}
        for worker, answer in _ask(self._workers, "/metrics"):
            for family in text_string_to_metric_families(answer[1]) if answer and answer[0] == 200 else ():
                metric = merged.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                metric.samples += (
                    sample._replace(labels={**sample.labels, "worker": str(worker.number)}) for sample in family.samples
                )
        yield from merged.values()


async def supervise(path: Path, config: Pipeline, count: int, on_ready: Callable[[], None]) -> int:
    """Run `count` workers until SIGTERM or SIGINT, then let them drain. A second signal ends everything at once.

    Args:
        path: the configuration file.
        config: the same, read.
        count: how many workers.
        on_ready: called once, when all of them are ready.

    Returns:
        0 when all have drained; else the exit code of a worker that stopped by itself, or 1.
    """
    stop = asyncio.Event()
    on_signals(stop)
    all_ready = asyncio.Event()
    registry = CollectorRegistry()
    restarts = Counter(
        "headrace_worker_restarts", "Times a worker died and was started again.", ("pipeline",), registry=registry
    ).labels(config.name)
    workers: list[Worker] = []

    def changed() -> None:
        if not all_ready.is_set() and all(worker.ready for worker in workers):
            all_ready.set()
            on_ready()

    workers += (Worker(n, path, config.drain_timeout, changed, restarts.inc) for n in range(1, count + 1))
    registry.register(_Metrics(workers))
    observe = ObserveServer(config.observe.address, _Health(workers), registry) if config.observe.address else None
    if observe:
        log.info("observing", address=observe.address)
    keeping = [asyncio.create_task(worker.keep(), name=f"worker {worker.number}") for worker in workers]
    stopping = asyncio.create_task(stop.wait(), name="stop")
    try:
        await asyncio.wait({*keeping, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if stop.is_set():
            log.info("draining")
        for task in (stopping, *keeping):
            task.cancel()
        code = _code(await asyncio.gather(*keeping, return_exceptions=True))
        return code if all(worker.drained for worker in workers) else max(code, 1)
    finally:
        if observe:
            observe.close()


def _code(ends: Iterable[BaseException | None]) -> int:
    code = 0
    for end in ends:
        if isinstance(end, _Stopped):
            code = max(code, end.code)
        elif isinstance(end, Exception):
            raise end
    return code


async def work(config: Pipeline, number: int, on_ready: Callable[[], None]) -> int:
    """Run one worker, as `supervise` has started it.

    Args:
        config: of the whole pipeline; what only one process can have becomes this worker's own.
        number: of the worker.
        on_ready: called once, when partitions are assigned and the model answers.

    Returns:
        0 when it has drained, `CRASHED` after an error that nobody has foreseen.

    Raises:
        ConfigError, PipelineStopped: as `bridge.run.run`.
    """
    structlog.contextvars.bind_contextvars(worker=number)
    instance, address = config.source.instance_id, config.observe.address
    source = config.source.model_copy(update={"instance_id": instance and f"{instance}-{number}"})
    observe = config.observe.model_copy(update={"address": address and "127.0.0.1:0"})
    own = config.model_copy(update={"source": source, "observe": observe})
    try:
        await run(own, on_ready, lambda at: print(f"observing {at}", flush=True))
    except HeadraceError:
        raise
    except Exception:
        log.exception("crashed")
        return CRASHED
    return 0
