"""Dagster's traps in which nothing fails at once (docs/reference/dagster-traps.md)."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

import cryptovol_dagster
from cryptovol_dagster.defs.build import build_defs
from cryptovol_dagster.machine.instance import ensure_dagster_home, open_instance
from cryptovol_dagster_tests.pipeline import Pipeline
from ingestor.settings import Settings

PACKAGE = Path(cryptovol_dagster.__file__).parent
DECORATORS = {
    "asset",
    "asset_check",
    "multi_asset",
    "multi_asset_check",
    "sensor",
    "schedule",
    "op",
    "run_failure_sensor",
}
#: What Dagster, dagster-mlflow and MLflow offer and goes wrong: docs/reference/dagster-traps.md says why.
MISLEADING = {
    "SourceAsset",
    "external_asset_from_spec",
    "load_defs",
    "asset_sensor",
    "FreshnessPolicy",
    "UPathIOManager",
    "DuckDBPandasIOManager",
    "mlflow_tracking",
    "end_mlflow_on_run_finished",
    "transition_model_version_stage",
}
#: One event of an hour; the log keeps it for ever.
MAX_EVENT_BYTES = 256 * 1024


@pytest.fixture(scope="module")
def defs() -> dg.Definitions:
    return build_defs(Settings())


def _trees(folder: Path) -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted(folder.rglob("*.py")):
        yield path, ast.parse(path.read_text())


def _decorated(tree: ast.Module, names: set[str]) -> Iterator[ast.FunctionDef]:
    """Yield the functions that Dagster decorates: by ``@dg.<name>``, or by one of our own ``@…_asset(…)``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            for decorator in node.decorator_list:
                function = decorator.func if isinstance(decorator, ast.Call) else decorator
                ours = isinstance(function, ast.Name) and function.id.endswith("_asset") and "asset" in names
                if ours or (isinstance(function, ast.Attribute) and function.attr in names):
                    yield node


def test_every_asset_says_that_it_returns_no_value_to_store() -> None:
    returns = {
        f"{path.name}:{function.name}": ast.unparse(function.returns) if function.returns else "nothing said"
        for path, tree in _trees(PACKAGE / "defs")
        for function in _decorated(tree, {"asset", "multi_asset"})
    }
    assert len(returns) >= 16
    assert {name: text for name, text in returns.items() if text != "dg.MaterializeResult"} == {}


def test_annotations_that_dagster_reads_are_no_strings() -> None:
    looked_at = 0
    for path, tree in _trees(PACKAGE / "defs"):
        if not any(True for _ in _decorated(tree, DECORATORS)):
            continue
        looked_at += 1
        imported = [node.module for node in tree.body if isinstance(node, ast.ImportFrom)]
        assert "__future__" not in imported, path
    assert looked_at >= 4


def test_nothing_that_is_known_to_mislead_is_used() -> None:
    used = {
        (path.name, name)
        for path, tree in _trees(PACKAGE)
        for node in ast.walk(tree)
        if (name := getattr(node, "attr", None) or getattr(node, "id", None)) in MISLEADING
    }
    assert used == set()


def test_what_dagster_evaluates_every_few_seconds_reads_no_kafka() -> None:
    for path, tree in _trees(PACKAGE / "defs"):
        for node in ast.walk(tree):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not any(name.startswith(("confluent_kafka", "ingestor.kafka")) for name in modules), path


def test_no_partition_waits_for_a_later_one(defs: dg.Definitions) -> None:
    """`end_offset` above 0 ignores whether the later partition exists."""
    graph = defs.resolve_asset_graph()
    mappings = [
        mapping
        for key in graph.get_all_asset_keys()
        for mapping in graph.get(key).partition_mappings.values()
        if isinstance(mapping, dg.TimeWindowPartitionMapping)
    ]
    assert len(mappings) >= 5
    assert all(mapping.end_offset <= 0 for mapping in mappings)


def test_steps_run_in_the_process_of_their_run(defs: dg.Definitions) -> None:
    assert defs.executor is dg.in_process_executor


def test_the_tracking_store_is_always_named() -> None:
    assert Settings().mlflow_tracking_uri.startswith("sqlite:///")


def test_what_automates_is_on_by_itself(defs: dg.Definitions) -> None:
    repository = defs.get_repository_def()
    assert repository.sensor_defs
    assert repository.schedule_defs
    assert {one.default_status for one in repository.sensor_defs} == {dg.DefaultSensorStatus.RUNNING}
    assert {one.default_status for one in repository.schedule_defs} == {dg.DefaultScheduleStatus.RUNNING}


def test_nothing_heavy_is_in_the_event_log(pipeline: Pipeline) -> None:
    home = ensure_dagster_home(pipeline.settings)
    with open_instance(home) as instance:
        events = instance.all_logs(pipeline.summary.run_id)
    sizes = {
        f"{event.dagster_event_type} of {event.step_key} #{number}": len(dg.serialize_value(event))
        for number, event in enumerate(events)
    }
    assert len(sizes) > 100
    assert {name: size for name, size in sizes.items() if size > MAX_EVENT_BYTES} == {}
    # A backfill's metadata is copied to no other partition: each has numbers of its own.
    rows = pipeline.summary.metadata["ticks"]
    assert len({json.dumps(found, default=str) for found in rows.values()}) == len(rows) > 1
