"""Decisions hour by hour, the registry's aliases, crashes between any two steps, and MLflow away."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import numpy as np
import pytest
from mlflow.exceptions import MlflowException

from cryptovol_dagster.chains import timescale_spec
from cryptovol_dagster.champion import rollback, succession
from cryptovol_dagster.champion import scoring as hold_out
from cryptovol_dagster.champion.succession import (
    BACKFILL_TAG,
    BACKFILL_VERB_TAG,
    Settled,
    settle,
    why_aliases_stay,
)
from cryptovol_dagster.core.evaluation.report import EvaluationError
from cryptovol_dagster.core.metrics.scored_rows import HoldOut
from cryptovol_dagster.core.models import load_model
from cryptovol_dagster.core.promotion.decision import (
    EXPIRY,
    HOLD,
    INSUFFICIENT_DATA,
    PROMOTE,
    REJECT,
    Champion,
    Decision,
    DecisionError,
)
from cryptovol_dagster.core.promotion.rule import THE_CHALLENGER, THE_CHAMPION
from cryptovol_dagster.core.specs import NS, GateSpec
from cryptovol_dagster.core.times import hour_window
from cryptovol_dagster.defs.build import build_defs
from cryptovol_dagster.defs.checks.framework import Stored
from cryptovol_dagster.defs.checks.learning import _champion_not_worse_than_baseline
from cryptovol_dagster.lake import datasets, decisions, plans
from cryptovol_dagster.lake.files import Lake
from cryptovol_dagster.lake.latest import Reports
from cryptovol_dagster.lake.raw_ticks import RawStore
from cryptovol_dagster.tracking.registry import Registry, RegistryError
from cryptovol_dagster.tracking.runs import Tracking, TrackingError
from cryptovol_dagster.verbs import runs
from cryptovol_dagster_tests.pipeline import Pipeline
from cryptovol_dagster_tests.synthetic import FIRST_HOUR, hours_from, small_settings
from ingestor.settings import Settings

NAME = "cryptovol-seconds-h15"
HOURS = hours_from(FIRST_HOUR, 4)


class Crash(BaseException):
    """The process is gone."""


@dataclass(eq=False)  # as part of a lake it is hashed
class Steps:
    """Counts what changes the world and crashes before a given one."""

    crash_before: int = -1
    away_from: int = -1
    taken: list[str] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)

    def call(self, name: str) -> None:
        if 0 <= self.away_from <= len(self.calls):
            raise MlflowException("Connection refused")
        self.calls.append(name)

    def take(self, name: str) -> None:
        if len(self.taken) == self.crash_before:
            raise Crash(name)
        self.taken.append(name)


class StepClient:
    """MLflow's client, each of whose changes is a step, and which goes away before a given call."""

    CHANGES = (
        "create_registered_model",
        "create_model_version",
        "set_model_version_tag",
        "set_registered_model_alias",
        "delete_registered_model_alias",
    )

    def __init__(self, client: mlflow.MlflowClient, steps: Steps) -> None:
        self._client, self._steps = client, steps

    def __getattr__(self, name: str) -> Any:
        if name in self.CHANGES:
            self._steps.take(name)
        self._steps.call(name)
        return getattr(self._client, name)


@dataclass(frozen=True)
class StepLake(Lake):
    """A lake each of whose writes is a step."""

    steps: Steps = field(default_factory=Steps)

    def write_bytes(self, asset: str, partition_key: str, content: bytes, suffix: str) -> Path:
        kind = "zip" if suffix.endswith("zip") else suffix
        self.steps.take(f"{kind} of {asset}")
        return super().write_bytes(asset, partition_key, content, suffix)


