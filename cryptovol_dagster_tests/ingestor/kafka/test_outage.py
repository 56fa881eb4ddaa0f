"""An outage is said when it begins, while it lasts and when it ends, and its seconds are counted."""

from __future__ import annotations

import pytest

from ingestor.kafka.outage import OUTAGE_AFTER_S, Outage

MIB = 1024 * 1024


def test_an_outage_from_begin_to_end(caplog: pytest.LogCaptureFixture) -> None:
    outage = Outage(100.0)
    outage.observe(101.0, acknowledged=5, in_flight=3, spilled_bytes=0, limit_bytes=1024 * MIB)
    outage.observe(101.0 + OUTAGE_AFTER_S - 0.1, 5, 30, 0, 1024 * MIB)
    assert not outage.lasts
    assert caplog.messages == []
    outage.observe(107.0, 5, 400, 3 * MIB, 1024 * MIB)
    assert outage.lasts
    assert caplog.messages == [
        "Kafka has not acknowledged anything for 6 s; 400 messages wait, spilling, 3.0 of 1024 MiB"
    ]
    for second in range(108, 141):
        outage.observe(float(second), 5, 4_000, 30 * MIB, 1024 * MIB)
    assert len(caplog.messages) == 2
    assert (outage.count, outage.total_s) == (1, 39.0)
    outage.observe(141.0, 6, 3_999, 30 * MIB, 1024 * MIB)
    assert caplog.messages[-1] == (
        "Kafka acknowledges again after 40 s; 30.0 MiB are spilled and follow in order"
    )
    outage.observe(150.0, 7, 1, 0, 1024 * MIB)
    assert (outage.lasts, outage.count, outage.total_s) == (False, 1, 40.0)


def test_nothing_on_its_way_is_no_outage(caplog: pytest.LogCaptureFixture) -> None:
    outage = Outage(0.0)
    for second in range(100):
        outage.observe(float(second), 5, 0, 0, 0)
    outage.observe(101.0, 5, 1, 0, 0)
    outage.observe(101.0 + OUTAGE_AFTER_S / 2, 5, 1, 0, 0)
    assert (outage.count, outage.total_s, caplog.messages) == (0, 0.0, [])
