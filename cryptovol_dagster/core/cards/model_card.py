"""The model card: intended use, evaluation data, results and limits of the models."""

from __future__ import annotations

from cryptovol_dagster.core.cards import sections as section
from cryptovol_dagster.core.cards.episodes import episodes
from cryptovol_dagster.core.cards.sections import CardContext
from cryptovol_dagster.core.evaluation.report import ModelEvaluation
from cryptovol_dagster.core.promotion.decision import Decision


def render_model_card(
    evaluation: ModelEvaluation,
    *,
    decision: Decision | None = None,
    context: CardContext | None = None,
    title: str = "cryptovol spike models",
) -> str:
    """Render an evaluation, and the decision after it, as Markdown.

    Args:
        evaluation: as evaluated, or as read from ``model_eval.json``.
        decision: the decision about the champion; its section is left out where there is none.
        context: features and versions; left out where unknown.
        title: heading of the card.

    Examples:
        >>> import msgspec
        >>> from cryptovol_dagster.core.samples import evaluation
        >>> report = msgspec.structs.replace(evaluation().report, as_of="2026-04-02-04:00")
        >>> card = render_model_card(report)
        >>> card.splitlines()[0]
        '# Model card: cryptovol spike models'
        >>> sum(line.startswith("## ") for line in card.splitlines())
        18
    """
    parts = (
        [f"# Model card: {title}", "", *section.as_of(evaluation)],
        section.intended_use(evaluation),
        section.out_of_scope(),
        section.verdict(evaluation),
        section.sufficiency(evaluation),
        [] if decision is None else section.champion(decision),
        section.data(evaluation),
        section.thresholds(evaluation),
        [] if context is None else section.features(evaluation, context),
        section.results(evaluation),
        section.comparisons(evaluation),
        section.onset(evaluation),
        section.by_product(evaluation),
        section.by_period(evaluation),
        section.calibration(evaluation, decision),
        section.events(evaluation),
        episodes(evaluation),
        section.limits(evaluation),
        section.operation(evaluation),
        section.caveats(),
        section.reproduce(evaluation, context),
    )
    return "\n".join(line for part in parts for line in part).rstrip() + "\n"
