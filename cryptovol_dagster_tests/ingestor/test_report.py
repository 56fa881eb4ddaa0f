"""Reporting a closed hour: what is sent, and that nothing waits for who does not answer."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from ingestor.archive.layout import ClosedHour
from ingestor.envelope import TICKS
from ingestor.report import HourReporter, ReportError

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
                "metadata": {"rows ticks.raw": 5, "watermark_ns": 2},
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


def test_only_http_is_reported_to() -> None:
    with pytest.raises(ReportError, match=r"dagster.ui_url is 'file:///etc'"):
        HourReporter("file:///etc")
