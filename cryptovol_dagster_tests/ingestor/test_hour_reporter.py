"""Reporting a closed hour: what is sent, and that nothing waits for who does not answer."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from websockets.sync.server import ServerConnection

from cryptovol_dagster_tests.ingestor.feed.support import T0_NS, frame
from cryptovol_dagster_tests.ingestor.verbs.conftest import served
from ingestor.archive.layout import ClosedHour
from ingestor.archive.reader import RawReader
from ingestor.audit.hours import audit
from ingestor.envelope import TICKS
from ingestor.exchange.clock import ns_to_rfc3339
from ingestor.hour_reporter import HourReporter, ReportError
from ingestor.recorder import IngestOptions, run_ingest
from ingestor.settings import Settings
from ingestor.settings.sections import DagsterSettings, StorageSettings
from ingestor.times import HOUR_NS, NS

HOUR = ClosedHour(hour="2026-04-04-03:00", closed_at_ns=1, watermark_ns=2, rows={TICKS: 5})


class _Server(HTTPServer):
    status = 200
    requests: list[tuple[str, dict]]


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.headers["Content-Type"] == "application/json"
        self.server.requests.append((self.path, body))
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def server() -> Iterator[_Server]:
    server = _Server(("127.0.0.1", 0), _Handler)
    server.requests = []
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_hour_is_posted_with_its_version_and_counts(server: _Server) -> None:
    reporter = HourReporter(f"http://127.0.0.1:{server.server_port}/")
    reporter.report(HOUR)
    reporter.close()
    assert server.requests == [
        (
            "/report_asset_materialization/raw_ticks",
            {
                "partition": HOUR.hour,
                "data_version": HOUR.version,
                "metadata": {"rows ticks.raw": 5, "watermark_ns": 2, "revision": 0, "late_rows": 0},
            },
        )
    ]


def test_a_refusal_is_one_line_and_the_next_hour_is_reported_all_the_same(
    server: _Server, caplog: pytest.LogCaptureFixture
) -> None:
    server.status = 503
    reporter = HourReporter(f"http://127.0.0.1:{server.server_port}")
    reporter.report(HOUR)
    reporter.report(HOUR)
    reporter.close()
    assert len(server.requests) == len(caplog.records) == 2
    assert "hour 2026-04-04-03:00 was not reported to http://127.0.0.1" in caplog.text
    assert "Traceback" not in caplog.text


def test_nobody_listening_is_one_line(server: _Server, caplog: pytest.LogCaptureFixture) -> None:
    port = server.server_port
    server.shutdown()
    server.server_close()
    reporter = HourReporter(f"http://127.0.0.1:{port}")
    reporter.report(HOUR)
    reporter.close()
    (record,) = caplog.records
    assert "Connection refused" in record.getMessage()


def _record(folder: Path, ui_url: str) -> RawReader:
    """Record a market of an hour and two minutes, as the recorder does."""

    def script(socket: ServerConnection) -> None:
        for number in range(10):
            socket.send(frame(number))
        socket.send(frame(10, timestamp=ns_to_rfc3339(T0_NS + HOUR_NS + 130 * NS)))
        socket.close(1000)

    settings = Settings(
        storage=StorageSettings(data_dir=folder),
        dagster=DagsterSettings(ui_url=ui_url, report_closed_hours=True),
    )
    with served(script) as url:
        run_ingest(settings, IngestOptions(url=url, until_closed=True))
    return RawReader(settings.storage.raw_dir)


def test_the_recorder_reports_the_hour_it_closed(tmp_path: Path, server: _Server) -> None:
    reader = _record(tmp_path, f"http://127.0.0.1:{server.server_port}")
    (hour,) = reader.closed_hours()
    assert hour.rows[TICKS] == 10
    ((_, body),) = server.requests
    assert (body["partition"], body["data_version"]) == (hour.hour, hour.version)
    audited = audit(reader)
    assert (audited.findings, audited.total("stored"), audited.seals[0].state) == ((), 11, "unchanged")


def test_the_recorder_loses_nothing_where_nobody_listens(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reader = _record(tmp_path, "http://127.0.0.1:9")
    assert len(reader.closed_hours()) == 1
    assert [record.name for record in caplog.records].count("ingestor.hour_reporter") == 1
    assert audit(reader).verdict == "every one of 11 sequence numbers is accounted for"


def test_only_http_is_reported_to() -> None:
    with pytest.raises(ReportError, match=r"dagster.ui_url is 'file:///etc'"):
        HourReporter("file:///etc")
