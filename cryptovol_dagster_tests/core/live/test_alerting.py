"""Rules raise alerts about facts, once a fact and once a cool-down, whenever they are played."""

from __future__ import annotations

import pytest

from cryptovol_dagster.core.live.alerting import Alerting, Fact, Rule, champion_age, feed_silence
from cryptovol_dagster.core.specs import NS


def score(second: int, probability: float | None, product: str = "BTC-USD", chain: str = "seconds") -> Fact:
    at_ns = second * NS
    return Fact("probability", f"{chain}/{product}", str(at_ns), at_ns, chain, product, probability)


HIGH = Rule("high", "probability", at_least=0.8, cool_down_s=60.0)


def ids(alerting: Alerting, facts: list[Fact]) -> list[str]:
    return [due.id for fact in facts for due in alerting.due(fact)]


@pytest.mark.parametrize(
    ("rule", "raises"),
    [
        (Rule("r", "probability"), True),
        (Rule("r", "episode_opened"), False),
        (Rule("r", "probability", products=("ETH-USD", "BTC-USD")), True),
        (Rule("r", "probability", products=("ETH-USD",)), False),
        (Rule("r", "probability", chain="seconds"), True),
        (Rule("r", "probability", chain="minutes_h5"), False),
        (Rule("r", "probability", at_least=0.8), True),
        (Rule("r", "probability", at_least=0.81), False),
    ],
)
def test_a_rule_applies_to_its_kind_products_chain_and_probability(rule: Rule, raises: bool) -> None:
    assert rule.applies(score(1, 0.8)) is raises


def test_a_fact_without_a_probability_is_below_every_limit() -> None:
    assert not HIGH.applies(score(1, None))


def test_one_alert_a_cool_down_and_subject() -> None:
    facts = [score(second, 0.9, product) for second in range(130) for product in ("BTC-USD", "ETH-USD")]
    expected = [f"high/seconds/{p}/{s * NS}" for s in (0, 60, 120) for p in ("BTC-USD", "ETH-USD")]
    assert ids(Alerting([HIGH]), facts) == expected
    assert ids(Alerting([HIGH]), facts) == expected  # replayed


def test_rules_have_cool_downs_of_their_own() -> None:
    rules = [HIGH, Rule("every", "probability", at_least=0.5)]
    assert ids(Alerting(rules), [score(1, 0.9), score(2, 0.9)]) == [
        f"high/seconds/BTC-USD/{NS}",
        f"every/seconds/BTC-USD/{NS}",
        f"every/seconds/BTC-USD/{2 * NS}",
    ]


def test_a_cool_down_goes_on_after_a_restart() -> None:
    alerting = Alerting([HIGH], {("high", "seconds/BTC-USD"): 100 * NS})
    assert ids(alerting, [score(159, 0.9), score(160, 0.9)]) == [f"high/seconds/BTC-USD/{160 * NS}"]


def test_a_clock_that_jumps_back_silences_nothing_for_longer_than_a_cool_down() -> None:
    alerting = Alerting([HIGH])
    assert len(ids(alerting, [score(10_000, 0.9), score(9_990, 0.9), score(100, 0.9)])) == 2


def test_a_silence_and_an_old_champion_are_one_fact_each() -> None:
    silences = {feed_silence(now * NS, 5 * NS, 60.0) for now in (65, 66, 67)}
    assert {fact.key for fact in silences if fact} == {str(5 * NS)}
    assert sum(fact is not None for fact in silences) == 2
    old = champion_age(7_201 * NS, "seconds", 0, 3_600.0)
    assert old is not None
    assert (old.subject, old.chain, old.key) == ("seconds", "seconds", "0")
    assert champion_age(7_200 * NS, "seconds", 0, 3_600.0) is None
