"""Which model scores: found, tried and refused beside the one that scores."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest

from cryptovol_dagster.core.features.catalogue import feature_names
from cryptovol_dagster.core.promotion.decision import Champion
from cryptovol_dagster.lake.files import Lake
from cryptovol_dagster.live.scoring.champions import (
    ChampionFinder,
    ChampionWatch,
    InUse,
    RefusedError,
    load_champion,
    try_on,
)
from cryptovol_dagster_tests.live.parity import SPEC
from cryptovol_dagster_tests.live.scoring.champions import champion_of, promote, trained

FIRST, SECOND = "2026-04-03-00:00", "2026-04-03-01:00"
NAMES = feature_names(SPEC)
NOWHERE = "sqlite:///nowhere.db"


def watch_of(lake: Lake, tracking_uri: str = NOWHERE) -> ChampionWatch:
    finder = ChampionFinder(lake, SPEC, tracking_uri)
    return ChampionWatch(finder, lake, SPEC, every_s=60, recent_rows=lambda: np.empty((0, len(NAMES))))


def changes(watch: ChampionWatch) -> list[tuple[str | None, str]]:
    watch.look()
    found = watch.changes()
    return [(change.ready and str(change.ready.champion), change.refused) for change in found]


def test_a_new_champion_is_handed_on_once(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    watch = watch_of(lake)
    assert changes(watch) == []
    first = promote(lake, "har_logit", FIRST)
    assert changes(watch) == [(str(first), "")]
    assert changes(watch) == []
    second = promote(lake, "xgboost", SECOND)
    assert changes(watch) == [(str(second), "")]


def test_a_broken_file_is_refused_once_and_taken_when_it_is_put_right(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    watch = watch_of(lake)
    first = promote(lake, "har_logit", FIRST)
    assert changes(watch) == [(str(first), "")]
    second = promote(lake, "xgboost", SECOND, content=b"not a model")
    ((ready, refused),) = changes(watch)
    assert ready is None
    assert refused.startswith(f"{second}: its file cannot be used: not a cryptovol model file")
    assert changes(watch) == []
    promote(lake, "xgboost", SECOND)
    assert changes(watch) == [(str(second), "")]


def test_a_model_of_other_features_or_another_set_is_refused(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    champion = promote(lake, "xgboost", FIRST)
    other = replace(SPEC, reference_set=("SOL-USD",))
    with pytest.raises(
        RefusedError, match=r"it reads cross features over BTC-USD, ETH-USD; those of the rows"
    ):
        load_champion(lake, other, champion)
    with pytest.raises(RefusedError, match=r"it was trained on features [0-9a-f]+, expected [0-9a-f]+"):
        load_champion(lake, replace(SPEC, stale_after_s=11.0), champion)
    assert load_champion(lake, SPEC, champion).version.startswith("sha256:")


def test_a_model_of_own_features_scores_rows_of_any_set(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    champion = promote(lake, "har_logit", FIRST)
    assert load_champion(lake, replace(SPEC, reference_set=("SOL-USD",)), champion).champion == champion


def test_a_model_that_cannot_score_live_rows_is_refused() -> None:
    model = trained("har_logit")
    candidate = InUse(champion_of(model, FIRST), model, "1")
    rows = np.zeros((3, len(NAMES)))
    try_on(candidate, rows, NAMES)
    rows[1] = np.inf
    with pytest.raises(RefusedError, match="it cannot score live rows: model har_logit: 1 of 3 rows"):
        try_on(candidate, rows, NAMES)

    class Wrong(type(model)):  # type: ignore[misc]
        def _predict(self, X: np.ndarray) -> np.ndarray:
            return np.full(len(X), np.nan)

    wrong = Wrong.from_bytes(model.to_bytes())
    with pytest.raises(RefusedError, match="3 of 3 live rows get no probability from 0 to 1"):
        try_on(InUse(champion_of(model, FIRST), wrong, "1"), np.zeros((3, len(NAMES))), NAMES)


@contextmanager
def registry(answers: dict[str, object]) -> Iterator[str]:
    """A registry that answers `answers["status"]` and `answers["body"]`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = json.dumps(answers["body"]).encode()
            self.send_response(int(str(answers["status"])))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def version_of(champion: Champion, number: str = "4") -> dict[str, object]:
    tags = {
        "cryptovol.model": champion.model,
        "cryptovol.as_of": champion.as_of,
        "cryptovol.problem_hash": champion.problem_hash,
        "cryptovol.feature_hash": champion.feature_hash,
    }
    listed = [{"key": key, "value": value} for key, value in tags.items()]
    return {"model_version": {"version": number, "run_id": "run", "tags": listed}}


def test_the_alias_decides_and_without_an_answer_the_decision_does(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    older, newer = promote(lake, "har_logit", FIRST), promote(lake, "xgboost", SECOND)
    answers: dict[str, object] = {"status": 200, "body": version_of(older)}
    with registry(answers) as uri:
        finder = ChampionFinder(lake, SPEC, uri)
        found = finder.find().champion
        assert found is not None
        assert (found.identity, found.registry_version) == (older.identity, "4")
        answers.update(status=404, body={"error_code": "RESOURCE_DOES_NOT_EXIST"})
        assert finder.find().champion == newer
        answers.update(status=500, body={})
        assert finder.find().champion == newer
    assert finder.find().champion == newer


def test_an_alias_to_a_foreign_version_is_refused_and_the_present_one_stays(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    first = promote(lake, "har_logit", FIRST)
    answers: dict[str, object] = {"status": 200, "body": version_of(first)}
    with registry(answers) as uri:
        watch = watch_of(lake, uri)
        assert changes(watch) == [(str(first), "")]
        answers["body"] = {"model_version": {"version": "9", "run_id": "r", "tags": []}}
        ((ready, refused),) = changes(watch)
        assert ready is None
        assert "version 9 lacks the tags cryptovol.model" in refused
