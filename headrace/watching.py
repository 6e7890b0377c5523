"""A watcher at work: turn after turn until it is stopped, with logs, metrics and health."""

import contextlib
import threading
import time
from collections.abc import Callable

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from bridge.observe.http import ObserveServer
from serving.control import LOAD_SECONDS, TritonControl
from serving.errors import ServingError
from serving.repository import models
from serving.store import Repository
from serving.tfserving import TensorFlowServingControl
from serving.view import View
from serving.watch import Event, Watcher

log = structlog.get_logger()
_STUCK = 2 * LOAD_SECONDS  # that one turn may take: a large version is copied, loaded and warmed in it


class Watching:
    """One watcher, its server, and what the outside sees of them.

    Args:
        repository: where versions are dropped in: a folder, or an object store with a copy of it.
        view: the server's own folder.
        control: of the server; closed at the end.
        settle: seconds until a version without a manifest is taken for whole.
        probe: seconds between golden requests to the versions that serve.
        interval: seconds between turns.
        observe: host:port for health and metrics; None for none.
        told: of every event, beside the log.
    """

    def __init__(
        self,
        repository: Repository,
        view: View,
        control: TritonControl | TensorFlowServingControl,
        settle: float = 3.0,
        probe: float = 10.0,
        interval: float = 0.5,
        observe: str | None = None,
        told: Callable[[Event], None] = lambda event: None,
    ) -> None:
        self._control = control
        self._view = view
        self._repository = repository
        self._watcher = Watcher(repository.folder, view, control, self._note, settle, probe)
        self._interval = interval
        self._heard = told
        self._turned = time.monotonic()
        self._known: set[str] = set()
        self._next = 0.0
        self._trouble = ""
        self._taken = False
        self.settled = threading.Event()
        """Set once a turn has found nothing more to do."""
        registry = CollectorRegistry()
        self._events = Counter(
            "headrace_model_events", "What the watcher has done or found.", ["what", "model"], registry=registry
        )
        self._loads = Histogram(
            "headrace_model_load_seconds",
            "From a whole version to one that serves.",
            ["model"],
            buckets=(0.5, 1, 2, 5, 10, 20, 60, 300),
            registry=registry,
        )
        self._serving = Gauge(
            "headrace_model_version",
            "The version of the model that answers; 0 when none does.",
            ["model"],
            registry=registry,
        )
        self._observe = ObserveServer(observe, self, registry) if observe else None

    def run(self, stop: threading.Event) -> None:
        """Watch until `stop` is set."""
        while not stop.is_set():
            taken = self._exchange()
            if not self._watcher.turn() and taken:
                self.settled.set()
            self._turned = time.monotonic()
            for model in self._known | self._watcher.serving.keys():
                self._serving.labels(model).set(self._watcher.serving.get(model, 0))
            self._known |= self._watcher.serving.keys()
            stop.wait(self._interval)

    def _exchange(self) -> bool:
        """With where versions are dropped in; while that is away, what has come by then is served on.

        Returns:
            Whether it has been read at all by now.
        """
        now = time.monotonic()
        if now < self._next:
            return self._taken
        trouble = ""
        try:
            self._repository.pull()
            self._taken = True
        except ServingError as error:
            trouble = str(error)
        try:
            self._repository.push()
        except ServingError as error:  # one that cannot be written to can still be read
            trouble = str(error)
        if trouble and trouble != self._trouble:
            self._note(Event("trouble", "", 0, trouble))
        self._trouble = trouble
        self._next = time.monotonic() + self._repository.pause
        return self._taken

    def live(self) -> tuple[bool, str]:
        """See `Probes`."""
        age = time.monotonic() - self._turned
        return age < _STUCK, f"the last look at the repository was {age:.0f} s ago"

    def ready(self) -> tuple[bool, str]:
        """See `Probes`."""
        if not self.settled.is_set():
            return False, "versions are being loaded"
        if not any(self._watcher.serving.values()) and models(self._repository.folder):
            return False, "no model has a version that can be served; the log says why"
        return True, "watching"

    def close(self) -> None:
        """Let go of the repository, the server, its view and the endpoints."""
        with contextlib.suppress(ServingError):
            self._repository.push()  # what was decided since the last exchange
        self._repository.close()
        self._control.close()
        self._view.close()
        if self._observe:
            self._observe.close()

    def _note(self, event: Event) -> None:
        self._events.labels(event.what, event.model).inc()
        if event.what == "loaded":
            self._loads.labels(event.model).observe(event.seconds)
        fields = {"model": event.model or None, "version": event.version or None, "reason": event.reason or None}
        if event.what == "loaded":
            fields["seconds"] = f"{event.seconds:.2f}"
        note = log.warning if event.what in ("refused", "trouble") else log.info
        note(f"version {event.what}" if event.version else event.what, **{k: v for k, v in fields.items() if v})
        self._heard(event)
