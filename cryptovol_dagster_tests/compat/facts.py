"""Questions to stores, asked by the build that wrote them and by the one that opens them.

A build hands in its own readers and settings. So the script that writes the stores and the test that opens
them ask with the same code.
"""

from __future__ import annotations

import hashlib
import json
import math
import sqlite3
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

#: The folder the stores were written in; MLflow's database names it.
WRITTEN_IN = "/tmp/cryptovol-before"
#: A span that holds every event time.
EVER = 0, 2**62
#: Columns of MLflow's database that hold the URI of an artifact.
MLFLOW_URIS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


def unpack(archive: Path, folder: Path) -> None:
    """Unpack stores and point MLflow's database to its artifacts there.

    MLflow stores absolute URIs only; whoever moves a data folder has to do the same.
    """
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
    move_artifacts(folder / "data" / "mlflow" / "mlflow.db", folder)


def move_artifacts(database: Path, folder: Path, *, written_in: str = WRITTEN_IN) -> None:
    """Replace the folder of the artifacts in MLflow's database."""
    with sqlite3.connect(database) as connection:
        for table, column in MLFLOW_URIS:
            connection.execute(
                f"UPDATE {table} SET {column} = replace({column}, ?, ?)", (written_in, folder.as_posix())
            )
    connection.close()


def raw_facts(reader: Any, topics: Iterable[str]) -> dict[str, Any]:
    """Return every topic's hours, rows, columns and offsets, and the hours that closed."""
    found: dict[str, Any] = {"hours": {}, "rows": {}, "offsets": {}, "columns": {}, "digest": {}}
    for topic in topics:
        found["hours"][topic] = reader.hours(topic)
        table = reader.read(topic, *EVER)
        found["rows"][topic] = table.num_rows
        found["columns"][topic] = columns_of(table)
        found["digest"][topic] = digest(table)
        found["offsets"][topic] = {
            name: [min(stored), max(stored), len(stored)]
            for name, stored in offsets_of(reader, topic).items()
        }
    found["closed"] = [
        {"hour": one.hour, "rows": dict(one.rows), "version": one.version, "revision": one.revision}
        for one in reader.closed_hours()
    ]
    return found


def offsets_of(reader: Any, topic: str) -> dict[str, list[int]]:
    """Return every Kafka offset that is read, by log and partition."""
    found: dict[str, list[int]] = {}
    for log_id, partition, part in reader.tables(topic, *EVER, ["kafka_offset"]):
        found.setdefault(f"{log_id} {partition}", []).extend(part["kafka_offset"].to_pylist())
    return found


def lake_facts(lake: Any, window: Callable[[str], tuple[int, int]]) -> dict[str, Any]:
    """Return every asset's partitions by kind of file; of tables also columns, rows, version and a hash."""
    found: dict[str, Any] = {}
    for asset, suffixes in _written(lake.root).items():
        stored: dict[str, Any] = {"partitions": {s: lake.partitions(asset, s) for s in suffixes}}
        if "parquet" in suffixes:
            stored["tables"] = {
                key: _table(lake, asset, key, *window(key)) for key in stored["partitions"]["parquet"]
            }
        if "json" in suffixes:
            stored["documents"] = {
                key: _sha(lake.read_bytes(asset, key, "json")) for key in stored["partitions"]["json"]
            }
        found[asset] = stored
    return found


def _table(lake: Any, asset: str, key: str, start_ns: int, end_ns: int) -> dict[str, Any]:
    table = lake.read_table(asset, start_ns, end_ns)
    return {
        "rows": lake.count_rows(asset, key),
        "columns": columns_of(table),
        "version": lake.versions(asset, start_ns, end_ns)[key],
        "digest": digest(table),
    }


def _written(root: Path) -> dict[str, list[str]]:
    """List assets and kinds of files found in the folders, without asking the build."""
    found: dict[str, set[str]] = {}
    for path in root.rglob("part.*"):
        parts = path.relative_to(root).parts
        day = next(k for k, part in enumerate(parts) if part.startswith("date="))
        found.setdefault("/".join(parts[:day]), set()).add(path.name.removeprefix("part."))
    return {asset: sorted(suffixes) for asset, suffixes in sorted(found.items())}


def dagster_facts(instance: dg.DagsterInstance) -> dict[str, Any]:
    """Return runs, materializations of each asset and the result of every check."""
    runs = sorted(instance.get_runs(), key=lambda run: run.run_id)
    return {
        "runs": {
            run.run_id: {
                "status": run.status.value,
                "job": run.job_name,
                "tags": dict(sorted(run.tags.items())),
            }
            for run in runs
        },
        "materializations": {
            key.to_user_string(): sorted(
                [
                    record.partition_key,
                    record.run_id,
                    sorted(record.asset_materialization.metadata),
                ]
                for record in instance.fetch_materializations(key, limit=1_000).records
            )
            for key in sorted(instance.all_asset_keys())
        },
        "partitions": {
            key.to_user_string(): sorted(instance.get_materialized_partitions(key))
            for key in sorted(instance.all_asset_keys())
        },
        "checks": sorted(check for run in runs for check in _checks(instance, run.run_id)),
    }


