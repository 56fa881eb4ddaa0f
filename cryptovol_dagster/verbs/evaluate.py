"""`cryptovol evaluate`: the models of an hour on test rows they have not seen."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from cryptovol_dagster.core.cards.markdown import NONE, number
from cryptovol_dagster.verbs.options import chain_option, json_option, partition_option
from ingestor.settings import load_settings
from ingestor.verbs.output import print_table

if TYPE_CHECKING:
    from cryptovol_dagster.core.evaluation.report import ModelEvaluation
    from cryptovol_dagster.core.promotion.decision import Decision

EXIT_INSUFFICIENT = 3


@click.command()
@chain_option
@partition_option
@click.option(
    "--strict", is_flag=True, help=f"Exit {EXIT_INSUFFICIENT} when the data do not suffice for a verdict."
)
@json_option
@click.pass_context
def evaluate(ctx: click.Context, chain_name: str, partition: str | None, strict: bool, as_json: bool) -> None:
    """Evaluate every enabled model as of an hour, and decide who is champion.

    Writes reports/model_eval.json, decision.json and model_card_v1.md. Models that are missing, or were
    trained on other rows than are there now, are trained first. With too little data the numbers are printed
    with the verdict insufficient_data and the reasons. The registry's aliases move only as of the newest
    closed hour.

    \b
    Examples:
      cryptovol evaluate                                  the newest hour with labels
      cryptovol evaluate --partition 2026-04-04-03:00     an hour before
      cryptovol evaluate --chain minutes_h5               a horizon of the minutes
      cryptovol evaluate --strict --json                  for scripts: exit code 3 on insufficient data
    """
    from cryptovol_dagster.chains import spec_of
    from cryptovol_dagster.core.evaluation.report import read_report
    from cryptovol_dagster.lake.decisions import read_decision
    from cryptovol_dagster.lake.files import Lake
    from cryptovol_dagster.lake.latest import Reports
    from cryptovol_dagster.verbs import ranges, runs

    settings = load_settings().settings
    spec = spec_of(settings, chain_name)
    key = partition or ranges.newest_labelled(settings, chain_name)
    selection = [spec.asset(name) for name in ("model_evaluation", "champion", "model_card")]
    if not runs.models_are_current(settings, key, chain_name):
        selection = runs.training_selection(settings, spec)
    summary = runs.materialize_range(settings, key, key, selection)
    lake = Lake(settings.storage.lake_dir)
    content = lake.read_bytes(spec.asset("model_evaluation"), key, "json")
    report = read_report(content)
    decision = read_decision(lake, spec, key)
    if as_json:
        found = {"evaluation": json.loads(content), "decision": decision.to_dict()}
        click.echo(json.dumps({**summary.to_dict(), **found}))
    else:
        _print(report, key)
        _print_decision(decision)
        latest = Reports(settings.storage.reports_dir, settings.storage.artifacts_dir).of(chain_name)
        click.echo(f"written to {latest.evaluation}")
    if strict and report.verdict != "ok":
        ctx.exit(EXIT_INSUFFICIENT)


def _print(report: ModelEvaluation, key: str) -> None:
    from cryptovol_dagster.core.evaluation.evaluate import summary_rows

    test = report.counts.test
    span = report.split.test
    click.echo(
        f"as of {key}: {test.rows:,} test rows of {', '.join(report.data.products)}, "
        f"{span.start} … {span.end}, base rate {test.base_rate:.3f}, {test.events} events"
    )
    columns = (
        "model",
        "PR-AUC",
        "95 % interval",
        "lift",
        "chance mean, q95",
        "onset",
        "95 % interval",
        "ROC",
        "Brier",
        "ECE",
    )
    print_table(columns, map(_cells, summary_rows(report)), words=("model",))
    click.echo(f"training: {report.sufficiency.summary}")
    for lack in report.sufficiency.missing:
        click.echo(f"  {lack}")
    for note in report.notes:
        click.echo(f"note: {note}")
    click.echo(f"verdict: {report.verdict}")
    for reason in report.reasons:
        click.echo(f"  {reason}")


def _cells(row: dict[str, Any]) -> list[str]:
    return [
        row["model"],
        number(row["average_precision"]),
        _interval(row["ap_low"], row["ap_high"]),
        number(row["lift"], 2),
        f"{number(row['chance_mean'])}, {number(row['chance_q95'])}",
        number(row["onset_average_precision"]),
        _interval(row["onset_low"], row["onset_high"]),
        number(row["roc_auc"]),
        number(row["brier"], 4),
        number(row["ece"]),
    ]


def _print_decision(decision: Decision) -> None:
    champion = decision.champion
    who = "nobody" if champion is None else f"{champion.model} as of {champion.as_of}"
    unproven = ", unproven" if champion is not None and champion.unproven else ""
    click.echo(f"champion: {who}{unproven} ({decision.verdict})")
    for reason in decision.reasons:
        click.echo(f"  {reason}")


def _interval(low: float | None, high: float | None) -> str:
    return NONE if low is None else f"{number(low)} – {number(high)}"
