"""`cryptovol backfill`: the whole chain over a range of hours, in one run."""

from __future__ import annotations

import json

import click

from cryptovol_dagster.verbs.options import json_option
from ingestor.settings import load_settings


@click.command()
@click.option("--from", "from_key", metavar="HOUR", help="First hour, UTC (default: the first recorded).")
@click.option("--to", "to_key", metavar="HOUR", help="Last hour, inclusive (default: the last recorded).")
@click.option("--only-missing", is_flag=True, help="Leave hours alone that have labels and splits already.")
@click.option("--market-only", is_flag=True, help="Ticks, bars, features and labels; train nothing.")
@json_option
def backfill(
    from_key: str | None, to_key: str | None, only_missing: bool, market_only: bool, as_json: bool
) -> None:
    """Rebuild ticks, bars, features, labels, splits, models and evaluation of past hours.

    Models are trained at every 24th hour (timescales.seconds.retrain_every_hours) and at the last one; the
    hours between carry them forward. Hours whose data do not suffice to train are recorded as such and do not
    stop the others. With --only-missing, runs of missing hours are worked off one after the other.
    """
    from cryptovol_dagster.resources.succession import BACKFILL_VERB_TAG
    from cryptovol_dagster.verbs import runs

    settings = load_settings().settings
    selection = runs.chain_selection(settings, market_only=market_only)
    summaries = [
        runs.materialize_range(settings, first, last, selection, tags={BACKFILL_VERB_TAG: "true"})
        for first, last in runs.ranges_to_fill(settings, from_key, to_key, only_missing, market_only)
    ]
    if as_json:
        click.echo(json.dumps({"runs": [summary.to_dict() for summary in summaries]}))
        return
    if not summaries:
        click.echo("nothing is missing")
    for summary in summaries:
        failed = summary.checks_failed
        click.echo(
            f"{summary.partitions[0]} … {summary.partitions[-1]}: {len(summary.partitions)} hours, "
            f"{sum(summary.materialized.values())} partitions written, "
            f"{summary.checks_passed} checks passed, {len(failed)} not"
        )
        if summary.carried:
            click.echo(f"  {len(summary.carried)} hours carry the models of an earlier one")
        for key, reason in summary.not_trainable.items():
            click.echo(f"  {key}: nothing trained: {reason}")
        for check in failed:
            click.echo(f"  {check.severity.lower()}: {check.asset} {check.name}: {check.description}")
