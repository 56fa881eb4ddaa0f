"""`cryptovol import-bars` killed, interrupted and refused: what it says, what is kept, how it goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner, Result

from cryptovol_dagster.cli import main
from cryptovol_dagster.core.market.candle_checks import MINUTE_NS, NUMBERS
from cryptovol_dagster.history.api import PAGE_MINUTES
from cryptovol_dagster.history.store import History
from cryptovol_dagster_tests.candle_server import CandleServer, Fault, made_candles, serving_candles

FIRST = pd.Timestamp("2024-01-01", tz="UTC").value
DAY = made_candles(FIRST, 1_440)
ASKING = ("import-bars", "--from", "2024-01-01", "--to", "2024-01-02", "--product", "BTC-USD", "--no-report")


@pytest.fixture
def server() -> Iterator[CandleServer]:
    with serving_candles({"BTC-USD": DAY.drop([700, 701])}) as running:
        yield running


@pytest.fixture
def environment(tmp_path: Path, server: CandleServer, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment in which `cryptovol` asks the server, without a pause worth mentioning."""
    (tmp_path / "config.yaml").write_text(
        "history: {requests_per_s: 1000, tries: 2, backoff_initial_s: 0.01, backoff_max_s: 0.01}\n"
    )
    monkeypatch.setenv("CRYPTOVOL_CONFIG", str(tmp_path / "config.yaml"))
    monkeypatch.setenv("CRYPTOVOL__HISTORY__URL", server.url)
    return tmp_path


def history(environment: Path) -> History:
    return History(environment / "data" / "history")


def stored(environment: Path) -> pd.DataFrame:
    return history(environment).read("BTC-USD", FIRST, FIRST + 1_440 * MINUTE_NS)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments), catch_exceptions=False)


