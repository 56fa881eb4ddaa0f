"""A real recording through the real commands: socket → broker → raw storage → assets, and by `replay`."""

from __future__ import annotations

import json
import uuid
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cryptovol_dagster.chains import timescale_spec
from cryptovol_dagster.core.features.catalogue import feature_names
from cryptovol_dagster.core.times import hour_window
from cryptovol_dagster.lake.files import Lake
from cryptovol_dagster.verbs import runs
from cryptovol_dagster_tests.e2e.processes import cryptovol, environment, simulated
from cryptovol_dagster_tests.e2e.recorded import EVER_NS, ticks_of_raw_storage, ticks_of_recording
from ingestor.archive.reader import RawReader
from ingestor.audit.hours import audit
from ingestor.envelope import DEAD, EVENTS, TICKS, TRADES
from ingestor.settings import Settings
from ingestor.settings.sections import EMBEDDED, KafkaSettings, StorageSettings

RECORDING = "btc_eth_2026-04-04_2h.ndjson.gz"
N_TICKS = 30_123
HOURS = ["2026-04-04-03:00", "2026-04-04-04:00", "2026-04-04-05:00"]
PRODUCTS = ("BTC-USD", "ETH-USD")
SPEC = timescale_spec(Settings().timescales.seconds, "seconds")
KEY = ["product", "bar_start"]


@dataclass(frozen=True)
class Recorded:
    """The recording in raw storage, brought there by `cryptovol simulate` and `cryptovol ingest`."""

    recording: Path
    settings: Settings
    env: dict[str, str]
    sent: dict[str, Any]
    summary: dict[str, Any]

    @property
    def raw_dir(self) -> Path:
        return self.settings.storage.raw_dir


def record(folder: Path, recordings: Path, bootstrap_servers: str) -> Recorded:
    kafka = KafkaSettings(bootstrap_servers=bootstrap_servers, topic_prefix=f"test-{uuid.uuid4().hex[:8]}.")
    storage = StorageSettings(
        data_dir=folder / "data", reports_dir=folder / "reports", artifacts_dir=folder / "artifacts"
    )
    settings = Settings(kafka=kafka, storage=storage)
    env = environment(settings, folder)
    played = ("--recording", recordings / RECORDING, "--speed", "max", "--once")
    with simulated(*played, env=env) as market:
        done = cryptovol("ingest", "--url", market.url, "--until-closed", "--json", env=env)
        assert done.returncode == 0, done.stderr
        sent = market.ended()
    return Recorded(recordings / RECORDING, settings, env, sent, json.loads(done.stdout.splitlines()[-1]))


@pytest.fixture(scope="module")
def by_embedded(tmp_path_factory: pytest.TempPathFactory, recordings: Path) -> Recorded:
    return record(tmp_path_factory.mktemp("embedded"), recordings, EMBEDDED)


@pytest.fixture(scope="module")
def by_kafka(tmp_path_factory: pytest.TempPathFactory, recordings: Path, real_kafka: str) -> Recorded:
    return record(tmp_path_factory.mktemp("kafka"), recordings, real_kafka)


@pytest.fixture(params=["embedded", pytest.param("kafka", marks=pytest.mark.kafka)])
def recorded(request: pytest.FixtureRequest) -> Recorded:
    return request.getfixturevalue(f"by_{request.param}")


def test_every_tick_of_the_recording_is_in_raw_storage_exactly_once(recorded: Recorded) -> None:
    expected = ticks_of_recording(recorded.recording)
    assert len(expected) == N_TICKS
    stored = ticks_of_raw_storage(recorded.raw_dir)
    assert stored == expected
    feed = recorded.summary["feed"]
    assert (recorded.sent["event"], recorded.sent["ticks"], recorded.sent["connections"]) == (
        "finished",
        N_TICKS,
        1,
    )
    assert (recorded.summary["ended"], feed["ticks"], feed["frames"]) == (
        "closed",
        N_TICKS,
        sum(recorded.sent["frames"].values()),
    )
    assert (feed["gaps"], feed["repeats"], feed["dead_letters"], feed["reconnects"]) == (0, 0, 0, 0)


