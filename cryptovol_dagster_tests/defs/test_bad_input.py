"""What comes of bad input: an outcome people can see, and nothing half-written."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
import pytest
import yaml
from click.testing import CliRunner, Result
from dagster._core.errors import DagsterUnknownPartitionError

from cryptovol_dagster.cli import main
from cryptovol_dagster.core.times import hour_window
from cryptovol_dagster.defs.build import build_defs
from cryptovol_dagster.lake.files import Lake
from cryptovol_dagster.verbs import ranges, runs
from cryptovol_dagster_tests.pipeline import MARKET, Pipeline
from cryptovol_dagster_tests.synthetic import (
    FIRST_HOUR,
    PRODUCTS,
    close_hour,
    hours_from,
    small_settings,
    write_market,
)
from ingestor.envelope import TICKS
from ingestor.settings import Settings

#: An hour with a gap, one in which nothing came, one in which a product is missing.
WHOLE, GAP, EMPTY, ONE_PRODUCT = hours_from(FIRST_HOUR, 4)


@pytest.fixture(scope="module")
def ragged(tmp_path_factory: pytest.TempPathFactory, own_dagster_home: None) -> Pipeline:
    """Four hours, three of them bad, from raw to labels in one run."""
    settings = small_settings(tmp_path_factory.mktemp("ragged"))
    raw_dir = settings.storage.raw_dir
    write_market(raw_dir, [WHOLE, GAP], gap_in=GAP)
    close_hour(raw_dir, EMPTY, {TICKS: 0})
    write_market(raw_dir, [ONE_PRODUCT], products=PRODUCTS[:1], connection="other", log_id="logtest2")
    hours = hours_from(FIRST_HOUR, 4)
    return Pipeline(settings, hours, runs.materialize_range(settings, WHOLE, ONE_PRODUCT, MARKET))


def _found(pipeline: Pipeline, asset: str, name: str) -> runs.CheckOutcome:
    (outcome,) = [one for one in pipeline.summary.checks if (one.asset, one.name) == (asset, name)]
    return outcome


def _sigmas(pipeline: Pipeline, hour: str, product: str) -> int:
    labels = pipeline.lake.read_table("seconds/labels", *hour_window(hour)).to_pandas()
    return int(labels.loc[labels["product"] == product, "sigma"].notna().sum())


def test_bad_hours_are_written_whole(ragged: Pipeline) -> None:
    for asset in MARKET:
        assert ragged.lake.partitions(asset, "*") == ragged.hours, asset
    bars = ragged.lake.read_table("seconds/bars", *hour_window(EMPTY))
    assert bars.num_rows == 2 * 720


def test_an_hour_with_a_gap_is_told_in_the_ledger_and_no_return_crosses_it(ragged: Pipeline) -> None:
    ledger = ragged.summary.metadata["gap_ledger"][GAP]
    assert (ledger["rows_sequence"], ledger["numbers_in_gaps"]) == (1, 120)
    assert _found(ragged, "seconds/bars", "no_return_across_a_loss").passed
    assert 600 < _sigmas(ragged, GAP, PRODUCTS[0]) < _sigmas(ragged, WHOLE, PRODUCTS[0])


def test_an_hour_in_which_nothing_came_is_empty_and_said_to_be(ragged: Pipeline) -> None:
    assert ragged.summary.metadata["ticks"][EMPTY]["kept"] == 0
    share = _found(ragged, "seconds/labels", "labelled_share")
    assert (share.passed, share.severity) == (False, "WARN")
    for product in PRODUCTS:
        assert f"{EMPTY}: {product}: expected 50% of rows labelled or more, found " in share.description
    # It was closed, so it is not one that nobody recorded.
    assert _found(ragged, "gap_ledger", "recorded").passed


def test_a_product_that_is_missing_costs_the_other_nothing(ragged: Pipeline) -> None:
    share = _found(ragged, "seconds/labels", "labelled_share").description
    assert f"{ONE_PRODUCT}: {PRODUCTS[1]}: expected 50% of rows labelled or more, found 0%" in share
    assert f"{ONE_PRODUCT}: {PRODUCTS[0]}" not in share
    assert _sigmas(ragged, ONE_PRODUCT, PRODUCTS[0]) > 600
    assert _found(ragged, "seconds/bars", "complete_grid").passed


def test_a_corrupt_raw_file_stops_the_run_and_is_named(market: Settings) -> None:
    first, second = hours_from(FIRST_HOUR, 2)
    path = next((market.storage.raw_dir / TICKS).glob("date=*/hour=04/*-p0-*"))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(runs.RunFailed, match=f"gap_ledger: .*{path.name} cannot be read: "):
        runs.materialize_range(market, first, second, MARKET)
    lake = Lake(market.storage.lake_dir)
    for asset in MARKET:
        assert lake.partitions(asset) == [], asset


def test_a_corrupt_lake_file_stops_the_run_and_what_was_made_before_is_kept(market: Settings) -> None:
    lake = Lake(market.storage.lake_dir)
    runs.materialize_range(market, FIRST_HOUR, FIRST_HOUR, ["gap_ledger", "ticks", "seconds/bars"])
    path, bars = lake.path("ticks", FIRST_HOUR), lake.path("seconds/bars", FIRST_HOUR)
    path.write_bytes(path.read_bytes()[:-100])
    before = bars.stat().st_ino
    with pytest.raises(runs.RunFailed, match=f"seconds/bars: {path}: cannot be read as Parquet: "):
        runs.materialize_range(market, FIRST_HOUR, FIRST_HOUR, ["seconds/bars"])
    assert bars.stat().st_ino == before
    # Made again from what it was made from, it is well.
    again = runs.materialize_range(market, FIRST_HOUR, FIRST_HOUR, ["gap_ledger", "ticks", "seconds/bars"])
    assert again.materialized["seconds/bars"] == 1


@pytest.fixture
def backfill(market: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`cryptovol backfill` on two recorded hours."""
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(market.model_dump(mode="json", exclude={"kafka"})))
    monkeypatch.setenv("CRYPTOVOL_CONFIG", str(config))

    def call(first: str, last: str) -> Result:
        return CliRunner().invoke(main, ["backfill", "--from", first, "--to", last])

    return call


