"""Joining features and labels, and posing a problem on them."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest

from cryptovol_dagster.core.learning.dataset import (
    KEY_COLUMNS,
    SingleClassError,
    concatenate,
    join_dataset,
    pose_problem,
    require_both_classes,
)
from cryptovol_dagster.core.learning.errors import DegenerateThreshold, LearningError
from cryptovol_dagster.core.learning.labels import forward_volatility
from cryptovol_dagster.core.learning.splits import split_times
from cryptovol_dagster.core.market.bars import BarGrid
from cryptovol_dagster.core.specs import NS
from cryptovol_dagster_tests.core.clustered_market import (
    SPEC,
    make_bars,
    make_dataset,
    make_features,
    make_problem,
)

KEYS = ["bar_start", "product"]


@pytest.fixture(scope="module")
def bars() -> BarGrid:
    bars = make_bars(1_500)
    bars.in_gap[1, 1_200:1_210] = True
    return bars


@pytest.fixture(scope="module")
def frames(bars: BarGrid) -> tuple[pd.DataFrame, pd.DataFrame]:
    return make_features(bars), forward_volatility(bars, SPEC).to_frame()


def test_the_join_equals_pandas_merge(frames: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    features, labels = frames
    dataset = join_dataset(features, labels, SPEC)
    features, labels = (frame.assign(product=frame["product"].astype(str)) for frame in (features, labels))
    merged = features.merge(labels, on=KEYS, suffixes=("", "_label"))
    merged = merged[merged["valid"] & merged["sigma"].notna()].sort_values(KEYS).reset_index(drop=True)
    assert list(dataset.features.columns) == sorted(set(features.columns) - set(KEY_COLUMNS))
    expected = merged[list(dataset.features.columns)].astype(np.float32)
    pd.testing.assert_frame_equal(dataset.features, expected)
    assert dataset.product.tolist() == merged["product"].tolist()
    np.testing.assert_array_equal(dataset.sigma, merged["sigma"])
    np.testing.assert_array_equal(dataset.trailing_sigma, merged["trailing_sigma"])
    np.testing.assert_array_equal(dataset.t_ns, merged["bar_start"].astype(np.int64) + NS)


def test_row_order_of_the_frames_does_not_matter(frames: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    features, labels = frames
    straight = join_dataset(features, labels, SPEC)
    shuffled = join_dataset(
        features.sample(frac=1, random_state=1), labels.sample(frac=1, random_state=2), SPEC
    )
    pd.testing.assert_frame_equal(straight.features, shuffled.features)
    np.testing.assert_array_equal(straight.sigma, shuffled.sigma)


def test_parts_of_a_problem_are_views_and_pieces_put_together_are_the_whole() -> None:
    problem = make_problem(6_000)
    dataset, split = problem.dataset, problem.split
    train, y = problem.part(split.train)
    mask = split.train.mask(dataset.t_ns)
    pd.testing.assert_frame_equal(train.features, dataset.rows(mask).features)
    np.testing.assert_array_equal(y, problem.y[mask])
    assert np.shares_memory(train.features.to_numpy(), dataset.features.to_numpy())
    cuts = [0, 1, 1_000, 1_000, len(dataset)]
    whole = concatenate([dataset.slice(*cut) for cut in pairwise(cuts)], {"because": 3})
    pd.testing.assert_frame_equal(whole.features, dataset.features)
    for name in ("product", "t_ns", "sigma", "trailing_sigma"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(dataset, name))
    assert whole.dropped == {"because": 3}
    # One block: asking for the matrix copies nothing.
    assert np.shares_memory(whole.features.to_numpy(), whole.features.to_numpy())


def test_every_row_left_out_is_counted(frames: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    features, labels = frames
    features = features.copy()
    features.loc[features.index[-200], "noise"] = np.inf
    dataset = join_dataset(features.iloc[:-7], labels.iloc[5:], SPEC)
    assert dataset.dropped == {
        "label_missing": 5,
        "feature_missing": 7,
        "feature_reason_1": 2 * 899 - 5,
        "label_break": 69,
        "label_end_of_data": 113,
        "feature_not_finite": 1,
    }
    # Each (product, bar) of either frame is kept or counted, once.
    assert len(dataset) + sum(dataset.dropped.values()) == 3_000


def test_bad_frames_are_refused_by_name(frames: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    features, labels = frames
    with pytest.raises(LearningError, match="labels lack the columns sigma"):
        join_dataset(features, labels.drop(columns="sigma"), SPEC)
    with pytest.raises(LearningError, match=r"features hold a .product, bar start. twice"):
        join_dataset(pd.concat([features, features.iloc[:1]]), labels, SPEC)
    with pytest.raises(
        LearningError, match=r"no row has both valid features and a label .feature_reason_1 3000"
    ):
        join_dataset(features.assign(valid=False, reason=np.int8(1)), labels, SPEC)


def test_thresholds_come_from_training_rows_only() -> None:
    problem = make_problem(9_000)
    train, y = problem.part(problem.split.train)
    for product, tau in problem.thresholds.items():
        assert tau == np.quantile(train.sigma[train.product == product], 0.9)
        assert y[train.product == product].mean() == pytest.approx(0.1, abs=0.001)
    # Whatever happens after training, τ stays.
    later = problem.dataset.t_ns >= problem.split.validation.start_ns
    changed = replace(problem.dataset, sigma=np.where(later, 1.0, problem.dataset.sigma))
    assert pose_problem(changed, problem.split, SPEC).thresholds == problem.thresholds


def test_parts_do_not_overlap_and_keep_their_rows() -> None:
    problem = make_problem(9_000)
    parts = [
        problem.part(span)[0] for span in (problem.split.train, problem.split.validation, problem.split.test)
    ]
    times = [set(part.t_ns.tolist()) for part in parts]
    assert not times[0] & times[1]
    assert not times[1] & times[2]
    assert all(len(part.features) == len(part) for part in parts)


def test_a_market_that_stands_still_is_an_error() -> None:
    dataset = make_dataset(6_000)
    split = split_times(int(dataset.t_ns.min()), int(dataset.t_ns.max()) + NS, SPEC)
    still = replace(dataset, sigma=np.where(dataset.product == "ETH-USD", 0.0, dataset.sigma))
    with pytest.raises(DegenerateThreshold, match="ETH-USD"):
        pose_problem(still, split, SPEC)


def test_an_empty_part_is_an_error() -> None:
    dataset = make_dataset(6_000)
    split = split_times(int(dataset.t_ns.min()), int(dataset.t_ns.max()) + NS, SPEC)
    with pytest.raises(LearningError, match="no labelled rows in the validation span"):
        pose_problem(dataset.rows(~split.validation.mask(dataset.t_ns)), split, SPEC)


def test_a_product_without_training_rows_is_left_out_and_counted_and_the_others_are_learned() -> None:
    dataset = make_dataset(6_000)
    split = split_times(int(dataset.t_ns.min()), int(dataset.t_ns.max()) + NS, SPEC)
    newcomer = dataset.product == "ETH-USD"
    with_newcomer = dataset.rows(~newcomer | (dataset.t_ns >= split.test.start_ns))
    problem = pose_problem(with_newcomer, split, SPEC)
    alone = pose_problem(dataset.rows(~newcomer), split, SPEC)
    assert problem.dataset.products == ("BTC-USD",)
    assert problem.thresholds == alone.thresholds
    np.testing.assert_array_equal(problem.y, alone.y)
    left_out = int(np.sum(newcomer & (dataset.t_ns >= split.test.start_ns)))
    assert problem.dataset.dropped == {"untrained_ETH-USD": left_out}


@pytest.mark.parametrize(("value", "words"), [(False, "no positives"), (True, "only positives")])
def test_a_single_class_names_products_and_span(value: bool, words: str) -> None:
    dataset = make_dataset(2_000)
    with pytest.raises(
        SingleClassError, match=f"training labels of BTC-USD, ETH-USD 2026.*{words}"
    ) as caught:
        require_both_classes(dataset, np.full(len(dataset), value), "training")
    assert "\n" not in str(caught.value)


def with_optional(features: pd.DataFrame, known_from_ns: int) -> pd.DataFrame:
    """Features with two optional columns: one known in every third row, one from some time on."""
    starts_ns = features["bar_start"].astype(np.int64).to_numpy()
    numbers = np.random.default_rng(1).normal(size=len(features))
    return features.assign(
        imbalance_last=np.where(starts_ns // NS % 3 == 0, numbers, np.nan),
        ln_trade_rate_60=np.where(starts_ns >= known_from_ns, numbers, np.nan),
    )


def test_an_optional_feature_stays_with_its_holes_unless_training_knows_nothing_of_it() -> None:
    bars = make_bars(4_000)
    labels = forward_volatility(bars, SPEC).to_frame()
    plain = join_dataset(make_features(bars), labels, SPEC)
    split = split_times(int(plain.t_ns.min()), int(plain.t_ns.max()) + NS, SPEC)
    late = with_optional(make_features(bars), split.validation.start_ns)
    dataset = join_dataset(late, labels, SPEC)
    assert dataset.optional == {"imbalance_last", "ln_trade_rate_60"}
    assert len(dataset) == len(plain)
    problem = pose_problem(dataset, split, SPEC)
    # Validation and test know it in every row, but they have no say.
    assert problem.left_out == ("ln_trade_rate_60",)
    assert "ln_trade_rate_60" not in problem.dataset.features
    assert problem.dataset.optional == {"imbalance_last"}
    assert problem.dataset.features["imbalance_last"].notna().mean() == pytest.approx(1 / 3, abs=0.01)
    early = with_optional(make_features(bars), split.validation.start_ns - 1_000 * NS)
    early.loc[early["bar_start"] >= pd.Timestamp(split.validation.start_ns, tz="UTC"), "ln_trade_rate_60"] = (
        np.nan
    )
    assert pose_problem(join_dataset(early, labels, SPEC), split, SPEC).left_out == ()


def test_a_required_feature_without_a_value_and_an_infinite_optional_one_cost_the_row() -> None:
    bars = make_bars(1_200)
    labels = forward_volatility(bars, SPEC).to_frame()
    features = with_optional(make_features(bars), 0)
    before = len(join_dataset(features, labels, SPEC))
    features.loc[features.index[1_000], "noise"] = np.nan
    features.loc[features.index[1_010], "ln_trade_rate_60"] = np.inf
    dataset = join_dataset(features, labels, SPEC)
    assert (len(dataset), dataset.dropped["feature_not_finite"]) == (before - 2, 2)
