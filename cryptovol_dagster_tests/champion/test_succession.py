"""Decisions hour by hour, the registry's aliases, crashes between any two steps, and MLflow away."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest

from cryptovol_dagster.champion import scoring
from cryptovol_dagster.champion.succession import BACKFILL_TAG, BACKFILL_VERB_TAG, why_aliases_stay
from cryptovol_dagster.core.evaluation.report import EvaluationError
from cryptovol_dagster.core.metrics.scored_rows import ScoredRows
from cryptovol_dagster.core.models import load_model
from cryptovol_dagster.core.promotion.decision import EXPIRY, HOLD, PROMOTE, REJECT, DecisionError
from cryptovol_dagster.core.specs import NS
from cryptovol_dagster.core.times import hour_window
from cryptovol_dagster.lake import datasets, decisions, plans
from cryptovol_dagster.lake.files import Lake
from cryptovol_dagster.lake.raw_ticks import RawStore
from cryptovol_dagster.tracking.results import TEST_ROWS
from cryptovol_dagster.tracking.runs import TrackingError
from cryptovol_dagster_tests.champion.world import GATE, HOURS, NAME, SPEC, TAGS, Crash, Skill, World
from cryptovol_dagster_tests.pipeline import Pipeline
from cryptovol_dagster_tests.synthetic import FIRST_HOUR, hours_from
from ingestor.settings import Settings


@pytest.mark.parametrize(
    ("keys", "tags", "says"),
    [
        (HOURS[2:], {}, "this run is over a range of partitions"),
        (HOURS[3:], {BACKFILL_TAG: "abc"}, "this run belongs to backfill abc"),
        (HOURS[3:], {BACKFILL_VERB_TAG: "true"}, "this run is of `cryptovol backfill`"),
        (HOURS[2:3], {}, f"{HOURS[2]} is not the newest closed hour, {HOURS[3]} is"),
        (hours_from(FIRST_HOUR, 6)[5:], {}, f"{hours_from(FIRST_HOUR, 6)[5]} has not closed"),
        (HOURS[3:], {}, ""),
    ],
)
def test_aliases_move_for_the_newest_closed_hour_alone(
    copied: Settings, keys: Sequence[str], tags: dict[str, str], says: str
) -> None:
    assert (
        why_aliases_stay(
            RawStore(copied.storage.raw_dir), Lake(copied.storage.lake_dir), SPEC, list(keys), tags
        )
        == says
    )


def test_hour_by_hour_the_registry_follows_the_decisions_and_never_goes_back(
    world: World, skill: Skill
) -> None:
    first = world.settle(HOURS[0])
    assert first.aliases == "champion is version 1 now, previous is none"
    assert world.aliases() == {"champion": f"ewma {HOURS[0]}"}
    second = world.settle(HOURS[1])
    assert second.decision.verdict == PROMOTE
    assert second.decision.champion is not None
    best = second.decision.champion.model
    assert second.aliases == "champion is version 2 now, previous is version 1"
    state = {"champion": f"{best} {HOURS[1]}", "previous": f"ewma {HOURS[0]}"}
    assert world.aliases() == state
    skill.challenger = skill.champion
    third = world.settle(HOURS[2])
    contest = third.decision.contest
    assert (third.decision.verdict, third.decision.changed) == (HOLD, False)
    assert contest is not None
    assert third.aliases == "champion is version 2 already, challenger is version 3"
    state["challenger"] = f"{contest.challenger.model} {HOURS[2]}"
    assert world.aliases() == state

    # The same hour twice, and a backfill of the first hours, change nothing.
    stored = {path: path.read_bytes() for path in world.lake.root.rglob("seconds/champion/**/part.*")}
    again = world.settle(HOURS[2])
    assert (again.decision, again.aliases) == (third.decision, third.aliases)
    skill.challenger = 3.0
    for key in HOURS[:2]:
        world.settle(key, aliases_stay="this run is over a range of partitions")
    assert {path: path.read_bytes() for path in stored} == stored
    assert (world.aliases(), world.versions()) == (state, 3)
    # Not even where an old hour is asked for alone, as if it were the newest.
    assert world.settle(HOURS[0]).aliases == (
        f"champion stays version 2 of {HOURS[1]}, which is later than {HOURS[0]}"
    )
    assert (world.aliases(), world.versions()) == (state, 3)


def test_a_challenger_stays_the_model_it_is_until_it_wins(world: World, skill: Skill) -> None:
    skill.challenger = skill.champion
    gate = replace(GATE, growth=1.1)  # each hour is another analysis
    world.settle(HOURS[0], gate=gate)
    nominated = world.settle(HOURS[1], gate=gate).decision.contest
    assert nominated is not None
    held = world.settle(HOURS[2], gate=gate).decision
    assert held.contest is not None
    assert held.contest.challenger == nominated.challenger
    skill.challenger = 3.0
    won = world.settle(HOURS[3], gate=gate).decision
    assert (won.verdict, won.champion, won.contest) == (PROMOTE, nominated.challenger, None)
    # As of the hour it was trained, by the file that was kept then.
    assert nominated.challenger.as_of == HOURS[1]
    kept = decisions.read_champion_file(world.lake, SPEC, nominated.challenger)
    assert kept == world.lake.read_bytes(f"seconds/model_{nominated.challenger.model}", HOURS[1], "zip")
    assert set(world.aliases()) == {"champion", "previous"}


def test_others_of_the_day_carry_what_was_decided(world: World, skill: Skill) -> None:
    world.settle(HOURS[0])
    carried = world.settle(HOURS[1], is_new_day=False).decision
    assert (carried.verdict, carried.champion) == (
        HOLD,
        decisions.read_decision(world.lake, SPEC, HOURS[0]).champion,
    )
    assert carried.reasons == (f"decided already as of {HOURS[0]}: one decision a day",)
    assert world.aliases()["champion"] == f"ewma {HOURS[0]}"


def test_a_rejected_challenger_loses_its_alias_and_the_verdict_stands_on_it(
    world: World, skill: Skill
) -> None:
    skill.champion, skill.challenger = 3.0, 0.5
    world.settle(HOURS[0])
    decision = world.settle(HOURS[1]).decision
    assert (decision.verdict, decision.contest) == (REJECT, None)
    assert decision.challenge is not None
    assert world.aliases() == {"champion": f"ewma {HOURS[0]}"}
    tags = world.client.get_model_version(NAME, "2").tags
    assert tags["cryptovol.model"] == decision.challenge.challenger.model
    assert (tags["cryptovol.verdict"], tags["cryptovol.decision"]) == ("REJECT", "gate")
    assert tags["cryptovol.decided_as_of"] == HOURS[1]
    assert json.loads(tags["cryptovol.reasons"]) == list(decision.reasons)


def test_an_expired_champion_falls_back_to_har_which_is_registered_too(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def har_knows_more(problem: Any, models: Any) -> ScoredRows:
        assert set(models) == {"champion", "har_logit"}
        y = np.arange(720) % 5 == 0
        t_ns = problem.split.test.start_ns + np.arange(y.size) * 5 * NS
        return ScoredRows(t_ns, 5 * NS, y, {"champion": 1.0 - y, "har_logit": 0.0 + y})

    monkeypatch.setattr(scoring, "score_test", har_knows_more)
    gate = replace(GATE, champion_max_age_s=1.0, first_look_s=10**9)
    world.settle(HOURS[0], gate=gate)
    decision = world.settle(HOURS[1], gate=gate).decision
    assert (decision.kind, decision.verdict) == (EXPIRY, PROMOTE)
    assert world.aliases() == {"champion": f"har_logit {HOURS[1]}", "previous": f"ewma {HOURS[0]}"}


def test_a_champion_of_other_features_is_followed_and_nothing_is_scored(world: World) -> None:
    world.settle(HOURS[0])
    first = decisions.read_decision(world.lake, SPEC, HOURS[0])
    assert first.champion is not None
    strange = replace(first, champion=replace(first.champion, feature_hash="another"))
    decisions.write_decision(world.lake, SPEC, strange)
    decision = world.settle(HOURS[1]).decision
    assert (decision.kind, decision.contest) == ("succession", None)
    assert "trained on another: not comparable; ewma becomes champion, unproven" in decision.reasons[0]


def test_a_version_is_tagged_and_loads_by_its_alias_without_pickle(
    world: World, pipeline: Pipeline, skill: Skill
) -> None:
    world.settle(HOURS[0])
    decision = world.settle(HOURS[1]).decision
    assert decision.champion is not None
    best = decision.champion.model
    version = world.client.get_model_version_by_alias(NAME, "champion")
    expected = {
        "cryptovol.model": best,
        "cryptovol.as_of": HOURS[1],
        "cryptovol.unproven": "false",
        "cryptovol.verdict": "PROMOTE",
        "cryptovol.unseen_from_ns": str(decision.champion.unseen_from_ns),
        "cryptovol.data_hash": decision.data_hash,
        "cryptovol.feature_hash": decision.feature_hash,
        "dagster.run_id": "dagster-run",
    }
    assert expected.items() <= version.tags.items()
    assert version.run_id == decision.champion.mlflow_run_id
    run = world.client.get_run(version.run_id)
    rows, since = run.data.metrics["train_rows"], run.data.params["train_start"]
    for found in (
        f"**{best}**, trained on {rows:,.0f} rows of {since}",
        f"Measured on later rows ({run.data.tags[TEST_ROWS]})",
        f"| PR-AUC | {run.data.metrics['test_average_precision']:.3f} |",
        f'mlflow.pyfunc.load_model("runs:/{version.run_id}/model")',
    ):
        assert found in version.description
    model = world.client.get_registered_model(NAME)
    assert f'mlflow.pyfunc.load_model("models:/{NAME}@champion")' in model.description
    assert model.tags == {"cryptovol.timescale": "seconds", "cryptovol.horizon_s": str(SPEC.horizon_s)}
    folder = Path(version.source.removeprefix("file://"))
    assert sorted(path.name for path in (folder / "data").iterdir()) == ["model.zip"]
    assert not list(folder.rglob("*.pkl"))
    rows = pipeline.lake.read_table("seconds/features", *hour_window(HOURS[1])).to_pandas()
    rows = rows[rows["valid"]].drop(columns=["bar_start", "product", "valid", "reason"]).head(20)
    for alias, model, key in (("champion", best, HOURS[1]), ("previous", "ewma", HOURS[0])):
        source = world.client.get_model_version_by_alias(NAME, alias).source
        ours = load_model(pipeline.lake.read_bytes(f"seconds/model_{model}", key, "zip"))
        np.testing.assert_array_equal(
            mlflow.pyfunc.load_model(source).predict(rows), ours.predict_proba(rows)
        )


def test_a_champion_whose_training_run_is_in_another_mlflow_is_stored_anew(world: World) -> None:
    world.settle(HOURS[0])
    first = decisions.read_decision(world.lake, SPEC, HOURS[0])
    assert first.champion is not None
    elsewhere = replace(first.champion, as_of=HOURS[1], mlflow_run_id="elsewhere")
    content = decisions.read_champion_file(world.lake, SPEC, first.champion)
    world.registry.register(world.tracking, elsewhere, content, {})
    newest = max(world.client.search_model_versions(f"name='{NAME}'"), key=lambda one: int(one.version))
    assert newest.run_id != "elsewhere"
    assert (Path(newest.source.removeprefix("file://")) / "data" / "model.zip").read_bytes() == content


DECISION = ["zip of seconds/champion", "json of seconds/champion"]
#: By what becomes of the challenger: what changes, in which order.
STEPS = {
    "promoted at once": [
        "create_model_version",
        *TAGS,
        *DECISION,
        "set_registered_model_alias",
        "set_registered_model_alias",
    ],
    "measured on": ["create_model_version", *TAGS, *DECISION, "set_registered_model_alias"],
    "promoted later": [
        *TAGS,
        DECISION[1],
        "set_registered_model_alias",
        "set_registered_model_alias",
        "delete_registered_model_alias",
    ],
}


def begin(world: World, skill: Skill, case: str) -> tuple[str, dict[str, str]]:
    """Bring a world to where the case's hour is decided next; returns that hour and the aliases before."""
    skill.challenger = skill.champion
    if case in world.kept:
        world.restore(case)
    else:
        world.forget()
        world.settle(HOURS[0])
        if case == "promoted later":
            world.settle(HOURS[1])
        world.keep(case)
    if case != "measured on":
        skill.challenger = 3.0
    return HOURS[2 if case == "promoted later" else 1], world.aliases()


