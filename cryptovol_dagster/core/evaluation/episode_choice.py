"""Choice of a model's episode rule from a small grid, on validation rows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from cryptovol_dagster.core.metrics.episodes import EpisodeRule, ScoredBars, match_episodes
from cryptovol_dagster.core.metrics.events import Market

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: (k, n): number of high bars of the last n that open an episode.
OPENINGS = ((1, 1), (2, 3), (3, 5), (5, 10))
#: `leave` as a share of `enter`.
LEAVE_SHARES = (1.0, 0.75, 0.5)
#: m as a share of the horizon.
CALM_SHARES = (0.25, 0.5, 1.0)


class Choice(NamedTuple):
    """A chosen rule.

    Attributes:
        rule: the rule.
        within_budget: whether its false episodes keep the alert budget; if not, no rule of the grid that
            finds an event did.
        tried: number of rules of the grid.
    """

    rule: EpisodeRule
    within_budget: bool
    tried: int


def grid(enters: Iterable[float], horizon_bars: int) -> list[EpisodeRule]:
    """Return the rules to choose from, the simplest first.

    Args:
        enters: thresholds of opening, the preferred first.
        horizon_bars: H in bars: m is at most H, and more than H bars without a probability close an episode.

    Examples:
        >>> rules = grid([0.5], horizon_bars=60)
        >>> len(rules), rules[0]
        (36, EpisodeRule(enter=0.5, leave=0.5, k=1, n=1, m=15, unknown_after_bars=60))
        >>> sorted({rule.m for rule in grid([0.5], horizon_bars=5)})
        [1, 2, 5]
    """
    rules = (
        EpisodeRule(enter, enter * share, k, n, max(1, round(calm * horizon_bars)), horizon_bars)
        for enter in enters
        for k, n in OPENINGS
        for calm in CALM_SHARES
        for share in LEAVE_SHARES
    )
    return list(dict.fromkeys(rules))


def choose_rule(
    market: Market, probability: NDArray[np.float64], enters: Iterable[float], budget_per_hour: float
) -> Choice | None:
    """Return the rule with the highest F1 of episodes among those that keep the alert budget.

    F1 is `Matches.f1`. The budget counts false episodes of all products together, as one person receives
    them. Of equal rules the one with fewer false episodes wins, then the simplest. Where no rule keeps the
    budget, it is the one with the fewest false episodes. A rule that finds no event keeps every budget, and
    is never chosen. Equal input: an equal choice.

    Args:
        market: validation rows.
        probability: of each row, shape (n,), by a model that was fitted without them.
        enters: thresholds of opening, the preferred first; without any there is no rule.
        budget_per_hour: greatest number of false episodes per hour.

    Returns:
        None where no rule finds an event.

    Examples:
        >>> y = np.array([0, 0, 0, 1, 1, 1, 0, 0, 0, 0] * 3, dtype=bool)
        >>> p = np.where(y, 0.8, 0.1)
        >>> p[[0, 8, 15, 20]] = 0.7, 0.8, 0.2, 0.75  # single bars that are false
        >>> names, t_ns = np.array(["BTC-USD"] * 30, dtype=object), 10**9 * np.arange(30)
        >>> market = Market(names, t_ns, y, ~y & False, bar_ns=10**9, horizon_ns=2 * 10**9)
        >>> chosen = choose_rule(market, p, [0.6], budget_per_hour=0.0)
        >>> chosen.rule, chosen.within_budget
        (EpisodeRule(enter=0.6, leave=0.6, k=2, n=3, m=1, unknown_after_bars=2), True)
    """
    rules = grid(enters, market.horizon_ns // market.bar_ns)
    if not rules or not market.y.any():
        return None
    bars = ScoredBars(market.product, market.t_ns, probability, market.bar_ns)

    def quality(rule: EpisodeRule) -> tuple[bool, bool, float, float]:
        matches = match_episodes(bars.episodes(rule), market)
        false = (len(matches.events) - matches.true) / market.hours
        within = false <= budget_per_hour
        return matches.pairs > 0, within, (matches.f1 or 0.0) if within else 0.0, -false

    qualities = [quality(rule) for rule in rules]
    best = max(range(len(rules)), key=qualities.__getitem__)  # the first of equal ones
    finds, within, *_ = qualities[best]
    return Choice(rules[best], within, len(rules)) if finds else None
