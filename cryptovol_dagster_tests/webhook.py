"""A receiver of alerts on loopback, which can be told to misbehave."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl


class Receiver(ThreadingHTTPServer):
    """Remembers what is posted to it.

    Attributes:
        bodies: every body received, of JSON or a form.
        statuses: answers given next; 200 when none is left.
        wait_s: how long it takes to answer.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.bodies: list[dict[str, Any]] = []
        self.statuses: list[int] = []
        self.wait_s = 0.0

    @property
    def url(self) -> str:
        """Where it listens, with a secret in the path as such addresses have."""
        return f"http://127.0.0.1:{self.server_port}/services/s3cret"


class _Handler(BaseHTTPRequestHandler):
    server: Receiver  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        is_form = "form" in self.headers.get("Content-Type", "")
        self.server.bodies.append(dict(parse_qsl(body.decode())) if is_form else json.loads(body))
        time.sleep(self.server.wait_s)
        self.send_response(self.server.statuses.pop(0) if self.server.statuses else 200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        return


@contextmanager
def receiving() -> Iterator[Receiver]:
    """Listen until the block ends."""
    with Receiver() as receiver:
        thread = threading.Thread(target=receiver.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield receiver
        finally:
            receiver.shutdown()
            thread.join()