@dataclass(frozen=True)
class World:
    """The pipeline's lake and MLflow, copied, with an empty registry."""

    settings: Settings
    client: mlflow.MlflowClient
    steps: Steps = field(default_factory=Steps)

    @property
    def lake(self) -> StepLake:
        return StepLake(self.settings.storage.lake_dir, self.steps)

    @property
    def registry(self) -> Registry:
        return Registry(self.tracking, SPEC)

    @property
    def tracking(self) -> Tracking:
        found = self.client.search_runs(self.experiments)
        parent = next(run for run in found if "mlflow.parentRunId" not in run.data.tags)
        known = SimpleNamespace(
            active_run=lambda: parent, tracking_client=StepClient(self.client, self.steps)
        )
        return Tracking(known, self.settings, "dagster-run")

    @property
    def experiments(self) -> list[str]:
        return [one.experiment_id for one in self.client.search_experiments()]

    def settle(
        self,
        key: str,
        *,
        aliases_stay: str = "",
        crash_before: int = -1,
        away_from: int = -1,
        is_new_day: bool = True,
        gate: GateSpec | None = None,
    ) -> Settled:
        """Decide an hour as the asset does; an hour is a day here, unless it is told that it is not."""
        self.steps.crash_before, self.steps.away_from = crash_before, away_from
        self.steps.taken[:], self.steps.calls[:] = [], []
        before = decisions.newest_decision(self.lake, SPEC, before=key)
        if is_new_day and before is not None:
            before = replace(before, decided_as_of="2026-01-01-00:00")
        return settle(
            self.lake,
            SPEC,
            Reports(self.settings.storage.reports_dir, self.settings.storage.artifacts_dir),
            self.tracking,
            key,
            before,
            gate=gate or GATE,
            aliases_stay=aliases_stay,
            tags={"dagster.run_id": "dagster-run"},
        )

    def forget(self) -> None:
        """Begin anew: no version, no decision."""
        self.steps.crash_before = self.steps.away_from = -1
        for model in self.client.search_registered_models():
            self.client.delete_registered_model(model.name)
        shutil.rmtree(self.settings.storage.lake_dir / "seconds" / "champion", ignore_errors=True)

    def promote(self, *keys: str) -> list[Champion]:
        """Decide hours, at the first of which there is no champion yet; the others' challengers win."""
        found = []
        for key in keys:
            champion = self.settle(key).decision.champion
            assert champion is not None
            found.append(champion)
        return found

    def aliases(self) -> dict[str, str]:
        """Name the as-of hour and kind that each alias stands for."""
        if not self.client.search_registered_models():
            return {}
        found = {}
        for alias, number in self.client.get_registered_model(NAME).aliases.items():
            tags = self.client.get_model_version(NAME, str(number)).tags
            found[alias] = f"{tags['cryptovol.model']} {tags['cryptovol.as_of']}"
        return found

    def versions(self) -> int:
        return len(self.client.search_model_versions(f"name='{NAME}'"))


#: An hour is a month here, and minutes are hours.
GATE = GateSpec(
    first_look_s=600,
    measured_for_s=5 * 3_600,
    error_rate=0.5,
    error_window_s=3_600,
    most_per_look=0.1,
    min_positive_blocks=1,  # of half an hour at least
    resamples=20,
    champion_max_age_s=1e9,
)
SPEC = timescale_spec(small_settings(Path("/nowhere")).timescales.seconds, "seconds")


