"""Bad input to the commands as people run them: one clear line, an exit code, everything earlier kept."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml

from cryptovol_dagster.verbs import runs
from cryptovol_dagster_tests.e2e.processes import cryptovol, cryptovol_here, environment, simulated
from cryptovol_dagster_tests.synthetic import FIRST_HOUR, small_settings, write_market
from ingestor.archive.reader import RawReader
from ingestor.envelope import TICKS

NOBODY = "ws://127.0.0.1:9"
START = datetime(2026, 4, 4, 3, 10, tzinfo=UTC)


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """The defaults, with every folder inside the test's own."""
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"storage": {"data_dir": str(tmp_path / "data")}}))
    return os.environ | {"CRYPTOVOL_CONFIG": str(config), "DAGSTER_HOME": ""}


def failure(done: subprocess.CompletedProcess[str], code: int = 1) -> str:
    """The line in which a command says why it failed; what it logged before is no part of it."""
    assert done.returncode == code, done
    assert "Traceback" not in done.stderr
    *logged, last = done.stderr.splitlines()
    assert last.startswith("Error: ")
    assert not any(line.startswith("Error") for line in logged)
    assert all(" WARNING " in line for line in logged), logged
    return last


def test_a_configuration_that_cannot_be_read(env: dict[str, str], tmp_path: Path) -> None:
    for verb, text, says in (
        ("ingest", "kafka:\n  topicprefix: mine.\n", ":2: unknown key 'kafka.topicprefix'"),
        ("replay", "storage:\n  flush_s: soon\n", ":2: storage.flush_s"),
        ("backfill", "kafka: [\n", ":2: not valid YAML"),
    ):
        config = tmp_path / "broken.yaml"
        config.write_text(text)
        line = failure(cryptovol_here("--config", config, verb, env=env), code=2)
        assert f"{config}{says}" in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.yaml", "config.yaml"]


def test_nobody_at_the_other_end(env: dict[str, str], tmp_path: Path) -> None:
    dead = tmp_path / "dead.yaml"
    kafka = {"bootstrap_servers": "127.0.0.1:9", "connect_timeout_s": 1}
    dead.write_text(yaml.safe_dump({"kafka": kafka, "storage": {"data_dir": "data"}}))
    for verb in (("ingest", "--duration", "1"), ("check-stream", "--duration", "1")):
        line = failure(cryptovol("--config", dead, *verb, env=env))
        assert "Kafka broker at 127.0.0.1:9 cannot be reached within 1 s: Connection refused" in line
    wait = ("--until-closed", "--connect-timeout", "0.5")
    line = failure(cryptovol("ingest", "--url", NOBODY, *wait, env=env))
    assert f"{NOBODY}: no readable frame for 0.5 s: connection refused" in line


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty recording"),
        (gzip.compress(b""), "empty recording"),
        (
            b'{"e":"trade","s":"BTCUSDT","p":"1.0","q":"2"}\n' * 50,
            "no recording of the exchange's feed (line 1",
        ),
        (bytes(range(256)) * 8, "no recording of the exchange's feed (line 1: not "),
        (None, "cannot be read: Is a directory"),
    ],
    ids=["empty", "empty.gz", "another-protocol", "noise", "folder"],
)
def test_a_recording_that_is_none(
    env: dict[str, str], tmp_path: Path, content: bytes | None, says: str
) -> None:
    file, out = tmp_path / "recording", tmp_path / "features.parquet"
    if content is None:
        file.mkdir()
    else:
        file.write_bytes(content)
    out.write_text("of an earlier run")
    for command in (
        ("simulate", "--recording", file, "--once"),
        ("replay", "--data-file", file, "--out", out),
    ):
        # One of them as a process of its own, which may neither log nor print anything more.
        done = (cryptovol if content == b"" else cryptovol_here)(*command, env=env)
        assert (done.stdout, len(done.stderr.splitlines())) == ("", 1)
        assert failure(done).startswith(f"Error: {file}: {says}")
    assert out.read_text() == "of an earlier run"
    assert {path.name for path in tmp_path.iterdir()} == {"config.yaml", "features.parquet", "recording"}


def frame(number: int, seconds: float, bid: str = "100.00", ask: str = "100.02") -> str:
    """A line of a recorder: one quote, `seconds` after the start."""
    stamp = (START + timedelta(seconds=seconds)).isoformat().replace("+00:00", "Z")
    ticker = {"type": "ticker", "product_id": "BTC-USD", "price": "100.01", "best_bid": bid, "best_ask": ask}
    ticker |= {"best_bid_quantity": "1", "best_ask_quantity": "2"}
    event = {"type": "update", "tickers": [ticker]}
    told = {"channel": "ticker", "timestamp": stamp, "sequence_num": number, "events": [event]}
    return json.dumps({"received_at": stamp, "frame": told})


