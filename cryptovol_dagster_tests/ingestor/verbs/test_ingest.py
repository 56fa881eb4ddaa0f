"""Frames of a real socket → embedded broker → raw storage, by `run_ingest` and by the command itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.server import ServerConnection

from cryptovol_dagster_tests.ingestor.feed.support import frame
from cryptovol_dagster_tests.places import REPOSITORY
from ingestor.archive.consumer import Archive, Offsets
from ingestor.archive.errors import ArchiveError
from ingestor.archive.reader import RawReader
from ingestor.audit.hours import audit
from ingestor.envelope import DEAD, EVENTS, TICKS, TRADES
from ingestor.kafka.broker import Broker, BrokerError
from ingestor.recorder import IngestError, IngestOptions, IngestSetupError, Started, run_ingest
from ingestor.settings.sections import Settings

FeedServer = Callable[[Callable[[ServerConnection], None]], AbstractContextManager[str]]
EVER_NS = 2**62


def rows(raw_dir: Path, topic: str) -> list[dict[str, Any]]:
    return RawReader(raw_dir).read(topic, 0, EVER_NS).to_pylist()


def test_a_recording_is_in_raw_storage_exactly_once(settings: Settings, feed_server: FeedServer) -> None:
    def script(socket: ServerConnection) -> None:
        socket.send(frame(0))
        socket.send(frame(1, "subscriptions"))
        socket.send(frame(2, "market_trades"))
        socket.send("this is no frame")
        for number in [*range(3, 2_000), 1_999, *range(2_010, 3_000)]:
            socket.send(frame(number))
        socket.close(1000)

    started: list[Started] = []
    with feed_server(script) as url:
        summary = run_ingest(settings, IngestOptions(url=url, until_closed=True), on_started=started.append)
    assert started[0].embedded
    assert started[0].url == url
    assert summary.ended == "closed"
    assert summary.feed is not None
    counted = summary.feed
    assert (counted.ticks, counted.trades, counted.gaps, counted.missing) == (2_988, 1, 1, 10)
    assert (counted.repeats, counted.dead_letters) == (1, 1)

    raw = settings.storage.raw_dir
    sequence = [row["sequence_num"] for row in rows(raw, TICKS)]
    assert sequence == [0, *range(3, 2_000), *range(2_010, 3_000)]
    assert [row["sequence_num"] for row in rows(raw, TRADES)] == [2]
    assert len(rows(raw, DEAD)) == 1
    kinds = [row["kind"] for row in rows(raw, EVENTS)]
    assert [kind for kind in kinds if kind != "checkpoint"] == [
        "connected",
        "subscribed",
        "gap",
        "disconnected",
    ]
    assert kinds[-2:] == ["checkpoint", "disconnected"]
    last = json.loads(rows(raw, EVENTS)[-2]["payload"])
    assert last["to_sequence"] == 2_999
    assert sum(offset + 1 for offset in last["offsets"][TICKS].values()) == 2_988

    audited = audit(RawReader(raw))
    assert audited.findings == ()
    assert [audited.total(name) for name in ("stored", "control", "in_gaps")] == [2_989, 1, 10]


def test_more_than_the_broker_keeps_passes_whole(settings: Settings, feed_server: FeedServer) -> None:
    """20 MB of one partition through the embedded broker's 5: the feed waits for the archive."""
    entry = {"type": "ticker", "product_id": "BTC-USD", "price": "1", "pad": "x" * 2_000}
    count = 10_000

    def script(socket: ServerConnection) -> None:
        for number in range(count):
            socket.send(frame(number, events=[{"type": "update", "tickers": [entry]}]))
        socket.close(1000)

    with feed_server(script) as url:
        summary = run_ingest(settings, IngestOptions(url=url, until_closed=True))
    assert summary.waited_for_room_s > 0
    assert [row["sequence_num"] for row in rows(settings.storage.raw_dir, TICKS)] == list(range(count))


