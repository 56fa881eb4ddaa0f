"""Scored rows that a test gives to the champion's rule, and a record of what the rule asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cryptovol_dagster.core.metrics.scored_rows import ScoredRows
from cryptovol_dagster.core.promotion.decision import Champion, Contest


@dataclass
class GivenRows:
    """`ContestRows` of a test; asking for rows that were not given fails.

    Attributes:
        held_out: rows of the hold-out.
        tested: matured test rows.
        ranks: validation precision of each candidate.
        unscorable: why the champion cannot score the rows.
        challenger_unscorable: why the challenger of the contest under way cannot.
        asked: names of the calls, in order.
        contest: the one whose hold-out was asked for.
    """

    held_out: ScoredRows | None = None
    tested: ScoredRows | None = None
    ranks: Mapping[str, float | None] = field(default_factory=dict)
    unscorable: str = ""
    challenger_unscorable: str = ""
    asked: list[str] = field(default_factory=list)
    contest: Contest | None = None

    def why_unscorable(self, champion: Champion) -> str:
        self.asked.append("why_unscorable")
        return self.unscorable

    def why_challenger_unscorable(self, contest: Contest) -> str:
        return self.challenger_unscorable

    def validation(self) -> Mapping[str, float | None]:
        self.asked.append("validation")
        return self.ranks

    def hold_out(self, champion: Champion, contest: Contest) -> ScoredRows:
        self.asked.append("hold_out")
        self.contest = contest
        assert self.held_out is not None
        return self.held_out

    def matured(self, champion: Champion) -> ScoredRows:
        self.asked.append("matured")
        assert self.tested is not None
        return self.tested
