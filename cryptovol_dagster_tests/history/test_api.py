"""The exchange's REST candles: what is asked, what is asked again, and what is given up in which words."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pandas as pd
import pytest

from cryptovol_dagster.core.market.candle_checks import MINUTE_NS, NUMBERS
from cryptovol_dagster.core.specs import NS
from cryptovol_dagster.history.api import PAGE_MINUTES, CandleApi, CandleApiError
from cryptovol_dagster_tests.candle_server import LIMIT, CandleServer, Fault, made_candles, serving_candles
from ingestor.settings.sections import HistorySettings

FIRST = pd.Timestamp("2024-01-01", tz="UTC").value
CANDLES = made_candles(FIRST, 400)


@pytest.fixture(scope="module")
def shared() -> Iterator[CandleServer]:
    with serving_candles({"BTC-USD": CANDLES}) as server:
        yield server


@pytest.fixture
def server(shared: CandleServer) -> CandleServer:
    shared.asked.clear()
    shared.faults.clear()
    shared.early = 0
    return shared


def api(server: CandleServer, waits: list[float] | None = None, **settings: float) -> CandleApi:
    chosen = HistorySettings.model_validate({"url": server.url, "requests_per_s": 1_000, **settings})
    sleep = time.sleep if waits is None else waits.append
    return CandleApi(chosen, sleep=sleep)


def page(api: CandleApi, minutes: int = 10) -> pd.DataFrame:
    return api.page("BTC-USD", FIRST, FIRST + minutes * MINUTE_NS)


def test_a_page_is_what_was_asked_for_whatever_else_the_answer_holds(server: CandleServer) -> None:
    server.early = 5
    with api(server) as asking:
        found = asking.page("BTC-USD", FIRST + 100 * MINUTE_NS, FIRST + (100 + PAGE_MINUTES) * MINUTE_NS)
    assert server.asked == [("BTC-USD", FIRST // NS + 6_000, FIRST // NS + (99 + PAGE_MINUTES) * 60)]
    wanted = CANDLES[100 : 100 + PAGE_MINUTES][::-1].reset_index(drop=True)
    assert (found["start"] * NS).tolist() == wanted["start_ns"].tolist()
    pd.testing.assert_frame_equal(found[list(NUMBERS)], wanted[list(NUMBERS)])


def test_an_empty_answer_is_an_empty_page(server: CandleServer) -> None:
    with api(server) as asking:
        found = asking.page("BTC-USD", FIRST - 10 * MINUTE_NS, FIRST)
    assert found.empty
    assert found.columns.tolist() == ["start", *NUMBERS]


def test_a_question_for_too_much_is_refused_as_the_exchange_does(server: CandleServer) -> None:
    with api(server) as asking, pytest.raises(CandleApiError) as caught:
        asking.page("BTC-USD", FIRST, FIRST + (LIMIT + 1) * MINUTE_NS)
    assert str(caught.value) == (
        f"{server.url} refused candles of BTC-USD: 400 INVALID_ARGUMENT start and end argument is invalid - "
        "number of candles requested should be less than 350"
    )
    assert asking.asked == 1


def test_an_unknown_product_is_not_asked_for_again(server: CandleServer) -> None:
    with api(server) as asking, pytest.raises(CandleApiError) as caught:
        asking.page("NOPE-USD", FIRST, FIRST + MINUTE_NS)
    assert str(caught.value) == (
        f"{server.url} refused candles of NOPE-USD: 404 NOT_FOUND Product NOPE-USD not supported"
    )
    assert asking.asked == 1


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        (Fault(status=429), "it answered 429"),
        (Fault(status=500), "it answered 500"),
        (Fault(status=503, body="<html>"), "it answered 503"),
        (Fault(cut=20), "an answer that cannot be read (Input data was truncated)"),
        (Fault(body="[]"), "an answer that cannot be read (Expected `object`, got `array`)"),
        (
            Fault(body='{"error":"x"}'),
            "an answer that cannot be read (Object missing required field `candles`)",
        ),
    ],
    ids=["429", "500", "503", "truncated", "other-shape", "no-candles"],
)
def test_what_may_pass_is_asked_again_and_given_up_in_the_end(
    server: CandleServer, fault: Fault, why: str
) -> None:
    waits: list[float] = []
    server.faults = [fault] * 3
    with api(server, waits, tries=4) as asking:
        assert len(page(asking)) == 10
        assert asking.asked == 4
        backoffs = [wait for wait in waits if wait > 0.01]
        assert len(backoffs) <= 3
        assert all(wait <= limit for wait, limit in zip(backoffs, (1, 2, 4), strict=False))
        server.faults = [fault] * 4
        with pytest.raises(CandleApiError) as caught:
            page(asking)
    assert str(caught.value) == f"{server.url}: {why}; given up after 4 tries"


def test_nobody_at_the_other_end_is_given_up() -> None:
    waits: list[float] = []
    nobody = HistorySettings(url="http://127.0.0.1:9", tries=2)
    with (
        CandleApi(nobody, sleep=waits.append) as asking,
        pytest.raises(
            CandleApiError, match=r"http://127\.0\.0\.1:9: no answer \(.*refused\); given up after 2"
        ),
    ):
        page(asking)


def test_a_server_that_hangs_is_not_waited_for_for_ever() -> None:
    with serving_candles({}) as server:
        server.hold_after = 0
        with (
            api(server, [], timeout_s=0.1, tries=1) as asking,
            pytest.raises(CandleApiError, match=r"no answer \(timed out\); given up after 1 tries"),
        ):
            page(asking)


def test_retry_after_is_obeyed_in_seconds_and_as_a_date(server: CandleServer) -> None:
    waits: list[float] = []
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
    server.faults = [
        Fault(429, {"Retry-After": "7"}),
        Fault(503, {"Retry-After": date}),
        Fault(429, {"Retry-After": "soon"}),
    ]
    with api(server, waits) as asking:
        assert len(page(asking)) == 10
    first, second, third = [wait for wait in waits if wait > 0.01]
    assert first == 7.0
    assert 80 < second <= 90
    assert third <= 4.0
    server.faults = [Fault(429, {"Retry-After": "3600"})]
    with api(server, waits) as asking, pytest.raises(CandleApiError) as caught:
        page(asking)
    assert str(caught.value) == f"{server.url}: it answered 429, and requires a pause of 3600 s"
    assert asking.asked == 1


def test_no_more_is_asked_in_a_second_than_was_allowed(server: CandleServer) -> None:
    with api(server, requests_per_s=20.0) as asking:
        began_s = time.monotonic()
        for _ in range(5):
            page(asking)
        assert time.monotonic() - began_s >= 4 / 20.0