def test_a_duration_ends_a_live_feed(settings: Settings, feed_server: FeedServer) -> None:
    def script(socket: ServerConnection) -> None:
        for number in range(10_000):
            socket.send(frame(number, "heartbeats" if number % 5 == 1 else "ticker"))
            time.sleep(0.02)

    with feed_server(script) as url:
        summary = run_ingest(settings, IngestOptions(url=url, duration_s=1.5))
    assert summary.ended == "duration"
    assert summary.feed is not None
    assert len(rows(settings.storage.raw_dir, TICKS)) == summary.feed.ticks > 10


def test_a_bounded_run_that_hears_nothing_fails(settings: Settings) -> None:
    with pytest.raises(IngestError, match="no readable frame"):
        run_ingest(settings, IngestOptions(url="ws://127.0.0.1:9", duration_s=0.5))


@pytest.mark.parametrize(
    ("ends", "reason"),
    [
        (lambda socket: socket.close(1000, "no such market"), "closed with code 1000: no such market"),
        (lambda socket: time.sleep(1), "connected, but nothing readable was sent"),
    ],
)
def test_a_server_that_says_nothing_is_told_as_such(
    settings: Settings, feed_server: FeedServer, ends: Callable[[ServerConnection], None], reason: str
) -> None:
    with feed_server(ends) as url, pytest.raises(IngestError, match=reason):
        run_ingest(settings, IngestOptions(url=url, duration_s=0.5, until_closed=True))


def test_a_failing_archive_ends_the_run_with_its_error(settings: Settings, feed_server: FeedServer) -> None:
    settings.storage.data_dir.mkdir()
    settings.storage.raw_dir.write_text("a file where a folder should be")

    def script(socket: ServerConnection) -> None:
        for number in range(10_000):
            socket.send(frame(number, "heartbeats" if number % 5 == 1 else "ticker"))
            time.sleep(0.02)

    with feed_server(script) as url, pytest.raises(ArchiveError, match="raw") as caught:
        run_ingest(settings, IngestOptions(url=url))
    assert "\n" not in str(caught.value)


def test_what_cannot_work_together_is_refused(settings: Settings) -> None:
    for parts in ({"with_archive": False}, {"with_feed": False}, {"with_archive": False, "with_feed": False}):
        with pytest.raises(IngestSetupError):
            run_ingest(settings, IngestOptions(**parts))


def test_an_unreachable_broker_is_one_line(settings: Settings) -> None:
    kafka = settings.kafka.model_copy(update={"bootstrap_servers": "127.0.0.1:9"})
    with pytest.raises(BrokerError, match=r"127\.0\.0\.1:9"):
        run_ingest(settings.model_copy(update={"kafka": kafka}), IngestOptions(duration_s=1))


def test_no_kafka_leaves_the_configured_broker_alone(settings: Settings, feed_server: FeedServer) -> None:
    kafka = settings.kafka.model_copy(update={"bootstrap_servers": "127.0.0.1:9"})
    elsewhere = settings.model_copy(update={"kafka": kafka})

    def script(socket: ServerConnection) -> None:
        socket.send(frame(0))
        socket.close(1000)

    with feed_server(script) as url:
        summary = run_ingest(elsewhere, IngestOptions(url=url, until_closed=True, embedded_broker=True))
    assert summary.feed is not None
    assert summary.feed.ticks == 1


def endless(socket: ServerConnection) -> None:
    number = 0
    while True:
        socket.send(frame(number, "heartbeats" if number % 5 == 1 else "ticker"))
        number += 1
        time.sleep(0.005)


def test_a_signal_while_the_rest_is_stored_loses_nothing(
    settings: Settings, feed_server: FeedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def script(socket: ServerConnection) -> None:
        for number in range(100):
            socket.send(frame(number))
        socket.close(1000)

    whole = Archive.drain_to

    def signalled(archive: Archive, offsets: Offsets, timeout_s: float) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.2)
        whole(archive, offsets, timeout_s)

    monkeypatch.setattr(Archive, "drain_to", signalled)
    before = signal.getsignal(signal.SIGINT)
    with feed_server(script) as url:
        summary = run_ingest(settings, IngestOptions(url=url, until_closed=True))
    assert summary.ended == "closed"
    assert len(rows(settings.storage.raw_dir, TICKS)) == 100
    assert signal.getsignal(signal.SIGINT) is before


