"""The exchange's public REST candles, a page at a time (Coinbase Advanced Trade; no key is needed).

``GET /api/v3/brokerage/market/products/{product_id}/candles?start=&end=&granularity=ONE_MINUTE&limit=``:
`start` and `end` in seconds since 1970, both inclusive; at most 350 candles a call, more is refused; newest
first, every value text. Minutes in which nothing was traded are left out.

Belongs here: asking, waiting and asking again. Does not belong here: what to ask for, and storing.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Self
from urllib.parse import quote

import httpx
import msgspec
import pandas as pd

from cryptovol_dagster.core.market.candle_checks import MINUTE_NS
from cryptovol_dagster.core.specs import NS
from ingestor.errors import CryptovolError
from ingestor.feed.backoff import Backoff
from ingestor.settings.sections import HistorySettings

#: Minutes asked for in one call. Fewer than the documented 350: how its ends are counted has varied, and an
#: answer that was cut would look like a hole.
PAGE_MINUTES = 300
_LIMIT = 350
_TOO_MANY = 429
_SERVER_ERROR = 500
_SAID = 200


class CandleApiError(CryptovolError):
    """The exchange did not give the candles; the message is one line."""


class _TryAgain(Exception):  # noqa: N818 - not an error yet
    def __init__(self, why: str, after_s: float = 0.0) -> None:
        super().__init__(why)
        self.why = why
        self.after_s = after_s


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
    """Asks for pages of minute candles, no faster than it may, and again where that can help.

    Args:
        settings: address, pace and patience.
        rng: of the jitter between two tries.
        sleep: how to wait.
    """

    def __init__(
        self,
        settings: HistorySettings,
        *,
        rng: random.Random | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._settings = settings
        self._rng = rng
        self._sleep = sleep
        self._next_s = time.monotonic()
        self.asked = 0
        # What listens on this machine is not asked through a proxy that the environment names for the world.
        direct = {f"all://{host}": None for host in ("127.0.0.1", "localhost")}
        self._client = httpx.Client(
            base_url=settings.url,
            timeout=settings.timeout_s,
            headers={"User-Agent": "cryptovol", "Cache-Control": "no-cache"},
            mounts=direct,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def page(self, product: str, start_ns: int, end_ns: int) -> pd.DataFrame:
        """Ask for the candles that begin in ``[start_ns, end_ns)``: what came, a row a candle.

        Args:
            product: whose.
            start_ns: of the first minute.
            end_ns: of the last minute, at most `PAGE_MINUTES` later.

        Raises:
            CandleApiError: the product is unknown, the question refused, or no answer came in all the tries.
        """
        backoff = Backoff(self._settings.backoff_initial_s, self._settings.backoff_max_s, self._rng)
        tries = self._settings.tries
        for left in range(tries - 1, -1, -1):
            try:
                answer = self._ask(product, start_ns, end_ns)
            except _TryAgain as again:
                if again.after_s > self._settings.retry_after_max_s:
                    raise CandleApiError(
                        f"{self._settings.url}: {again.why}, and wants to be left alone for "
                        f"{again.after_s:.0f} s"
                    ) from again
                if not left:
                    raise CandleApiError(
                        f"{self._settings.url}: {again.why}; given up after {tries} tries"
                    ) from again
                self._sleep(max(backoff.next_s(), again.after_s))
            else:
                # What was not asked for is not looked at: some answers begin earlier than the question.
                inside = [row for row in answer.candles if start_ns // NS <= row.start < end_ns // NS]
                return pd.DataFrame(
                    {name: [getattr(row, name) for row in inside] for name in _Candle.__struct_fields__}
                )
        raise AssertionError("unreachable: settings hold tries above 0")

    def _ask(self, product: str, start_ns: int, end_ns: int) -> _Answer:
        self._wait_for_turn()
        self.asked += 1
        try:
            response = self._client.get(
                f"/api/v3/brokerage/market/products/{quote(product, safe='')}/candles",
                params={
                    "start": start_ns // NS,
                    "end": (end_ns - MINUTE_NS) // NS,
                    "granularity": "ONE_MINUTE",
                    "limit": _LIMIT,
                },
            )
        except httpx.TransportError as error:
            raise _TryAgain(f"no answer ({str(error) or type(error).__name__})") from error
        if response.status_code == _TOO_MANY or response.status_code >= _SERVER_ERROR:
            raise _TryAgain(f"it answered {response.status_code}", _retry_after_s(response))
        if response.status_code != httpx.codes.OK:
            raise CandleApiError(
                f"{self._settings.url} refused candles of {product}: {response.status_code} {_said(response)}"
            )
        try:
            return msgspec.json.decode(response.content, type=_Answer, strict=False)
        except msgspec.MsgspecError as error:
            raise _TryAgain(f"an answer that cannot be read ({error})") from error

    def _wait_for_turn(self) -> None:
        wait_s = self._next_s - time.monotonic()
        if wait_s > 0:
            self._sleep(wait_s)
        self._next_s = max(self._next_s, time.monotonic()) + 1 / self._settings.requests_per_s


def _retry_after_s(response: httpx.Response) -> float:
    """Read how long a server asks to wait: seconds or a date; 0 where it does not say."""
    text = response.headers.get("Retry-After", "").strip()
    if not text:
        return 0.0
    if text.isdecimal():
        return float(text)
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return 0.0
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())


def _said(response: httpx.Response) -> str:
    """Give what an error says of itself, on one line."""
    try:
        body = msgspec.json.decode(response.content, type=dict[str, str | int | None])
        words = [str(body[name]) for name in ("error", "message", "error_details") if body.get(name)]
    except msgspec.MsgspecError:
        words = [response.text]
    return " ".join(" ".join(dict.fromkeys(words)).split())[:_SAID]
