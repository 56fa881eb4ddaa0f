"""`cryptovol audit`: what people read, and the exit code that programs do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cryptovol_dagster_tests.ingestor.audit.story import Story
from cryptovol_dagster_tests.ingestor.feed.support import T0_NS
from ingestor.archive.member_name import Slot, archive_runs
from ingestor.cli import cli
from ingestor.envelope import TICKS
from ingestor.times import HOUR_NS, hour_key


@pytest.fixture
def raw_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CRYPTOVOL_CONFIG", "")
    monkeypatch.setenv("CRYPTOVOL__STORAGE__DATA_DIR", str(tmp_path / "data"))
    return tmp_path / "data" / "raw"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["audit", *arguments], catch_exceptions=False)


def recorded(raw_dir: Path) -> Story:
    story = Story(raw_dir)
    story.connect("c1").frames("ticker", "heartbeats", "gap", "ticker", "dead").end()
    story.store()
    return story


def test_a_sound_storage_is_said_to_be_and_exits_0(raw_dir: Path) -> None:
    recorded(raw_dir)
    result = run()
    assert result.exit_code == 0
    assert result.output.splitlines()[-1] == "every one of 5 sequence numbers is accounted for"
    for shown in ("c1", hour_key(T0_NS), "2 to 2", TICKS):
        assert shown in result.output
    assert json.loads(run("--json").output)["accounted"] is True


def test_what_is_unaccounted_for_is_the_error_and_exits_1(raw_dir: Path) -> None:
    recorded(raw_dir).files(TICKS)[0].unlink()
    result = run()
    assert result.exit_code == 1
    (error,) = [line for line in result.stderr.splitlines() if line.startswith("Error:")]
    assert error.startswith(f"Error: unaccounted for: {hour_key(T0_NS)}, connection c1, sequence 0 to 4:")
    assert error.endswith("expected 2 frames with entries, found 0")
    as_json = run("--json")
    assert as_json.exit_code == 1
    assert json.loads(as_json.stdout)["totals"]["unaccounted"] == 2


def test_hours_that_hold_nothing_are_said_to(raw_dir: Path) -> None:
    empty = run()
    assert empty.exit_code == 1
    assert empty.stderr.strip() == f"Error: {raw_dir}: raw storage is empty: nothing to audit"
    recorded(raw_dir)
    later = run("--from", hour_key(T0_NS + HOUR_NS))
    assert later.exit_code == 1
    assert f"raw storage has {hour_key(T0_NS)} … {hour_key(T0_NS)}" in later.stderr
    assert "'2026-05' is not an hour: expected" in run("--to", "2026-05").stderr
    assert "is after --to" in run("--from", hour_key(T0_NS + HOUR_NS), "--to", hour_key(T0_NS)).stderr


def test_help_teaches() -> None:
    assert "cryptovol audit --from 2026-04-04-03:00 --to 2026-04-04-05:00" in run("--help").output


def test_a_running_archive_is_seen_by_its_slot(raw_dir: Path) -> None:
    assert not archive_runs(raw_dir)
    with Slot(raw_dir, "group"):
        assert archive_runs(raw_dir)
    assert not archive_runs(raw_dir)