STUCK = """
import time
from ingestor.archive.consumer import Archive
from ingestor.cli import cli
Archive.drain_to = lambda *_: time.sleep(60)
cli(["ingest", "--url", "{url}"])
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_at_once(
    environment: Path, feed_server: FeedServer, how: signal.Signals
) -> None:
    with feed_server(endless) as url:
        process = subprocess.Popen(
            [sys.executable, "-c", STUCK.format(url=url)],
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        for line in process.stderr:
            if "connected" in line:
                process.send_signal(how)
            elif "stopping" in line:
                break
        process.send_signal(how)
        process.communicate(timeout=20)
    assert process.returncode == -how


@pytest.mark.parametrize(
    ("how", "after_s"), [(signal.SIGINT, 1.0), (signal.SIGTERM, 1.0), (signal.SIGTERM, 0.0)]
)
def test_a_signal_stops_cleanly_with_everything_stored(
    environment: Path, feed_server: FeedServer, how: signal.Signals, after_s: float
) -> None:
    with feed_server(endless) as url:
        process = subprocess.Popen(
            [sys.executable, "-m", "ingestor", "ingest", "--url", url, "--json"],
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        started = json.loads(process.stdout.readline())
        assert started["event"] == "started"
        assert started["bootstrap_servers"].startswith("127.0.0.1:")
        time.sleep(after_s)
        process.send_signal(how)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert "Traceback" not in err
    summary = json.loads(out.splitlines()[-1])
    assert (summary["event"], summary["ended"]) == ("summary", "signal")
    stored = rows(environment / "data" / "raw", TICKS)
    assert len(stored) == summary["feed"]["ticks"]
    if after_s:
        assert stored
        assert rows(environment / "data" / "raw", EVENTS)[-1]["kind"] == "disconnected"


def _ingest(environment: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "ingestor", "ingest", "--json", *arguments],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_second_recorder_on_the_same_storage_is_refused(
    environment: Path, feed_server: FeedServer, settings: Settings
) -> None:
    with feed_server(endless) as url:
        first = _ingest(environment, "--url", url)
        assert first.stderr is not None
        assert any("connected" in line for line in first.stderr)  # it holds the storage
        second = _ingest(environment, "--url", url)
        _, said = second.communicate(timeout=30)
        assert second.returncode == 2
        (line,) = [line for line in said.splitlines() if line.startswith("Error: ")]
        assert f"raw storage {settings.storage.raw_dir} has an archive already (pid {first.pid} on " in line
        assert "--shared-archive" in line
        sharing = _ingest(environment, "--url", url, "--shared-archive")
        _, said = sharing.communicate(timeout=30)
        assert sharing.returncode == 2, said
        first.kill()
        first.communicate(timeout=30)
        third = _ingest(environment, "--url", url, "--duration", "0.5")
        _, said = third.communicate(timeout=30)
        assert third.returncode == 0, said


@pytest.mark.kafka
def test_archives_alone_share_a_broker_only_when_all_say_so(
    environment: Path, real_broker: Broker, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CRYPTOVOL__KAFKA__BOOTSTRAP_SERVERS", real_broker.bootstrap_servers)
    monkeypatch.setenv("CRYPTOVOL__KAFKA__TOPIC_PREFIX", real_broker.settings.topic_prefix)
    pair = [_ingest(environment, "--no-feed", "--shared-archive") for _ in range(2)]
    try:
        for process in pair:
            assert process.stdout is not None
            assert json.loads(process.stdout.readline())["event"] == "started"
        alone = _ingest(environment, "--no-feed")
        _, said = alone.communicate(timeout=30)
        assert alone.returncode == 2
        assert "has an archive already" in said
    finally:
        for process in pair:
            process.send_signal(signal.SIGTERM)
        ends = [process.communicate(timeout=60) for process in pair]
    assert [process.returncode for process in pair] == [0, 0], ends
