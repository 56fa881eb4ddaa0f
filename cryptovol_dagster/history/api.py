"""The exchange's public REST candles, a page at a time (Coinbase Advanced Trade; no key is needed).

``GET /api/v3/brokerage/market/products/{product_id}/candles?start=&end=&granularity=ONE_MINUTE&limit=``:
`start` and `end` in seconds since 1970, both inclusive; at most 350 candles a call, more is refused; newest
first, every value text. Minutes in which nothing was traded are left out.

Belongs here: requests of pages, at the allowed rate. Does not belong here: which pages, and storing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self
from urllib.parse import quote

import httpx
import msgspec
import pandas as pd
from tenacity import wait_random_exponential

from cryptovol_dagster.core.market.candle_checks import MINUTE_NS
from cryptovol_dagster.core.specs import NS
from cryptovol_dagster.http_client import (
    AttemptError,
    NoAnswerError,
    obeying_retry_after,
    open_client,
    retry_after_s,
    retrying,
    send,
)
from ingestor.errors import CryptovolError
from ingestor.settings.sections import HistorySettings

#: Minutes per request. Fewer than the documented 350: the counting of its ends has varied, and a cut answer
#: would look like a hole.
PAGE_MINUTES = 300
_LIMIT = 350
_TOO_MANY = 429
_SERVER_ERROR = 500
_SAID = 200


class CandleApiError(CryptovolError):
    """The exchange did not answer with candles; the message is one line."""


class CandleRefusedError(CandleApiError):
    """The exchange answered that it does not list this product."""


class _Candle(msgspec.Struct, frozen=True):
    start: int
    open: float
    high: float
    low: float
    close: float
    volume: float


class _Answer(msgspec.Struct, frozen=True):
    candles: list[_Candle]


class CandleApi:
    """Requests pages of minute candles, at the allowed rate, and again after a temporary failure.

    Args:
        settings: address, pace and patience.
        sleep: how to wait.

    Raises:
        NoAnswerError: the environment names a proxy that cannot be used.
    """

    def __init__(self, settings: HistorySettings, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self._settings = settings
        self._sleep = sleep
        self._next_s = time.monotonic()
        self.asked = 0
        # Full jitter: each pause is drawn from [0, ceiling), and the ceiling doubles with each failure.
        jitter = wait_random_exponential(settings.backoff_initial_s, settings.backoff_max_s)
        self._retrying = retrying(
            settings.tries,
            obeying_retry_after(jitter),
            max_after_s=settings.retry_after_max_s,
            sleep=sleep,
        )
        self._client = open_client(
            settings.timeout_s,
            base_url=settings.url,
            headers={"User-Agent": "cryptovol", "Cache-Control": "no-cache"},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def page(self, product: str, start_ns: int, end_ns: int) -> pd.DataFrame:
        """Request the candles that begin in ``[start_ns, end_ns)``; one row per candle.

        Args:
            product: name of the product.
            start_ns: of the first minute.
            end_ns: of the last minute, at most `PAGE_MINUTES` later.

        Raises:
            CandleRefusedError: the product is unknown, or the question refused.
            CandleApiError: all tries failed.
        """
        try:
            answer = self._retrying(self._ask, product, start_ns, end_ns)
        except AttemptError as error:
            why = f"no answer ({error})" if isinstance(error, NoAnswerError) else str(error)
            end = f"; given up after {self._settings.tries} tries"
            if error.after_s > self._settings.retry_after_max_s:
                end = f", and requires a pause of {error.after_s:.0f} s"
            raise CandleApiError(f"{self._settings.url}: {why}{end}") from error
        # An answer may begin earlier than requested.
        inside = [row for row in answer.candles if start_ns // NS <= row.start < end_ns // NS]
        return pd.DataFrame(
            {name: [getattr(row, name) for row in inside] for name in _Candle.__struct_fields__}
        )

    def _ask(self, product: str, start_ns: int, end_ns: int) -> _Answer:
        self._wait_for_turn()
        self.asked += 1
        response = send(
            self._client,
            "GET",
            f"/api/v3/brokerage/market/products/{quote(product, safe='')}/candles",
            params={
                "start": start_ns // NS,
                "end": (end_ns - MINUTE_NS) // NS,
                "granularity": "ONE_MINUTE",
                "limit": _LIMIT,
            },
        )
        if response.status_code == _TOO_MANY or response.status_code >= _SERVER_ERROR:
            raise AttemptError(f"it answered {response.status_code}", retry_after_s(response))
        if response.status_code != httpx.codes.OK:
            raise CandleRefusedError(
                f"{self._settings.url} refused candles of {product}: {response.status_code} {_text(response)}"
            )
        try:
            return msgspec.json.decode(response.content, type=_Answer, strict=False)
        except msgspec.MsgspecError as error:
            raise AttemptError(f"an answer that cannot be read ({error})") from error

    def _wait_for_turn(self) -> None:
        wait_s = self._next_s - time.monotonic()
        if wait_s > 0:
            self._sleep(wait_s)
        self._next_s = max(self._next_s, time.monotonic()) + 1 / self._settings.requests_per_s


def _text(response: httpx.Response) -> str:
    """Return the text of an error answer, on one line."""
    try:
        body = msgspec.json.decode(response.content, type=dict[str, str | int | None])
        words = [str(body[name]) for name in ("error", "message", "error_details") if body.get(name)]
    except msgspec.MsgspecError:
        words = [response.text]
    return " ".join(" ".join(dict.fromkeys(words)).split())[:_SAID]
