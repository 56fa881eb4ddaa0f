"""`cryptovol report`: the Evidently report of an hour."""

from __future__ import annotations

import json

import click

from cryptovol_dagster.verbs.options import json_option, partition_option
from ingestor.settings import load_settings


@click.command()
@click.option(
    "--compare-train-test",
    is_flag=True,
    expose_value=False,
    help="How the features of test differ from those of training: the only report so far, hence the default.",
)
@partition_option
@json_option
def report(partition: str | None, as_json: bool) -> None:
    """Write reports/evidently/evidently_report.html and .json: how test differs from training.

    The splits of the hour are made first where they are missing or of other rows than are there now.

    \b
    The newest hour:       cryptovol report
    The same, by name:     cryptovol report --compare-train-test
    As of another hour:    cryptovol report --compare-train-test --partition 2026-04-04-03:00
    For another program:   cryptovol report --json
    """
    from cryptovol_dagster.resources.reports import Reports
    from cryptovol_dagster.verbs import runs

    settings = load_settings().settings
    key = partition or runs.newest_labelled(settings)
    assets = [f"{runs.TIMESCALE}/train_test_report"]
    if not runs.splits_are_current(settings, key):
        assets.insert(0, f"{runs.TIMESCALE}/splits")
    summary = runs.materialize_range(settings, key, key, assets)
    found = summary.metadata[f"{runs.TIMESCALE}/train_test_report"][key]
    files = Reports(settings.storage.reports_dir, settings.storage.artifacts_dir)
    if as_json:
        click.echo(json.dumps({**summary.to_dict(), "as_of": key, "report": found}))
        return
    click.echo(
        f"as of {key}: {found['rows_train']} training and {found['rows_test']} test rows, {found['columns']} "
        f"columns, {found['columns_flagged']} differ by Evidently's tests (which take rows as independent: a "
        "description, no alarm)"
    )
    click.echo(f"written to {files.evidently('html')}")
