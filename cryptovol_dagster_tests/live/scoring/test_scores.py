"""What is published of a bar: a probability or a reason, its revision, and the model of the bar."""

from __future__ import annotations

import numpy as np
import pytest

from cryptovol_dagster.core.features.compute import compute_own_features, with_cross_features
from cryptovol_dagster.core.features.grid import Reason
from cryptovol_dagster.core.features.row_hash import row_hashes
from cryptovol_dagster.core.live.join import JoinedBar, OwnRow
from cryptovol_dagster.core.market.synthetic import synthetic_bars
from cryptovol_dagster.lake.operating_points import Flagging
from cryptovol_dagster.live.scoring.champions import InUse
from cryptovol_dagster.live.scoring.scores import Scores
from cryptovol_dagster_tests.live.parity import SPEC
from cryptovol_dagster_tests.live.scoring.champions import champion_of, trained

AT = 5_000
NOW_NS = 123
OWN = compute_own_features(synthetic_bars(SPEC, AT + 10), SPEC)
GRID = with_cross_features(OWN, SPEC)


def in_use(name: str = "xgboost", threshold: float | None = 0.5) -> InUse:
    model = trained(name)
    return InUse(champion_of(model, "2026-04-03-00:00"), model, "7", Flagging(threshold))


def bar(
    at: int = AT,
    *,
    complete: bool = True,
    valid: bool = True,
    change: float = 0.0,
    products: tuple[int, ...] = (0, 1),
) -> JoinedBar:
    rows, values = [], GRID.values[:, list(products), at].T.copy()
    values[:, 0] += change
    if not complete:
        values[:, len(OWN.names) :] = np.nan
    for k in products:
        reason = Reason.OK if valid else Reason.STALE
        rows.append(
            OwnRow(GRID.products[k], end_ns(at), 0, False, valid, int(reason), OWN.values[:, k, at].copy())
        )
    return JoinedBar(end_ns(at), complete, tuple(rows), values)


def end_ns(at: int) -> int:
    return GRID.start_ns + (at + 1) * SPEC.bar_ns


def test_a_valid_row_has_the_probability_of_the_model_and_names_it() -> None:
    scores = Scores(SPEC)
    scores.use(in_use())
    joined = bar()
    messages = scores.of_bar(joined, NOW_NS)
    frame = GRID.to_frame().astype({"product": str}).set_index(["product", "bar_start"])
    for message, digest in zip(messages, row_hashes(joined.values), strict=True):
        own = frame.loc[message.product_id].iloc[[AT]][list(trained("xgboost").meta.inputs)]
        (expected,) = trained("xgboost").predict_proba(own)
        assert message.probability == pytest.approx(expected, abs=1e-12)
        assert message.flag == (expected >= 0.5)
        assert (message.reason, message.row_hash, message.revision) == ("ok", digest, 0)
        assert (message.model, message.model_as_of) == ("xgboost", "2026-04-03-00:00")
        assert (message.model_version, message.published_at_ns) == ("7", NOW_NS)
        age_s = (end_ns(AT) - trained("xgboost").meta.train_end_ns) / 1e9
        assert message.model_age_s == pytest.approx(age_s)


def test_a_row_that_may_not_be_scored_has_its_reason_and_no_number() -> None:
    scores = Scores(SPEC)
    scores.use(in_use())
    for message in scores.of_bar(bar(valid=False), NOW_NS):
        assert (message.reason, message.probability, message.flag) == ("stale", None, None)
        assert message.row_hash is not None


def test_without_a_model_the_reason_is_no_model() -> None:
    messages = Scores(SPEC).of_bar(bar(), NOW_NS)
    assert {message.reason for message in messages} == {"no_model"}
    assert {(message.model, message.probability, message.threshold) for message in messages} == {
        (None, None, None)
    }


def test_without_an_operating_point_there_is_no_flag() -> None:
    scores = Scores(SPEC)
    scores.use(in_use(threshold=None))
    assert [message.flag for message in scores.of_bar(bar(), NOW_NS)] == [None, None]


