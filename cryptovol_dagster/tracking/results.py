"""Descriptions in MLflow: results on a Dagster run's own run, and the description of a version.

Belongs here: which numbers, tags and sentences these are. Does not belong here: how they reach MLflow
(`runs.py`, `registry.py`), and what a section says (`core/cards`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cryptovol_dagster.core.cards import sections
from cryptovol_dagster.core.cards.markdown import number, table, with_interval
from cryptovol_dagster.core.evaluation.evaluate import summary_rows
from cryptovol_dagster.core.specs import TimescaleSpec
from cryptovol_dagster.tracking.flavour import FOLDER

if TYPE_CHECKING:
    from mlflow.entities import Run

    from cryptovol_dagster.core.evaluation.report import ModelEvaluation
    from cryptovol_dagster.core.promotion.decision import Decision

#: Tag of a training run: products, span and rows of the test that its ``test_…`` metrics were measured on.
TEST_ROWS = "cryptovol.test_rows"
#: Numbers of a model on the parent run, as MLflow's charts and columns call them.
_NUMBERS = {
    "pr_auc": "average_precision",
    "onset_pr_auc": "onset_average_precision",
    "lift": "lift",
    "brier": "brier",
    "f1": "f1",
    "event_recall": "event_recall",
}
#: Test metrics of a training run in a version's description.
_SHOWN = {
    "PR-AUC": "test_average_precision",
    "base rate (PR-AUC of a model that knows nothing)": "test_base_rate",
    "PR-AUC at onset": "test_onset_average_precision",
    "Brier": "test_brier",
    "F1": "test_f1",
    "share of spike events found": "test_event_recall",
}


@dataclass(frozen=True)
class Results:
    """Something for the parent run.

    Attributes:
        section: key of its place in the run's description; a later one of the same key replaces it.
        text: Markdown; empty for no place.
        metrics: by name; ``seconds/pr_auc/xgboost`` puts the models of a number side by side.
        tags: by name.
        files: artifacts by path.
    """

    section: str = ""
    text: str = ""
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)


def evaluation_results(
    report: ModelEvaluation, plots: Mapping[str, bytes], origin: Mapping[str, str]
) -> Results:
    """Return the results of a partition's evaluation.

    Args:
        report: the evaluation of a partition.
        plots: its pictures as PNG, by name.
        origin: of the evaluation (`Tracking.origin`).

    Raises:
        EvaluationError: the report is of no partition.
    """
    chain, rows = report.timescale, summary_rows(report)
    best = rows[0]
    interval = with_interval(best["average_precision"], best["ap_low"], best["ap_high"])
    return Results(
        section=f"{chain} evaluation",
        text=_text(
            [
                f"**{chain}, as of the end of {report.partition} UTC: {best['model']} has the highest "
                f"PR-AUC, {interval}**, at a base rate of {number(best['base_rate'])}, on "
                f"{measured_on(report)}. "
                f"Verdict: **{report.verdict}**. In Dagster: [evaluation]({origin['dagster.asset_url']}), "
                f"[run]({origin['dagster.run_url']}).",
                "",
            ],
            sections.results(report),
            sections.verdict(report),
        ),
        metrics={f"{chain}/{name}/{row['model']}": row[key] for name, key in _NUMBERS.items() for row in rows}
        | {f"{chain}/base_rate": report.counts.test.base_rate, f"{chain}/test_rows": report.counts.test.rows},
        tags={
            f"{chain}.as_of": report.partition,
            f"{chain}.verdict": report.verdict,
            f"{chain}.best_model": best["model"],
        },
        files={f"{chain}/{name}.png": png for name, png in plots.items()},
    )


def decision_results(spec: TimescaleSpec, decision: Decision) -> Results:
    """Return the results of a partition's decision about the champion."""
    tags = {f"{spec.name}.decision": decision.verdict}
    if decision.champion is not None:
        tags[f"{spec.name}.champion"] = str(decision.champion)
    title = f"**{spec.name}, decided as of the end of {decision.as_of} UTC**"
    return Results(f"{spec.name} decision", _text([title, ""], sections.champion(decision)), tags=tags)


def measured_on(report: ModelEvaluation) -> str:
    """Describe the rows that the test metrics of a report were measured on."""
    span, test = report.split.test, report.counts.test
    products = ", ".join(report.data.products)
    return f"{products}, {span.start} … {span.end}: {test.rows:,} rows, {test.positives:,} spikes"


def about_model(spec: TimescaleSpec, name: str, ui_url: str) -> str:
    """Describe a registered model: what it predicts, what its aliases mean, how it is loaded.

    Args:
        spec: the timescale.
        name: of the registered model.
        ui_url: where MLflow's server answers.
    """
    return _text(
        [
            f"For each product and bar of {spec.bar_interval_s} s: the probability of a *spike*. A spike is "
            f"a volatility of the next {spec.horizon_s} s at or over the {spec.quantile:g} quantile of the "
            "training span.",
            "",
            "`champion` is the present champion, `previous` the one before, `challenger` the one that is "
            "compared with it. The aliases move only as of the newest closed partition.",
            "",
        ],
        _loading(f"models:/{name}@champion", ui_url),
    )


def about_version(run: Run, ui_url: str) -> str:
    """Describe a version by its training run: kind, training span, test numbers, how it is loaded.

    Args:
        run: the training run; missing values are left out.
        ui_url: where MLflow's server answers.
    """
    params, metrics, tags = run.data.params, run.data.metrics, run.data.tags
    lines = []
    if "model" in params:
        lines += [
            f"**{params['model']}**, trained on {metrics.get('train_rows', 0):,.0f} rows of "
            f"{params.get('train_start')} … {params.get('train_end')}.",
            "",
        ]
    if TEST_ROWS in tags:
        shown = {title: metrics[key] for title, key in _SHOWN.items() if key in metrics}
        lines += [
            f"Measured on later rows ({tags[TEST_ROWS]}):",
            "",
            *table(["", "test"], [[title, number(value)] for title, value in shown.items()]),
            "",
        ]
    return _text(lines, _loading(f"runs:/{run.info.run_id}/{FOLDER}", ui_url))


def _loading(model_uri: str, ui_url: str) -> list[str]:
    return [
        "To load it where cryptovol is installed; `features` is a DataFrame, one row a bar:",
        "",
        "```python",
        f'mlflow.set_tracking_uri("{ui_url}")',
        f'mlflow.pyfunc.load_model("{model_uri}").predict(features)',
        "```",
    ]


def _text(*parts: Iterable[str]) -> str:
    return "\n".join(line for part in parts for line in part).rstrip()