def test_every_offset_is_stored_once_and_the_summary_tells_them(recorded: Recorded) -> None:
    reader = RawReader(recorded.raw_dir)
    for topic, partitions in recorded.summary["archived_offsets"].items():
        table = reader.read(topic, 0, EVER_NS, columns=["kafka_partition", "kafka_offset"])
        stored = Counter(zip(*(column.to_pylist() for column in table.columns), strict=True))
        assert stored == Counter(
            (int(partition), offset) for partition, end in partitions.items() for offset in range(end)
        )
        assert reader.offset_gaps(topic) == []
    assert sum(recorded.summary["archived_offsets"][TICKS].values()) == N_TICKS
    assert reader.count(TRADES, 0, EVER_NS) == reader.count(DEAD, 0, EVER_NS) == 0
    last = reader.read(EVENTS, 0, EVER_NS).to_pylist()[-2:]
    assert [event["kind"] for event in last] == ["checkpoint", "disconnected"]
    audited = audit(reader)
    assert (audited.findings, audited.total("stored"), audited.total("frames")) == (
        (),
        len(set(reader.read(TICKS, 0, EVER_NS, ["sequence_num"])["sequence_num"].to_pylist())),
        recorded.summary["feed"]["frames"],
    )
    assert [seal.state for seal in audited.seals] == ["unchanged"] * 2
    # The last hour has not ended, the first two have, by far more than the two minutes of settling.
    assert [hour.hour for hour in reader.closed_hours()] == HOURS[:2]


@pytest.fixture(scope="module")
def assets(by_embedded: Recorded) -> pd.DataFrame:
    """Features of the three hours, by one range run of the Dagster assets."""
    settings = by_embedded.settings
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAGSTER_HOME", by_embedded.env["DAGSTER_HOME"])
        summary = runs.materialize_range(
            settings, HOURS[0], HOURS[-1], ["gap_ledger", "ticks", "seconds/bars", "seconds/features"]
        )
    assert [check for check in summary.checks_failed if check.severity == "ERROR"] == []
    assert sum(hour["kept"] for hour in summary.metadata["ticks"].values()) == N_TICKS
    window = hour_window(HOURS[0])[0], hour_window(HOURS[-1])[1]
    return in_order(Lake(settings.storage.lake_dir).read_table("seconds/features", *window).to_pandas())


def in_order(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.astype({"product": str}).sort_values(KEY).reset_index(drop=True)


def replayed(recorded: Recorded, out: Path, *files: Path) -> tuple[dict[str, Any], pd.DataFrame]:
    named = [argument for file in files for argument in ("--data-file", file)]
    done = cryptovol("replay", *named, "--out", out, "--json", env=recorded.env)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), in_order(pd.read_parquet(out))


def assert_same_features(replayed: pd.DataFrame, assets: pd.DataFrame) -> None:
    """The same rows with the same numbers, absent where they are absent."""
    assert list(replayed.columns) == list(assets.columns)
    for name in (*KEY, "valid", "reason"):
        np.testing.assert_array_equal(replayed[name].to_numpy(), assets[name].to_numpy(), err_msg=name)
    for name in feature_names(SPEC):
        # Absent equals absent only. Sums are sums of integers; a logarithm or a sine may differ in its last
        # place.
        tolerance = 1e-12 if any(part in name for part in ("ln_", "ratio", "sin_", "cos_")) else 0
        np.testing.assert_allclose(
            replayed[name].to_numpy(), assets[name].to_numpy(), rtol=tolerance, atol=0, err_msg=name
        )


def test_replay_of_the_recording_gives_the_features_of_the_assets(
    by_embedded: Recorded, assets: pd.DataFrame, tmp_path: Path
) -> None:
    counts, rows = replayed(by_embedded, tmp_path / "features.parquet", by_embedded.recording)
    assert len(assets) == counts["rows"] == len(PRODUCTS) * len(HOURS) * 3_600
    assert int(assets["valid"].sum()) == counts["valid_rows"] > 12_000
    assert_same_features(rows, assets)


def test_replay_of_raw_storage_gives_the_features_of_the_assets(
    by_embedded: Recorded, assets: pd.DataFrame, tmp_path: Path
) -> None:
    files = sorted((by_embedded.raw_dir / TICKS).glob("date=*/hour=*/*.parquet"))
    counts, rows = replayed(by_embedded, tmp_path / "features.parquet", *files)
    assert (counts["files"], counts["kept"]) == (len(files), N_TICKS)
    assert_same_features(rows, assets)


def test_replay_takes_the_newest_closed_hour_by_itself(
    by_embedded: Recorded, assets: pd.DataFrame, tmp_path: Path
) -> None:
    counts, rows = replayed(by_embedded, tmp_path / "features.parquet")
    assert counts["start"] == "2026-04-04T04:00:00+00:00"  # the next one was recorded in part
    start = pd.Timestamp(counts["start"])
    hour = assets[(assets["bar_start"] >= start) & (assets["bar_start"] < start + pd.Timedelta("1h"))]
    assert len(rows) == 7_200
    assert_same_features(rows, hour.reset_index(drop=True))
