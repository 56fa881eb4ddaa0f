"""Pictures of a walk-forward test as PNG bytes, from the scores of all folds together.

Belongs here: the choice of pictures and their titles. How each is drawn: `evaluation.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from cryptovol_dagster.core.evaluation.report import ReliabilityBin
from cryptovol_dagster.core.models import MODELS
from cryptovol_dagster.core.pictures.evaluation import (
    Calibration,
    Curve,
    at_onset_only,
    plot_calibration,
    plot_curves,
    plot_periods,
    plot_weights,
)
from cryptovol_dagster.core.specs import DAY_S

if TYPE_CHECKING:
    from cryptovol_dagster.core.evaluation.backtest import Backtest

#: Number of features shown of a boosted model.
_TOP = 20


def draw_backtest(backtest: Backtest) -> dict[str, bytes]:
    """Draw what a walk-forward test found: PNGs by name.

    AP by month, precision over recall of all test rows and of those at onset, calibration, and the gain of
    features where a model is made of trees.

    Examples:
        >>> from cryptovol_dagster.core.samples import backtest
        >>> list(draw_backtest(backtest()))
        ['by_month', 'precision_recall', 'precision_recall_onset', 'reliability']
    """
    report, rows = backtest.report, backtest.predictions
    ahead = f"next {report['horizon_s'] // 60} min"
    onset = rows.loc[rows["onset"].to_numpy(dtype=bool)]
    onset_y = onset["y"].to_numpy(dtype=bool)
    pictures = {
        "by_month": _by_month(backtest),
        "precision_recall": plot_curves(
            rows["y"].to_numpy(dtype=bool),
            [
                Curve(
                    name,
                    rows[name].to_numpy(dtype=np.float64),
                    found["average_precision"],
                    **(found["interval"] or {}),
                )
                for name, found in report["models"].items()
            ],
            f"Precision and recall: are the {ahead} a spike?",
            measured_on(backtest),
        ),
        "precision_recall_onset": plot_curves(
            onset_y,
            [
                Curve(name, onset[name].to_numpy(dtype=np.float64), found["onset_average_precision"])
                for name, found in report["models"].items()
            ],
            f"Onset: calm so far, are the {ahead} a spike?",
            f"{measured_on(backtest)}; {at_onset_only(onset_y)}",
        ),
        "reliability": plot_calibration(
            {name: _calibration(found) for name, found in report["models"].items()}, measured_on(backtest)
        ),
    }
    for name, gain in report["gain"].items():
        shown = dict(list(gain.items())[:_TOP])
        pictures[f"gain_{name}"] = plot_weights(
            {feature: share["mean"] for feature, share in shown.items()},
            f"{MODELS[name].importance_label}: mean over folds, line from least to most",
            f"{name}, {ahead}: most important features",
            f"trained {len(report['folds'])} times, each on {report['train_span_s'] // DAY_S} days, "
            f"{', '.join(report['data']['products'])}, as of {report['folds'][0]['as_of']} … "
            f"{report['folds'][-1]['as_of']}\n{len(gain)} features read, {len(shown)} shown",
            {feature: (share["least"], share["most"]) for feature, share in shown.items()},
        )
    return pictures


def _calibration(found: Mapping[str, Any]) -> Calibration:
    table = [ReliabilityBin(**part) for part in found["reliability"]]
    return Calibration(table, found["expected_calibration_error"], found["brier"])


def measured_on(backtest: Backtest) -> str:
    """Return two lines that describe the test rows of the pictures.

    Examples:
        >>> from cryptovol_dagster.core.samples import backtest
        >>> print(measured_on(backtest()))
        walk-forward test BTC-USD, ETH-USD, 2026-04-02T03:58:50Z … 2026-04-02T04:58:50Z, 1 fold
        1,440 rows, 264 spikes
    """
    report = backtest.report
    test, folds = report["test"], len(report["folds"])
    return (
        f"walk-forward test {', '.join(report['data']['products'])}, {test['first']} … {test['end']}, "
        f"{folds} {'fold' if folds == 1 else 'folds'}\n"
        f"{test['rows']:,} rows, {test['positives']:,} spikes"
    )


def _by_month(backtest: Backtest) -> bytes:
    report = backtest.report
    months = report["by_month"]
    return plot_periods(
        [month["month"] for month in months],
        {name: [month["average_precision"][name] for month in months] for name in report["models"]},
        base_rates=[month["base_rate"] for month in months],
        rows=[month["rows"] for month in months],
        heading=f"Next {report['horizon_s'] // 60} min: average precision by month, beside the base rate",
        measured_on=measured_on(backtest),
    )