@pytest.mark.parametrize("case", STEPS)
def test_a_crash_between_any_two_steps_is_repaired_by_the_next_run(
    world: World, skill: Skill, case: str
) -> None:
    steps = STEPS[case]
    key, _ = begin(world, skill, case)
    world.settle(key)
    assert world.steps.taken == steps
    after = world.aliases()
    # Of the tags of a version, one after another, the first stands for all.
    for at in (
        k
        for k in range(len(steps))
        if k == 0 or steps[k] != "set_model_version_tag" or steps[k - 1] != steps[k]
    ):
        for next_hour in (False, True):
            key, before = begin(world, skill, case)
            with pytest.raises(Crash):
                world.settle(key, crash_before=at)
            assert world.aliases()["champion"] in (before["champion"], after["champion"])
            decided = world.lake.exists("seconds/champion", key, "json")
            assert decided == (at > steps.index(DECISION[1]))
            # The next hour's own analysis finds nothing new, and neither does one that goes on.
            skill.challenger = skill.champion if next_hour else skill.challenger
            again = world.settle(HOURS[HOURS.index(key) + 1] if next_hour else key)
            champion = again.decision.champion
            assert champion is not None
            assert world.aliases()["champion"] == f"{champion.model} {champion.as_of}"
            if decided or not next_hour:
                assert world.aliases()["champion"] == after["champion"]
                assert world.aliases().get("previous") == after.get("previous")
            assert set(world.aliases()) >= {"champion"}
            assert ("challenger" in world.aliases()) == (again.decision.contest is not None)
            assert world.versions() <= 3


