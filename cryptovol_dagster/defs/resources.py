"""What Dagster calls resources: the objects injected into assets, checks, sensors and schedules."""

from __future__ import annotations

from typing import Any

from cryptovol_dagster.history.store import History
from cryptovol_dagster.lake.files import Lake
from cryptovol_dagster.lake.latest import Reports
from cryptovol_dagster.lake.raw_ticks import RawStore
from cryptovol_dagster.monitoring.alerts import Alerts
from cryptovol_dagster.tracking.runs import tracking_resource
from ingestor.settings import Settings


def build_resources(settings: Settings) -> dict[str, Any]:
    """Build what assets, checks, sensor and schedule hold on to."""
    return {
        "lake": Lake(settings.storage.lake_dir),
        "raw": RawStore(settings.storage.raw_dir),
        "history": History(settings.storage.history_dir),
        "reports": Reports(settings.storage.reports_dir, settings.storage.artifacts_dir),
        "tracking": tracking_resource(settings),
        "alerts": _alerts(settings),
    }


def _alerts(settings: Settings) -> Alerts:
    monitoring = settings.monitoring
    url = monitoring.alert_webhook_url
    return Alerts(
        webhook_url=None if url is None else url.get_secret_value(),
        timeout_s=monitoring.alert_timeout_s,
        tries=monitoring.alert_tries,
        pause_s=monitoring.alert_pause_s,
        ui_url=settings.dagster.ui_url,
    )
