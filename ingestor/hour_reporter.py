"""Posts each closed hour to Dagster's webserver: fire and forget, in a thread of its own.

The sensor `closed_hours` reports whatever does not arrive this way. It posts with urllib and tries once: the
recorder's image has no HTTP library.
"""

from __future__ import annotations

import logging
import queue
import threading
import urllib.error
import urllib.request
from http.client import HTTPException
from typing import Any

import msgspec

from ingestor.archive.layout import ClosedHour
from ingestor.errors import USAGE, CryptovolError, first_line

LOG = logging.getLogger(__name__)

#: The external asset that raw storage is in Dagster.
RAW_TICKS = "raw_ticks"
_TIMEOUT_S = 5.0


def describe(hour: ClosedHour) -> dict[str, Any]:
    """Return the metadata of a closed hour beside its version: plain values."""
    return {
        **{f"rows {topic}": rows for topic, rows in hour.rows.items()},
        "watermark_ns": hour.watermark_ns,
        "revision": hour.revision,
        "late_rows": hour.late_rows,
    }


class ReportError(CryptovolError):
    """The address of Dagster's webserver is not one of HTTP; the message is one line."""

    exit_code = USAGE


class HourReporter:
    """Posts closed hours to Dagster's webserver; `report` never waits and never fails.

    Args:
        ui_url: address of the webserver.
        timeout_s: how long it may take to answer.

    Raises:
        ReportError: the address is not one of HTTP.
    """

    def __init__(self, ui_url: str, timeout_s: float = _TIMEOUT_S) -> None:
        if not ui_url.startswith(("http://", "https://")):
            raise ReportError(f"dagster.ui_url is {ui_url!r}: closed hours are reported to http(s):// only")
        self._url = f"{ui_url.rstrip('/')}/report_asset_materialization/{RAW_TICKS}"
        self._timeout_s = timeout_s
        self._hours: queue.SimpleQueue[ClosedHour | None] = queue.SimpleQueue()
        # The webserver runs beside the recorder and is not reached through the environment's proxy.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        self._thread = threading.Thread(target=self._run, name="hour-reporter", daemon=True)
        self._thread.start()

    def report(self, hour: ClosedHour) -> None:
        """Report an hour soon."""
        self._hours.put(hour)

    def close(self) -> None:
        """Report the waiting hours, as far as the webserver answers in time; then end."""
        self._hours.put(None)
        self._thread.join(self._timeout_s)

    def _run(self) -> None:
        while (hour := self._hours.get()) is not None:
            try:
                self._post(hour)
            except (OSError, HTTPException) as error:  # URLError and timeouts are OSErrors
                LOG.warning("hour %s was not reported to %s: %s", hour.hour, self._url, _reason(error))

    def _post(self, hour: ClosedHour) -> None:
        body = {"partition": hour.hour, "data_version": hour.version, "metadata": describe(hour)}
        request = urllib.request.Request(
            self._url,
            data=msgspec.json.encode(body),
            headers={"Content-Type": "application/json"},
            method="POST",
        )
        with self._opener.open(request, timeout=self._timeout_s) as response:
            response.read()


def _reason(error: Exception) -> str:
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    return first_line(reason) if isinstance(reason, BaseException) else reason