@pytest.mark.parametrize("case", STEPS)
def test_mlflow_away_at_any_call_fails_the_run_and_the_next_one_recovers(
    world: World, skill: Skill, case: str
) -> None:
    key, before = begin(world, skill, case)
    world.settle(key)
    after, calls = world.aliases(), len(world.steps.calls)
    assert calls > len(STEPS[case]) - 2
    decided = False
    for at in range(calls):
        key, before = begin(world, skill, case)
        stood = world.lake.read_bytes("seconds/champion", HOURS[HOURS.index(key) - 1], "json")
        with pytest.raises(TrackingError, match=r"^MLflow at .*: Connection refused$"):
            world.settle(key, away_from=at)
        # Lake and registry speak of the champion before or of the new one, and the registry is never ahead.
        decided = world.lake.exists("seconds/champion", key, "json")
        assert world.aliases()["champion"] in (before["champion"], after["champion"] if decided else "")
        assert world.lake.read_bytes("seconds/champion", HOURS[HOURS.index(key) - 1], "json") == stood
        world.settle(key)
        assert world.aliases() == after
    assert decided


def test_a_champion_kept_under_the_earlier_name_serves_on(world: World, skill: Skill) -> None:
    """What versions before the gate wrote: schema 1 and `part.zip`."""
    skill.challenger = skill.champion
    first = world.settle(HOURS[0]).decision
    assert first.champion is not None
    content = decisions.read_champion_file(world.lake, SPEC, first.champion)
    folder = world.lake.path("seconds/champion", HOURS[0]).parent
    for path in folder.glob("part.ewma.*"):
        path.unlink()
    Lake.write_bytes(world.lake, "seconds/champion", HOURS[0], content, "zip")
    old = {
        name: value
        for name, value in first.to_dict().items()
        if name
        in (
            "as_of",
            "verdict",
            "reasons",
            "champion",
            "changed",
            "data_hash",
            "feature_hash",
            "evaluation_hash",
        )
    }
    old["champion"] = {k: v for k, v in old["champion"].items() if k != "unseen_from_ns"}
    body = json.dumps({"schema_version": 1, **old, "challenge": None})
    Lake.write_bytes(world.lake, "seconds/champion", HOURS[0], body.encode(), "json")
    settled = world.settle(HOURS[1])
    assert first.champion.is_same_model(settled.decision.champion)
    assert settled.aliases.startswith("champion is version 1 already")
    assert decisions.read_champion_file(world.lake, SPEC, first.champion) == content
    # What else that hour trained is not taken for it.
    other = replace(first.champion, model="xgboost")
    assert not decisions.has_file(world.lake, SPEC, other)


