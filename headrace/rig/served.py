"""A model repository served on this machine: a Triton, and the watcher that decides what it loads."""

import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from bridge.errors import HeadraceError
from headrace.rig.process import Rig, ServerFailed
from headrace.rig.triton import TritonRig
from headrace.watching import Watching
from serving.control import TritonControl
from serving.errors import ServingError
from serving.store import repository_for_watching
from serving.view import View
from serving.watch import Event

_PATIENCE = 300.0


class ServedRepository(Rig):
    """One tritonserver over a view of its own, and a watcher of the repository.

    Args:
        repository: the model repository: a folder, or the URL of an object store.
        grpc_port: 0 takes a free one; so for the others.
        http_port: of health and of the HTTP interface.
        metrics_port: of Triton's own metrics.
        settle: seconds until a version without a manifest is taken for whole.
        probe: seconds between golden requests to the versions that serve.
        told: of everything that the watcher does or finds.
    """

    def __init__(
        self,
        repository: str | Path,
        grpc_port: int = 0,
        http_port: int = 0,
        metrics_port: int = 0,
        settle: float = 3.0,
        probe: float = 10.0,
        told: Callable[[Event], None] = lambda event: None,
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="headrace-view-", ignore_cleanup_errors=True)
        try:
            self._repository = repository_for_watching(str(repository), Path(self._folder.name))
            if not self._repository.folder.is_dir():
                raise ServingError(f"{repository}: no such model repository; a repository is a folder of models")  # noqa: TRY301
        except ServingError:
            self._folder.cleanup()
            raise
        self._times = (settle, probe)
        self._heard = told
        self._view = Path(self._folder.name) / "models"
        self._view.mkdir()
        try:
            self.triton = TritonRig(self._view, grpc_port, http_port, metrics_port, models=())
        except HeadraceError:
            self._folder.cleanup()
            raise
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._watching: Watching | None = None
        self._reasons: list[str] = []

    @property
    def address(self) -> str:
        """host:port of the gRPC service."""
        return self.triton.address

    def launch(self) -> None:
        """See `Rig`."""
        self.triton.launch()

    def wait_ready(self) -> None:
        """Until every model that can be served is.

        Raises:
            ServerFailed: there is none.
        """
        self.triton.wait_ready()
        self._watching = Watching(
            self._repository, View(self._view), TritonControl(self.address), *self._times, told=self._told
        )
        self._thread = threading.Thread(target=self._watching.run, args=(self._stop,), name="watcher", daemon=True)
        self._thread.start()
        until = time.monotonic() + _PATIENCE
        while not self._watching.settled.wait(0.1):
            if not self.triton.process.running or time.monotonic() > until:
                raise ServerFailed(f"Triton ended, or loads for too long:\n{self.triton.process.tail()}")
        control = TritonControl(self.address)
        try:
            if not control.ready():
                reasons = "\n".join(self._reasons) or "no model in it; expected <model>/<version>/model.savedmodel/"
                raise ServerFailed(f"{self._repository.name}: nothing that can be served:\n{reasons}")
        finally:
            control.close()

    def wait(self) -> None:
        """See `Rig`."""
        self.triton.wait()

    def stop(self) -> None:
        """See `Rig`."""
        self._stop.set()
        self.triton.stop()  # first: the watcher may be waiting for it to load something
        if self._thread is not None:
            self._thread.join()
        if self._watching is not None:
            self._watching.close()
        self._folder.cleanup()

    def _told(self, event: Event) -> None:
        if event.reason:
            self._reasons.append(event.reason)
        self._heard(event)
