"""Which partitions a partition reads back to."""

from __future__ import annotations

from cryptovol_dagster.core.features.catalogue import lookback_bars
from cryptovol_dagster.core.specs import NS, TimescaleSpec
from cryptovol_dagster.core.times import partition_window


def partitions_of(bars: int, spec: TimescaleSpec) -> int:
    """Return how many partitions (hours, days) before its own `bars` bars reach back."""
    return -(-bars * spec.bar_ns // spec.partition_ns)


def feature_look_back(spec: TimescaleSpec) -> int:
    """Return how many partitions of bars before its own the features of a partition read."""
    return partitions_of(lookback_bars(spec), spec)


def label_look_back(spec: TimescaleSpec) -> int:
    """Return how many partitions of bars before its own labels read: their rows begin H before it."""
    return partitions_of(2 * spec.horizon_bars, spec)


def training_look_back(spec: TimescaleSpec) -> int:
    """Return how many partitions of features and labels before its own an as-of partition learns from."""
    return -(-(spec.splits.train_span_s + spec.splits.test_span_s) * NS // spec.partition_ns)


def window_back(partition_key: str, count: int) -> tuple[int, int]:
    """Return the window of a partition together with `count` partitions before it."""
    start_ns, end_ns = partition_window(partition_key)
    return start_ns - count * (end_ns - start_ns), end_ns