def test_an_hour_without_models_of_its_own_holds_with_the_plans_reason(world: World) -> None:
    world.settle(HOURS[0])
    plan = plans.read_plan(world.lake, SPEC, HOURS[1])
    stands = replace(plan, split=None, reason="degenerate spike threshold")
    Lake.write_bytes(world.lake, "seconds/splits", HOURS[1], stands.to_json(), "json")
    settled = world.settle(HOURS[1])
    assert (settled.decision.verdict, settled.decision.reasons) == (HOLD, ("degenerate spike threshold",))
    assert settled.decision.champion is not None
    assert settled.decision.champion.as_of == HOURS[0]
    assert settled.decision.challenge is None


def test_an_evaluation_of_other_rows_decides_nothing(world: World) -> None:
    plan = replace(plans.read_plan(world.lake, SPEC, HOURS[0]), data_hash="other")
    Lake.write_bytes(world.lake, "seconds/splits", HOURS[0], plan.to_json(), "json")
    with pytest.raises(datasets.ChainError, match=r"splits are of other: evaluate again"):
        world.settle(HOURS[0])
    assert not world.lake.partitions("seconds/champion", "json")


def test_an_evaluation_of_an_older_version_decides_nothing(world: World) -> None:
    report = json.loads(world.lake.read_bytes("seconds/model_evaluation", HOURS[0], "json"))
    older = json.dumps(report | {"schema_version": 1}).encode()
    Lake.write_bytes(world.lake, "seconds/model_evaluation", HOURS[0], older, "json")
    with pytest.raises(EvaluationError, match=r"of schema version 1; this version reads 2 and 3"):
        world.settle(HOURS[0])
    assert not world.lake.partitions("seconds/champion", "json")


def test_a_damaged_decision_is_named(world: World) -> None:
    path = Lake.write_bytes(world.lake, "seconds/champion", HOURS[0], b'{"schema_version": 1}', "json")
    with pytest.raises(DecisionError, match=f"{path}: decision cannot be read"):
        world.settle(HOURS[1])
