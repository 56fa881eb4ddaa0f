"""`cryptovol report`: the Evidently reports of an hour, and the list of existing reports."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from cryptovol_dagster.verbs.options import chain_option, json_option, partition_option
from ingestor.settings import load_settings

if TYPE_CHECKING:
    from cryptovol_dagster.monitoring.index import Entry
    from ingestor.settings import Settings


@click.command()
@click.option(
    "--compare-train-test", is_flag=True, help="How the features of test differ from training (the default)."
)
@click.option("--drift", is_flag=True, help="How an hour's features differ from those of the hours before.")
@click.option("--data-quality", is_flag=True, help="Data quality of an hour's bars and features.")
@click.option("--list", "as_list", is_flag=True, help="List the existing reports; create none.")
@chain_option
@partition_option
@json_option
def report(
    compare_train_test: bool,
    drift: bool,
    data_quality: bool,
    as_list: bool,
    chain_name: str,
    partition: str | None,
    as_json: bool,
) -> None:
    """Create an Evidently report, HTML and JSON, and update reports/index.html, the page of all reports.

    The newest copies are in reports/evidently/ (for the minutes: reports/<chain>/evidently/, with their own
    page), the others by hour or day in the lake. For --compare-train-test the splits of the hour are
    materialized first where they are missing or outdated.

    \b
    How test differs from training:       cryptovol report
    The same, as of another hour:         cryptovol report --compare-train-test --partition 2026-04-04-03:00
    The newest hour against those before: cryptovol report --drift
    Quality of its bars and features:     cryptovol report --data-quality
    Of a horizon of the minutes:          cryptovol report --chain minutes_h5
    All existing reports:                 cryptovol report --list
    For another program:                  cryptovol report --drift --json
    """
    if sum((compare_train_test, drift, data_quality, as_list)) > 1:
        raise click.UsageError("--compare-train-test, --drift, --data-quality and --list exclude each other")
    settings = load_settings().settings
    if as_list:
        if partition is not None:
            raise click.UsageError("--list covers every hour: omit --partition")
        _list(settings, chain_name, as_json)
        return
    kind = "drift_report" if drift else "data_quality_report" if data_quality else "train_test_report"
    _make(settings, chain_name, kind, partition, as_json)


def _make(settings: Settings, chain_name: str, kind: str, partition: str | None, as_json: bool) -> None:
    from cryptovol_dagster.chains import spec_of
    from cryptovol_dagster.lake.files import Lake
    from cryptovol_dagster.lake.latest import Reports
    from cryptovol_dagster.monitoring.evidently import TITLES, measured_on
    from cryptovol_dagster.monitoring.index import SUMMARY
    from cryptovol_dagster.verbs import ranges, runs

    _require_asset(settings, chain_name, kind)
    key = partition or ranges.newest_labelled(settings, chain_name)
    spec = spec_of(settings, chain_name)
    asset = spec.asset(kind)
    assets = [asset]
    if kind == "train_test_report" and not runs.splits_are_current(settings, key, chain_name):
        assets.insert(0, spec.asset("splits"))
    done = runs.materialize_range(settings, key, key, assets)
    lake = Lake(settings.storage.lake_dir)
    index = Reports(settings.storage.reports_dir, settings.storage.artifacts_dir).of(chain_name).index
    page = lake.path(asset, key, "html")
    summary = json.loads(lake.read_bytes(asset, key, SUMMARY))
    if as_json:
        found = {**summary, "path": str(page), "index": str(index)}
        click.echo(json.dumps({**done.to_dict(), "as_of": key, "report": found}))
        return
    click.echo(f"{TITLES[kind]}, as of {key}: {measured_on(summary)}")
    click.echo(f"{summary['columns']} columns: {summary['verdict']}")
    for name, value in list(summary.get("strongest", {}).items())[:5]:
        click.echo(f"  {name:<28}{value:.2f}  {_limit(summary['limits'][name])}")
    for name, found in summary.get("beside", {}).items():
        click.echo(f"  {name:<28}{found['distance']:.2f}  {_limit(found['limit'])} ({found['told']})")
    for name, why in summary["left_out"].items():
        click.echo(f"  left out: {name} ({why})")
    click.echo(f"written to {page}\nall reports: {index}")


def _require_asset(settings: Settings, chain_name: str, kind: str) -> None:
    """Refuse a report without an asset: horizons of a grid share bars and features, hence their quality."""
    from cryptovol_dagster.chains import spec_of, timescale_specs
    from cryptovol_dagster.verbs.ranges import NothingToDo

    grid = spec_of(settings, chain_name).grid
    first = next(spec.name for spec in timescale_specs(settings).values() if spec.grid == grid)
    if kind == "data_quality_report" and chain_name != first:
        raise NothingToDo(
            f"{chain_name} has no data quality report: its bars and features are those of {first}: "
            f"--chain {first}"
        )


def _list(settings: Settings, chain_name: str, as_json: bool) -> None:
    from cryptovol_dagster.chains import spec_of
    from cryptovol_dagster.lake.files import Lake
    from cryptovol_dagster.monitoring.evidently import TITLES
    from cryptovol_dagster.monitoring.index import entries

    found = entries(Lake(settings.storage.lake_dir), spec_of(settings, chain_name))
    if as_json:
        click.echo(json.dumps({"reports": [entry.to_dict() for entry in found]}))
        return
    if not found:
        click.echo("no report yet: `cryptovol report` creates one")
        return
    click.echo(f"{'as of (UTC)':<18}{'report':<26}{'drifted':>8}  verdict; measured on; page")
    for entry in found:
        click.echo(f"{entry.as_of:<18}{TITLES[entry.kind]:<26}{_percent(entry):>8}  {entry.verdict}")
        click.echo(f"{'':<54}{entry.rows}\n{'':<54}{entry.path or 'removed'}")


def _limit(limit: float | None) -> str:
    return "no limit yet" if limit is None else f"limit {limit:.2f}"


def _percent(entry: Entry) -> str:
    return "–" if entry.share_over is None else f"{entry.share_over:.0%}"
