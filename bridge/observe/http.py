"""/health/live, /health/ready and /metrics, served by a thread: they answer even while the event loop is stuck."""

import threading
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import Any, Protocol
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

from bridge.errors import PipelineStopped


class Probes(Protocol):
    """What the health endpoints ask, from their own thread; each answer with one word or sentence about it."""

    def live(self) -> tuple[bool, str]:
        """Whether the process should go on living."""
        ...

    def ready(self) -> tuple[bool, str]:
        """Whether events can flow."""
        ...


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    allow_reuse_address = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Probes and scrapes are no news."""


class ObserveServer:
    """The HTTP endpoints of one pipeline.

    Args:
        address: host:port; port 0 takes a free one.
        health: what the health endpoints tell.
        registry: what /metrics shows.

    Raises:
        PipelineStopped: the address is taken.
    """

    def __init__(self, address: str, health: Probes, registry: CollectorRegistry) -> None:
        host, _, port = address.rpartition(":")
        metrics = make_wsgi_app(registry)

        def answer(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
            path = environ["PATH_INFO"]
            if path == "/metrics":
                return metrics(environ, start)  # type: ignore[no-any-return]
            if path not in ("/health/live", "/health/ready"):
                start("404 Not Found", [("Content-Type", "text/plain")])
                return [b"try /health/live, /health/ready or /metrics\n"]
            good, text = health.live() if path == "/health/live" else health.ready()
            start("200 OK" if good else "503 Service Unavailable", [("Content-Type", "text/plain")])
            return [text.encode() + b"\n"]

        try:
            self._server = make_server(host or "0.0.0.0", int(port), answer, _Server, _Quiet)
        except OSError as error:
            raise PipelineStopped(
                f"observe.address: cannot listen on {address}: {error.strerror}; choose another, or null for none"
            ) from None
        self.address = f"{host}:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, name="observe", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
