"""The sensor of outcomes, tick by tick: it waits for scores and for labels."""

from __future__ import annotations

import json
from pathlib import Path

import dagster as dg
import pytest

from cryptovol_dagster.defs.build import build_defs
from cryptovol_dagster.defs.resources import build_resources
from cryptovol_dagster.lake.files import Lake
from cryptovol_dagster_tests.live.published_scores import close_scores
from cryptovol_dagster_tests.synthetic import FIRST_HOUR, hours_from, small_settings
from ingestor.settings import Settings

HOURS = hours_from(FIRST_HOUR, 3)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return small_settings(tmp_path)


def _sense(settings: Settings, cursor: str | None = None) -> tuple[list[str], str | None]:
    """Return the requested hours, or the reason why there are none, and the cursor."""
    sensor = build_defs(settings).resolve_sensor_def("live_outcomes")
    with dg.DagsterInstance.ephemeral() as instance:
        resources = {name: build_resources(settings)[name] for name in ("raw", "lake")}
        result = sensor(dg.build_sensor_context(instance=instance, cursor=cursor, resources=resources))
    if isinstance(result, dg.SkipReason):
        return [result.skip_message or ""], cursor
    assert isinstance(result, dg.SensorResult)
    return [str(request.partition_key) for request in result.run_requests or ()], result.cursor


def _label(settings: Settings, key: str, content: bytes = b"labels") -> None:
    Lake(settings.storage.lake_dir).write_bytes("seconds/labels", key, content, "parquet")


def test_without_a_scorer_nothing_is_requested(settings: Settings) -> None:
    for key in HOURS:
        _label(settings, key)
    found, _ = _sense(settings)
    assert found == ["no hour of scores has closed yet: `cryptovol score` publishes them"]


def test_an_hour_is_requested_once_it_has_closed_scores_and_labels(settings: Settings) -> None:
    raw_dir = settings.storage.raw_dir
    close_scores(raw_dir, HOURS[0])
    close_scores(raw_dir, HOURS[1])
    assert _sense(settings)[0] == [
        f"seconds/labels of {HOURS[1]}, the newest hour of closed scores, is missing"
    ]
    _label(settings, HOURS[0])
    found, cursor = _sense(settings)
    assert found == [HOURS[0]]
    _label(settings, HOURS[1])
    _label(settings, HOURS[2])
    found, cursor = _sense(settings, cursor)
    assert found == [HOURS[1]]
    said = f"the outcomes of {HOURS[1]}, the newest hour of closed scores, were requested already"
    assert _sense(settings, cursor) == ([said], cursor)


def test_late_scores_request_their_hour_and_the_next_and_new_labels_their_own(settings: Settings) -> None:
    raw_dir = settings.storage.raw_dir
    for key in HOURS:
        close_scores(raw_dir, key)
        _label(settings, key)
    found, cursor = _sense(settings)
    assert found == HOURS
    # The last bars of an hour mature in the next one.
    close_scores(raw_dir, HOURS[0], rows=2, revision=1)
    found, cursor = _sense(settings, cursor)
    assert found == HOURS[:2]
    _label(settings, HOURS[2], b"other labels")
    found, cursor = _sense(settings, cursor)
    assert found == [HOURS[2]]
    assert sorted(json.loads(cursor or "{}")) == HOURS


def test_hours_before_the_first_partition_are_left_alone(tmp_path: Path) -> None:
    settings = small_settings(tmp_path, first_hour=HOURS[1])
    for key in HOURS[:2]:
        close_scores(settings.storage.raw_dir, key)
        _label(settings, key)
    assert _sense(settings)[0] == [HOURS[1]]
