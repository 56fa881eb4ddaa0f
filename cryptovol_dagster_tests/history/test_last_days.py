"""The background import of the last days: what it asks for, how it meets failures, what it says of itself."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from cryptovol_dagster.core.market.candle_checks import MINUTE_NS
from cryptovol_dagster.core.specs import NS
from cryptovol_dagster.history import store
from cryptovol_dagster.history.last_days import AROUND_START_S, LastDays
from cryptovol_dagster.history.progress import (
    AGAIN_AFTER_S,
    DONE,
    WAITING,
    ImportRunsError,
    Progress,
    Reached,
    is_importing,
    read_progress,
    the_only_import,
)
from cryptovol_dagster.history.store import DAY_NS, History, HistoryError
from cryptovol_dagster_tests.candle_server import CandleServer, Fault, made_candles, serving_candles
from ingestor.settings.sections import HistorySettings

FIRST = pd.Timestamp("2024-03-01", tz="UTC").value
#: Two whole days, and half an hour of the third.
NOW = FIRST + 2 * DAY_NS + 30 * MINUTE_NS
SETTLED = 2 * 1_440 + 28


class Clock:
    """A clock that only `sleep` moves, and what was slept."""

    def __init__(self) -> None:
        self.now_ns = NOW
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now_ns += int(seconds * NS)


@pytest.fixture(scope="module")
def shared() -> Iterator[CandleServer]:
    candles = made_candles(FIRST - DAY_NS, 4 * 1_440)
    with serving_candles({"BTC-USD": candles, "ETH-USD": candles}) as server:
        yield server


@pytest.fixture
def server(shared: CandleServer) -> CandleServer:
    shared.asked.clear()
    shared.faults.clear()
    return shared


@pytest.fixture
def history(tmp_path: Path) -> History:
    return History(tmp_path / "history")


def last_days(
    history: History, server: CandleServer, *products: str, clock: Clock, told: list[str] | None = None
) -> LastDays:
    settings = HistorySettings(
        url=server.url, requests_per_s=1e6, tries=1, backoff_initial_s=0.01, first_import_days=2
    )
    said = [] if told is None else told
    return LastDays(
        history,
        settings,
        products,
        0,
        tell=said.append,
        clock_ns=lambda: clock.now_ns,
        sleep=clock.sleep,
    )


def progress_of(history: History) -> Progress:
    found = read_progress(history.root)
    assert found is not None
    return found


def test_the_last_days_of_each_product_are_imported_and_then_what_lies_around_the_start(
    history: History, server: CandleServer
) -> None:
    clock = Clock()
    last_days(history, server, "BTC-USD", "ETH-USD", clock=clock).run()
    after = int(AROUND_START_S) // 60
    for product in ("BTC-USD", "ETH-USD"):
        starts = history.read(product, 0, NOW + DAY_NS)["start_ns"]
        assert (starts.min(), len(starts)) == (FIRST, SETTLED + after)
    assert sum(clock.slept) == pytest.approx(AROUND_START_S, abs=0.1)
    progress = progress_of(history)
    assert (progress.state, progress.first_day, progress.last_day) == (DONE, "2024-03-01", "2024-03-02")
    assert progress.sentence(runs=False) == (
        "imported minutes: BTC-USD 2 of 2 days, ETH-USD 2 of 2 days, as of 2024-03-03T00:34:00Z"
    )
    assert not is_importing(history.root)

    server.asked.clear()
    clock.now_ns += 7 * MINUTE_NS
    last_days(history, server, "BTC-USD", clock=clock).run()
    minutes = [(end - start) // 60 + 1 for _, start, end in server.asked]
    assert minutes == [7, after], "what is known was asked for again"


def test_one_product_that_is_not_listed_does_not_stop_the_others(
    history: History, server: CandleServer
) -> None:
    told: list[str] = []
    last_days(history, server, "NO-USD", "BTC-USD", clock=Clock(), told=told).run()
    (line,) = told
    assert "refused candles of NO-USD: 404 NOT_FOUND Product NO-USD not supported; the other" in line
    progress = progress_of(history)
    assert (progress.state, progress.share) == (DONE, 1.0)
    assert "NO-USD refused (http" in progress.sentence(runs=False)
    assert "BTC-USD 2 of 2 days" in progress.sentence(runs=False)
    assert [product for product, _, _ in server.asked].count("NO-USD") == 1


def test_an_exchange_that_does_not_answer_is_asked_again_and_what_came_before_is_kept(
    history: History, server: CandleServer
) -> None:
    clock, told, seen = Clock(), [], []
    server.faults = [Fault(), Fault(), Fault(status=503)]
    importer = last_days(history, server, "BTC-USD", clock=clock, told=told)

    def sleep(seconds: float) -> None:
        if seconds == AGAIN_AFTER_S:
            assert is_importing(history.root)
            seen.append(progress_of(history).sentence(runs=True))
        clock.sleep(seconds)

    importer.sleep = sleep
    importer.run()
    assert seen == [
        "importing minutes: BTC-USD 0 of 2 days; 21%; the exchange does not answer: "
        f"{server.url}: it answered 503; given up after 1 tries; tried again every 10 min"
    ]
    assert len(told) == 1
    asked = [start for _, start, _ in server.asked]
    assert asked[3] == asked[2]
    assert len(set(asked)) == len(asked) - 1
    assert progress_of(history).state == DONE


def test_one_import_at_a_time_and_one_that_broke_off_says_how_it_goes_on(
    history: History, server: CandleServer
) -> None:
    def broken_off(seconds: float) -> None:
        raise KeyboardInterrupt

    server.faults = [Fault(), Fault(status=503)]
    importer = last_days(history, server, "BTC-USD", clock=Clock())
    importer.sleep = broken_off
    with pytest.raises(KeyboardInterrupt):
        importer.run()
    assert progress_of(history).sentence(runs=is_importing(history.root)) == (
        "import of minutes stopped: BTC-USD 0 of 2 days; `cryptovol up` continues it"
    )
    with (
        the_only_import(history.root),
        pytest.raises(ImportRunsError, match="an import of the last days runs there already"),
    ):
        last_days(history, server, "BTC-USD", clock=Clock()).run()


def test_a_full_disk_is_waited_for_and_refuses_no_product(
    history: History, server: CandleServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, told, seen = Clock(), [], []
    importer = last_days(history, server, "BTC-USD", clock=clock, told=told)

    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def sleep(seconds: float) -> None:
        if seconds == AGAIN_AFTER_S:
            seen.append(progress_of(history))
            patched.undo()
        clock.sleep(seconds)

    importer.sleep = sleep
    with monkeypatch.context() as patched:
        patched.setattr(store, "replace_file", full)
        importer.run()
    why = f"cannot go on: {history.root}/BTC-USD/2024-03.parquet: cannot be written: No space left on device"
    assert [(one.state, one.why) for one in seen] == [(WAITING, why)]
    assert seen[0].sentence(runs=True).endswith(f"; 0%; {why}; tried again every 10 min")
    assert told == [f"{why}; tried again in 10 min"]
    done = progress_of(history)
    assert (done.state, done.products["BTC-USD"].refused, done.share) == (DONE, "", 1.0)


def test_a_day_that_ends_around_the_start_is_in_a_record_of_its_own(
    history: History, server: CandleServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    records: list[Progress] = []
    monkeypatch.setattr(
        "cryptovol_dagster.history.last_days.write_progress", lambda _, new: records.append(new)
    )
    clock = Clock()
    clock.now_ns = FIRST + 2 * DAY_NS - 2 * MINUTE_NS
    last_days(history, server, "BTC-USD", clock=clock).run()
    assert [one.last_day for one in records if one.state == DONE] == ["2024-03-01", "2024-03-02"]


def test_a_first_day_that_is_to_come_leaves_nothing_to_import(history: History, server: CandleServer) -> None:
    importer = last_days(history, server, "BTC-USD", clock=Clock())
    importer.first_day_ns = FIRST + 9 * DAY_NS
    importer.run()
    assert server.asked == []
    assert progress_of(history).products["BTC-USD"] == Reached(0, 0)
    assert "BTC-USD 0 of 0 days" in progress_of(history).sentence(runs=False)


def test_a_record_that_cannot_be_read_is_one_line(history: History) -> None:
    assert read_progress(history.root) is None
    history.root.mkdir()
    (history.root / "last_days.json").write_text("{")
    with pytest.raises(HistoryError, match=r"last_days.json: cannot be read .*; remove it"):
        read_progress(history.root)
