"""Dagster resources: the objects injected into assets, checks, sensors and schedules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dagster as dg

from cryptovol_dagster.alerts.service import AlertService
from cryptovol_dagster.history.store import History
from cryptovol_dagster.lake.files import Lake
from cryptovol_dagster.lake.latest import Reports
from cryptovol_dagster.lake.raw_ticks import RawStore
from cryptovol_dagster.tracking.runs import tracking_resource
from ingestor.settings import Settings

#: Descriptions in the UI.
_DESCRIPTIONS = {
    "lake": "The tables, models and numbers that assets store: a file for each partition.",
    "raw": "The recorder's raw storage, and its closed hours.",
    "history": "Imported candles of the exchange.",
    "reports": "The latest copies for people: reports, pictures, exported models.",
    "alerts": "Sender of alerts about failed runs.",
}


def described(resources: Mapping[str, Any]) -> dict[str, Any]:
    """Add the UI's description to each resource that has none of its own."""
    return {
        name: one
        if isinstance(one, dg.ResourceDefinition)
        else dg.ResourceDefinition.hardcoded_resource(one, _DESCRIPTIONS.get(name))
        for name, one in resources.items()
    }


def build_resources(settings: Settings) -> dict[str, Any]:
    """Build the resources of assets, checks, sensors and schedules."""
    return {
        "lake": Lake(settings.storage.lake_dir),
        "raw": RawStore(settings.storage.raw_dir),
        "history": History(settings.storage.history_dir),
        "reports": Reports(settings.storage.reports_dir, settings.storage.artifacts_dir),
        "tracking": tracking_resource(settings),
        "alerts": AlertService(settings),
    }