@pytest.fixture(scope="module")
def copied(pipeline: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """The pipeline's lake and MLflow in a folder of their own; each `world` begins from it."""
    settings = small_settings(tmp_path_factory.mktemp("champion"))
    theirs, ours = pipeline.settings.storage.data_dir, settings.storage.data_dir
    shutil.copytree(theirs / "lake", ours / "lake")
    (ours / "mlflow").mkdir()
    shutil.copy(theirs / "mlflow" / "mlflow.db", ours / "mlflow" / "mlflow.db")
    shutil.copytree(theirs / "raw" / "_closed", ours / "raw" / "_closed")
    return settings


@pytest.fixture
def world(copied: Settings) -> Iterator[World]:
    world = World(copied, mlflow.MlflowClient(tracking_uri=copied.mlflow_tracking_uri))
    world.forget()
    kept = {
        path: path.read_bytes()
        for name in ("model_evaluation", "splits")
        for path in (copied.storage.lake_dir / "seconds" / name).rglob("part.json")
    }
    yield world
    for path, content in kept.items():
        path.write_bytes(content)


@dataclass
class Skill:
    """How much champion and challenger know of the rows of a hold-out."""

    champion: float = 0.5
    challenger: float = 3.0

    def hold_out(
        self, lake: Lake, spec: Any, start_ns: int, end_ns: int, thresholds: Any, models: Any
    ) -> HoldOut:
        """Stand in for `hold_out.hold_out`, which has a test of its own."""
        random = np.random.default_rng(1)
        t_ns = np.arange(start_ns, end_ns, 5 * NS, dtype=np.int64)
        y = random.random(t_ns.size) < 0.3
        known = {THE_CHAMPION: self.champion, THE_CHALLENGER: self.challenger}
        assert set(known) <= set(models)
        noise = random.normal(size=y.size)  # the same for both: equal skill is no difference at all
        scores = {name: 1 / (1 + np.exp(1 - how * (2 * y - 1) - noise)) for name, how in known.items()}
        return HoldOut(t_ns, 5 * NS, y, scores)


@pytest.fixture
def skill(monkeypatch: pytest.MonkeyPatch) -> Skill:
    """Let a look at a challenger find what the test says."""
    found = Skill()
    monkeypatch.setattr(succession, "hold_out", found.hold_out)
    return found


def test_a_range_decides_every_hour_and_moves_nothing(pipeline: Pipeline) -> None:
    spec = SPEC
    chain_of_decisions = [decisions.read_decision(pipeline.lake, spec, key) for key in pipeline.hours]
    first = chain_of_decisions[0].champion
    assert first is not None
    assert (first.model, first.as_of, first.unproven) == ("ewma", pipeline.hours[0], True)
    assert [decision.as_of for decision in chain_of_decisions] == pipeline.hours
    assert [decision.verdict for decision in chain_of_decisions] == [INSUFFICIENT_DATA, HOLD, HOLD, HOLD]
    assert chain_of_decisions[1].reasons == (f"decided already as of {first.as_of}: one decision a day",)
    contests = [decision.contest for decision in chain_of_decisions]
    assert contests[0] is None
    assert contests[1] is not None
    assert contests[1].challenger.as_of == pipeline.hours[1]
    # The same model, wherever it was registered since.
    identities = {one.challenger.identity for one in contests if one is not None}
    assert identities == {contests[1].challenger.identity}
    assert all(contests[1:])
    assert all(first.is_same_model(decision.champion) for decision in chain_of_decisions)
    found = pipeline.summary.metadata["seconds/champion"][pipeline.hours[-1]]
    assert found["aliases"] == "this run is over a range of partitions"
    assert found["champion_as_of"] == pipeline.hours[0]
    kept = decisions.read_champion_file(pipeline.lake, spec, first)
    assert kept == pipeline.lake.read_bytes("seconds/model_ewma", pipeline.hours[0], "zip")
    latest = json.loads((pipeline.settings.storage.reports_dir / "decision.json").read_text())
    assert Decision.from_dict(latest).as_of == pipeline.hours[-1]


@pytest.mark.parametrize(
    ("keys", "tags", "says"),
    [
        (HOURS[2:], {}, "this run is over a range of partitions"),
        (HOURS[3:], {BACKFILL_TAG: "abc"}, "this run belongs to backfill abc"),
        (HOURS[3:], {BACKFILL_VERB_TAG: "true"}, "this run was made by `cryptovol backfill`"),
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
    gate = replace(GATE, growth=1.1)  # each hour is another look
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
    def har_knows_more(problem: Any, models: Any) -> HoldOut:
        assert set(models) == {"champion", "har_logit"}
        y = np.arange(720) % 5 == 0
        t_ns = problem.split.test.start_ns + np.arange(y.size) * 5 * NS
        return HoldOut(t_ns, 5 * NS, y, {"champion": 1.0 - y, "har_logit": 0.0 + y})

    monkeypatch.setattr(succession, "test_rows", har_knows_more)
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
    assert "trained on another: not comparable; ewma takes the place, unproven" in decision.reasons[0]


def test_a_hold_out_is_scored_by_the_stored_models_on_every_row_once(world: World) -> None:
    """The rows of three hours, read piece by piece, against one read of all of them."""
    champion, challenger = (
        load_model(world.lake.read_bytes(f"seconds/model_{name}", HOURS[0], "zip"))
        for name in ("ewma", "xgboost")
    )
    plan = plans.read_plan(world.lake, SPEC, HOURS[0])
    assert plan.split is not None
    start_ns, end_ns = plan.split.test.start_ns, hour_window(HOURS[3])[1] - 1_800 * NS
    thresholds = dict(challenger.meta.thresholds)
    found = hold_out.hold_out(
        world.lake, SPEC, start_ns, end_ns, thresholds, {"champion": champion, "challenger": challenger}
    )
    every = datasets.read_span(world.lake, SPEC, hour_window(HOURS[0])[0], hour_window(HOURS[3])[1])
    rows = every.rows((every.t_ns >= start_ns) & (every.t_ns < end_ns))
    assert len(rows) > 1_000
    np.testing.assert_array_equal(found.t_ns, rows.t_ns)
    tau = np.array([thresholds[name] for name in rows.product])
    np.testing.assert_array_equal(found.y, rows.sigma >= tau)
    for name, model in (("champion", champion), ("challenger", challenger)):
        np.testing.assert_array_equal(
            found.scores[name],
            model.predict_proba(rows.features.reindex(columns=list(model.meta.inputs))),
        )
    without = hold_out.hold_out(
        world.lake, SPEC, start_ns, end_ns, {"BTC-USD": thresholds["BTC-USD"]}, {"champion": champion}
    )
    assert without.t_ns.size == int(np.sum(rows.product == "BTC-USD"))


def test_a_piece_without_rows_is_left_out(world: World) -> None:
    model = load_model(world.lake.read_bytes("seconds/model_ewma", HOURS[0], "zip"))
    later_ns = hour_window(HOURS[3])[1] + 100 * 3_600 * NS
    found = hold_out.hold_out(world.lake, SPEC, later_ns, later_ns + 3_600 * NS, {}, {"champion": model})
    assert (found.t_ns.size, found.scores["champion"].size) == (0, 0)


def test_a_real_look_scores_both_models_and_the_references(world: World) -> None:
    world.settle(HOURS[0])
    decision = world.settle(HOURS[1]).decision
    challenge = decision.challenge
    assert challenge is not None
    assert (challenge.champion.model, challenge.champion.as_of) == ("ewma", HOURS[0])
    assert challenge.challenger.as_of == HOURS[1]
    assert set(challenge.references) == {"ewma", "har_logit"}
    assert challenge.rows > 500
    # EWMA of the hour ranks as in the hour's evaluation: the same rows and labels.
    report = json.loads(world.lake.read_bytes("seconds/model_evaluation", HOURS[1], "json"))
    assert challenge.references["ewma"] == pytest.approx(report["models"]["ewma"]["average_precision"])


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


TAGS = ["set_model_version_tag"] * 4
DECISION = ["zip of seconds/champion", "json of seconds/champion"]
#: By what becomes of the challenger: what changes, in which order.
STEPS = {
    "promoted at its first look": [
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
    world.forget()
    skill.challenger = skill.champion
    world.settle(HOURS[0])
    if case == "promoted later":
        world.settle(HOURS[1])
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
            # The next hour's own look finds nothing new, and neither does one that goes on.
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


# --- a person rolls back
# ------------------------------------------------------------------------------------------------------


def roll_back(world: World, **how: Any) -> rollback.Rollback:
    reports = Reports(world.settings.storage.reports_dir, world.settings.storage.artifacts_dir)
    asked = {"to": "previous", "reason": "alarms all night"} | how
    return rollback.roll_back_to(world.lake, SPEC, reports, world.registry, **asked)


def test_a_rollback_moves_the_alias_and_the_model_does_not_come_back_by_itself(
    world: World, skill: Skill
) -> None:
    first, second = world.promote(*HOURS[:2])
    aliases = world.aliases()
    dry = roll_back(world, dry_run=True)
    assert (dry.aliases, world.aliases()) == ("", aliases)
    assert not world.lake.exists("seconds/champion", HOURS[1], "rollback.json")

    done = roll_back(world)
    assert first.is_same_model(done.decision.champion)
    assert second.is_same_model(done.taken_out)
    assert done.aliases == "champion is version 1 now, previous is none"
    assert world.aliases() == {"champion": f"ewma {HOURS[0]}"}
    tags = world.client.get_model_version(NAME, "2").tags
    assert (tags["cryptovol.verdict"], tags["cryptovol.decision"]) == ("ROLLBACK", "rollback")
    latest = json.loads((world.settings.storage.reports_dir / "decision.json").read_text())
    assert Decision.from_dict(latest) == done.decision

    # Deciding the hour again finds the same challenger better again, and the rollback stands all the same.
    again = world.settle(HOURS[1])
    assert second.is_same_model(again.decision.champion)
    assert first.is_same_model(again.standing.champion)
    assert again.aliases == "champion is version 1 already"
    # The next hour goes on from it: its challenger has no row yet that came after the rollback.
    following = world.settle(HOURS[2]).decision
    assert first.is_same_model(following.champion)
    assert following.contest is not None
    assert following.contest.start_ns == hour_window(HOURS[3])[1]
    assert following.challenge is None
    assert following.barred == (second.identity,)


def test_a_rollback_to_a_version_and_what_cannot_be_done(world: World, skill: Skill) -> None:
    with pytest.raises(DecisionError, match="seconds has no champion to roll back"):
        roll_back(world)
    world.settle(HOURS[0])
    with pytest.raises(RegistryError, match=f"^{NAME} has no version previous$"):
        roll_back(world)
    with pytest.raises(RegistryError, match=f"^{NAME} has no version 9$"):
        roll_back(world, to="9")
    with pytest.raises(DecisionError, match=rf"^ewma of {HOURS[0]} is champion already$"):
        roll_back(world, to="1")
    world.client.set_model_version_tag(NAME, "1", "cryptovol.feature_hash", "another")
    world.settle(HOURS[1])
    with pytest.raises(DecisionError, match="was trained on feature set another, expected"):
        roll_back(world)


def test_a_model_whose_copy_is_gone_comes_from_the_registry(world: World, skill: Skill) -> None:
    first, _ = world.promote(*HOURS[:2])
    content = decisions.read_champion_file(world.lake, SPEC, first)
    for path in world.lake.path("seconds/champion", HOURS[0]).parent.glob("part.ewma.*"):
        path.unlink()
    roll_back(world, to="1")
    assert decisions.read_champion_file(world.lake, SPEC, first) == content


def test_a_rollback_broken_off_anywhere_is_finished_by_the_next_run(world: World, skill: Skill) -> None:
    steps = [
        *TAGS,
        "rollback.json of seconds/champion",
        "delete_registered_model_alias",
        "set_registered_model_alias",
    ]
    for at in (0, *range(3, len(steps))):
        world.forget()
        skill.challenger = 3.0
        first, second = world.promote(*HOURS[:2])
        world.steps.crash_before, world.steps.taken[:] = at, []
        with pytest.raises(Crash):
            roll_back(world)
        assert world.steps.taken == steps[:at]
        assert world.aliases()["champion"] == f"{second.model} {HOURS[1]}"
        decided = at > steps.index("rollback.json of seconds/champion")
        skill.challenger = skill.champion
        standing = world.settle(HOURS[2]).standing.champion
        assert (first if decided else second).is_same_model(standing)
        assert standing is not None
        assert world.aliases()["champion"] == f"{standing.model} {standing.as_of}"


def test_a_rollback_in_the_middle_of_a_decision_is_not_lost(
    world: World, skill: Skill, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = world.promote(*HOURS[:2])
    score = skill.hold_out

    def meanwhile(*args: Any) -> HoldOut:
        roll_back(world)
        return score(*args)

    monkeypatch.setattr(succession, "hold_out", meanwhile)
    with pytest.raises(DecisionError, match=rf"found ewma of {HOURS[0]}: decide again$"):
        world.settle(HOURS[2])
    assert not world.lake.exists("seconds/champion", HOURS[2], "json")
    assert first.is_same_model(world.settle(HOURS[2]).decision.champion)


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
    with pytest.raises(EvaluationError, match=r"of schema version 1; this version reads 2: evaluate again"):
        world.settle(HOURS[0])
    assert not world.lake.partitions("seconds/champion", "json")


def test_a_damaged_decision_is_named(world: World) -> None:
    path = Lake.write_bytes(world.lake, "seconds/champion", HOURS[0], b'{"schema_version": 1}', "json")
    with pytest.raises(DecisionError, match=f"{path}: decision cannot be read"):
        world.settle(HOURS[1])


@pytest.mark.parametrize(("high", "passes"), [(0.1, True), (-0.05, False)])
def test_a_champion_that_is_surely_worse_than_a_baseline_is_told(
    world: World, high: float, passes: bool
) -> None:
    world.settle(HOURS[0])
    report = json.loads(world.lake.read_bytes("seconds/model_evaluation", HOURS[1], "json"))
    interval = {"low": -0.3, "high": high}
    report["comparisons"] = [
        {
            "model": "ewma",
            "baseline": "har_logit",
            "ap_difference": (high - 0.3) / 2,
            "interval": interval,
            "onset_difference": None,
            "onset_interval": None,
        }
    ]
    Lake.write_bytes(world.lake, "seconds/model_evaluation", HOURS[1], json.dumps(report).encode(), "json")
    plan = plans.read_plan(world.lake, SPEC, HOURS[1])
    first = decisions.read_decision(world.lake, SPEC, HOURS[0])
    decisions.write_decision(world.lake, SPEC, replace(first, as_of=HOURS[1]))
    found = _champion_not_worse_than_baseline(SPEC)(Stored(world.lake, "seconds/champion", plan.as_of))
    assert found == (
        []
        if passes
        else [
            f"expected ewma, the champion's kind, not to rank below baseline har_logit in the test of "
            f"{HOURS[1]}, found a difference of average precision of -0.1750 [-0.3000, -0.0500]"
        ]
    )


SERVER = """
from mlflow.server import app
from werkzeug.serving import make_server

server = make_server("127.0.0.1", 0, app)
print(server.port, flush=True)
server.serve_forever()
"""


@contextmanager
def tracking_server(database: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A real MLflow tracking server on a database: its address, and the process to kill."""
    stores = {
        "_MLFLOW_SERVER_FILE_STORE": f"sqlite:///{database}",
        "_MLFLOW_SERVER_ARTIFACT_ROOT": (database.parent / "artifacts").as_uri(),
    }
    command = [sys.executable, "-c", SERVER]
    with subprocess.Popen(
        command, env=os.environ | stores, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as child:
        assert child.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(child.stdout.readline())}", child
        finally:
            child.kill()


@dataclass(frozen=True)
class LastWordLake(Lake):
    """Calls `then` once an evaluation has been stored."""

    then: Any = None

    def write_table(self, asset: str, partition_key: str, *args: Any, **kwargs: Any) -> Path:
        path = super().write_table(asset, partition_key, *args, **kwargs)
        self.then()
        return path


def test_mlflow_that_goes_away_between_two_assets_leaves_the_decision_and_the_next_run_recovers(
    world: World, monkeypatch: pytest.MonkeyPatch, own_dagster_home: None
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    world.settle(HOURS[2])
    before = world.lake.read_bytes("seconds/champion", HOURS[2], "json")
    rest = ["seconds/champion", "seconds/model_card"]
    with tracking_server(world.settings.storage.data_dir / "mlflow" / "mlflow.db") as (uri, server):
        remote = world.settings.mlflow.model_copy(update={"tracking_uri": uri})
        settings = world.settings.model_copy(update={"mlflow": remote})
        defs = build_defs(settings, lake=LastWordLake(world.lake.root, server.kill))
        with pytest.raises(runs.RunFailed) as failure:
            runs.materialize_range(
                settings, HOURS[3], HOURS[3], ["seconds/model_evaluation", *rest], defs=defs
            )
    assert str(failure.value).startswith(f"seconds/champion: MLflow at {uri}: ")
    assert "\n" not in str(failure.value)
    assert mlflow.active_run() is None
    # The evaluation was done; of champion there is no trace of the hour, and the one before stands.
    assert not list(world.lake.path("seconds/champion", HOURS[3]).parent.glob("*"))
    assert world.lake.read_bytes("seconds/champion", HOURS[2], "json") == before
    with pytest.raises(runs.RunFailed, match=rf"MLflow at {uri}: "):
        runs.materialize_range(settings, HOURS[3], HOURS[3], rest)
    found = runs.materialize_range(world.settings, HOURS[3], HOURS[3], rest).metadata["seconds/champion"]
    assert found[HOURS[3]]["aliases"] == "champion is version 1 already, challenger is version 2"
    after = decisions.read_decision(world.lake, SPEC, HOURS[3])
    assert after.champion == Decision.from_dict(json.loads(before)).champion
