"""What was published, read back from the tail of ticks.features, without Kafka."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest

from cryptovol_dagster.core.features.catalogue import feature_hash, own_feature_names
from cryptovol_dagster.core.features.grid import Reason
from cryptovol_dagster.core.features.live import LONGEST_SILENCE_NS, revisable_ns
from cryptovol_dagster.core.features.live_rows import PublishedRow
from cryptovol_dagster.core.specs import NS
from cryptovol_dagster.core.times import DAY_NS
from cryptovol_dagster.live.errors import LiveError
from cryptovol_dagster.live.published_log import PublishedLog, newest_rows
from cryptovol_dagster_tests.core.market.builders import START_NS, spec
from ingestor.envelope import FeatureMessage, closing_message, encode

SPEC = spec()
LATENESS_NS = 2 * NS
NAMES, VERSION = own_feature_names(SPEC), feature_hash(SPEC)
REVISABLE_NS = revisable_ns(SPEC, LATENESS_NS)


class FakeLog:
    """Partitions of ticks.features as lists of values."""

    def __init__(self, partitions: list[list[bytes]]) -> None:
        self.logs = partitions
        self.read: list[tuple[int, int, int]] = []

    def topic(self, name: str) -> str:
        return name

    def partitions(self, topic: str) -> int:
        return len(self.logs)

    def offsets(self, topic: str, partition: int) -> tuple[int, int]:
        return 0, len(self.logs[partition])

    def values(self, topic: str, partition: int, first: int, end: int) -> list[bytes]:
        self.read.append((partition, first, end))
        return self.logs[partition][first:end]


def message(
    second: int, revision: int = 0, product: str = "BTC-USD", version: str = VERSION
) -> FeatureMessage:
    return FeatureMessage(
        product_id=product,
        bar_end_ns=START_NS + second * NS,
        feature_version=version,
        revision=revision,
        provisional=False,
        valid=True,
        reason="ok",
        values={NAMES[0]: second + revision / 10},
    )


def published_log(
    log: FakeLog, written: dict[str, int] | None = None, partitions: int | None = None
) -> PublishedLog:
    return PublishedLog(
        cast(Any, log),
        log,
        SPEC,
        lateness_ns=LATENESS_NS,
        partitions=len(log.logs) if partitions is None else partitions,
        partition_of=lambda product: 1 if product == "ELSEWHERE-USD" else 0,
        written_end_ns=(written or {}).get,
    )


def seconds(rows: list[PublishedRow]) -> list[int]:
    return sorted((row.bar_end_ns - START_NS) // NS for row in rows)


def test_an_empty_topic_has_no_rows_and_nowhere_to_resume() -> None:
    assert published_log(FakeLog([[], []])).newest(0) == ([], None)


def test_the_tail_is_read_until_it_reaches_behind_what_may_change() -> None:
    log = FakeLog([[encode(message(second)) for second in range(20_000)]])
    written = {"BTC-USD": START_NS + 17_000 * NS}
    rows, resume_ns = published_log(log, written).newest(0)
    # The files end before the topic does, so rows are published again from there on.
    assert resume_ns == START_NS + 17_000 * NS - REVISABLE_NS
    assert log.read == [(0, 18_000, 20_000), (0, 12_000, 20_000)]
    assert seconds(rows) == list(range(12_000, 20_000))


def test_a_short_topic_resumes_before_its_first_row() -> None:
    log = FakeLog([[encode(message(second)) for second in (5, 6, 7)]])
    rows, resume_ns = published_log(log).newest(0)
    assert seconds(rows) == [5, 6, 7]
    assert resume_ns == START_NS + 4 * NS


@pytest.mark.parametrize("number", range(3))
def test_how_far_partitions_have_closed_is_no_row(number: int) -> None:
    """Neither to resume after, nor to compare with, whatever partition its key is taken for."""
    rows = [encode(message(second)) for second in range(1, 4)]
    closings = [encode(closing_message(number, START_NS + second * NS, VERSION)) for second in (900, 2)]
    plain = published_log(FakeLog([rows])).newest(0)
    mixed = published_log(FakeLog([[closings[0], *rows, closings[1]]])).newest(0)
    assert mixed[1] == plain[1]
    assert seconds(mixed[0]) == seconds(plain[0]) == [1, 2, 3]
    assert published_log(FakeLog([closings])).newest(0) == ([], None)


def test_with_as_many_partitions_only_its_own_is_read_else_all_of_them() -> None:
    logs = [[encode(message(1))], [encode(message(1, product="ELSEWHERE-USD")), encode(message(2))]]
    log = FakeLog(logs)
    assert seconds(published_log(log).newest(0)[0]) == [1]
    assert {number for number, *_ in log.read} == {0}
    log = FakeLog(logs)
    # Rows of other partitions' products are left out.
    assert seconds(published_log(log, partitions=4).newest(0)[0]) == [1, 2]
    assert {number for number, *_ in log.read} == {0, 1}


def test_a_message_that_is_no_row_is_named() -> None:
    with pytest.raises(LiveError, match=r"ticks.features contains a message that is not a row"):
        published_log(FakeLog([[b"{"]])).newest(0)


def row(second: float, product: str = "BTC-USD") -> PublishedRow:
    return PublishedRow(product, START_NS + round(second * NS), 0, True, Reason.OK, np.empty(0))


def test_it_resumes_before_the_oldest_of_what_products_have_published_and_written() -> None:
    written = {"BTC-USD": START_NS + 100 * NS, "ETH-USD": START_NS + 70 * NS}
    log = published_log(FakeLog([[]]), written)
    assert log.resume_ns([row(90), row(100), row(95, "ETH-USD")]) == START_NS + 70 * NS - REVISABLE_NS


def test_without_files_the_last_day_is_written_again() -> None:
    last_ns = START_NS + 100 * NS
    assert published_log(FakeLog([[]])).resume_ns([row(100)]) == last_ns - DAY_NS - REVISABLE_NS


def test_a_product_that_left_long_ago_holds_nothing_up() -> None:
    gone_s = 100 - LONGEST_SILENCE_NS / NS
    written = {"BTC-USD": START_NS + 100 * NS}
    resume_ns = published_log(FakeLog([[]]), written).resume_ns([row(100), row(gone_s, "GONE-USD")])
    assert resume_ns == START_NS + 100 * NS - REVISABLE_NS


def test_of_each_row_the_last_revision_counts() -> None:
    messages = [message(1), message(2), message(1, 2), message(1, 1), message(3, version="other")]
    rows = newest_rows(messages, VERSION, NAMES)
    assert [((r.bar_end_ns - START_NS) // NS, r.revision) for r in rows] == [(1, 2), (2, 0)]
    assert rows[0].values[0] == 1.2
    assert np.isnan(rows[0].values[1:]).all()


def test_rows_of_an_earlier_recording_are_left_out() -> None:
    later_s = 2 * LONGEST_SILENCE_NS // NS
    messages = [message(later_s), message(later_s, product="ETH-USD"), message(1), message(2)]
    rows = newest_rows(messages, VERSION, NAMES)
    assert sorted((r.product_id, (r.bar_end_ns - START_NS) // NS) for r in rows) == [
        ("BTC-USD", 1),
        ("BTC-USD", 2),
        ("ETH-USD", later_s),
    ]
