"""What a look at the stream shows, by its text."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from cryptovol_dagster_tests.ingestor.check_stream.messages import NS, T0_NS, dead, event, tick, trade
from ingestor.check_stream.statistics import PartitionSeen, StreamReport
from ingestor.check_stream.table import human_duration, progress_line, render
from ingestor.envelope import DEAD, EVENTS, FEATURES_TOPIC, TICKS, TRADES


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (None, "–"),
        (0, "0 ms"),
        (350_000, "350 µs"),
        (1_234_567, "1.23 ms"),
        (-60_000_000, "-60 ms"),
        (999_999_999, "1000 ms"),
        (5_210_000_000, "5.21 s"),
        (119 * NS, "119 s"),
        (14 * 60 * NS, "14 min"),
        (-7.5 * 3_600 * NS, "-7.5 h"),
        (47 * 3_600 * NS, "47 h"),
        (230 * 86_400 * NS, "230 d"),
        (2**63 - 1, "106752 d"),
    ],
)
def test_durations_are_told_in_the_unit_people_read(ns: float | None, text: str) -> None:
    assert human_duration(ns) == text


def seen() -> StreamReport:
    report = StreamReport("here:9092", "mine.", archive_group="mine.cryptovol-archive")
    now_ns = T0_NS + 40 * 86_400 * NS
    for at_s, (topic, key, value) in enumerate(
        (
            (TICKS, b"BTC-USD", tick(event_time_ns=T0_NS + 60_000_000)),
            (TICKS, b"BTC-USD", tick(received_at_ns=now_ns - 2_000_000)),
            (TRADES, b"BTC-USD", trade()),
            (EVENTS, b"c", event("connected")),
            (EVENTS, b"c", event("gap", count=3)),
            (DEAD, b"c", dead("not UTF-8 [/red]")),
            (TICKS, b"BTC-USD", b"nonsense"),
            (FEATURES_TOPIC, b"BTC-USD", b'{"revision":1}'),
        )
    ):
        report.take_in(topic, key, value, place=f"{topic} offset {at_s}", now_ns=now_ns, at_s=at_s)
    report.now_ns, report.seconds = now_ns, 10.0
    report.partitions = (
        PartitionSeen(TICKS, 0, 1_114, 1_113, 1_041),
        PartitionSeen(TICKS, 1, 0, 0),
        PartitionSeen(DEAD, 0, 1, 1),
    )
    return report


def text_of(report: StreamReport, width: int, left_s: float = 0.0) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(render(report, left_s=left_s))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_table_shows_every_number() -> None:
    lines = [re.sub(r" {2,}", " | ", line.strip()) for line in text_of(seen(), 160, 12).splitlines()]
    assert "here:9092 (topics mine.*), observed for 10 s, 12 s to go" in lines
    assert "BTC-USD | 2 | 0.20 | 0.0 | 1 | 2026-05-01T10:00:00Z | 40 d | 1" in lines
    assert "BTC-USD | exchange→read | -60 ms | 40 d | 40 d | 40 d | 50.0%, least -60 ms" in lines
    here = re.compile(r"BTC-USD \| read→here \| (1\.9\d|2|2\.0\d) ms \| 40 d \| 40 d \| 40 d \| none")
    assert [line for line in lines if here.fullmatch(line)]
    assert "mine.ticks.raw | 0 | 1,114 | 1,113 | 1 | 1,041 | 73" in lines
    assert "mine.feed.dead | 0 | 1 | 1 | 0 | – | –" in lines
    assert "1 partitions without a record are left out" in lines
    assert "feed.events: 1 connected, 1 gap" in lines
    assert "connections opened 1, resumed 0, gaps 1 with 3 frames missing" in lines
    assert "feed.dead: 1 (newest: not UTF-8 [/red]); invalid messages: 1" in lines
    assert "ticks.features: 1 rows, 1 of them revisions" in lines
    assert any(line.startswith("invalid: ticks.raw offset 6: ") for line in lines)
    assert any(line.startswith("note: event times are not of today") for line in lines)
    assert "counts and maxima are exact, quantiles within 1 % (a streaming histogram)" in lines


def test_a_narrow_terminal_still_shows_the_numbers() -> None:
    text = text_of(seen(), 80)
    assert "exchange→read" in text
    assert "1,114" in text
    assert max(map(len, text.splitlines())) <= 80


def test_a_log_gets_one_line() -> None:
    assert progress_line(seen()) == (
        "10 s: 2 ticks (0.0/s), 1 trades; newest 2026-05-01T10:00:00 (40 d old); 1 gaps, 1 dead letters, "
        "1 invalid; archive behind by 73"
    )
    assert "no tick yet" in progress_line(StreamReport("here:9092"))
