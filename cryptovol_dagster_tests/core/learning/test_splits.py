"""Splits: properties over many spans, checked on label spans as they really are."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from cryptovol_dagster.chains import timescale_specs
from cryptovol_dagster.core.learning.splits import SpanTooShort, Split, least_partitions, split_times
from cryptovol_dagster.core.specs import NS, SplitSpec, TimescaleSpec
from cryptovol_dagster_tests.core.clustered_market import SPEC, START_NS
from ingestor.settings import Settings


@st.composite
def timescales(draw: st.DrawFn) -> TimescaleSpec:
    return replace(
        SPEC,
        bar_interval_s=draw(st.sampled_from([1, 7, 60])),
        horizon_bars=draw(st.integers(1, 90)),
        splits=SplitSpec(
            train_span_s=draw(st.integers(600, 500_000)),
            test_span_s=draw(st.integers(600, 100_000)),
            max_test_share=draw(st.floats(0.05, 0.9)),
            validation_share=draw(st.floats(0.05, 0.5)),
            embargo_s=draw(st.integers(0, 2_000)),
        ),
    )


@settings(max_examples=200, deadline=None)
@given(timescales(), st.integers(0, 3_000))
def test_every_split_is_ordered_disjoint_and_purged(spec: TimescaleSpec, bars: int) -> None:
    start = START_NS - START_NS % spec.bar_ns
    t_ns = start + spec.bar_ns * np.arange(1, bars + 1, dtype=np.int64)
    end_ns = start + spec.bar_ns * (bars + 1)
    try:
        split = split_times(start + spec.bar_ns, end_ns, spec)
    except SpanTooShort:
        reject()
    masks = split.masks(t_ns)
    assert (np.sum(masks, axis=0) <= 1).all()
    parts = [t_ns[mask] for mask in masks]
    assert all(part.size for part in parts)
    train, validation, test = parts
    # A label reads the bars that start at t … t + H − 1 bar; none of them may be decided on by a later part.
    assert train.max() + spec.horizon_ns < validation.min()
    embargo = max(spec.horizon_ns, spec.splits.embargo_s * NS)
    assert validation.max() + spec.horizon_ns + embargo < test.min()
    assert test.max() == t_ns[-1]
    longest = min(spec.splits.test_span_s, spec.splits.max_test_share * bars * spec.bar_interval_s)
    assert split.test.length_s < longest + spec.bar_interval_s
    assert split.validation.end_ns - split.train.start_ns <= spec.splits.train_span_s * NS
    assert Split.from_dict(json.loads(json.dumps(split.to_dict()))) == split


def test_a_long_span_keeps_the_newest_days() -> None:
    day = 86_400
    spec = replace(SPEC, splits=replace(SPEC.splits, train_span_s=2 * day, test_span_s=day))
    end_ns = START_NS + 30 * day * NS
    split = split_times(START_NS, end_ns, spec)
    assert split.test.length_s == day
    assert split.test.end_ns == end_ns
    assert (split.test.start_ns - split.validation.end_ns) / NS == 60 + 300
    assert (split.validation.end_ns - split.train.start_ns) / NS == 2 * day
    assert split.validation.length_s == pytest.approx(0.2 * 2 * day)
    assert (split.validation.start_ns - split.train.end_ns) / NS == 60


def test_borders_are_times_whatever_rows_exist() -> None:
    split = split_times(START_NS, START_NS + 7_200 * NS, SPEC)
    sparse = np.array([START_NS, split.test.start_ns, split.test.end_ns], dtype=np.int64)
    masks = split.masks(sparse)
    assert [mask.tolist() for mask in masks] == [[True, False, False], [False] * 3, [False, True, False]]


def test_too_short_says_what_is_needed() -> None:
    with pytest.raises(SpanTooShort, match=r"600 s of rows, 2026-03-31T23:33:20Z.*purge and embargo 420 s"):
        split_times(START_NS, START_NS + 600 * NS, SPEC)
    with pytest.raises(SpanTooShort):
        split_times(START_NS, START_NS, SPEC)


def test_the_least_whole_partitions_are_the_first_that_can_be_split() -> None:
    specs = timescale_specs(Settings())
    found = {name: least_partitions(spec) for name, spec in specs.items()}
    assert found == {"seconds": 1, "minutes_h5": 2, "minutes_h15": 2}
    assert least_partitions(replace(specs["seconds"], horizon_bars=2_000)) == 5