def _checks(instance: dg.DagsterInstance, run_id: str) -> Iterable[list[Any]]:
    for entry in instance.all_logs(run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION):
        check = entry.get_dagster_event().asset_check_evaluation_data
        yield [
            check.asset_key.to_user_string(),
            check.check_name,
            check.partition or "",
            run_id,
            check.passed,
            check.severity.value,
        ]


def registry_facts(client: Any) -> dict[str, Any]:
    """Return registered models (versions, tags, aliases) and runs (parameters, metrics)."""
    models = {}
    for model in client.search_registered_models():
        versions = {
            str(version.version): {"run_id": version.run_id, "tags": dict(sorted(version.tags.items()))}
            for version in client.search_model_versions(f"name='{model.name}'")
        }
        aliases = {
            alias: str(number) for alias, number in client.get_registered_model(model.name).aliases.items()
        }
        models[model.name] = {"aliases": aliases, "versions": versions}
    experiments = {one.experiment_id: one.name for one in client.search_experiments()}
    runs = {
        run.info.run_id: {
            "name": run.info.run_name,
            "status": run.info.status,
            "experiment": experiments[run.info.experiment_id],
            "params": dict(sorted(run.data.params.items())),
            "metrics": dict(sorted(run.data.metrics.items())),
        }
        for run in client.search_runs(list(experiments))
    }
    return {"models": models, "runs": runs}


def champion_facts(invoke: Callable[..., Any], chain: str) -> dict[str, Any]:
    """Return the decisions of a chain (`cryptovol champion`) and its newest scores (`cryptovol infer`)."""
    scored = invoke("infer", "--json", "--chain", chain)
    for row in scored["latest"]:
        row.pop("age_s")  # by the clock
    return {"decisions": invoke("champion", "--all", "--json", "--chain", chain), "infer": scored}


def exported_facts(invoke: Callable[..., Any], folder: Path) -> dict[str, Any]:
    """Return the scores of `cryptovol infer` with each exported model."""
    found = {}
    for path in sorted(folder.glob("*.zip")):
        chain, _, name = path.stem.partition("-")
        scored = invoke("infer", "--json", "--chain", chain, "--model", name)
        del scored["source"]  # a path
        for row in scored["latest"]:
            row.pop("age_s")
        found[path.stem] = scored
    return found


def next_facts(printed: dict[str, Any]) -> dict[str, Any]:
    """Return what `cryptovol evaluate` prints of an hour, without what differs at every run."""
    return {
        "materialized": printed["materialized"],
        "checks_failed": [[check["asset"], check["name"]] for check in printed["checks_failed"]],
        "evaluation": printed["evaluation"],
        "decision": printed["decision"],
    }


def settings_facts(settings: Any, base: Path) -> dict[str, Any]:
    """Return every key and value; paths are relative to the configuration's folder."""
    text = json.dumps(settings.model_dump(mode="json"), sort_keys=True)
    return json.loads(text.replace(f"{base.resolve()}/", "").replace(f"{base}/", ""))


def machine_facts() -> dict[str, Any]:
    """Return what decides the last bit of a float: versions, and the instructions NumPy finds."""
    import xgboost

    # NumPy fills the table of instructions only where it was built for more than one kind of processor.
    found = np.show_config(mode="dicts").get("SIMD Extensions", {})
    return {"numpy": np.__version__, "xgboost": xgboost.__version__, "simd": found.get("found", [])}


def columns_of(table: pa.Table) -> dict[str, str]:
    """Return the type of each column, in their order."""
    return {field.name: str(field.type) for field in table.schema}


def digest(table: pa.Table) -> str:
    """Return a short hash of all values, whatever chunks and dictionaries store them."""
    frame = table.to_pandas()
    plain = {name: str for name in frame.columns if isinstance(frame[name].dtype, pd.CategoricalDtype)}
    rows = pd.util.hash_pandas_object(frame.astype(plain), index=False).to_numpy()
    return _sha(rows.tobytes())


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def probabilities(model: Any, given: Path) -> list[str]:
    """Score stored rows; hexadecimal probabilities lose no bit."""
    return [float(p).hex() for p in model.predict(pq.read_table(given).to_pandas())]


def differences(found: Any, expected: Any, where: str = "", *, rel_tol: float = 0.0) -> list[str]:
    """List what differs. A new key is no difference: stores may grow."""
    if isinstance(expected, dict) and isinstance(found, dict):
        return [
            line
            for key, value in expected.items()
            for line in (
                differences(found[key], value, f"{where}/{key}", rel_tol=rel_tol)
                if key in found
                else [f"{where}/{key} is gone"]
            )
        ]
    if isinstance(expected, list) and isinstance(found, list) and len(found) == len(expected):
        return [
            line
            for k, value in enumerate(expected)
            for line in differences(found[k], value, f"{where}[{k}]", rel_tol=rel_tol)
        ]
    if isinstance(expected, float) and isinstance(found, int | float):
        same = found == expected or math.isclose(found, expected, rel_tol=rel_tol)
    else:
        same = found == expected
    return [] if same else [f"{where}: expected {expected!r}, found {found!r}"]
