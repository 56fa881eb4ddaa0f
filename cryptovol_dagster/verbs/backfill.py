"""`cryptovol backfill`: a whole timescale over a range of hours or days, in one run."""

from __future__ import annotations

import json

import click

from cryptovol_dagster.core.specs import SECONDS
from cryptovol_dagster.verbs.options import json_option
from ingestor.settings import load_settings


@click.command()
@click.option(
    "--timescale",
    default=SECONDS,
    show_default=True,
    help="seconds (hours of ticks) or minutes (days of candles, every horizon).",
)
@click.option(
    "--from", "from_key", metavar="KEY", help="First hour or day, UTC (default: the first there is)."
)
@click.option("--to", "to_key", metavar="KEY", help="Last one, inclusive (default: the last there is).")
@click.option("--only-missing", is_flag=True, help="Skip partitions that have labels and splits already.")
@click.option("--market-only", is_flag=True, help="Up to features and labels; train nothing.")
@json_option
def backfill(
    timescale: str,
    from_key: str | None,
    to_key: str | None,
    only_missing: bool,
    market_only: bool,
    as_json: bool,
) -> None:
    """Rebuild ticks, bars, features, labels, splits, models and evaluation of past hours.

    Models are trained at every 24th hour (timescales.seconds.retrain_every_hours) and at the last one; the
    hours between carry them forward. Hours whose data do not suffice to train are recorded as such and do not
    stop the others. With --only-missing, runs of missing hours are worked off one after the other.

    The minutes are worked off by days and train every 30 days (timescales.minutes.retrain_every_days): that
    is the walk-forward test of `cryptovol backtest`. Registry aliases never move.

    \b
    Examples:
      cryptovol backfill --from 2026-04-04-03:00 --to 2026-04-04-05:00
      cryptovol backfill --only-missing
      cryptovol backfill --timescale minutes --from 2024-01-01 --to 2024-12-31
    """
    from cryptovol_dagster.champion.succession import BACKFILL_VERB_TAG
    from cryptovol_dagster.verbs import ranges, runs

    settings = load_settings().settings
    selection = runs.chain_selection(settings, timescale, market_only=market_only)
    to_fill = ranges.ranges_to_fill if timescale == SECONDS else ranges.days_to_fill
    summaries = [
        runs.materialize_range(settings, first, last, selection, tags={BACKFILL_VERB_TAG: "true"})
        for first, last in to_fill(settings, from_key, to_key, only_missing, market_only)
    ]
    if as_json:
        click.echo(json.dumps({"runs": [summary.to_dict() for summary in summaries]}))
        return
    if not summaries:
        click.echo("nothing is missing")
    for summary in summaries:
        failed = summary.checks_failed
        click.echo(
            f"{summary.partitions[0]} … {summary.partitions[-1]}: {len(summary.partitions)} partitions, "
            f"{sum(summary.materialized.values())} files written, "
            f"{summary.checks_passed} checks passed, {len(failed)} not"
        )
        if summary.carried:
            click.echo(f"  {len(summary.carried)} carry the models of an earlier one")
        for key, reason in summary.not_trainable.items():
            click.echo(f"  {key}: nothing trained: {reason}")
        for check in failed:
            click.echo(f"  {check.severity.lower()}: {check.asset} {check.name}: {check.description}")
