"""One look at everything: what is there, what is missing, what is wrong."""

from __future__ import annotations

import json
import os
import time
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest
from click.testing import CliRunner

from cryptovol_dagster.cli import main
from cryptovol_dagster.core.specs import NS
from cryptovol_dagster.core.times import hour_key, hour_window
from cryptovol_dagster.lake.files import Lake
from cryptovol_dagster.machine import status as module
from cryptovol_dagster.machine.instance import ensure_dagster_home, hold_instance
from cryptovol_dagster.machine.status import Status, look
from cryptovol_dagster_tests.live.published_scores import archive_scores
from cryptovol_dagster_tests.machine.test_owners import serving, with_home
from cryptovol_dagster_tests.synthetic import (
    FIRST_HOUR,
    close_hour,
    hours_from,
    small_settings,
    write_market,
)
from ingestor.archive.collection import SCORES
from ingestor.archive.layout import closing_path
from ingestor.archive.member_name import FEATURIZERS, Slot
from ingestor.archive.storage_lock import StorageLock
from ingestor.envelope import SCORES_TOPIC, TICKS, ScoreMessage
from ingestor.settings import Settings
from ingestor.settings.sections import KafkaSettings, MlflowSettings

HOURS = hours_from(FIRST_HOUR, 3)
MADE_OF_AN_HOUR = ("gap_ledger", "ticks", "seconds/bars", "seconds/features", "seconds/labels")
#: Whatever else runs on this machine.
NOWHERE = "http://127.0.0.1:1"
#: Longer than anything may take.
LATER_NS = 3_600 * NS


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Three closed hours; nobody writes them while tests look."""
    settings = small_settings(tmp_path_factory.mktemp("status"))
    write_market(settings.storage.raw_dir, HOURS)
    return settings.model_copy(
        update={
            "dagster": settings.dagster.model_copy(update={"ui_url": NOWHERE}),
            "mlflow": MlflowSettings(ui_url=NOWHERE),
        }
    )


EVALUATED = b"""{"verdict": "insufficient_data",
"sufficiency": {"summary": "3 spikes apart in 0.1 days support none; single: no rate yet"}}"""


@pytest.fixture
def lake(recorded: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lake:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    lake = Lake(tmp_path / "lake")
    monkeypatch.setattr(type(recorded.storage), "lake_dir", lake.root)
    return lake


def make(lake: Lake, hours: list[str], assets: tuple[str, ...] = MADE_OF_AN_HOUR) -> None:
    for asset in assets:
        for hour in hours:
            lake.write_table(asset, hour, pa.table({"x": [1]}))


def seen(settings: Settings, *, after_ns: int = 0, required: tuple[str, ...] = ()) -> Status:
    return look(settings, time.time_ns() + after_ns, required)


def test_what_was_recorded_and_made_is_told(recorded: Settings, lake: Lake) -> None:
    make(lake, HOURS)
    lake.write_bytes("seconds/model_evaluation", HOURS[1], EVALUATED, "json")
    status = seen(recorded, after_ns=LATER_NS)
    assert status.problems == []
    assert (status.raw.hours, status.raw.closed, status.raw.newest_closed) == (3, 3, HOURS[-1])
    assert status.raw.open == []
    assert status.raw.newest_tick_ns is not None
    assert hour_key(status.raw.newest_tick_ns) == HOURS[-1]
    assert status.newest_labels == HOURS[-1]
    assert {one.asset: one.partitions for one in status.lake}["seconds/labels"] == 3
    (models,) = [one for one in status.models if one.timescale == "seconds"]
    assert (models.evaluated, models.verdict, models.champion) == (HOURS[1], "insufficient_data", None)
    assert models.sufficiency == "3 spikes apart in 0.1 days support none; single: no rate yet"
    assert [one.runs for one in status.services] == [False] * len(module.SERVICES)
    assert json.dumps(status.as_dict())


def test_a_closed_hour_of_which_nothing_was_made_is_wrong_after_a_while(
    recorded: Settings, lake: Lake
) -> None:
    make(lake, HOURS[::2])
    make(lake, HOURS, ("gap_ledger",))
    assert seen(recorded).problems == []
    (problem,) = seen(recorded, after_ns=LATER_NS).problems
    assert problem == (
        f"ticks, seconds/bars, seconds/features, seconds/labels: 1 closed hours are missing ({HOURS[1]}): "
        "start `cryptovol up`, or `cryptovol backfill --only-missing`"
    )
    assert {one.asset: one.missing for one in seen(recorded).lake}["ticks"] == [HOURS[1]]


def test_an_asset_that_was_never_made_lacks_every_hour(recorded: Settings, lake: Lake) -> None:
    make(lake, HOURS, MADE_OF_AN_HOUR[:-1])
    (problem,) = seen(recorded, after_ns=LATER_NS).problems
    assert problem.startswith(f"seconds/labels: 3 closed hours are missing ({', '.join(HOURS)})")


def test_an_hour_that_closed_again_is_one_closed_hour(recorded: Settings, lake: Lake) -> None:
    make(lake, HOURS)
    first = closing_path(recorded.storage.raw_dir, hour_window(HOURS[0])[0])
    again = closing_path(recorded.storage.raw_dir, hour_window(HOURS[0])[0], 1)
    again.write_bytes(first.read_bytes())
    try:
        status = seen(recorded, after_ns=LATER_NS)
    finally:
        again.unlink()
    assert status.raw.closed == len(HOURS)
    assert status.problems == []


def test_hours_before_the_first_partition_are_never_made(recorded: Settings, lake: Lake) -> None:
    dagster = recorded.dagster.model_copy(update={"partitions_start": HOURS[-1]})
    make(lake, HOURS[-1:])
    assert seen(recorded.model_copy(update={"dagster": dagster}), after_ns=LATER_NS).problems == []


def test_a_decision_names_the_champion(recorded: Settings, lake: Lake) -> None:
    decision = {"verdict": "HOLD", "champion": {"model": "ewma", "as_of": HOURS[0]}}
    lake.write_bytes("seconds/champion", HOURS[-1], json.dumps(decision).encode(), "json")
    (models,) = [one for one in seen(recorded).models if one.timescale == "seconds"]
    assert (models.decided, models.decision, models.champion) == (HOURS[-1], "HOLD", "ewma")


def test_after_a_rollback_the_champion_is_the_one_put_back(recorded: Settings, lake: Lake) -> None:
    for suffix, verdict, model in (("json", "PROMOTE", "xgboost"), ("rollback.json", "ROLLBACK", "ewma")):
        decision = {"verdict": verdict, "champion": {"model": model, "as_of": HOURS[0]}}
        lake.write_bytes("seconds/champion", HOURS[-1], json.dumps(decision).encode(), suffix)
    models = seen(recorded).models[0]
    assert (models.decision, models.champion, models.champion_as_of) == ("ROLLBACK", "ewma", HOURS[0])


def test_what_another_folders_services_do_is_not_ours(recorded: Settings, lake: Lake, tmp_path: Path) -> None:
    make(lake, HOURS)
    with serving({**with_home(tmp_path), "/health": "OK"}) as url:
        settings = recorded.model_copy(
            update={
                "dagster": recorded.dagster.model_copy(update={"ui_url": url}),
                "mlflow": MlflowSettings(ui_url=url),
            }
        )
        status = seen(settings, required=("dagster",))
    states = {one.name: (one.runs, one.state) for one in status.services}
    other = f"does not run: the Dagster that answers there has another home, {tmp_path}"
    assert states["dagster"] == (False, other)
    assert states["mlflow"] == (
        False,
        "does not run: the MLflow that answers there does not have this folder's runs",
    )
    assert status.problems == [f"dagster {other} ({url})"]


def test_right_after_up_it_says_what_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    settings = small_settings(tmp_path)
    raw, now_ns = settings.storage.raw_dir, time.time_ns()
    assert look(settings, now_ns).waits_for == "a recorder: `cryptovol up` starts one"
    with hold_instance(ensure_dagster_home(settings), NOWHERE, NOWHERE, ["recorder", "Dagster"]):
        status = look(settings, time.time_ns())
        states = {one.name: one.state for one in status.services}
        begun = f"does not run yet: `cryptovol up` or `ui` (pid {os.getpid()}) began 0 s ago"
        assert (states["recorder"], states["dagster"]) == (begun, begun)
        assert states["mlflow"].startswith("was not requested from")
        assert (status.waits_for, status.problems) == ("the first tick", [])
        now = hour_key(now_ns)
        write_market(raw, [now], close=False)
        with StorageLock(raw):
            end = f"{datetime.fromtimestamp(hour_window(now)[1] / NS, UTC):%H}:02 UTC"
            assert look(settings, now_ns).waits_for == f"the first hour to close, at {end}"
            close_hour(raw, now, {TICKS: 1})
            assert (
                look(settings, now_ns).waits_for
                == "the labels of the first closed hour, which Dagster computes"
            )
        Lake(settings.storage.lake_dir).write_bytes("seconds/labels", now, b"", "parquet")
        waits = look(settings, now_ns).waits_for
        assert waits == "the first models: the retrain needs enough labelled hours"
        Lake(settings.storage.lake_dir).write_bytes("seconds/model_evaluation", now, EVALUATED, "json")
        assert look(settings, now_ns).waits_for is None


def test_a_recorder_that_stores_nothing_is_wrong(recorded: Settings, lake: Lake) -> None:
    make(lake, HOURS)
    with StorageLock(recorded.storage.raw_dir):
        assert seen(recorded).problems == []
        (problem,) = seen(recorded, after_ns=LATER_NS).problems
    assert problem.startswith("a recorder runs but last stored anything 36")
    assert "expected at most 180 s" in problem


def test_what_the_configuration_needs_must_answer(recorded: Settings, lake: Lake) -> None:
    make(lake, HOURS)
    needing = recorded.model_copy(
        update={
            "kafka": KafkaSettings(bootstrap_servers="127.0.0.1:1"),
            "mlflow": MlflowSettings(tracking_uri=NOWHERE, ui_url=NOWHERE),
        }
    )
    assert seen(needing).problems == [
        "kafka does not run (127.0.0.1:1)",
        "the tracking server http://127.0.0.1:1 does not answer",
    ]


def test_what_is_required_must_run(recorded: Settings, lake: Lake) -> None:
    make(lake, HOURS)
    (problem,) = seen(recorded, required=("recorder",)).problems
    assert problem == f"recorder does not run ({recorded.storage.raw_dir})"


def scored(product: str, second: int, probability: float | None, *, revision: int = 0) -> ScoreMessage:
    """The score of a bar, with a probability or as one that warms up."""
    known = probability is not None
    end_ns = hour_window(HOURS[-1])[0] + second * NS
    return ScoreMessage(
        chain="seconds",
        product_id=product,
        bar_end_ns=end_ns,
        revision=revision,
        published_at_ns=end_ns,
        provisional=False,
        probability=probability,
        reason="ok" if known else "warming_up",
        flag=False if known else None,
        threshold=0.5 if known else None,
        model="ewma" if known else None,
        model_as_of=HOURS[0] if known else None,
        model_version="1" if known else None,
        model_age_s=60.0 if known else None,
        feature_version="f1",
        row_hash=None,
    )


def test_the_newest_scores_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    settings = small_settings(tmp_path)
    assert look(settings, time.time_ns()).live is None
    old = [scored("BTC-USD", 100, None)]
    rows = [
        scored(product, second, 0.2) for product in ("BTC-USD", "ETH-USD") for second in range(1_000, 1_002)
    ]
    more = [scored("BTC-USD", 1_002, None), scored("BTC-USD", 1_001, None, revision=1)]
    archive_scores(settings.storage.raw_dir, [*old, *rows, *more])
    newest_ns = hour_window(HOURS[-1])[0] + 1_002 * NS
    live = look(settings, newest_ns + 30 * NS).live
    assert live is not None
    assert (live.newest_bar_end_ns, live.age_s, live.scores, live.with_probability) == (
        newest_ns,
        30.0,
        5,
        0.6,
    )
    assert (live.reason, live.model, live.model_as_of) == ("warming_up", "ewma", HOURS[0])
    told = f"60% of 5 in 10 min with a probability (mostly warming_up); model ewma as of {HOURS[0]}"
    assert str(live).endswith(told)


def test_featurizer_and_scorer_run_while_they_hold_their_locks(recorded: Settings, lake: Lake) -> None:
    make(lake, HOURS)
    storage = recorded.storage
    with (
        Slot(storage.features_path.parent, "cryptovol-featurizer", FEATURIZERS),
        Slot(storage.raw_dir, SCORES.group, SCORES.locks),
    ):
        status = seen(recorded, required=("featurizer", "scorer"))
        runs = {one.name: one.runs for one in status.services}
        assert (runs["featurizer"], runs["scorer"], runs["recorder"]) == (True, True, False)
        assert status.problems == []
    assert seen(recorded, required=("scorer",)).problems == [
        f"scorer does not run ({storage.raw_dir / SCORES_TOPIC})"
    ]


def test_too_little_room_is_wrong(recorded: Settings, lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    make(lake, HOURS)
    monkeypatch.setattr(module, "LEAST_FREE_BYTES", 2**62)
    (problem,) = seen(recorded).problems
    assert problem.startswith(f"{recorded.storage.data_dir}: ")
    assert problem.endswith("MiB of disk space left; expected 1024 or more")


def test_todays_ticks_are_counted(tmp_path: Path) -> None:
    settings = small_settings(tmp_path)
    now = hour_key(time.time_ns())
    write_market(settings.storage.raw_dir, [now], close=False)
    status = look(settings, time.time_ns())
    assert status.raw.rows_today == 2 * 1_440
    assert status.raw.open == [now]
    assert status.problems == []


def test_the_verb_shows_it_and_its_exit_code_says_whether_it_is_fine(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("{}\n")
    env = {"CRYPTOVOL_CONFIG": str(tmp_path / "config.yaml"), "DAGSTER_HOME": None}
    env["CRYPTOVOL__DAGSTER__UI_URL"] = NOWHERE
    fine = CliRunner().invoke(main, ["status"], env=env)
    assert fine.exit_code == 0, fine.output
    assert "no tick yet" in fine.output
    assert "fine" in fine.output
    assert "nothing runs, nothing is wrong" in fine.output
    assert "free disk" in fine.output
    wrong = CliRunner().invoke(main, ["status", "--json", "--require", "dagster"], env=env)
    assert wrong.exit_code == 1
    assert json.loads(wrong.output)["problems"] == ["dagster does not run (http://127.0.0.1:1)"]
    both = CliRunner().invoke(main, ["status", "--json", "--watch"], env=env)
    assert both.exit_code == 2
    assert "omit --json" in both.output
