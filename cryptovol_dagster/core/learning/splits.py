"""Splits of a labelled span into training, validation and test: in time order, with purge and embargo.

All borders are times, never row numbers. A row is assigned by its decision time `t`; its label covers
``(t, t + H]``.
Method: López de Prado, Advances in Financial Machine Learning (2018), chapter 7.
"""

from __future__ import annotations

import itertools
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cryptovol_dagster.core.features.catalogue import feature_list
from cryptovol_dagster.core.learning.errors import LearningError
from cryptovol_dagster.core.specs import NS, TimescaleSpec
from cryptovol_dagster.core.times import iso_utc

if TYPE_CHECKING:
    from numpy.typing import NDArray


class SpanTooShort(LearningError):  # noqa: N818 - the name states the fact
    """A span has no training rows left after purge, embargo and test."""


@dataclass(frozen=True)
class TimeRange:
    """Half-open range ``[start_ns, end_ns)`` of decision times."""

    start_ns: int
    end_ns: int

    def mask(self, t_ns: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which times are inside."""
        return (t_ns >= self.start_ns) & (t_ns < self.end_ns)

    def rows(self, t_ns: NDArray[np.int64]) -> tuple[int, int]:
        """Return the first row inside and the first one after, for ascending times."""
        first, stop = np.searchsorted(t_ns, [self.start_ns, self.end_ns])
        return int(first), int(stop)

    @property
    def length_s(self) -> float:
        """Length in seconds."""
        return (self.end_ns - self.start_ns) / NS

    def __str__(self) -> str:
        return f"[{iso_utc(self.start_ns)}, {iso_utc(self.end_ns)})"


class SplitMasks(NamedTuple):
    """Boolean masks over rows; no row is in two of them."""

    train: NDArray[np.bool_]
    validation: NDArray[np.bool_]
    test: NDArray[np.bool_]


@dataclass(frozen=True)
class Split:
    """Three ranges in time order; no label of one reaches into the next.

    Attributes:
        train: rows for fitting models and for spike thresholds.
        validation: the last share of the training span: early stopping and operating points.
        test: rows that no choice depends on.
        horizon_ns: H; ``train`` ends H before ``validation`` starts.
        embargo_ns: ``validation`` ends H plus this before ``test`` starts.
    """

    train: TimeRange
    validation: TimeRange
    test: TimeRange
    horizon_ns: int
    embargo_ns: int

    def masks(self, t_ns: NDArray[np.int64]) -> SplitMasks:
        """Return the masks of the three ranges; rows in purge and embargo are in no mask."""
        return SplitMasks(self.train.mask(t_ns), self.validation.mask(t_ns), self.test.mask(t_ns))

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON-able form: nanoseconds, which `from_dict` reads, and UTC text for readers."""
        ranges = {"train": self.train, "validation": self.validation, "test": self.test}
        return {
            **{
                name: {
                    "start_ns": part.start_ns,
                    "end_ns": part.end_ns,
                    "start": iso_utc(part.start_ns),
                    "end": iso_utc(part.end_ns),
                }
                for name, part in ranges.items()
            },
            "horizon_ns": self.horizon_ns,
            "embargo_ns": self.embargo_ns,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Split:
        """Build a split from the form of `to_dict`.

        Raises:
            KeyError: a part is missing.
        """
        train, validation, test = (
            TimeRange(int(data[name]["start_ns"]), int(data[name]["end_ns"]))
            for name in ("train", "validation", "test")
        )
        return cls(train, validation, test, int(data["horizon_ns"]), int(data["embargo_ns"]))


def split_times(first_ns: int, end_ns: int, spec: TimescaleSpec) -> Split:
    """Split the decision times ``[first_ns, end_ns)`` into training, validation and test.

    Test is the last ``min(test_span, max_test_share × available)``. The training span ends H (purge) plus
    ``max(H, embargo)`` before it and is at most `train_span_s` long; its last `validation_share` is
    validation, and training rows end H before that. Borders are on whole bars.

    Raises:
        SpanTooShort: training or validation would be empty.

    Examples:
        >>> from cryptovol_dagster.core.samples import SPEC
        >>> start_ns = 1_775_001_600 * NS
        >>> split = split_times(start_ns, start_ns + 5 * 3_600 * NS, SPEC)
        >>> for part in (split.train, split.validation, split.test):
        ...     print(part)
        [2026-04-01T00:53:45Z, 2026-04-01T03:16:30Z)
        [2026-04-01T03:17:45Z, 2026-04-01T03:53:45Z)
        [2026-04-01T04:00:00Z, 2026-04-01T05:00:00Z)
    """
    cut = spec.splits
    available = end_ns - first_ns
    embargo_ns = max(spec.horizon_ns, cut.embargo_s * NS)
    test_ns = min(cut.test_span_s * NS, int(cut.max_test_share * max(available, 0)))
    test_start = _floor(end_ns - test_ns, spec)
    span_end = _floor(test_start - spec.horizon_ns - embargo_ns, spec)
    span_start = -_floor(-max(first_ns, span_end - cut.train_span_s * NS), spec)
    validation_start = _floor(span_end - int(cut.validation_share * (span_end - span_start)), spec)
    train_end = validation_start - spec.horizon_ns
    if not (span_start < train_end and validation_start < span_end and test_start < end_ns):
        raise SpanTooShort(
            f"{available / NS:.0f} s of rows, {iso_utc(first_ns)} to {iso_utc(end_ns)}, are too few: "
            f"test takes {test_ns / NS:.0f} s, "
            f"purge and embargo {(2 * spec.horizon_ns + embargo_ns) / NS:.0f} s"
        )
    return Split(
        train=TimeRange(span_start, train_end),
        validation=TimeRange(validation_start, span_end),
        test=TimeRange(test_start, end_ns),
        horizon_ns=spec.horizon_ns,
        embargo_ns=embargo_ns,
    )


def least_partitions(spec: TimescaleSpec) -> int:
    """Return how many whole partitions have enough rows for a split.

    The first rows have no features (the longest required window is not warm), the last ones no labels.
    Whether the rows hold both classes is another matter.

    Examples:
        >>> from cryptovol_dagster.core.samples import SPEC
        >>> least_partitions(SPEC)
        1
    """
    warm_ns = max(feature.window_bars for feature in feature_list(spec) if not feature.optional) * spec.bar_ns
    for count in itertools.count(1):
        with suppress(SpanTooShort):
            split_times(warm_ns, count * spec.partition_ns - spec.horizon_ns, spec)
            return count
    raise AssertionError("a longer span always has room")


def _floor(ns: int, spec: TimescaleSpec) -> int:
    return ns - ns % spec.bar_ns
