"""The section of a model card on episodes: the chosen rule of each model and its result."""

from __future__ import annotations

from cryptovol_dagster.core.cards.markdown import NONE, number, table
from cryptovol_dagster.core.evaluation.report import ChosenEpisodeRule, ModelEvaluation
from cryptovol_dagster.core.metrics.episodes import EpisodeCounts, EpisodeRule


def episodes(report: ModelEvaluation) -> list[str]:
    """Return the lines on the rule of each model; none where no model has one.

    Examples:
        >>> from cryptovol_dagster.core.samples import evaluation
        >>> lines = episodes(evaluation().report)
        >>> lines[0], len([line for line in lines if line.startswith("| ewma")])
        ('## Episodes', 1)
    """
    chosen = {name: result.episode_rule for name, result in report.models.items()}
    if not any(chosen.values()):
        return []
    head = ["model", "opens", "closes", "on validation", "on test", "false per hour", "F1", "median lead, s"]
    return [
        "## Episodes",
        "",
        "An episode is one alarm: it opens after several high bars and closes after several low ones. Rules "
        f"are chosen on validation ({report.counts.validation.rows:,} rows) for the highest F1 within the "
        f"alert budget, and measured on test ({report.counts.test.rows:,} rows); the last three columns are "
        "of the test.",
        "",
        *table(head, (_row(name, one) for name, one in chosen.items())),
        "",
    ]


def _row(name: str, chosen: ChosenEpisodeRule | None) -> list[str]:
    if chosen is None:
        return [name, *[NONE] * 7]
    opens, closes = in_words(chosen.rule)
    test = chosen.test
    return [
        name,
        opens,
        closes,
        _true(chosen.validation) + ("" if chosen.within_budget else ", over the budget"),
        _true(test),
        number(test.false_episodes_per_hour, 2),
        number(test.f1),
        number(test.median_lead_s, 0),
    ]


def _true(counts: EpisodeCounts) -> str:
    return (
        f"{counts.true_episodes} of {counts.episodes} true, {counts.events_found} of {counts.events} events"
    )


def in_words(rule: EpisodeRule) -> tuple[str, str]:
    """Return when a rule opens and when it closes an episode.

    Examples:
        >>> in_words(EpisodeRule(enter=0.4, leave=0.3, k=2, n=3, m=15, unknown_after_bars=60))
        ('2 of 3 bars at least 0.400', '15 bars below 0.300')
    """
    return f"{rule.k} of {rule.n} bars at least {rule.enter:.3f}", f"{rule.m} bars below {rule.leave:.3f}"
