"""Alerts: a line in the log, and a post to a webhook; a receiver that does not answer stops nothing."""

from __future__ import annotations

import json
import logging
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    import httpx
    from tenacity import RetryCallState

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Alerts:
    """Receiver of alerts.

    Attributes:
        webhook_url: an address that takes a JSON body by POST; None for the log alone. It may contain a
            secret, so messages name its host only.
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
        # Imported here: every process of Dagster imports this module, few send an alert.
        from tenacity import wait_fixed

        from cryptovol_dagster.http_client import AttemptError, open_client, retrying

        host = urlsplit(self.webhook_url).hostname

        def warn(state: RetryCallState) -> None:
            reason = state.outcome and state.outcome.exception()
            LOG.warning(
                "alert not taken by %s (try %d of %d): %s", host, state.attempt_number, self.tries, reason
            )

        try:
            # The system's certificates: a receiver may have one of the operator's own authority.
            with open_client(
                self.timeout_s, verify=ssl.create_default_context(), follow_redirects=True
            ) as client:
                retrying(self.tries, wait_fixed(self.pause_s), on_failure=warn)(
                    _post, client, self.webhook_url, alert
                )
        except AttemptError:
            LOG.error("alert given up: %s did not accept it: %s", host, alert["text"])
            return False
        return True


def _post(client: httpx.Client, url: str, alert: Mapping[str, Any]) -> None:
    """Post an alert once.

    Raises:
        AttemptError: there was no answer, or a failure.
    """
    from cryptovol_dagster.http_client import AttemptError, send

    response = send(
        client, "POST", url, content=json.dumps(alert), headers={"Content-Type": "application/json"}
    )
    if not response.is_success:
        raise AttemptError(f"it answered {response.status_code}")
