"""A TCP proxy between two real parts, which a test can cut, slow down, hang or slice, or have swallow one answer.

It runs in a thread of its own, on loopback. What it does to a connection it does to both directions.
"""

import asyncio
import struct
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from headrace.rig.kafka import KafkaCluster, Node
from headrace.rig.process import free_port

END_TXN = 26
"""Kafka's api key of EndTxn."""


class Proxy:
    """Forwards to `target`; `address` is what clients connect to.

    Attributes:
        delay: seconds that every chunk waits.
        hanging: while set, bytes are taken and not passed on.
        refusing: while set, connections are closed at once.
        slice_after: cut a connection after so many bytes of answers; 0 never.
        swallow: api key of a Kafka request whose next answer is swallowed, with its connection; None for none.
        swallow_all: the same for every answer from now on.
        swallowed: how many were.
        connections: how many have been made.
    """

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self.delay = 0.0
        self.hanging = False
        self.refusing = False
        self.slice_after = 0
        self.swallow: int | None = None
        self.swallow_all: int | None = None
        self.swallowed = 0
        self.connections = 0
        self.port = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._stop: asyncio.Event | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def heal(self) -> None:
        """Nothing is done to connections any more."""
        self.hanging = self.refusing = False
        self.delay, self.slice_after, self.swallow, self.swallow_all = 0.0, 0, None, None

    def cut(self) -> None:
        """Close every connection."""
        assert self._loop is not None

        async def close() -> None:
            for writer in list(self._open):
                writer.transport.abort()

        asyncio.run_coroutine_threadsafe(close(), self._loop).result(10)

    async def serve(self, ready: threading.Event, port: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        server = await asyncio.start_server(self._accept, "127.0.0.1", port)
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        await self._stop.wait()
        server.close()
        for writer in list(self._open):
            writer.transport.abort()

    def stop(self) -> None:
        assert self._loop is not None and self._stop is not None  # noqa: PT018
        self._loop.call_soon_threadsafe(self._stop.set)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        if self.refusing:
            writer.transport.abort()
            return
        try:
            behind, ahead = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        self._open |= {writer, ahead}
        marked: set[int] = set()  # correlation ids whose answers are to be swallowed
        try:
            await asyncio.gather(
                self._requests(reader, ahead, marked), self._answers(behind, writer, marked), return_exceptions=True
            )
        finally:
            for end in (writer, ahead):
                end.transport.abort()
                self._open.discard(end)

    async def _requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, marked: set[int]) -> None:
        while data := await reader.read(65_536):
            if (self.swallow or self.swallow_all) is not None and len(data) >= 12:
                # Small requests come in one piece each, with their size in front.
                key, _, correlation = struct.unpack(">hhi", data[4:12])
                if key in (self.swallow, self.swallow_all):
                    marked.add(correlation)
                    self.swallow = None
            await self._pass(data, writer)
        writer.transport.abort()

    async def _answers(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, marked: set[int]) -> None:
        passed = 0
        while data := await reader.read(65_536):
            if marked and len(data) >= 8 and struct.unpack(">i", data[4:8])[0] in marked:
                self.swallowed += 1
                break
            if self.slice_after and passed + len(data) > self.slice_after:
                await self._pass(data[: max(0, self.slice_after - passed)], writer)
                break
            passed += len(data)
            await self._pass(data, writer)
        writer.transport.abort()

    async def _pass(self, data: bytes, writer: asyncio.StreamWriter) -> None:
        if self.delay:
            await asyncio.sleep(self.delay)
        while self.hanging:
            await asyncio.sleep(0.02)
        writer.write(data)
        await writer.drain()


@contextmanager
def proxy(target: str, port: int = 0) -> Iterator[Proxy]:
    """A running proxy."""
    made = Proxy(target)
    ready = threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(made.serve(ready, port)), daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield made
    finally:
        made.stop()
        thread.join(10)


@contextmanager
def proxied_cluster(
    folder: Path, brokers: int = 1, properties: Mapping[str, str] | None = None
) -> Iterator[tuple[KafkaCluster, list[Proxy]]]:
    """A cluster that a test may kill and spoil, and a proxy in front of each broker.

    `KafkaCluster.bootstrap_servers` leads straight to the brokers, the addresses of the proxies through them: each
    broker has a second listener, which it advertises as the proxy's address.
    """
    behind = [free_port() for _ in range(brokers)]
    with ExitStack() as stack:
        proxies = [stack.enter_context(proxy(f"127.0.0.1:{port}")) for port in behind]

        def listeners(node: Node) -> dict[str, str]:
            own, way = f"PLAINTEXT://127.0.0.1:{node.port}", proxies[node.number - 1].port
            return {
                "listeners": f"{own},PROXIED://127.0.0.1:{behind[node.number - 1]}"
                f",CONTROLLER://127.0.0.1:{node.controller_port}",
                "advertised.listeners": f"{own},PROXIED://127.0.0.1:{way}",
                "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT,CONTROLLER:PLAINTEXT",
                "inter.broker.listener.name": "PLAINTEXT",
                **(properties or {}),
            }

        yield stack.enter_context(KafkaCluster(brokers=brokers, data=folder, properties=listeners)), proxies
