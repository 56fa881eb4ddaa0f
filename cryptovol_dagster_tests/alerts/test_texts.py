"""What an alert says: product, time, probability, what moved it, model; and nothing that is markup."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryptovol_dagster.alerts import texts
from cryptovol_dagster_tests.alerts.samples import T0_NS, event, score


def meaning(name: str) -> str:
    return f"{name} in words"


SCORE_BODY = """\
product: BTC-USD, chain seconds
time: 2026-12-01 01:53:21 UTC
probability: 0.930, operating point 0.710
+1.50 log-odds: ln_rv_5 in words (-7.25)
+0.50 log-odds: ln_rv_15 in words (-7.25)
-1.00 log-odds: ln_rv_30 in words (-7.25)
-0.50 log-odds: of_tomorrow in words (no value)
+0.20 log-odds: a in words (1)
model: xgboost as of 2026-11-30-23:00, version 7, 2.5 h old"""


def test_a_score_is_shown_with_its_five_contributions_and_its_model() -> None:
    text = texts.of_score(score(), meaning)
    assert text.title == "BTC-USD: probability 0.93"
    assert text.body == SCORE_BODY
    assert text.detail["kind"] == "probability"
    assert text.detail["text"] == text.title
    assert json.loads(json.dumps(text.detail))["score"]["bar_end_ns"] == score().bar_end_ns


def test_an_episode_shows_the_score_beside_what_the_event_says() -> None:
    text = texts.of_episode(event(first_bar_s=3), score(), meaning)
    assert text.title == "BTC-USD: episode opened"
    head, details, rest = (
        "\n".join(SCORE_BODY.splitlines()[:2]),
        "first_bar_s: 3",
        SCORE_BODY.splitlines()[2:],
    )
    assert text.body == "\n".join([head, details, *rest])
    assert texts.of_episode(event("episode_closed"), None, meaning).body == head


def test_what_is_published_late_says_so() -> None:
    late = score()
    late = type(late)(
        **{
            **{name: getattr(late, name) for name in late.__struct_fields__},
            "published_at_ns": T0_NS + 3_601 * 10**9,
        }
    )
    assert "time: 2026-12-01 01:53:21 UTC, published 3600 s later" in texts.of_score(late, meaning).body


def test_a_refused_model_a_silence_and_an_old_champion_say_what_to_type() -> None:
    refused = texts.of_refusal(event("model_refused", product=None, reason="file <b>is cut</b>\nat 3"))
    assert refused.title == "seconds: a model was refused"
    assert "reason: file ‹b›is cut‹/b› at 3" in refused.body.splitlines()
    assert "'cryptovol champion'" in refused.body
    silence = texts.of_silence(T0_NS + 90 * 10**9, T0_NS)
    assert silence.title == "no message of the feed for 90 s"
    assert "2026-12-01 01:53:20 UTC" in silence.body
    old = texts.of_old_champion(T0_NS, "seconds", T0_NS - 50 * 3_600 * 10**9, 24 * 3_600.0)
    assert old.title == "seconds: the champion is 50 h old"
    assert "due every 24 h" in old.body


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("<!everyone> @here", "‹!everyone› (at)here"),
        ("[pay](http://x)", "(pay)(http://x)"),
        ("**b** `c` ~~d~~ __init__ ln_rv_60", "∗∗b∗∗ 'c' ∼∼d∼∼ -init- ln_rv_60"),
        ("a\nb\x1b[31m\x00\u202e", "a b (31m"),
        ("x" * 500, "x" * 400 + "…"),
    ],
)
def test_markup_in_data_is_shown_as_text(value: str, shown: str) -> None:
    assert texts.plain(value) == shown


@given(st.text())
def test_no_value_is_markup(value: str) -> None:
    shown = texts.plain(value)
    assert not set(shown) & set("<>@`*~|[]\n\r\x1b")
    assert shown.isprintable()
