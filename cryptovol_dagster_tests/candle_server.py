"""The exchange's public REST candles on loopback: its shapes, its limit, and faults as it is told."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pandas as pd

from cryptovol_dagster.core.market.candle_checks import MINUTE_NS, NUMBERS
from cryptovol_dagster.core.specs import NS

#: Candles in one answer, at most; a question for more is refused.
LIMIT = 350
_PATH = ("api", "v3", "brokerage", "market", "products")


def made_candles(first_ns: int, minutes: int, *, level: float = 40_000.0, seed: int = 1) -> pd.DataFrame:
    """Candles of consecutive minutes, possible ones, as the checks return them (without a product)."""
    random = np.random.default_rng(seed)
    closes = level * np.exp(np.cumsum(random.normal(size=minutes) * 5e-4))
    opens = np.concatenate([[level], closes[:-1]])
    span = np.abs(random.normal(size=(2, minutes))) * 2e-4
    return pd.DataFrame(
        {
            "start_ns": first_ns + MINUTE_NS * np.arange(minutes, dtype=np.int64),
            "open": opens.round(2),
            "high": (np.maximum(opens, closes) * (1 + span[0])).round(2) + 0.01,
            "low": (np.minimum(opens, closes) * (1 - span[1])).round(2) - 0.01,
            "close": closes.round(2),
            "volume": random.uniform(0.1, 9, minutes).round(8),
        }
    )


@dataclass(frozen=True)
class Fault:
    """An answer that is none.

    Attributes:
        status: of the answer.
        headers: beside it.
        body: instead of candles; None for the candles themselves, of which `cut` bytes are left out.
        cut: bytes missing at the end.
    """

    status: int = 200
    headers: Mapping[str, str] | None = None
    body: str | None = None
    cut: int = 0


class CandleServer(ThreadingHTTPServer):
    """Serves candles by product.

    Attributes:
        candles: product → candles as `made_candles` gives them.
        asked: (product, start, end) of every question, in seconds, both ends inclusive.
        faults: given instead of the next answers.
        early: candles before the question's start that are answered all the same.
        hold_after: so many questions are answered, later ones wait for `answering`; None for no such limit.
        answering: set, questions that wait are answered.
    """

    daemon_threads = True

    def __init__(self, candles: Mapping[str, pd.DataFrame]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.candles = dict(candles)
        self.asked: list[tuple[str, int, int]] = []
        self.faults: list[Fault] = []
        self.early = 0
        self.hold_after: int | None = None
        self.answering = threading.Event()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: CandleServer  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        parts = address.path.strip("/").split("/")
        query = {name: values[0] for name, values in parse_qs(address.query).items()}
        if tuple(parts[:5]) != _PATH or parts[6:] != ["candles"]:
            self._answer(404, {"error": "NOT_FOUND", "message": address.path})
            return
        product, start, end = parts[5], int(query["start"]), int(query["end"])
        self.server.asked.append((product, start, end))
        if self.server.hold_after is not None and len(self.server.asked) > self.server.hold_after:
            self.server.answering.wait(30)
        fault = self.server.faults.pop(0) if self.server.faults else Fault()
        if fault.status != 200 or fault.body is not None:
            self._write(fault.status, (fault.body or "").encode(), fault.headers)
        elif product not in self.server.candles:
            self._answer(404, {"error": "NOT_FOUND", "message": f"Product {product} not supported"})
        elif query["granularity"] != "ONE_MINUTE":
            self._answer(400, {"error": "INVALID_ARGUMENT", "message": "granularity argument is invalid"})
        elif (end - start) // 60 >= LIMIT or int(query.get("limit", LIMIT)) > LIMIT:
            why = (
                f"start and end argument is invalid - number of candles requested should be less than {LIMIT}"
            )
            self._answer(400, {"error": "INVALID_ARGUMENT", "error_details": why, "message": why})
        else:
            rows = self.server.candles[product]
            begins = rows["start_ns"] // NS
            wanted = rows[(begins >= start - 60 * self.server.early) & (begins <= end)]
            body = json.dumps({"candles": [_candle(row) for row in wanted[::-1].to_dict("records")]})
            self._write(200, body.encode()[: -fault.cut or None], fault.headers)

    def _answer(self, status: int, body: dict[str, str]) -> None:
        self._write(status, json.dumps(body).encode(), None)

    def _write(self, status: int, body: bytes, headers: Mapping[str, str] | None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with suppress(BrokenPipeError):  # whoever asked did not wait
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        return


def _candle(row: dict[str, float]) -> dict[str, str]:
    values = {name: np.format_float_positional(row[name], trim="-") for name in NUMBERS}
    return {"start": str(row["start_ns"] // NS), **values}


@contextmanager
def serving_candles(candles: Mapping[str, pd.DataFrame]) -> Iterator[CandleServer]:
    """Listen until the block ends."""
    with CandleServer(candles) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.answering.set()
            server.shutdown()
            thread.join()
