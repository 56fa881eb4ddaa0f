"""One connection to the exchange, from handshake to end: subscribe, read, check liveness, report the end.

Reading needs no timer or task switch per frame: a watchdog beside the reader checks the time of the last
frame. Pings of the WebSocket layer are off: the exchange's own heartbeats are a better sign, and while the
broker has no room the socket is deliberately not read, which must not count as a dead peer.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol
from urllib.parse import urlsplit

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, InvalidURI, WebSocketException
from websockets.uri import parse_uri

from ingestor.errors import USAGE, CryptovolError, one_line
from ingestor.exchange import messages as wire
from ingestor.exchange.reasons import printable
from ingestor.feed.connection import SequenceBrokenError
from ingestor.settings.sections import IngestSettings

_CLOSE_TIMEOUT_S = 2.0
#: The exchange takes 8 messages a second from an address; half of that, and about 50 products a message.
_SUBSCRIBE_PAUSE_S = 0.25
_PRODUCTS_PER_MESSAGE = 50
#: After a pause of this process, frames wait in the socket: they are read before silence is believed.
_SECOND_LOOK_S = 0.05
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class AddressError(CryptovolError):
    """The feed's address cannot be one of a WebSocket server; the message is one line."""

    exit_code = USAGE


def check_address(url: str) -> None:
    """Check that a URL is a WebSocket address, before anything is started for it.

    Raises:
        AddressError: wrong scheme, no host, a port out of range.
    """
    try:
        parse_uri(url)
    except InvalidURI as error:
        raise AddressError(f"{url!r} is not a WebSocket address: {error.msg}") from None
    except ValueError as error:
        raise AddressError(f"{url!r} is not a WebSocket address: {error}") from None


class EndReason(StrEnum):
    """Why a connection ended."""

    CONNECT_FAILED = "connect_failed"
    SERVER_CLOSED = "server_closed"
    LOST = "lost"
    FRAME_SILENCE = "frame_silence"
    HEARTBEAT_SILENCE = "heartbeat_silence"
    REFUSED = "refused"
    SEQUENCE_BROKEN = "sequence_broken"
    STOPPED = "stopped"


@dataclass(frozen=True)
class SessionEnd:
    """End of a connection.

    Attributes:
        reason: the kind of end.
        detail: one line for people.
        close_code: the WebSocket close code; 1006 where it broke without one, None where none applies.
        retry_after_s: the server's Retry-After in its refusal.
    """

    reason: EndReason
    detail: str
    close_code: int | None = None
    retry_after_s: float = 0.0


class Receiver(Protocol):
    """Interface of the receiver of a session's frames."""

    @property
    def blocked(self) -> bool:
        """Return whether the socket must not be read for now."""
        ...

    def opened(self, server: str) -> None:
        """Process the end of the handshake; `server` is the name of the other side."""
        ...

    def on_frame(self, data: bytes, received_at_ns: int) -> str | None:
        """Process a frame; return its channel, or None where it cannot be read."""
        ...

    async def wait_for_room(self) -> None:
        """Return once the socket may be read again."""
        ...