@pytest.mark.parametrize(
    ("first", "last", "says"),
    [
        (
            "2026-04-03-00:00",
            "2026-04-03-01:00",
            "is before dagster.partitions_start, 2026-04-04-03:00: choose hours from 2026-04-04-03:00 on,",
        ),
        (
            "2026-05-01-00:00",
            "2026-05-01-01:00",
            "nothing was recorded in 2026-05-01-00:00 … 2026-05-01-01:00",
        ),
        ("2099-01-01-00:00", "2099-01-01-01:00", "2099-01-01-01:00 is in the future"),
    ],
)
def test_a_backfill_of_hours_that_do_not_exist_is_refused_in_one_line(
    market: Settings, backfill, first: str, last: str, says: str
) -> None:
    refused = backfill(first, last)
    assert refused.exit_code == 1
    assert says in refused.output
    assert len(refused.output.strip().splitlines()) == 1
    assert not market.storage.lake_dir.exists()


def test_a_market_that_has_ended_has_no_later_hours(market: Settings) -> None:
    ended = market.model_copy(
        update={"dagster": market.dagster.model_copy(update={"partitions_end": "2026-04-04-05:00"})}
    )
    with pytest.raises(ranges.NothingToDo, match=r"2026-04-04-05:00 is after the end of the market"):
        ranges.validate_range(ended, FIRST_HOUR, "2026-04-04-05:00")
    with pytest.raises(ranges.NothingToDo, match=r"2026-04-05 is after the end of the market"):
        ranges.validate_range(ended, "2026-04-04", "2026-04-05")
    ranges.validate_range(ended, FIRST_HOUR, "2026-04-04-04:00")
    ranges.validate_range(ended, "2026-04-04", "2026-04-04")


@pytest.mark.parametrize("hour", ["2026-04-03-00:00", "2099-01-01-00:00"])
def test_dagster_refuses_hours_that_are_no_partitions(market: Settings, hour: str) -> None:
    job = build_defs(market).resolve_job_def("hourly_pipeline")
    with dg.DagsterInstance.ephemeral() as instance, pytest.raises(DagsterUnknownPartitionError, match=hour):
        job.execute_in_process(instance=instance, partition_key=hour)
    assert not market.storage.lake_dir.exists()


def test_an_hour_that_nobody_recorded_is_said_to_be_where_dagster_is_asked_for_it(market: Settings) -> None:
    hour = "2026-05-01-00:00"
    done = runs.materialize_range(market, hour, hour, ["gap_ledger"])
    (outcome,) = done.checks_failed
    assert (outcome.name, outcome.severity) == ("recorded", "WARN")
    assert outcome.description.startswith(f"{hour}: expected raw storage to contain the hour")
