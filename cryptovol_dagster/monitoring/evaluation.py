"""The page of an evaluation: verdict, the models' numbers with their intervals, and the pictures.

Belongs here: which parts of an evaluation the page shows. Does not belong here: numbers of its own, and HTML
(`templates/evaluation.html`). Pictures and files are linked relative to the page.
"""

from __future__ import annotations

from collections.abc import Sequence

from cryptovol_dagster.core.cards import sections
from cryptovol_dagster.core.evaluation.report import ModelEvaluation
from cryptovol_dagster.lake.latest import Reports
from cryptovol_dagster.monitoring.pages import render_page

#: Captions of the pictures, by name.
CAPTIONS = {
    "episode": "The most violent stretch of the test: mid, score and threshold",
    "precision_recall": "Precision over recall",
    "precision_recall_onset": "Precision over recall at onset",
    "by_period": "Average precision by day or month, over the base rate",
    "reliability": "Reliability: observed share of spikes by predicted probability",
}


def render_evaluation(report: ModelEvaluation, reports: Reports, plots: Sequence[str]) -> str:
    """Render the page of an evaluation.

    Args:
        report: the numbers.
        reports: folder of the page, its pictures and the other latest copies.
        plots: names of the pictures, in the order shown.
    """
    head, rows = sections.result_table(report)
    folder = reports.reports_dir
    files = [
        ("Model card", reports.model_card),
        ("All reports", reports.index),
        ("As data", reports.evaluation),
    ]
    return render_page(
        "evaluation.html",
        title=f"{report.timescale}, as of {report.as_of}",
        verdict=report.verdict,
        reasons=[*report.reasons, *report.notes],
        span=sections.test_span(report),
        test=report.counts.test,
        horizon_s=report.horizon_s,
        head=head,
        rows=rows,
        pictures=[
            (CAPTIONS.get(name, name.replace("_", " ")), reports.plot(name).relative_to(folder).as_posix())
            for name in plots
        ],
        files=[(name, path.relative_to(folder).as_posix()) for name, path in files],
    )
