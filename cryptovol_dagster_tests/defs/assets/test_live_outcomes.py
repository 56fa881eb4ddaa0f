"""The asset `live_outcomes` and its check, materialized on a small lake."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cryptovol_dagster.chains import timescale_spec
from cryptovol_dagster.defs.checks.framework import Stored, _result
from cryptovol_dagster.defs.checks.live import live_checks
from cryptovol_dagster.lake.files import Lake
from cryptovol_dagster.verbs import runs
from cryptovol_dagster_tests.live.published_scores import archive_scores, revised, scores_of_lake
from cryptovol_dagster_tests.pipeline import Pipeline
from cryptovol_dagster_tests.synthetic import small_settings

SPEC = timescale_spec(small_settings(Path()).timescales.seconds, "seconds")
ASSET = "seconds/live_outcomes"


def test_parity_holds_until_one_row_differs_and_hours_without_scores_pass_with_a_reason(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    settings, (_, silent, key, _) = small_settings(tmp_path), pipeline.hours
    raw_dir = settings.storage.raw_dir
    for asset in ("features", "labels", "champion"):
        shutil.copytree(pipeline.lake.root / SPEC.asset(asset), settings.storage.lake_dir / SPEC.asset(asset))
    scores = scores_of_lake(pipeline.lake, SPEC, [key], before=key)
    archive_scores(raw_dir, scores)
    summary = runs.materialize_range(settings, silent, key, [ASSET])
    assert (summary.checks_passed, summary.checks_failed) == (1, ())
    shown = summary.metadata[ASSET]
    assert shown[silent]["status"] == "no_scores"
    assert shown[silent]["result"] == f"no scores were published of the bars of {silent}"
    found = shown[key]
    # Bars of the last horizon of the hour before were not scored: they mature in this hour.
    assert (found["dagster/partition_row_count"], found["rows equal"], found["rows differing"]) == (
        1440,
        1410,
        0,
    )
    assert found["not scored"]["not_published"] == 30
    assert found["result"].endswith("delay p99 2.20 s; 1,410 of 1,410 rows equal those of the lake")
    assert 0 < found["AP"] < 1
    assert "| BTC-USD |" in found["by product"]
    spoilt = next(one for one in scores if one.probability is not None)
    archive_scores(raw_dir, [revised(spoilt, probability=1.0)], first_offset=len(scores))
    with pytest.raises(runs.RunFailed, match="seconds/live_outcomes: live_equals_batch"):
        runs.materialize_range(settings, key, key, [ASSET])
    lake = Lake(settings.storage.lake_dir)
    (check,) = live_checks(SPEC)
    assert isinstance(check.rule, Callable)
    first, example = check.rule(Stored(lake, ASSET, key))
    assert first.startswith("expected every published row of 2026-04-04T05:00:05Z … 2026-04-04T05:58:45Z to ")
    assert first.endswith("equal the computed one, found 1 of 1,410 that differ (1 in probability)")
    assert example.startswith("BTC-USD 2026-04-04T05:")
    assert example.endswith("probability 1.0")
    assert check.why_nothing(Stored(lake, ASSET, key)) == ""
    nothing = f"no scores were published of the bars of {silent}"
    assert check.why_nothing(Stored(lake, ASSET, silent)) == nothing
    passed = _result(check, {silent: []}, {silent: nothing})
    assert (passed.passed, passed.description) == (True, f"{silent}: nothing to check: {nothing}")
