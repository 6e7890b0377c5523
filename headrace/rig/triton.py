"""A real Triton on loopback over a model repository; a context manager."""

import shutil
import tempfile
import uuid
from pathlib import Path

from bridge.errors import HeadraceError
from headrace.rig.process import Rig, ServerFailed, ServerProcess, free_port, listening
from serving.triton import TritonLaunch


class TritonRig(Rig):
    """One tritonserver.

    Args:
        repository: the model repository.
        grpc_port: 0 takes a free one; so for the others.
        http_port: of health and of the HTTP interface.
        metrics_port: of Triton's own metrics.
        models: to load at start; None loads all, of which there must be one.
    """

    def __init__(
        self,
        repository: Path,
        grpc_port: int = 0,
        http_port: int = 0,
        metrics_port: int = 0,
        models: tuple[str, ...] | None = None,
    ) -> None:
        for port in (grpc_port, http_port, metrics_port):
            if port and listening(port):
                raise HeadraceError(
                    f"port {port} is taken; choose others with --grpc-port, --http-port, --metrics-port"
                )
        self._home = Path(tempfile.gettempdir()) / f"headrace-triton-{uuid.uuid4().hex[:12]}"
        self._launch = TritonLaunch(
            repository=repository.resolve(),
            home=self._home,
            grpc_port=grpc_port or free_port(),
            http_port=http_port or free_port(),
            metrics_port=metrics_port or free_port(),
            models=models,
        )
        self._process: ServerProcess | None = None

    @property
    def address(self) -> str:
        """host:port of the gRPC service."""
        return f"{self._launch.host}:{self._launch.grpc_port}"

    @property
    def process(self) -> ServerProcess:
        """The server's process, once started."""
        assert self._process is not None, "not started"  # noqa: S101 - for the type checker
        return self._process

    def launch(self) -> None:
        """Start it without waiting for it.

        Raises:
            ServingError: there is nothing to serve, or no Triton here.
        """
        self._process = ServerProcess(
            "Triton", self._launch.command(), self._home / "server.log", self._launch.environment()
        )

    def wait_ready(self, timeout: float = 120.0) -> None:
        """Until every model is loaded.

        Raises:
            ServerFailed: with the last lines of its log.
        """
        self.process.wait_ready(self._launch.ready, timeout)

    def wait(self) -> None:
        """Until it ends by itself.

        Raises:
            ServerFailed: always, with its last lines.
        """
        code = self.process.wait()
        raise ServerFailed(f"Triton ended with exit code {code}:\n{self.process.tail()}")

    def stop(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.stop()
        shutil.rmtree(self._home, ignore_errors=True)

    def __repr__(self) -> str:
        return f"<TritonRig {self.address} {self._process}>"