def halfway(server: CandleServer) -> subprocess.Popen[str]:
    """Begin an import in a process of its own; two pages are stored, the third is asked for."""
    server.hold_after = 2
    process = subprocess.Popen(
        [sys.executable, "-m", "cryptovol_dagster.cli", *ASKING],
        env=dict(os.environ),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while len(server.asked) < 3:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    return process


def test_an_import_that_is_killed_goes_on_with_what_is_missing(
    environment: Path, server: CandleServer
) -> None:
    process = halfway(server)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    server.answering.set()
    kept = len(stored(environment))
    assert kept == 2 * PAGE_MINUTES
    result = run(*ASKING, "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)["products"]["BTC-USD"]
    assert (told["added"], told["holes"]) == (1_440 - 2 - kept, 2)
    assert len(server.asked) - 3 == -(-(1_440 - kept) // PAGE_MINUTES)
    assert server.asked[3] == server.asked[2]
    pd.testing.assert_frame_equal(
        stored(environment)[list(NUMBERS)], DAY.drop([700, 701])[list(NUMBERS)].reset_index(drop=True)
    )
    assert run(*ASKING).stdout.startswith("nothing is missing there\n")


def test_ctrl_c_ends_it_with_a_line_and_130(environment: Path, server: CandleServer) -> None:
    process = halfway(server)
    process.send_signal(signal.SIGINT)
    server.answering.set()
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert out == ""
    assert "Traceback" not in err
    assert err.strip() == "interrupted; stored: 600 candles of BTC-USD; the same command continues there"
    assert len(stored(environment)) == 600


def test_an_exchange_that_gives_up_midway_is_one_line_with_what_was_stored(
    environment: Path, server: CandleServer
) -> None:
    server.faults = [Fault(), Fault(status=503), Fault(status=503)]
    result = run(*ASKING)
    assert result.exit_code == 1
    assert result.stderr == (
        f"Error: {server.url}: it answered 503; given up after 2 tries (stored: 300 candles of BTC-USD)\n"
    )
    assert len(stored(environment)) == 300


def test_files_are_imported_until_one_is_refused(environment: Path, server: CandleServer) -> None:
    good, bad = environment / "good.csv", environment / "bad.csv"
    DAY[:100].assign(product="BTC-USD").to_csv(good, index=False)
    DAY[100:110].assign(product="BTC-USD", high=1.0).to_csv(bad, index=False)
    result = run("import-bars", str(good), str(bad), "--no-report")
    assert result.exit_code == 1
    assert result.stderr.startswith(f"Error: {bad}: expected possible candles, found 10 of 10 that are not: ")
    assert result.stderr.endswith("(stored: 100 candles of BTC-USD)\n")
    result = run("import-bars", str(good), str(bad), "--no-report", "--skip-bad")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[:3] == [
        f"{good}: 100 rows",
        f"{bad}: 10 rows, 10 impossible",
        "BTC-USD: 0 candles stored, 0 replaced, 100 were there; 10 minutes recorded as holes; 0 days changed",
    ]
    assert server.asked == []


def of_btc(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.assign(product="BTC-USD")


@pytest.mark.parametrize(
    ("table", "says"),
    [
        (DAY.iloc[:100].drop(index=range(20, 30)), "{file}: 90 rows\nBTC-USD: 90 candles stored, "),
        (
            pd.concat([DAY[:50], DAY[30:100]]),
            "{file}: 120 rows, 20 said twice, 1 steps back in time\nBTC-USD: 100 candles stored, ",
        ),
        (DAY[:100].iloc[::-1], "{file}: 100 rows, 99 steps back in time\nBTC-USD: 100 candles stored, "),
    ],
    ids=["holes", "duplicates", "newest first"],
)
def test_what_can_be_put_into_order_is_and_the_line_says_so(
    environment: Path, table: pd.DataFrame, says: str
) -> None:
    file = environment / "a.csv"
    of_btc(table).to_csv(file, index=False)
    result = run("import-bars", str(file), "--no-report")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(says.format(file=file))
    kept = stored(environment)["start_ns"]
    assert kept.tolist() == sorted(set(table["start_ns"]))


@pytest.mark.parametrize(
    ("table", "says"),
    [
        (
            pd.concat([DAY[100:130], DAY[100:130].assign(close=DAY["low"] - 0.001, low=DAY["low"] - 0.001)]),
            "expected one candle a minute, found 30 that contradict another, the first BTC-USD ",
        ),
        (
            DAY[100:200].assign(high=DAY["low"] / 2),
            "expected possible candles, found 100 of 100 that are not: row 1 (BTC-USD 2024-01-01T01:40:00Z): "
            "low above high, o ",
        ),
        (
            pd.concat([DAY[100:160], DAY[165:600:15]]),
            "expected candles of 1 minute, found BTC-USD 15 minutes apart from 2024-01-01T02:45:00Z to ",
        ),
        (
            made_candles(FIRST + 100 * MINUTE_NS, 60, level=2_400.0),
            "expected prices of one market, found a factor of ",
        ),
    ],
    ids=["contradicting", "impossible", "mixed intervals", "another product"],
)
def test_what_cannot_be_believed_is_refused_and_what_was_stored_stands(
    environment: Path, table: pd.DataFrame, says: str
) -> None:
    good, bad = environment / "good.csv", environment / "bad.csv"
    of_btc(DAY.iloc[:100]).to_csv(good, index=False)
    assert run("import-bars", str(good), "--no-report").exit_code == 0
    before = stored(environment)
    of_btc(table).to_csv(bad, index=False)
    result = run("import-bars", str(bad), "--no-report")
    assert result.exit_code == 1
    assert says in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert "bad.csv" in result.stderr
    pd.testing.assert_frame_equal(stored(environment), before)


def test_a_file_of_another_product_is_refused_by_its_name(environment: Path) -> None:
    file = environment / "eth.csv"
    DAY[:10].assign(product="ETH-USD").to_csv(file, index=False)
    result = run("import-bars", str(file), "--product", "BTC-USD", "--no-report")
    assert result.exit_code == 1
    assert "expected candles of BTC-USD only, found 10 of 10 rows of ETH-USD" in result.stderr
    assert stored(environment).empty


def test_what_is_stored_and_missing_is_listed(environment: Path) -> None:
    assert "no candles yet" in run("import-bars", "--list").stdout
    DAY.drop([5, 6]).assign(product="BTC-USD").to_csv(environment / "a.csv", index=False)
    assert run("import-bars", str(environment / "a.csv"), "--no-report").exit_code == 0
    (row,) = json.loads(run("import-bars", "--list", "--json").stdout)["products"]
    assert row == {
        "product": "BTC-USD",
        "first": "2024-01-01T00:00:00Z",
        "end": "2024-01-02T00:00:00Z",
        "candles": 1_438,
        "no_candle": 0,
        "bad_row": 0,
        "not_asked": 2,
        "longest_hole_minutes": 2,
    }
    assert "1,438" in run("import-bars", "--list").stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "name files, or ask the exchange with --from"),
        (("a.csv", "--from", "2024-01-01"), "name files, or ask the exchange with --from"),
        (("a.csv", "--to", "2024-01-01"), "--to and --url go with --from"),
        (("a.csv", "--product", "A-USD", "--product", "B-USD"), "files are of one --product"),
        (("--from", "2024-01-02", "--to", "2024-01-01"), "--to must be later than --from"),
        (("--from", "January"), "'January' is not a day (2024-01-31) or time (2024-01-31T05:00), UTC"),
        (("--from", "2024-02-30"), "'2024-02-30' is not a day"),
        (("--from", "2024-01-01", "--url", "ftp://x"), "--url must begin with http:// or https://"),
        (("--from", "2024-01-01", "--format", "csv"), "--format is of files"),
    ],
)
def test_wrong_usage_is_said(environment: Path, arguments: tuple[str, ...], says: str) -> None:
    result = run("import-bars", *arguments)
    assert result.exit_code == 2
    assert says in result.stderr


def test_a_product_that_cannot_be_one_is_refused_before_anything_is_asked(
    environment: Path, server: CandleServer
) -> None:
    result = run("import-bars", "--from", "2024-01-01", "--product", "../x")
    assert result.exit_code == 1
    assert result.stderr == "Error: --product: expected a product such as BTC-USD, found '../x'\n"
    assert server.asked == []
    result = run(*ASKING[:-2], "NOPE-USD", "--no-report")
    assert result.exit_code == 1
    assert "404 NOT_FOUND Product NOPE-USD not supported" in result.stderr
