"""`cryptovol evaluate`: the models of an hour on test rows they have not seen."""

from __future__ import annotations

import json
from typing import Any

import click

from cryptovol_dagster.verbs.options import json_option, partition_option
from ingestor.settings import load_settings

EXIT_INSUFFICIENT = 3
_LINE = "{:<16} {:>7} {:>16} {:>6} {:>17} {:>6} {:>6} {:>7}"


@click.command()
@partition_option
@click.option(
    "--strict", is_flag=True, help=f"Exit {EXIT_INSUFFICIENT} when the data do not suffice for a verdict."
)
@json_option
@click.pass_context
def evaluate(ctx: click.Context, partition: str | None, strict: bool, as_json: bool) -> None:
    """Evaluate every enabled model as of an hour; writes reports/model_eval.json and the model card.

    Models that are missing, or were trained on other rows than are there now, are trained first. With too
    little data the numbers are printed with the verdict insufficient_data and the reasons.
    """
    from cryptovol_dagster.resources.lake import Lake
    from cryptovol_dagster.verbs import runs

    settings = load_settings().settings
    key = partition or runs.newest_labelled(settings)
    scale = runs.TIMESCALE
    selection = [f"{scale}/model_evaluation", f"{scale}/model_card"]
    if not runs.models_are_current(settings, key):
        selection = [
            f"{scale}/splits",
            *(f"{scale}/model_{name}" for name in settings.models.enabled),
            *selection,
        ]
    summary = runs.materialize_range(settings, key, key, selection)
    lake = Lake(settings.storage.lake_dir)
    report = json.loads(lake.read_bytes(f"{scale}/model_evaluation", key, "json"))
    if as_json:
        click.echo(json.dumps({**summary.to_dict(), "evaluation": report}))
    else:
        _print(report, key)
        click.echo(f"written to {settings.storage.reports_dir / 'model_eval.json'}")
    if strict and report["verdict"] != "ok":
        ctx.exit(EXIT_INSUFFICIENT)


def _print(report: dict[str, Any], key: str) -> None:
    from cryptovol_dagster.core.evaluation import summary_rows

    test = report["counts"]["test"]
    click.echo(f"as of {key}: {test['rows']} test rows, base rate {test['base_rate']:.3f}")
    click.echo(
        _LINE.format("model", "PR-AUC", "95 % interval", "lift", "chance mean, q95", "onset", "ROC", "Brier")
    )
    for row in summary_rows(report):
        known = row["ap_low"] is not None
        click.echo(
            _LINE.format(
                row["model"],
                _number(row["average_precision"]),
                f"{row['ap_low']:.3f} – {row['ap_high']:.3f}" if known else "–",
                _number(row["lift"], 2),
                f"{_number(row['chance_mean'])}, {_number(row['chance_q95'])}",
                _number(row["onset_average_precision"]),
                _number(row["roc_auc"]),
                _number(row["brier"], 4),
            )
        )
    click.echo(f"verdict: {report['verdict']}")
    for reason in report["reasons"]:
        click.echo(f"  {reason}")


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
