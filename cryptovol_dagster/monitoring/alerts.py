"""Alerts: a line in the log, and a post to whoever wants to be told; a deaf receiver harms nobody."""

from __future__ import annotations

import json
import logging
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Alerts:
    """Where alerts go.

    Attributes:
        webhook_url: an address that takes a JSON body by POST; None for the log alone. It may hold a secret,
            so messages name its host only.
        timeout_s: how long the receiver may take to answer.
        tries: how often it is tried.
        pause_s: between two tries.
        ui_url: where people open the Dagster UI; used in links.
    """

    webhook_url: str | None
    timeout_s: float
    tries: int
    pause_s: float
    ui_url: str

    def send(self, alert: Mapping[str, Any]) -> bool:
        """Write an alert to the log and post it; never raises for a receiver that is away.

        Args:
            alert: plain values; `text` is the line for people.

        Returns:
            Whether the receiver took it; True where there is none.
        """
        LOG.error("alert: %s", json.dumps(alert, sort_keys=True))
        if self.webhook_url is None:
            return True
        host = urlsplit(self.webhook_url).hostname
        for attempt in range(1, self.tries + 1):
            try:
                self._post(self.webhook_url, alert)
            except (OSError, HTTPException) as error:  # URLError, HTTPError and timeouts are OSErrors
                LOG.warning(
                    "alert not taken by %s (try %d of %d): %s", host, attempt, self.tries, _reason(error)
                )
            else:
                return True
            if attempt < self.tries:
                time.sleep(self.pause_s)
        LOG.error("alert given up: %s did not take it: %s", host, alert["text"])
        return False

    def _post(self, url: str, alert: Mapping[str, Any]) -> None:
        request = urllib.request.Request(
            url, data=json.dumps(alert).encode(), headers={"Content-Type": "application/json"}, method="POST"
        )
        with urllib.request.urlopen(request, timeout=self.timeout_s) as response:
            response.read()


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"it answered {error.code}"
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    return (str(reason) or type(error).__name__).splitlines()[0]