def dirty_recording(path: Path) -> Path:
    """900 s, a quote a second; of the 900: 1 late, 5 unusable, 1 swapped with its successor."""
    lines = [frame(second, second) for second in range(900)]
    lines[100] = frame(100, 90)
    lines[200] = frame(200, 200, bid="NaN")
    lines[201] = frame(201, 201, ask="-1")
    lines[202] = frame(202, 202, bid="0")
    lines[203] = frame(203, 203, bid="100.05")
    lines[204] = frame(204, 204, bid="no number")
    lines[300], lines[301] = frame(300, 301), frame(301, 300)
    path.write_text("\n".join(lines) + "\n")
    return path


def test_bad_quotes_and_disorder_are_counted_alike_by_replay_and_by_the_assets(tmp_path: Path) -> None:
    settings = small_settings(tmp_path)
    env = environment(settings, tmp_path)
    recording = dirty_recording(tmp_path / "dirty.ndjson")
    done = cryptovol_here("replay", "--data-file", recording, "--json", env=env)
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    asked = ("lines", "unreadable", "ticks", "duplicates", "late", "rejected", "kept")
    assert [counts[name] for name in asked] == [900, 0, 900, 0, 1, 5, 894]

    with simulated("--recording", recording, "--speed", "max", "--once", env=env) as market:
        recorded = cryptovol("ingest", "--url", market.url, "--until-closed", "--json", env=env)
        assert recorded.returncode == 0, recorded.stderr
    # Raw storage judges nothing.
    assert RawReader(settings.storage.raw_dir).count(TICKS, 0, 2**62) == 900
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAGSTER_HOME", env["DAGSTER_HOME"])
        summary = runs.materialize_range(settings, FIRST_HOUR, FIRST_HOUR, ["gap_ledger", "ticks"])
    ticks = summary.metadata["ticks"][FIRST_HOUR]
    margins = ticks["with_margins"]
    assert (ticks["read"], ticks["kept"]) == (900, 894)
    assert (margins["duplicates"], margins["late"], margins["rejected"]) == (0, 1, 5)


def test_every_line_twice_counts_once(env: dict[str, str], tmp_path: Path, recordings: Path) -> None:
    """The same rows as those of the clean recording, and each tick stored once."""
    source = recordings / "btc_2026-04-05_20min_verbatim.ndjson.gz"
    lines = gzip.decompress(source.read_bytes()).decode().splitlines()
    doubled = tmp_path / "doubled.ndjson"
    doubled.write_text("".join(f"{line}\n{line}\n" for line in [*lines, "half a li"]))
    outs = []
    for file in (source, doubled):
        outs.append(tmp_path / f"{file.name.split('.')[0]}.csv")
        done = cryptovol_here("replay", "--data-file", file, "--out", outs[-1], "--json", env=env)
        assert done.returncode == 0, done.stderr
        counts = json.loads(done.stdout)
    assert (counts["lines"], counts["unreadable"]) == (2 * len(lines) + 2, 2)
    assert (counts["ticks"], counts["duplicates"], counts["kept"]) == (11_940, 5_970, 5_970)
    assert outs[0].read_bytes() == outs[1].read_bytes()

    # Played to the recorder, whoever numbers the frames: each is stored once.
    with simulated("--recording", doubled, "--speed", "max", "--once", env=env) as market:
        played = ("--url", market.url, "--products", "BTC-USD", "--until-closed", "--json")
        done = cryptovol("ingest", *played, env=env)
    assert done.returncode == 0, done.stderr
    raw = RawReader(tmp_path / "data" / "raw")
    assert raw.count(TICKS, 0, 2**62) == 5_970


def test_a_file_stands_where_the_data_folder_should_be(env: dict[str, str], tmp_path: Path) -> None:
    standing = tmp_path / "data"
    standing.write_text("mine")
    wait = ("--until-closed", "--connect-timeout", "5")
    line = failure(cryptovol("ingest", "--url", NOBODY, *wait, env=env))
    assert f"raw storage cannot write {standing / 'raw' / '_tmp'}: Not a directory" in line
    line = failure(cryptovol_here("backfill", env=env))
    assert f"raw storage cannot read {standing / 'raw' / TICKS}: Not a directory" in line
    line = failure(cryptovol_here("train", "--partition", FIRST_HOUR, env=env))
    assert f"{standing / 'dagster_home'}: cannot contain the Dagster instance: Not a directory" in line
    assert standing.read_text() == "mine"


def test_a_file_stands_where_results_should_be(tmp_path: Path) -> None:
    settings = small_settings(tmp_path)
    env = environment(settings, tmp_path)
    write_market(settings.storage.raw_dir, [FIRST_HOUR])
    before = sorted(settings.storage.raw_dir.rglob("*"))
    settings.storage.lake_dir.write_text("mine")
    line = failure(cryptovol("backfill", "--market-only", env=env))
    assert f"{settings.storage.lake_dir}" in line
    assert "cannot be written: Not a directory" in line
    raw = next(settings.storage.raw_dir.glob(f"{TICKS}/*/*/*.parquet"))
    out = settings.storage.lake_dir / "features.parquet"
    line = failure(cryptovol_here("replay", "--data-file", raw, "--out", out, env=env))
    assert line.startswith(f"Error: {out}: cannot be written: ")
    assert settings.storage.lake_dir.read_text() == "mine"
    assert sorted(settings.storage.raw_dir.rglob("*")) == before
