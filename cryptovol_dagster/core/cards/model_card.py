"""The model card: what the models are for, what they were measured on, and what they cannot do."""

from __future__ import annotations

from cryptovol_dagster.core.cards import sections as section
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
    """Render an evaluation, and what was decided after it, as Markdown.

    Args:
        evaluation: as evaluated, or as read from ``model_eval.json``.
        decision: who is champion; left out of the card where nobody decided.
        context: features and versions; left out where unknown.
        title: heading of the card.
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
        section.limits(evaluation),
        section.operation(evaluation),
        section.caveats(),
        section.reproduce(evaluation, context),
    )
    return "\n".join(line for part in parts for line in part).rstrip() + "\n"
