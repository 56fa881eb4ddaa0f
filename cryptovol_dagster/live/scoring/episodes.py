"""Episodes of the published scores, product by product, as they open and close.

A bar counts as it was published first: a revision changes its row, not an alarm that people have seen.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from cryptovol_dagster.core.metrics.episodes import EpisodeChange, EpisodeRule, EpisodeState, episode_id
from ingestor.envelope import LiveEvent, ScoreMessage
from ingestor.exchange.clock import ns_to_rfc3339


@dataclass(frozen=True)
class Changed:
    """An episode of a product that opened or closed.

    Attributes:
        product: its id.
        episode: id of the episode.
        change: what happened.
    """

    product: str
    episode: str
    change: EpisodeChange

    def event(self, chain: str, now_ns: int) -> LiveEvent:
        """Return the event that says so.

        Args:
            chain: whose episode.
            now_ns: wall clock.
        """
        return LiveEvent(
            kind="episode_opened" if self.change.kind == "opened" else "episode_closed",
            at_ns=now_ns,
            chain=chain,
            product_id=self.product,
            bar_end_ns=self.change.bar_end_ns,
            episode=self.episode,
            detail={
                "opened": ns_to_rfc3339(self.change.opened_ns),
                "greatest_probability": self.change.greatest,
                "outcome": self.change.outcome,
            },
        )


class Episodes:
    """Steps through first scores in order of time."""

    def __init__(self, chain: str, bar_ns: int) -> None:
        """Begin without an open episode."""
        self._chain, self._bar_ns = chain, bar_ns
        self._states: dict[str, EpisodeState] = {}

    def restore(self, messages: Iterable[ScoreMessage], rule: EpisodeRule | None) -> list[Changed]:
        """Step through scores of an earlier run; return the changes, whose events it may not have published.

        Args:
            messages: the newest scores, in the order they were published.
            rule: of the present model.
        """
        found = []
        for message in sorted(messages, key=lambda each: each.bar_end_ns):
            if message.product_id not in self._states and message.episode is not None:
                # It opened before the first score that is known.
                self._states[message.product_id] = EpisodeState(
                    self._bar_ns,
                    last_ns=message.bar_end_ns - self._bar_ns,
                    opened_ns=int(message.episode.rpartition("/")[2]),
                )
            found += self.step(message, rule)[1]
        return found

    def step(self, message: ScoreMessage, rule: EpisodeRule | None) -> tuple[ScoreMessage, list[Changed]]:
        """Return a message with the episode that contains its bar, and the changes with that bar.

        Args:
            message: a score; a revision, or a bar before the newest one, changes no episode.
            rule: of the model that scored it; without one there are no episodes.
        """
        product = message.product_id
        state = self._states.get(product, EpisodeState(self._bar_ns))
        is_late = state.last_ns is not None and message.bar_end_ns <= state.last_ns
        if rule is None or message.revision or is_late:
            return message, []
        if state.last_ns is not None and (message.bar_end_ns - state.last_ns) % self._bar_ns:
            return message, []
        state, changes = state.step(rule, message.bar_end_ns, message.probability)
        self._states[product] = state
        if state.opened_ns is not None:
            message = msgspec.structs.replace(message, episode=self._id(product, state.opened_ns))
        return message, [Changed(product, self._id(product, each.opened_ns), each) for each in changes]

    def _id(self, product: str, opened_ns: int) -> str:
        return episode_id(self._chain, product, opened_ns)
