"""Alerts that rules raise about facts of the live path; a pure function of rules, facts and earlier alerts.

Belongs here: which rule applies, ids, and cool-down. Does not belong here: texts, and how an alert is sent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cryptovol_dagster.core.specs import NS

FEED = "feed"


@dataclass(frozen=True, slots=True)
class Fact:
    """Something that may raise an alert.

    Attributes:
        kind: as in a rule: ``probability``, ``episode_opened``, ``feed_silent``, ….
        subject: what it is about: ``<chain>/<product>``, a chain, ``feed``, or a run.
        key: distinguishes it from others of the same subject, and is the same when it is read again: a bar's
            end, an episode's first bar, the last message before a silence.
        at_ns: when it happened, UTC nanoseconds.
        chain: of the model; None where no model is involved.
        product: None where it is not about one product.
        probability: of a score.
    """

    kind: str
    subject: str
    key: str
    at_ns: int
    chain: str | None = None
    product: str | None = None
    probability: float | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    """Facts that raise an alert.

    Attributes:
        name: unique.
        kind: of the facts.
        products: of the facts; empty for all.
        chain: of the facts; None for all.
        at_least: least probability.
        cool_down_s: pause after an alert of this rule about the same subject, in seconds.
    """

    name: str
    kind: str
    products: tuple[str, ...] = ()
    chain: str | None = None
    at_least: float | None = None
    cool_down_s: float = 0.0

    def applies(self, fact: Fact) -> bool:
        """Return whether a fact raises an alert, cool-down aside.

        Examples:
            >>> rule = Rule("high", "probability", products=("BTC-USD",), at_least=0.8)
            >>> fact = Fact("probability", "seconds/BTC-USD", "1", 1, "seconds", "BTC-USD", 0.8)
            >>> rule.applies(fact)
            True
        """
        return (
            self.kind == fact.kind
            and (not self.products or fact.product in self.products)
            and self.chain in (None, fact.chain)
            and (
                self.at_least is None or (fact.probability is not None and fact.probability >= self.at_least)
            )
        )


@dataclass(frozen=True, slots=True)
class Due:
    """An alert to be sent.

    Attributes:
        id: of the rule and the fact, so that a fact that is read again has the same one.
        rule: name of the rule.
        fact: what raised it.
    """

    id: str
    rule: str
    fact: Fact


class Alerting:
    """Rules with their cool-downs; the same facts in the same order give the same alerts.

    Examples:
        >>> alerting = Alerting([Rule("opened", "episode_opened", cool_down_s=60.0)])
        >>> first = Fact("episode_opened", "seconds/BTC-USD", "5", 5 * NS, "seconds", "BTC-USD")
        >>> [alert.id for alert in alerting.due(first)]
        ['opened/seconds/BTC-USD/5']
        >>> alerting.due(Fact("episode_opened", "seconds/BTC-USD", "64", 64 * NS, "seconds", "BTC-USD"))
        []
    """

    def __init__(self, rules: Iterable[Rule], last_ns: Mapping[tuple[str, str], int] | None = None) -> None:
        """Begin with earlier alerts.

        Args:
            rules: in the order in which their alerts are returned.
            last_ns: time of the fact of the newest alert, UTC nanoseconds, by rule and subject.
        """
        self._rules = tuple(rules)
        self._last_ns = dict(last_ns or {})

    def due(self, fact: Fact) -> list[Due]:
        """Return the alerts of a fact, at most one a rule, and start their cool-downs."""
        found = []
        for rule in self._rules:
            if not rule.applies(fact):
                continue
            last_ns = self._last_ns.get((rule.name, fact.subject))
            # The distance: after a clock jumped back, alerts must not wait until it caught up.
            if last_ns is not None and abs(fact.at_ns - last_ns) < rule.cool_down_s * NS:
                continue
            self._last_ns[rule.name, fact.subject] = fact.at_ns
            found.append(Due(f"{rule.name}/{fact.subject}/{fact.key}", rule.name, fact))
        return found


def feed_silence(now_ns: int, heard_at_ns: int, silent_after_s: float) -> Fact | None:
    """Return the fact that the feed is silent, one a silence.

    Args:
        now_ns: UTC nanoseconds.
        heard_at_ns: arrival of the last message, by the same clock.
        silent_after_s: seconds without a message that are a silence.

    Examples:
        >>> feed_silence(61 * NS, 0, 60.0).subject
        'feed'
        >>> feed_silence(59 * NS, 0, 60.0) is None
        True
    """
    if now_ns - heard_at_ns <= silent_after_s * NS:
        return None
    return Fact("feed_silent", FEED, str(heard_at_ns), now_ns)


def champion_age(now_ns: int, chain: str, trained_until_ns: int, retrain_every_s: float) -> Fact | None:
    """Return the fact that a champion is old, one a champion: older than twice the time between trainings.

    Args:
        now_ns: UTC nanoseconds.
        chain: the champion's.
        trained_until_ns: end of its training span.
        retrain_every_s: time between two trainings, in seconds.

    Examples:
        >>> champion_age(7_201 * NS, "seconds", 0, 3_600.0).key
        '0'
        >>> champion_age(7_200 * NS, "seconds", 0, 3_600.0) is None
        True
    """
    if now_ns - trained_until_ns <= 2 * retrain_every_s * NS:
        return None
    return Fact("champion_old", chain, str(trained_until_ns), now_ns, chain)
