"""Targets of alerts, and one attempt to send an alert, in a process that is ended when it hangs."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from cryptovol_dagster.alerts.child import redact
from cryptovol_dagster.alerts.errors import AlertTargetError
from cryptovol_dagster.alerts.outbox import Alert
from ingestor.errors import first_line
from ingestor.settings import Settings
from ingestor.settings.alerts import WEBHOOK

#: For a process to start and to import Apprise: 0.6 s of CPU, and much more wall time on busy cores.
_START_S = 60.0
#: As Apprise colours and marks it; the others are warnings.
_TYPES = {
    "feed_silent": "failure",
    "model_refused": "failure",
    "run_failed": "failure",
    "episode_closed": "info",
    "test": "info",
}


@dataclass(frozen=True)
class Target:
    """Receiver of alerts.

    Attributes:
        name: as configured.
        url: secret.
        is_webhook: whether alerts are posted there as JSON, without Apprise.
    """

    name: str
    url: str = field(repr=False)
    is_webhook: bool = False


def targets_of(settings: Settings) -> dict[str, Target]:
    """Return every target of a configuration by name, the webhook last."""
    found = {name: Target(name, url.get_secret_value()) for name, url in settings.alerts.targets.items()}
    webhook = settings.monitoring.alert_webhook_url
    if webhook is not None:
        found[WEBHOOK] = Target(WEBHOOK, webhook.get_secret_value(), is_webhook=True)
    return found


def check_targets(targets: Mapping[str, Target]) -> dict[str, str]:
    """Return what is wrong with targets, by name; nothing is sent.

    Raises:
        AlertTargetError: Apprise is needed and is not installed, or cannot be imported.
    """
    urls = {name: target.url for name, target in targets.items() if not target.is_webhook}
    if not urls:
        return {}
    if find_spec("apprise") is None:
        raise AlertTargetError(
            f'alerts.targets ({", ".join(urls)}) needs Apprise: pip install "cryptovol[alerts]"'
        )
    answer, why = _ask({"check": urls}, _START_S, " ".join(urls.values()))
    if not isinstance(answer, dict):
        raise AlertTargetError(f"alerts.targets cannot be checked: {why}")
    return answer


def require_usable(targets: Mapping[str, Target]) -> None:
    """Check targets as `check_targets` does.

    Raises:
        AlertTargetError: one of them cannot be used.
    """
    for name, problem in check_targets(targets).items():
        raise AlertTargetError(f"alerts.targets.{name}: {problem}; `cryptovol alert --test` tries all")


def send_once(target: Target, alert: Alert, timeout_s: float) -> str:
    """Send an alert to a target, once.

    Args:
        target: the receiver.
        alert: what to send.
        timeout_s: how long the target may take.

    Returns:
        Why it failed, without a part of the URL; empty where the target took it.
    """
    request = {
        "url": target.url,
        "is_webhook": target.is_webhook,
        "title": alert.title,
        "body": alert.body,
        "type": _TYPES.get(alert.kind, "warning"),
        "detail": {"id": alert.id, "rule": alert.rule, **alert.detail},
        "timeout_s": timeout_s,
    }
    answer, why = _ask(request, _START_S + timeout_s, target.url)
    if isinstance(answer, str):
        return answer
    return why or f"no answer within {timeout_s:g} s"


def _ask(request: Mapping[str, Any], limit_s: float, secret: str) -> tuple[object, str]:
    """Run the process that knows Apprise.

    Returns:
        Its answer, or None and why there is none; nothing where the target's time was up.
    """
    # -P: a file of the working folder must not take the place of a library.
    command = [sys.executable, "-P", "-m", "cryptovol_dagster.alerts.child"]
    try:
        # In a session of its own: Ctrl-C must not break off what is just being sent.
        done = subprocess.run(
            command,
            input=json.dumps(request),
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=limit_s,
            start_new_session=True,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None, f"its process did not end within {limit_s:g} s"
    except OSError as error:
        return None, f"its process cannot be started: {first_line(error)}"
    if done.returncode == -signal.SIGALRM:
        return None, ""
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [""])[-1]
        return None, redact(f"its process ended with code {done.returncode}: {last}", secret)
    return json.loads(done.stdout.splitlines()[-1]), ""
