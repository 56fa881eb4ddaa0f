"""The socket: plays a market to each client, at the requested speed."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.protocol import State

from ingestor.errors import CryptovolError
from ingestor.simulator.faults import ABORTED
from ingestor.simulator.playback import Close, Line, Playback, Quiet
from ingestor.times import NS

SIMULATED_HEADER = "X-Simulated"
_HOST = "127.0.0.1"
#: The exchange's limit for a client that does not subscribe.
_SUBSCRIBE_TIMEOUT_S = 5.0
#: A client subscribes channel by channel; the market waits until it has been quiet for so long.
_SETTLE_S = 0.5
_STEP_FRAMES = 256
#: Sending oftener than this would cost more than the pacing is worth; sleeping longer would miss messages.
_LEAST_SLEEP_S, _LONGEST_SLEEP_S = 0.005, 0.1
_POLICY_VIOLATION = 1008
#: Retry-After of a refusal, in seconds.
_RETRY_AFTER_S = "1"

#: Called at each event with a name and details.
Report = Callable[[str, dict[str, Any]], None]


class SimulatorError(CryptovolError):
    """The simulator cannot serve; the message is one line."""


class Simulator:
    """Serves a playback on loopback, to one listener at a time.

    A client that subscribes takes the market over from one that is still connected (which is cut, as a
    connection that its client has given up). The market pauses without a client.

    Args:
        playback: The market.
        speed: Market seconds a wall-clock second; infinite: as fast as the client reads.
        report: Called at each event.
    """

    def __init__(self, playback: Playback, speed: float, report: Report) -> None:
        self._playback = playback
        self._speed = speed
        self._report = report
        self._listening = asyncio.Lock()
        self._listener: ServerConnection | None = None
        self._connections: set[ServerConnection] = set()
        self._server: Server | None = None
        #: Set once the whole market was played and the client has closed with us.
        self.played = asyncio.Event()

    async def start(self, port: int = 0) -> str:
        """Listen on loopback; port 0: a free one.

        Returns:
            The address to connect to.

        Raises:
            SimulatorError: The port is taken.
        """
        try:
            self._server = await serve(
                self._handle,
                _HOST,
                port,
                compression=None,
                # A client that is busy with frames is not dead, and one that reads slowly loses nothing at
                # the end.
                ping_interval=None,
                close_timeout=None,
                max_size=1 << 16,
                server_header="cryptovol-simulator",
                process_request=self._welcome,
                process_response=_mark_simulated,
            )
        except OSError as error:
            raise SimulatorError(f"cannot listen on {_HOST}:{port}: {error.strerror or error}") from error
        return f"ws://{_HOST}:{next(iter(self._server.sockets)).getsockname()[1]}"

    async def stop(self) -> None:
        """Cut every connection and stop listening."""
        if self._server is None:
            return
        self._server.close(close_connections=False)
        for connection in tuple(self._connections):
            connection.transport.abort()
        await self._server.wait_closed()

    def _welcome(self, socket: ServerConnection, _request: Request) -> Response | None:
        status = self._playback.refuse_handshake()
        if status is None:
            return None
        self._report("refused", {"status": status, "market_time_ns": self._playback.now_ns})
        response = socket.respond(status, "refused by the fault script\n")
        response.headers["Retry-After"] = _RETRY_AFTER_S
        return response

    async def _handle(self, socket: ServerConnection) -> None:
        self._connections.add(socket)
        inbox: asyncio.Queue[str | bytes] = asyncio.Queue()
        reader = asyncio.create_task(_read(socket, inbox))
        try:
            if self._playback.finished:
                self._playback.restart()
            line = Line(self._playback)
            if await _settle(socket, inbox, line):
                await self._take_over(socket, inbox, line)
        except ConnectionClosed:
            self._report("client_gone", {"market_time_ns": self._playback.now_ns})
        finally:
            reader.cancel()
            with suppress(asyncio.CancelledError):
                await reader
            self._connections.discard(socket)

    async def _take_over(
        self, socket: ServerConnection, inbox: asyncio.Queue[str | bytes], line: Line
    ) -> None:
        if self._listener is not None:
            self._listener.transport.abort()
        async with self._listening:
            self._listener = socket
            try:
                self._report("connected", {"market_time_ns": self._playback.now_ns})
                await self._send(socket, line.start())
                close = await self._play(socket, inbox, line)
                if close is None:
                    self._report("client_gone", {"market_time_ns": self._playback.now_ns})
                else:
                    await self._end(socket, close)
            finally:
                self._listener = None

    async def _play(
        self, socket: ServerConnection, inbox: asyncio.Queue[str | bytes], line: Line
    ) -> Close | None:
        """Send until the end of the connection; return how the market ends it; None where the client left."""
        loop = asyncio.get_running_loop()
        began_s, began_ns = loop.time(), self._playback.now_ns
        paced = math.isfinite(self._speed)
        until_ns = None
        # A frame is taken from the market only once: none is taken for a client that has left.
        while socket.state is State.OPEN:
            while not inbox.empty():
                await self._send(socket, line.receive(inbox.get_nowait()))
            if paced:
                until_ns = began_ns + int((loop.time() - began_s) * self._speed * NS)
            step = line.advance(until_ns, _STEP_FRAMES)
            await self._send(socket, step.frames)
            match step.then:
                case Close():
                    return step.then
                case Quiet(seconds):
                    self._report("silence", {"seconds": seconds, "market_time_ns": self._playback.now_ns})
                    await _stay_quiet(socket, seconds)
                    began_s, began_ns = loop.time(), self._playback.now_ns
            due_ns = line.next_due_ns
            if until_ns is None or due_ns is None or due_ns <= until_ns:
                # `send` does not yield while there is room; the client's messages want to be read.
                await asyncio.sleep(0)
            else:
                wait_s = (due_ns - until_ns) / NS / self._speed
                await asyncio.sleep(min(max(wait_s, _LEAST_SLEEP_S), _LONGEST_SLEEP_S))
        return None

    async def _end(self, socket: ServerConnection, close: Close) -> None:
        self._report("closing", {"code": close.code, "market_time_ns": self._playback.now_ns})
        if close.code == ABORTED:
            # Sent frames still arrive, then the connection ends without a close frame.
            socket.transport.close()
            await socket.wait_closed()
        else:
            await socket.close(close.code, "end of the market" if close.finished else "")
        if close.finished:
            self.played.set()

    async def _send(self, socket: ServerConnection, frames: list[bytes]) -> None:
        for frame in frames:
            await socket.send(frame, text=True)


def _mark_simulated(_socket: ServerConnection, _request: Request, response: Response) -> Response:
    response.headers[SIMULATED_HEADER] = "true"
    return response


async def _read(socket: ServerConnection, inbox: asyncio.Queue[str | bytes]) -> None:
    with suppress(ConnectionClosed):
        async for message in socket:
            inbox.put_nowait(message)


async def _settle(socket: ServerConnection, inbox: asyncio.Queue[str | bytes], line: Line) -> bool:
    """Answer the client's first messages; False where it never subscribed and was disconnected."""
    loop = asyncio.get_running_loop()
    give_up_s = loop.time() + _SUBSCRIBE_TIMEOUT_S
    while True:
        wait_s = _SETTLE_S if line.subscribed else give_up_s - loop.time()
        try:
            message = await asyncio.wait_for(inbox.get(), wait_s)
        except TimeoutError:
            if line.subscribed:
                return True
            await socket.close(_POLICY_VIOLATION, "no subscription within 5 s")
            return False
        for frame in line.receive(message):
            await socket.send(frame, text=True)


async def _stay_quiet(socket: ServerConnection, seconds: float) -> None:
    with suppress(TimeoutError):
        await asyncio.wait_for(socket.wait_closed(), seconds)
