"""`cryptovol export`: the API's rows in a file, whole or not at all."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import yaml
from click.testing import CliRunner, Result

from cryptovol_dagster import api
from cryptovol_dagster.cli import main
from cryptovol_dagster.verbs import export as verb
from cryptovol_dagster_tests.pipeline import Pipeline
from cryptovol_dagster_tests.synthetic import PRODUCTS

SPAN = ("--from", "2026-04-04T03:30", "--to", "2026-04-04T05:30")


@pytest.fixture
def config(pipeline: Pipeline, tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(pipeline.settings.model_dump(mode="json", exclude={"kafka"})))
    return path


def run(config: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> Result:
    monkeypatch.setenv("CRYPTOVOL_CONFIG", str(config))
    return CliRunner().invoke(main, ["export", *map(str, arguments)])


@pytest.mark.parametrize("kind", ["ticks", "trades", "bars", "features", "labels", "scores", "coverage"])
def test_a_parquet_file_is_the_frame(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(verb, "_GROUP_ROWS", 1_000)
    out = tmp_path / f"{kind}.parquet"
    result = run(config, monkeypatch, kind, "--product", PRODUCTS[0], *SPAN, "--out", out)
    assert result.exit_code == 0, result.output
    expected = getattr(api.open(config), kind)(PRODUCTS[0], SPAN[1], SPAN[3])
    assert len(expected) > 2
    pd.testing.assert_frame_equal(pd.read_parquet(out), expected, check_categorical=False)


@pytest.mark.parametrize("ending", [".csv", ".csv.gz"])
def test_csv_reads_back_to_the_same_values(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    out = tmp_path / f"bars{ending}"
    columns = ["close", "log_return", "trades", "stale"]
    result = run(config, monkeypatch, "bars", *SPAN, "--columns", ",".join(columns), "--out", out)
    assert result.exit_code == 0, result.output
    found = pd.read_csv(out, index_col=0, parse_dates=True, float_precision="round_trip")
    expected = api.open(config).bars(start=SPAN[1], end=SPAN[3], columns=columns)
    assert found.index.equals(expected.index)
    assert found["product"].tolist() == expected["product"].tolist()
    pd.testing.assert_frame_equal(found.drop(columns="product"), expected.drop(columns="product"))
    assert found["log_return"].isna().any()


def test_duckdb_holds_a_table_a_kind(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "market.duckdb"
    kinds = ("ticks", "bars", "features", "labels", "gaps")
    result = run(config, monkeypatch, *kinds, "--out", out, "--json")
    assert result.exit_code == 0, result.output
    told = {table["kind"]: table for table in json.loads(result.stdout)["tables"]}
    market = api.open(config)
    with duckdb.connect(str(out), read_only=True) as database:
        for kind in kinds:
            expected = getattr(market, kind)().reset_index()
            found = database.sql(f"SELECT * FROM {kind}").df()
            assert list(found.columns) == list(expected.columns)
            assert told[kind]["rows"] == len(found) == len(expected)
            for name in expected.select_dtypes("float"):
                np.testing.assert_array_equal(found[name], expected[name])
            index = expected.columns[0]
            assert found[index].dt.tz_localize("UTC").tolist() == expected[index].tolist()
        comments = dict(
            database.sql(
                "SELECT column_name, comment FROM duckdb_columns() WHERE table_name = 'bars'"
            ).fetchall()
        )
    assert comments["spread_bps"] == "(ask − bid) / mid at the bar's end [bps]"
    assert list(tmp_path.glob(".market*")) == []


def test_the_rows_held_at_once_do_not_grow_with_the_span(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    join = pa.concat_tables
    monkeypatch.setattr(verb, "_GROUP_ROWS", 1_500)

    def watched(held: list[pa.Table], **options: object) -> pa.Table:
        table = join(held, **options)
        if len(held) > 1:
            written.append(len(table))
        return table

    monkeypatch.setattr(pa, "concat_tables", watched)
    result = run(config, monkeypatch, "bars", "--out", tmp_path / "bars.parquet")
    assert result.exit_code == 0, result.output
    assert written == [2 * 1_440, 2 * 1_440]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("bars", "--out", "there.csv"), "there.csv exists: --force replaces it"),
        (
            ("bars", "--out", "bars.xlsx"),
            "a file is one of .parquet, .csv, .csv.gz, .duckdb",
        ),
        (("bars", "ticks", "--out", "b.csv"), "contains one kind of rows; bars, ticks need a .duckdb file"),
        (("bars", "ticks", "--columns", "close", "--out", "b.duckdb"), "--columns requires one kind"),
        (("bars", "--model", "xgboost", "--out", "b.csv"), "--model is for scores: bars are not computed"),
        (("scores", "--columns", "probabilty", "--out", "b.csv"), "Did you mean 'probability'?"),
        (("gaps", "--columns", "kind,", "--out", "b.csv"), "gaps have no column ''"),
        (("bar", "--out", "b.csv"), "Did you mean 'bars'?"),
        (("bars", "--product", "BTC-USDT", "--out", "b.csv"), "Did you mean 'BTC-USD'?"),
        (("bars", "--from", "2026-05-01", "--out", "b.parquet"), "There are 4 hours"),
        (("bars", "--from", "soon", "--out", "b.parquet"), "'soon' is no time"),
        (("bars", "--out", "there.csv/b.csv"), "there.csv/b.csv: cannot be written: "),
    ],
)
def test_what_cannot_be_exported_is_one_line_and_nothing_is_written(
    config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there.csv").write_text("kept")
    before = sorted(tmp_path.iterdir())
    result = run(config, monkeypatch, *arguments)
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert message in result.stderr
    assert sorted(tmp_path.iterdir()) == before
    assert Path("there.csv").read_text() == "kept"


def test_columns_of_what_is_computed_may_stand_apart(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "gaps.csv"
    result = run(config, monkeypatch, "gaps", "--columns", "kind, lost", "--out", out)
    assert result.exit_code == 0, result.output
    assert out.read_text().splitlines()[0] == '"start","kind","lost"'


def test_nothing_is_read_before_every_kind_is_known(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr("cryptovol_dagster.api.reading.Query.read", broken)
    result = run(config, monkeypatch, "bars", "tick", "--out", tmp_path / "market.duckdb")
    assert result.exit_code == 1
    assert result.stderr.strip().endswith("Did you mean 'ticks'?")


def test_the_configuration_is_the_one_of_every_other_verb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.yaml").write_text("storage: {data_dir: of_above}\n")
    below = tmp_path / "below"
    below.mkdir()
    monkeypatch.chdir(below)
    monkeypatch.delenv("CRYPTOVOL_CONFIG", raising=False)
    result = CliRunner().invoke(main, ["export", "bars", "--out", "bars.csv"])
    assert result.exit_code == 1
    assert f"{below / 'data' / 'lake'} has no seconds/bars yet" in result.stderr
    result = run(Path("nope.yaml"), monkeypatch, "bars", "--out", "bars.csv")
    assert result.exit_code == 2
    assert result.stderr.strip() == "Error: nope.yaml: no such configuration file"


def test_an_existing_file_is_replaced_when_asked(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "bars.csv"
    out.write_text("before")
    result = run(config, monkeypatch, "bars", "--from", "-10s", "--out", out, "--force")
    assert result.exit_code == 0, result.output
    assert len(out.read_text().splitlines()) == 1 + 2 * 2
    assert (
        "bars     4 rows × 23 columns, 2026-04-04T06:59:50+00:00 … 2026-04-04T06:59:55+00:00" in result.stdout
    )


@pytest.mark.parametrize("name", ["features.parquet", "features.csv", "features.duckdb"])
def test_a_disk_that_takes_no_more_is_one_line_and_leaves_nothing(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, limits[1]))
    try:
        result = run(config, monkeypatch, "features", "--out", tmp_path / name)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert f"{name}: cannot be written: " in result.stderr
    assert result.stderr.strip().endswith("File too large")
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]
