"""`cryptovol train`: splits and models as of an hour."""

from __future__ import annotations

import json
from typing import Any, get_args

import click

from cryptovol_dagster.verbs.options import chain_option, json_option, partition_option
from ingestor.settings import load_settings
from ingestor.settings.sections import ModelName
from ingestor.verbs.output import print_table

#: Model of `--model baseline`.
ALIASES = {"baseline": "baseline_zscore"}


@click.command()
@click.option(
    "--model-type",
    type=click.Choice([*get_args(ModelName), *ALIASES, "all"]),
    default="all",
    show_default=True,
    help="Model to train.",
)
@chain_option
@partition_option
@json_option
def train(model_type: str, chain_name: str, partition: str | None, as_json: bool) -> None:
    """Train models as of the end of an hour (for the minutes: a day), on earlier rows.

    Materializes the same Dagster assets as the hourly retrain: splits, then the models. Each is written to
    the lake, logged to MLflow, and the newest is exported to the artifacts folder. Who is champion is decided
    by `cryptovol evaluate`.

    \b
    Examples:
      cryptovol train                                     every enabled model, the newest hour with labels
      cryptovol train --model-type xgboost --json         one model, the result for scripts
      cryptovol train --partition 2026-04-04-03:00        as of an hour before
      cryptovol train --chain minutes_h5                  on months of minutes
    """
    from cryptovol_dagster.chains import models_of, spec_of
    from cryptovol_dagster.verbs import ranges, runs

    settings = load_settings().settings
    spec = spec_of(settings, chain_name)
    key = partition or ranges.newest_labelled(settings, chain_name)
    enabled = models_of(settings, spec).enabled
    names = list(enabled) if model_type == "all" else [ALIASES.get(model_type, model_type)]
    if missing := [name for name in names if name not in enabled]:
        raise ranges.NothingToDo(f"{missing[0]} is not among models.enabled: {', '.join(enabled)}")
    assets = {name: spec.asset(f"model_{name}") for name in names}
    summary = runs.materialize_range(settings, key, key, [spec.asset("splits"), *assets.values()])
    rows = [{"model": name, **_result(summary.metadata[asset][key])} for name, asset in assets.items()]
    if as_json:
        click.echo(json.dumps({**summary.to_dict(), "as_of": key, "models": rows}))
        return
    click.echo(f"trained as of {key} on earlier rows")
    columns = ("model", "rows", "spikes", "fit s", "MLflow run")
    print_table(columns, map(_cells, rows), words=("model", "MLflow run"))
    click.echo(f"exported to {settings.storage.artifacts_dir}")


def _cells(row: dict[str, Any]) -> list[str]:
    numbers = (str(row["train_rows"]), str(row["train_positives"]), f"{row['fit_s']:.2f}")
    return [row["model"], *numbers, row["mlflow_run"]]


def _result(metadata: dict[str, Any]) -> dict[str, Any]:
    names = ("train_rows", "train_positives", "fit_s", "path", "mlflow_run", "mlflow_run_id")
    return {name: metadata[name] for name in names}
