"""A lake and an MLflow to decide in, whose every change is a step before which a test may crash."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import numpy as np
import pytest
from mlflow.exceptions import MlflowException

from cryptovol_dagster.chains import timescale_spec
from cryptovol_dagster.champion import scoring
from cryptovol_dagster.champion.succession import Settled, settle
from cryptovol_dagster.core.metrics.scored_rows import ScoredRows
from cryptovol_dagster.core.promotion.decision import Champion
from cryptovol_dagster.core.promotion.rule import THE_CHALLENGER, THE_CHAMPION
from cryptovol_dagster.core.specs import NS, GateSpec
from cryptovol_dagster.lake import decisions
from cryptovol_dagster.lake.files import Lake
from cryptovol_dagster.lake.latest import Reports
from cryptovol_dagster.tracking.registry import Registry
from cryptovol_dagster.tracking.runs import Tracking
from cryptovol_dagster_tests.pipeline import Pipeline
from cryptovol_dagster_tests.synthetic import FIRST_HOUR, hours_from, small_settings
from ingestor.settings import Settings

NAME = "cryptovol-seconds-h15"
HOURS = hours_from(FIRST_HOUR, 4)
#: Of a verdict: what writing it changes.
TAGS = ["set_model_version_tag"] * 4


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
    kept: dict[str, Path] = field(default_factory=dict)

    @property
    def lake(self) -> StepLake:
        return StepLake(self.settings.storage.lake_dir, self.steps)

    @property
    def registry(self) -> Registry:
        return Registry(self.tracking, SPEC)

    @cached_property
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
        shutil.rmtree(self._decisions, ignore_errors=True)

    def keep(self, name: str) -> None:
        """Keep registry and decisions under a name, for `restore`."""
        folder = self.kept[name] = self.settings.storage.data_dir / "kept" / name
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self._decisions, folder / "champion")
        _copy_database(self._database, folder / "mlflow.db")

    def restore(self, name: str) -> None:
        """Go back to what was kept."""
        self.steps.crash_before = self.steps.away_from = -1
        shutil.rmtree(self._decisions)
        shutil.copytree(self.kept[name] / "champion", self._decisions)
        _copy_database(self.kept[name] / "mlflow.db", self._database)

    @property
    def _decisions(self) -> Path:
        return self.settings.storage.lake_dir / "seconds" / "champion"

    @property
    def _database(self) -> Path:
        return self.settings.storage.data_dir / "mlflow" / "mlflow.db"

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


def _copy_database(of: Path, to: Path) -> None:
    """Copy a SQLite database, also into one that is open."""
    with closing(sqlite3.connect(of)) as source, closing(sqlite3.connect(to)) as target:
        source.backup(target)


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

    def score_span(
        self, lake: Lake, spec: Any, start_ns: int, end_ns: int, thresholds: Any, models: Any
    ) -> ScoredRows:
        """Stand in for `scoring.score_span`, which has a test of its own."""
        random = np.random.default_rng(1)
        t_ns = np.arange(start_ns, end_ns, 5 * NS, dtype=np.int64)
        y = random.random(t_ns.size) < 0.3
        known = {THE_CHAMPION: self.champion, THE_CHALLENGER: self.challenger}
        assert set(known) <= set(models)
        noise = random.normal(size=y.size)  # the same for both: equal skill is no difference at all
        scores = {name: 1 / (1 + np.exp(1 - how * (2 * y - 1) - noise)) for name, how in known.items()}
        return ScoredRows(t_ns, 5 * NS, y, scores)


@pytest.fixture
def skill(monkeypatch: pytest.MonkeyPatch) -> Skill:
    """Let an analysis of a challenger find what the test says."""
    found = Skill()
    monkeypatch.setattr(scoring, "score_span", found.score_span)
    return found
