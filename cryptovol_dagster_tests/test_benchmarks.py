"""Every benchmark imports: none of them runs in CI, and a name that moved would be found by its user."""

from __future__ import annotations

from importlib import import_module

import pytest

from cryptovol_dagster_tests.places import REPOSITORY


@pytest.mark.parametrize("name", sorted(path.stem for path in (REPOSITORY / "benchmarks").glob("[!_]*.py")))
def test_a_benchmark_imports(name: str) -> None:
    assert import_module(f"benchmarks.{name}").__doc__
