"""Every benchmark imports: none of them runs in CI, and a name that moved would be found by its user."""

from __future__ import annotations

from importlib import import_module

import pytest

from benchmarks.run import bare_environment
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