def test_incomplete_rows_wait_only_for_a_model_that_reads_cross_features() -> None:
    with_cross, own_only = Scores(SPEC), Scores(SPEC)
    with_cross.use(in_use("xgboost"))
    own_only.use(in_use("har_logit"))
    waiting = with_cross.of_bar(bar(complete=False), NOW_NS)
    assert {(message.reason, message.probability) for message in waiting} == {("cross_incomplete", None)}
    early = own_only.of_bar(bar(complete=False), NOW_NS)
    assert {(message.reason, message.row_hash, message.provisional) for message in early} == {
        ("ok", None, True)
    }
    assert [message.revision for message in with_cross.of_bar(bar(), NOW_NS)] == [1, 1]
    complete = own_only.of_bar(bar(), NOW_NS)
    assert [message.revision for message in complete] == [1, 1]
    assert [m.probability for m in complete] == [m.probability for m in early]


def test_an_equal_row_is_not_published_again_and_a_changed_one_is_the_next_revision() -> None:
    scores = Scores(SPEC)
    scores.use(in_use())
    first = scores.of_bar(bar(), NOW_NS)
    assert scores.of_bar(bar(), NOW_NS) == []
    assert [m.revision for m in scores.of_bar(bar(change=0.5), NOW_NS)] == [1, 1]
    assert [m.revision for m in scores.of_bar(bar(valid=False), NOW_NS)] == [2, 2]
    again = Scores(SPEC)
    again.use(in_use())
    again.restore(first)
    assert again.of_bar(bar(), NOW_NS) == []
    assert again.newest_ns == end_ns(AT)


def test_a_bar_keeps_its_model_when_another_one_takes_over() -> None:
    scores = Scores(SPEC)
    scores.use(in_use("xgboost"))
    scores.of_bar(bar(AT), NOW_NS)
    assert scores.use(in_use("har_logit")) == end_ns(AT)
    (revised, _) = scores.of_bar(bar(AT, change=0.5), NOW_NS)
    (following, _) = scores.of_bar(bar(AT + 1), NOW_NS)
    assert (revised.model, revised.revision) == ("xgboost", 1)
    assert (following.model, following.revision) == ("har_logit", 0)
    scores.forget_models_before(end_ns(AT + 1))
    assert scores.in_use is not None
    assert scores.in_use.model.name == "har_logit"


def test_a_bar_that_a_kill_left_out_is_scored_after_a_restart() -> None:
    before, after = Scores(SPEC), Scores(SPEC)
    before.use(in_use())
    after.restore(before.of_bar(bar(AT + 1), NOW_NS))
    after.use(in_use())
    assert {message.reason for message in after.of_bar(bar(AT), NOW_NS)} == {"ok"}


def test_a_bar_without_a_row_is_said_once_and_revised_when_the_row_comes() -> None:
    scores = Scores(SPEC)
    scores.use(in_use())
    (unheard,) = scores.unheard("BTC-USD", end_ns(AT), NOW_NS, provisional=True)
    assert (unheard.reason, unheard.probability, unheard.provisional) == ("not_heard", None, True)
    assert scores.unheard("BTC-USD", end_ns(AT), NOW_NS, provisional=False) == []
    revisions = {m.product_id: (m.revision, m.reason) for m in scores.of_bar(bar(), NOW_NS)}
    assert revisions == {"BTC-USD": (1, "ok"), "ETH-USD": (0, "ok")}


def test_rows_of_another_version_have_a_reason() -> None:
    (message,) = Scores(SPEC).other_features("BTC-USD", end_ns(AT), NOW_NS)
    assert (message.reason, message.row_hash) == ("other_features", None)


def test_recent_rows_are_those_that_were_scored() -> None:
    scores = Scores(SPEC)
    assert scores.recent_rows().shape == (0, len(GRID.names))
    scores.use(in_use())
    scores.of_bar(bar(), NOW_NS)
    scores.of_bar(bar(AT + 1, valid=False), NOW_NS)
    np.testing.assert_array_equal(scores.recent_rows(), bar().values)


def test_what_cannot_change_is_forgotten() -> None:
    scores = Scores(SPEC)
    scores.use(in_use())
    for at in (AT, AT + 1):
        scores.of_bar(bar(at), NOW_NS)
    scores.forget_before("BTC-USD", end_ns(AT + 1))
    again = {
        (m.product_id, m.bar_end_ns, m.revision)
        for at in (AT, AT + 1)
        for m in scores.of_bar(bar(at), NOW_NS)
    }
    assert again == {("BTC-USD", end_ns(AT), 0)}
