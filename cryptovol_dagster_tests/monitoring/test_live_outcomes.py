"""Archived scores of a small lake: equal to it, then with one fault of each kind."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from cryptovol_dagster.chains import timescale_spec
from cryptovol_dagster.core.specs import NS
from cryptovol_dagster.core.times import hour_window, iso_utc
from cryptovol_dagster.lake.datasets import ChainError
from cryptovol_dagster.lake.files import Lake, LakeError
from cryptovol_dagster.lake.raw_ticks import RawStore
from cryptovol_dagster.monitoring import live_outcomes
from cryptovol_dagster_tests.live.published_scores import (
    DELAY_NS,
    archive_scores,
    close_scores,
    revised,
    scores_of_lake,
)
from cryptovol_dagster_tests.pipeline import Pipeline
from cryptovol_dagster_tests.synthetic import small_settings, write_market
from ingestor.envelope import ScoreMessage

SPEC = timescale_spec(small_settings(Path()).timescales.seconds, "seconds")
DEADLINE_S = 3.0


@pytest.fixture(scope="module")
def stored(pipeline: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """Features, labels and decisions of the pipeline, in a lake that may be written."""
    lake = Lake(tmp_path_factory.mktemp("outcomes"))
    for asset in ("features", "labels", "champion"):
        shutil.copytree(pipeline.lake.root / SPEC.asset(asset), lake.root / SPEC.asset(asset))
    return lake


@pytest.fixture(scope="module")
def published(pipeline: Pipeline, stored: Lake) -> list[ScoreMessage]:
    return scores_of_lake(stored, SPEC, pipeline.hours[1:3], before=pipeline.hours[2])


@pytest.fixture
def key(pipeline: Pipeline) -> str:
    return pipeline.hours[2]


def _assess(lake: Lake, raw_dir: Path, key: str) -> dict:
    return live_outcomes.assess(lake, RawStore(raw_dir), SPEC, key, deadline_s=DEADLINE_S, seed=7)


def _of(messages: list[ScoreMessage], key: str, product: str, nth: int) -> int:
    """Return the index of the n-th score of a product in the hour that has a probability."""
    start_ns, _ = hour_window(key)
    own = [
        place
        for place, one in enumerate(messages)
        if one.product_id == product and one.bar_end_ns > start_ns and one.probability is not None
    ]
    return own[nth]


def test_scores_of_the_lake_itself_are_all_equal(
    stored: Lake, published: list[ScoreMessage], key: str, tmp_path: Path
) -> None:
    archive_scores(tmp_path, published)
    close_scores(tmp_path, key)
    found = _assess(stored, tmp_path, key)
    pooled, parity = found["pooled"], found["parity"]
    assert (found["status"], found["clock"], found["scores"]["closed"]) == ("measured", "wall", True)
    assert pooled["rows"] == parity["rows"] == parity["equal"] == parity["hashes"] == 1440
    assert (parity["differing"], parity["missing"], parity["not_in_lake"], parity["outside"]) == (0, 0, 0, 0)
    assert parity["probabilities"] == pooled["scored"]
    assert parity["max_difference"] == 0.0
    assert (parity["not_compared"], parity["examples"]) == ({}, [])
    assert pooled["delay"]["p50_s"] == pooled["delay"]["p99_s"] == DELAY_NS / NS
    assert pooled["revisions"] == {
        "rows": 1440,
        "revised": 0,
        "per_row": 0.0,
        "moved": 0,
        "moved_p99": None,
        "after_deadline": 0,
    }
    assert sum(one["rows"] for one in found["products"].values()) == 1440
    (model,) = found["models"]
    assert (model["scored"], model["without_labels"]) == (pooled["scored"], "")
    # The rows are stored as they were measured; scikit-learn measures them alike.
    rows = stored.read_partition("seconds/live_outcomes", key).to_pandas()
    measured = rows[(rows["state"] == "scored") & rows["known"]]
    precision = average_precision_score(measured["y"], measured["probability"])
    assert len(measured) == pooled["labelled"] > 1000
    assert pooled["quality"]["average_precision"]["estimate"] == pytest.approx(precision, abs=1e-12)
    brier = float(np.mean((measured["probability"] - measured["y"]) ** 2))
    assert pooled["quality"]["brier"] == pytest.approx(brier, abs=1e-12)
    assert found == msgspec.json.decode(live_outcomes.to_bytes(found))


def test_one_flipped_bit_one_missing_row_one_late_and_one_revised_are_counted_each(
    stored: Lake, published: list[ScoreMessage], key: str, tmp_path: Path
) -> None:
    messages = list(published)
    btc, eth = "BTC-USD", "ETH-USD"
    flipped, gone, late, moved = (
        _of(messages, key, product, nth) for product, nth in ((btc, 5), (eth, 9), (btc, 40), (eth, 80))
    )
    of_flipped, of_moved = messages[flipped], messages[moved]
    assert of_flipped.row_hash is not None
    assert of_moved.probability is not None
    messages[flipped] = msgspec.structs.replace(of_flipped, row_hash="f" + of_flipped.row_hash[1:])
    messages[late] = msgspec.structs.replace(
        messages[late], published_at_ns=messages[late].bar_end_ns + 4 * NS
    )
    # First another probability, which counted; the final one, after the deadline, is the lake's.
    messages[moved] = msgspec.structs.replace(of_moved, probability=of_moved.probability / 2)
    again = revised(messages[moved], after_ns=NS, probability=of_moved.probability)
    missing = messages.pop(gone)
    archive_scores(tmp_path, [*messages, again])
    found = _assess(stored, tmp_path, key)
    pooled, parity = found["pooled"], found["parity"]
    assert (parity["equal"], parity["differing"], parity["missing"]) == (1438, 1, 1)
    assert parity["differing_by"] == {"reason": 0, "hash": 1, "probability": 0}
    assert parity["missing_by_reason"] == {"ok": 1}
    assert parity["products"][btc]["differing"] == parity["products"][eth]["missing"] == 1
    first, second = parity["examples"]
    assert (first["outcome"], first["by"], first["product"]) == ("differing", ["hash"], btc)
    assert first["bar_end"] == iso_utc(of_flipped.bar_end_ns)
    assert second["live"] == {"reason": None, "row_hash": None, "probability": None}
    assert second["bar_end"] == iso_utc(missing.bar_end_ns)
    assert pooled["not_scored"]["too_late"] == pooled["not_scored"]["not_published"] == 1
    assert (pooled["revisions"]["revised"], pooled["revisions"]["after_deadline"]) == (1, 1)
    assert pooled["revisions"]["moved_p99"] == pytest.approx(of_moved.probability / 2)
    rows = stored.read_partition("seconds/live_outcomes", key).to_pandas().set_index(["bar_start", "product"])
    assert (rows["state"] == "too_late").sum() == (rows["state"] == "not_published").sum() == 1
    counted = rows[rows["final_revision"] == 1].iloc[0]
    assert counted["probability"] == pytest.approx(counted["final_probability"] / 2)
    assert found["scores"] == {"messages": 1440, "closed": False, "revision": None}


def test_two_models_in_an_hour_and_one_whose_file_is_gone(
    stored: Lake, published: list[ScoreMessage], key: str, tmp_path: Path
) -> None:
    start_ns, _ = hour_window(key)
    swapped = [
        msgspec.structs.replace(one, model_version="sha256:000000000000")
        if one.bar_end_ns > start_ns + 1800 * NS
        else one
        for one in published
    ]
    archive_scores(tmp_path, swapped)
    found = _assess(stored, tmp_path, key)
    known, gone = sorted(found["models"], key=lambda one: one["without_labels"])
    assert gone["without_labels"].endswith("version sha256:000000000000, is not stored")
    assert (gone["labelled"], gone["quality"]["average_precision"]["estimate"]) == (0, None)
    assert gone["quality"]["reasons"][0] == "0 spikes, 30 are needed"
    assert found["parity"]["not_compared"] == {gone["without_labels"]: gone["scored"]}
    assert found["parity"]["equal"] == 1440  # reason and hash are compared all the same
    assert known["labelled"] == found["pooled"]["labelled"]
    assert known["rows"] + gone["rows"] == 1440


def test_a_version_registered_after_the_decision_names_the_only_model_of_its_kind_and_hour(
    stored: Lake, published: list[ScoreMessage], key: str, tmp_path: Path
) -> None:
    archive_scores(tmp_path, [msgspec.structs.replace(one, model_version="12") for one in published])
    (model,) = _assess(stored, tmp_path, key)["models"]
    assert (model["model_version"], model["without_labels"]) == ("12", "")


def test_a_hole_of_the_scorer_counts_as_missing_and_its_start_and_end_as_outside(
    stored: Lake, published: list[ScoreMessage], key: str, tmp_path: Path
) -> None:
    start_ns, _ = hour_window(key)
    from_ns, hole_ns, until_ns = (start_ns + minute * 60 * NS for minute in (10, 20, 40))
    kept = [
        one
        for one in published
        if from_ns <= one.bar_end_ns <= until_ns and not hole_ns < one.bar_end_ns <= hole_ns + 60 * NS
    ]
    archive_scores(tmp_path, kept)
    found = _assess(stored, tmp_path, key)["parity"]
    assert (found["first"], found["last"]) == (iso_utc(from_ns), iso_utc(until_ns))
    assert found["missing"] + found["missing_unscorable"] == 24
    assert found["equal"] == len(kept) == found["rows"] - 24
    assert found["outside"] == 1440 - found["rows"]


def test_the_deadline_of_a_played_market_counts_from_when_its_feed_passed_the_bar(
    pipeline: Pipeline, stored: Lake, published: list[ScoreMessage], key: str, tmp_path: Path
) -> None:
    # Played at sixty times its speed, half a year after it took place.
    shift_ns, start_ns = 15_000_000 * NS, hour_window(pipeline.hours[1])[0]

    def played(event_ns: int) -> int:
        return shift_ns + start_ns + (event_ns - start_ns) // 60

    write_market(tmp_path, pipeline.hours[1:3])
    raw = RawStore(tmp_path)
    archive_scores(
        tmp_path,
        [
            msgspec.structs.replace(one, published_at_ns=played(one.bar_end_ns) + (2 + number % 2 * 2) * NS)
            for number, one in enumerate(published)
        ],
    )
    read = raw.reader.read

    def as_played(*args: object, **options: object):
        table = read(*args, **options)  # type: ignore[arg-type]
        if "received_at_ns" not in table.column_names:
            return table
        received = [played(event) for event in table["event_time_ns"].to_pylist()]
        return table.set_column(table.column_names.index("received_at_ns"), "received_at_ns", [received])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(raw.reader, "read", as_played)
        found = live_outcomes.assess(stored, raw, SPEC, key, deadline_s=DEADLINE_S, seed=7)
    assert found["clock"] == "played"
    assert found["pooled"]["not_scored"]["too_late"] == 720
    assert found["pooled"]["delay"]["max_s"] == pytest.approx(4.0, abs=0.1)


def test_an_hour_without_scores_says_so_and_leaves_no_rows(stored: Lake, key: str, tmp_path: Path) -> None:
    stored.write_bytes("seconds/live_outcomes", key, b"stale", "parquet")
    found = _assess(stored, tmp_path, key)
    assert (found["status"], found["pooled"], found["parity"]) == ("no_scores", None, None)
    assert live_outcomes.headline(found) == f"no scores were published of the bars of {key}"
    assert not stored.exists("seconds/live_outcomes", key)


def test_stored_numbers_are_read_or_refused_in_a_line(stored: Lake, key: str, tmp_path: Path) -> None:
    with pytest.raises(LakeError, match=f"seconds/live_outcomes lacks partition {key}"):
        live_outcomes.read_outcomes(Lake(tmp_path), SPEC, key)
    for content, says in ((b"{", "cannot be read"), (b'{"schema_version": 0}', "another schema version")):
        stored.write_bytes("seconds/live_outcomes", key, content, "json")
        with pytest.raises(LakeError, match=f"seconds/live_outcomes of {key} .*{says}"):
            live_outcomes.read_outcomes(stored, SPEC, key)
    body = _assess(stored, tmp_path, key)
    stored.write_bytes("seconds/live_outcomes", key, live_outcomes.to_bytes(body), "json")
    assert live_outcomes.read_outcomes(stored, SPEC, key) == body


def test_labels_of_another_configuration_are_refused(stored: Lake, key: str, tmp_path: Path) -> None:
    lake = Lake(tmp_path / "lake")
    for asset in ("features", "labels"):
        shutil.copytree(stored.root / SPEC.asset(asset), lake.root / SPEC.asset(asset))
    table = lake.read_partition("seconds/labels", key)
    lake.write_table("seconds/labels", key, table, version="other")
    with pytest.raises(ChainError, match="seconds/labels of 1 partitions"):
        _assess(lake, tmp_path, key)
