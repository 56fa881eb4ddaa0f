"""Every benchmark imports: none of them runs in CI, and a name that moved would be found by its user."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

from benchmarks.performance_page import COMMANDS, FOLDER, publish, render
from benchmarks.run import bare_environment
from benchmarks.table import Line
from cryptovol_dagster_tests.places import REPOSITORY


@pytest.mark.parametrize("name", sorted(path.stem for path in (REPOSITORY / "benchmarks").glob("[!_]*.py")))
def test_a_benchmark_imports(name: str) -> None:
    assert import_module(f"benchmarks.{name}").__doc__


def test_what_a_benchmark_starts_knows_nothing_of_the_users_data(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DAGSTER_HOME", "CRYPTOVOL_CONFIG", "CRYPTOVOL__STORAGE__DATA_DIR", "KEPT"):
        monkeypatch.setenv(name, "here")
    found = bare_environment()
    assert found["KEPT"] == "here"
    assert not [name for name in found if name == "DAGSTER_HOME" or name.startswith("CRYPTOVOL_")]


def test_the_page_of_speeds_is_what_its_commands_published() -> None:
    assert (FOLDER / "index.md").read_text() == render(), "python -m benchmarks.performance_page"
    assert {file.stem for file in (FOLDER / "results").glob("*")} <= set(COMMANDS)
    targets = (REPOSITORY / "Makefile").read_text()
    assert all(f"\n{command.removeprefix('make ')}: " in targets for _, command in COMMANDS.values())


def test_a_measurement_is_published_only_where_make_asks_for_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("benchmarks.performance_page.FOLDER", tmp_path)
    monkeypatch.delenv("PUBLISH", raising=False)
    line = Line("bars", 6.4051, 2.0, "×", "pandas 5.24 s")
    publish("features", "a day", [line])
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("PUBLISH", "1")
    publish("features", "a day", [line, Line("memory", 1_234.5, 1_000, "MB", "", at_most=True)])
    page = (tmp_path / "index.md").read_text()
    assert page == render()
    assert "| bars | 6.41 × | ≥ 2 × | met | pandas 5.24 s |" in page
    assert "| memory | 1,234 MB | ≤ 1,000 MB | **missed** | |" in page
    assert "`make bench-gate` has not been published yet." in page