class Session:
    """Runs one connection. Use `run` once.

    Args:
        url: ws:// or wss:// address; TLS certificates are verified.
        channels: subscribed to at once, one message each.
        products: subscribed to in every channel but heartbeats.
        settings: time limits and bounds.
        receiver: takes the frames.
    """

    def __init__(
        self,
        url: str,
        channels: Sequence[str],
        products: Sequence[str],
        settings: IngestSettings,
        receiver: Receiver,
    ) -> None:
        self._url = url
        self._channels = channels
        self._products = products
        self._settings = settings
        self._receiver = receiver
        self._expects_heartbeats = wire.HEARTBEATS in channels
        self._frame_at = self._heartbeat_at = 0.0
        self._waiting_for_room = False

    async def run(self, stop: asyncio.Event) -> SessionEnd:
        """Connect, subscribe and read until something ends it.

        Args:
            stop: set to end the session cleanly.

        Raises:
            PublishError: the broker finally refused a message.
        """
        stopping = asyncio.create_task(stop.wait())
        running = asyncio.create_task(self._run())
        try:
            await asyncio.wait({stopping, running}, return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                return running.result()
            return SessionEnd(EndReason.STOPPED, "asked to stop")
        finally:
            for task in (stopping, running):
                task.cancel()
            await asyncio.gather(stopping, running, return_exceptions=True)

    async def _run(self) -> SessionEnd:
        opening = connect(
            self._url,
            open_timeout=self._settings.open_timeout_s,
            close_timeout=_CLOSE_TIMEOUT_S,
            ping_interval=None,
            max_size=self._settings.max_frame_bytes,
            max_queue=self._settings.max_queue_frames,
            # The ticker is small; inflating it would cost more than it saves.
            compression=None,
            proxy=None if urlsplit(self._url).hostname in _LOOPBACK else True,
        )
        try:
            socket = await opening
        except InvalidStatus as error:
            status = error.response.status_code
            asked = error.response.headers.get("Retry-After", "")
            return SessionEnd(
                EndReason.CONNECT_FAILED,
                f"the server answered the handshake with HTTP {status}",
                retry_after_s=float(asked) if asked.isascii() and asked.isdigit() else 0.0,
            )
        except (OSError, TimeoutError, WebSocketException) as error:
            return SessionEnd(EndReason.CONNECT_FAILED, _reason(error))
        async with socket:
            return await self._serve(socket)

    async def _serve(self, socket: ClientConnection) -> SessionEnd:
        headers = socket.response.headers if socket.response else {}
        self._receiver.opened(headers.get("Server", ""))
        self._hear()
        # Subscribing to many products takes seconds: frames are read meanwhile.
        reading = asyncio.create_task(self._read_until_closed(socket))
        others = asyncio.create_task(self._watch()), asyncio.create_task(self._subscribe(socket))
        running = {reading, *others}
        try:
            while True:
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                if reading in done:
                    return reading.result()
                for end in [task.result() for task in done]:
                    if end is not None:
                        # A dead peer answers no closing handshake.
                        socket.transport.abort()
                        return end
        finally:
            for task in (reading, *others):
                task.cancel()
            await asyncio.gather(reading, *others, return_exceptions=True)

    async def _subscribe(self, socket: ClientConnection) -> SessionEnd | None:
        """Send every subscription; None where that succeeded, or where the reader will find the fault."""
        limit_s = self._settings.subscribe_timeout_s
        try:
            for count, message in enumerate(_subscriptions(self._channels, self._products)):
                if count >= len(self._channels):
                    await asyncio.sleep(_SUBSCRIBE_PAUSE_S)
                async with asyncio.timeout(limit_s):
                    await socket.send(msgspec.json.encode(message), text=True)
        except TimeoutError:
            return SessionEnd(EndReason.LOST, f"could not send the subscriptions within {limit_s:g} s")
        except ConnectionClosed:
            return None
        return None

    async def _read_until_closed(self, socket: ClientConnection) -> SessionEnd:
        try:
            return await self._read(socket)
        except ConnectionClosed as error:
            return _closed(error)
        except SequenceBrokenError as error:
            return SessionEnd(EndReason.SEQUENCE_BROKEN, str(error))

    async def _read(self, socket: ClientConnection) -> SessionEnd:
        receiver, receive, monotonic, now_ns = self._receiver, socket.recv, time.monotonic, time.time_ns
        while True:
            # Returns without a task switch as long as frames are queued.
            data = await receive(decode=False)
            channel = receiver.on_frame(data, now_ns())
            if channel is not None and channel != wire.ERROR:
                self._frame_at = monotonic()
                if channel == wire.HEARTBEATS:
                    self._heartbeat_at = self._frame_at
            if receiver.blocked:
                self._waiting_for_room = True
                await receiver.wait_for_room()
                self._waiting_for_room = False
                self._hear()

    def _hear(self) -> None:
        self._frame_at = self._heartbeat_at = time.monotonic()

    async def _watch(self) -> SessionEnd:
        """Return once the other side has been silent too long. Frames that cannot be read are silence."""
        frame_limit_s, heartbeat_limit_s = self._settings.frame_silence_s, self._settings.heartbeat_silence_s
        suspicious = False
        while True:
            now = time.monotonic()
            frame_left_s = self._frame_at + frame_limit_s - now
            heartbeat_left_s = (
                self._heartbeat_at + heartbeat_limit_s - now if self._expects_heartbeats else 1e9
            )
            left_s = min(frame_left_s, heartbeat_left_s)
            if left_s > 0 or self._waiting_for_room:
                suspicious = False
                await asyncio.sleep(max(left_s, _SECOND_LOOK_S))
            elif not suspicious:
                suspicious = True
                await asyncio.sleep(_SECOND_LOOK_S)
            elif frame_left_s <= 0:
                return SessionEnd(EndReason.FRAME_SILENCE, f"no readable frame for {frame_limit_s:g} s")
            else:
                return SessionEnd(EndReason.HEARTBEAT_SILENCE, f"no heartbeat for {heartbeat_limit_s:g} s")


def _subscriptions(channels: Sequence[str], products: Sequence[str]) -> Iterator[wire.Subscribe]:
    """Return one message per channel first, so that each is open within the exchange's 5 s; then others."""
    for start in range(0, len(products), _PRODUCTS_PER_MESSAGE):
        for channel in channels:
            if channel != wire.HEARTBEATS:
                yield wire.Subscribe(channel, tuple(products[start : start + _PRODUCTS_PER_MESSAGE]))
            elif not start:
                yield wire.Subscribe(channel)


def _closed(error: ConnectionClosed) -> SessionEnd:
    if error.rcvd is not None:
        why = f": {printable(error.rcvd.reason)}" if error.rcvd.reason else ""
        return SessionEnd(
            EndReason.SERVER_CLOSED, f"the server closed with code {error.rcvd.code}{why}", error.rcvd.code
        )
    if error.sent is not None:
        # This side closed: a frame over the limit, or not WebSocket at all.
        return SessionEnd(
            EndReason.LOST, f"closed for {error.sent.code}: {error.sent.reason}", error.sent.code
        )
    return SessionEnd(EndReason.LOST, "the connection broke without a close frame", 1006)


def _reason(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    text = re.sub(r"\[Errno -?\d+\] ", "", one_line(str(error)))
    return text or type(error).__name__
