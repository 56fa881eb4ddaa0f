"""`cryptovol demo`: the same market each time, and what an ordinary run does with its last hour."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner

from cryptovol_dagster.chains import spec_of
from cryptovol_dagster.cli import main
from cryptovol_dagster.core.specs import HOUR_S, NS
from cryptovol_dagster.defs.checks.freshness import LIVE_WITHIN_NS
from cryptovol_dagster.lake import decisions
from cryptovol_dagster.lake.files import Lake
from cryptovol_dagster.tracking.registry import CHALLENGER, CHAMPION, Registry
from cryptovol_dagster.tracking.runs import connect
from cryptovol_dagster.verbs import demo
from cryptovol_dagster.verbs.runs import RunFailed, RunSummary
from cryptovol_dagster.verbs.synthetic import DEMO_DIR, TAIL_HOURS, creating_market
from cryptovol_dagster_tests.synthetic import small_settings
from ingestor.settings import Settings

END = datetime(2025, 12, 1, 18, tzinfo=UTC)
HOURS = 2
#: Of a market that has spikes in each part of a split.
SEED = 0
#: Columns and keys that hold the id of a connection or of an MLflow run.
IDS = {"connection_id", "mlflow_run_id"}
#: Model files hold addresses of objects, and the card names an MLflow run in a sentence.
NOT_COMPARED = {".zip", ".md"}


@dataclass(frozen=True)
class Played:
    """A demo up to its results.

    Attributes:
        settings: of its market.
        said: of champion, registry and scores; nothing without the last hour.
    """

    settings: Settings
    said: list[str]

    @property
    def lake(self) -> Lake:
        return Lake(self.settings.storage.lake_dir)


@pytest.fixture(scope="module")
def patch() -> Iterator[pytest.MonkeyPatch]:
    """Faults within the hours that are played; environment and folder are as before at the end."""
    before, folder = dict(os.environ), Path.cwd()
    with pytest.MonkeyPatch.context() as context:
        context.setattr(
            demo, "FAULTS", "gap@500s:3; repeat@700s; disconnect@900s:1006; disconnect@1200s:1001"
        )
        yield context
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(before)


def play(folder: Path, patch: pytest.MonkeyPatch, *, only_past: bool) -> Played:
    """Play, record and learn in a folder that holds nothing but a configuration."""
    config = folder / "config.yaml"
    small = small_settings(folder, models=("ewma", "xgboost"))
    config.write_text(yaml.safe_dump(small.model_dump(mode="json", exclude={"kafka", "storage"})))
    patch.chdir(folder)
    patch.setenv("CRYPTOVOL_CONFIG", str(config))
    start = END - timedelta(hours=HOURS)
    with creating_market(DEMO_DIR, start, END, by="cryptovol demo") as settings:
        recorded = demo.record(settings, start, HOURS, SEED)
        assert (recorded["feed"]["missing"], recorded["feed"]["repeats"]) == (3, 1)
        pipeline = demo.Pipeline.of(settings)
        pipeline.past()
        with redirect_stdout(io.StringIO()) as said:
            if not only_past:
                demo.print_champion(settings, pipeline.newest())
    return Played(settings, said.getvalue().splitlines())


@pytest.fixture(scope="module")
def again(tmp_path_factory: pytest.TempPathFactory, patch: pytest.MonkeyPatch) -> Played:
    """The hours before the last one of the same demo, in another folder."""
    return play(tmp_path_factory.mktemp("again"), patch, only_past=True)


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory, again: Played, patch: pytest.MonkeyPatch) -> Played:
    """A demo, and its configuration in force."""
    return play(tmp_path_factory.mktemp("demo"), patch, only_past=False)


def without_ids(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_ids(found) for key, found in value.items() if key not in IDS}
    return [without_ids(found) for found in value] if isinstance(value, list) else value


def asset_of(path: Path) -> str:
    """Name the asset of a file in the lake."""
    return "/".join(part for part in path.parts[:-1] if "=" not in part)


def content(path: Path) -> Any:
    """What a file says, but for ids."""
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        return table.drop_columns([name for name in table.column_names if name in IDS]).to_pydict()
    return without_ids(json.loads(path.read_bytes())) if path.suffix == ".json" else path.read_bytes()


@pytest.mark.slow
def test_two_demos_of_the_same_end_and_seed_hold_the_same(played: Played, again: Played) -> None:
    one, other = played.lake.root, again.lake.root
    files = {path.relative_to(other) for path in other.rglob("part*") if path.suffix not in NOT_COMPARED}
    differ = {path for path in files if (one / path).read_bytes() != (other / path).read_bytes()}
    for path in differ:
        assert content(one / path) == content(other / path), path
    assert {asset_of(path) for path in differ} == {
        *("gap_ledger", "ticks", "next_ticks", "seconds/champion"),
        *("seconds/model_ewma", "seconds/model_xgboost"),
    }
    assert {asset_of(path) for path in files - differ} >= {
        *("trades", "seconds/bars", "seconds/features", "seconds/labels", "seconds/splits"),
        *(f"seconds/model_evaluation{part}" for part in ("", "_predictions", "_plots")),
    }


@pytest.mark.slow
def test_the_last_hour_moves_the_registry_and_is_scored(played: Played) -> None:
    settings = played.settings
    spec = spec_of(settings, "seconds")
    decision = decisions.newest_decision(played.lake, spec)
    assert decision is not None
    assert decision.as_of == "2025-12-01-17:00"
    assert decision.champion is not None
    assert decision.contest is not None
    # The champion was appointed in the past, the challenger by the run of the last hour.
    assert decision.champion.as_of == "2025-12-01-16:00"
    assert decision.contest.challenger.as_of == "2025-12-01-17:00"
    registry = Registry(connect(settings), spec)
    assert registry.model_of(CHAMPION).identity == decision.champion.identity
    assert registry.model_of(CHALLENGER).identity == decision.contest.challenger.identity
    latest = json.loads((settings.storage.reports_dir / "decision.json").read_bytes())
    assert latest["champion"]["registry_version"] == "1"
    assert "registry: champion is version 1 now, previous is none, challenger is version 2" in played.said
    shown = CliRunner().invoke(main, ["infer", "--json"])
    assert shown.exit_code == 0, shown.output
    scores = json.loads(shown.output)
    assert f"infer: {scores['model']}" in played.said
    assert played.said[-1] == (
        f"  {scores['scored']:,} of {scores['rows']:,} rows of {scores['features']} scored, "
        f"{scores['flagged']:,} flagged"
    )
    assert scores["scored"] > scores["flagged"] > 0


@pytest.mark.slow
def test_nothing_of_a_demo_lies_outside_of_its_folder(played: Played) -> None:
    data_dir = played.settings.storage.data_dir
    folder = data_dir.parents[1]
    assert {path.name for path in folder.iterdir()} == {"config.yaml", "data"}
    assert [path.name for path in data_dir.parent.iterdir()] == ["demo"]
    assert (data_dir / "reports" / "model_eval.json").is_file()
    assert (data_dir / "models" / "seconds-ewma.zip").is_file()


@pytest.mark.parametrize("trainable", [True, False])
def test_a_last_hour_that_trains_nothing_does_not_hide_the_rest(
    trainable: bool, tmp_path: Path, patch: pytest.MonkeyPatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing(demo.Pipeline):
        def newest(self) -> RunSummary:
            raise RunFailed("seconds/splits: nothing can be trained: why")

        def last_is_trainable(self) -> bool:
            return trainable

        def past(self) -> RunSummary:
            return RunSummary("", (), {}, (), {})

        minutes = reports = past

    feed = dict.fromkeys(
        ("frames", "ticks", "trades", "gaps", "missing", "repeats", "reconnects", "dead_letters"), 0
    )
    patch.chdir(tmp_path)
    monkeypatch.delenv("CRYPTOVOL_CONFIG", raising=False)
    monkeypatch.setattr(demo, "record", lambda *_: {"feed": feed})
    monkeypatch.setattr(demo.Pipeline, "of", lambda settings: Failing(settings, []))
    done = CliRunner().invoke(main, ["demo", "--hours", "4"])
    assert done.exit_code == 1
    if trainable:
        assert done.stderr == "Error: seconds/splits: nothing can be trained: why\n"
        return
    assert "\n  seconds/splits: nothing can be trained: why\n" in done.stdout
    assert "\n[5/5] reports" in done.stdout
    assert "\nwhere to look\n" in done.stdout
    assert done.stderr.startswith("Error: the last hour trained no model (step 3 shows why): ")


@pytest.mark.parametrize(
    "end",
    ["soon", "2025-12-01", "2025-12-01T18:30Z", "2025-12-01T18:00", "1999-12-01T18:00Z", "2199-12-01T18:00Z"],
)
def test_an_end_that_is_no_full_hour_of_the_past_is_refused_in_a_line(
    end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused = CliRunner().invoke(main, ["demo", "--end", end])
    assert refused.exit_code == 2
    newest = f"{demo.newest_end():%Y-%m-%dT%H:%MZ}"
    assert refused.output.splitlines()[-1] == (
        f"Error: Invalid value for '--end': '{end}': expected a full hour in UTC such as 2025-12-01T18:00Z, "
        f"no earlier than 2000; the newest is {newest}"
    )
    assert not list(tmp_path.iterdir())


def test_by_default_it_ends_at_the_last_full_hour_that_nobody_takes_for_a_live_one() -> None:
    now = datetime.now(UTC)
    newest = demo.newest_end()
    assert (newest.minute, newest.second, newest.microsecond) == (0, 0, 0)
    assert demo.SETTLED <= now - newest <= demo.SETTLED + timedelta(hours=1, seconds=5)
    settled_ns = demo.SETTLED.total_seconds() * NS
    assert settled_ns >= LIVE_WITHIN_NS
    assert settled_ns > TAIL_HOURS * HOUR_S * NS


def test_commands_are_shown_as_they_can_be_typed_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    typed = demo.command_here()
    assert Path(typed).is_file()
    assert typed.endswith("cryptovol")
    monkeypatch.setenv("PATH", str(Path(typed).resolve().parent))
    assert demo.command_here() == "cryptovol"
