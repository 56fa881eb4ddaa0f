"""`cryptovol leak-audit`: the table, the list, its input, and that a leak which passes is an exit code."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cryptovol_dagster.cli import main
from cryptovol_dagster.core.leaks import audit as leak_audit
from cryptovol_dagster.core.leaks import detectors
from cryptovol_dagster.core.leaks.audit import Verdict
from cryptovol_dagster.core.leaks.detectors import Finding
from cryptovol_dagster.core.leaks.ladder import LEAKS, Rung
from cryptovol_dagster.core.market.synthetic import synthetic_bars
from cryptovol_dagster.verbs import leak_audit as verb
from cryptovol_dagster_tests.core.leaks.bars import LEAK_SPEC
from cryptovol_dagster_tests.places import REPOSITORY

HONEST = Rung("honest", "", "xgboost", 900, 300, 0.1, 0.4, 0.5)
CLEAN = (Finding("time_order", True, "in order"), Finding("purge", True, "purged"))


def verdict(leak: str, *fired: str) -> Verdict:
    found = tuple(replace_clean(finding, finding.detector not in fired) for finding in CLEAN)
    detector = leak_audit.CAUGHT_BY[leak].__name__ if leak != "honest" else ""
    return Verdict(replace(HONEST, name=leak, average_precision=0.9), HONEST, detector, found)


def replace_clean(finding: Finding, clean: bool) -> Finding:
    return finding._replace(clean=clean, said=finding.said if clean else "3 rows are wrong")


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["leak-audit", *arguments])


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[Verdict]:
    """What the audit shall say, instead of auditing."""
    verdicts = [verdict("honest"), verdict("random split", "time_order", "purge")]
    monkeypatch.setattr(leak_audit, "audit_leaks", lambda *args, **options: tuple(verdicts))
    monkeypatch.setattr(verb, "_MADE_UP_BARS", 10)
    return verdicts


def test_a_table_tells_what_was_caught_by_whom_and_what_it_would_have_claimed(said: list[Verdict]) -> None:
    result = invoke()
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[0] == "synthetic market 1: 900 training rows, 300 test rows, base rate 0.100"
    assert "not flagged" in lines[2]
    expected = "random split time_order 0.900 0.400 0.500 0.500 caught (also by purge)"
    assert " ".join(lines[3].split()) == expected
    assert lines[-1] == "every leak is caught, the honest way is not flagged"


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (verdict("random split", "purge"), "PASSED (also by purge)"),
        (verdict("missing purge"), "PASSED"),
        (verdict("honest", "purge"), "FALSE ALARM: purge"),
    ],
)
def test_a_leak_that_passes_and_a_false_alarm_are_an_exit_code(
    said: list[Verdict], wrong: Verdict, says: str
) -> None:
    said.append(wrong)
    result = invoke("--markets", "2")
    assert result.exit_code == 1
    assert result.output.count(says) == 2
    assert result.output.splitlines()[-1] == "THE AUDIT FAILS"
    body = json.loads(invoke("--json").stdout)
    assert not body["passed"]
    assert [found["passed"] for found in body["audits"][0]["verdicts"]] == [True, True, False]
    if says.startswith("FALSE"):
        assert "    purge: 3 rows are wrong" in result.output


def test_it_audits_the_bars_it_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bars = synthetic_bars(LEAK_SPEC, 2_000)
    for part, (start, end) in enumerate(((0, 900), (900, 2_000))):
        span = (bars.start_ns + k * bars.bar_ns for k in (start, end))
        bars.slice(*span).to_frame().to_parquet(tmp_path / f"{part}.parquet")
    given, caught = [], verdict("honest")
    monkeypatch.setattr(leak_audit, "audit_leaks", lambda *args, **options: given.append(args) or (caught,))
    result = invoke("--bars", str(tmp_path))
    assert result.exit_code == 0, result.output
    ((read, timescale, spec),) = given
    assert (read.products, read.n_bars) == (bars.products, 2_000)
    assert (timescale.name, spec.xgboost_trees) == ("seconds", 60)


def test_what_it_cannot_read_is_one_line(tmp_path: Path) -> None:
    empty, broken = tmp_path / "empty", tmp_path / "broken.parquet"
    empty.mkdir()
    broken.write_text("no parquet")
    for path, says in (
        (empty, "contains no Parquet file"),
        (broken, "cannot be read as bars: "),
        (tmp_path / "nowhere.parquet", "cannot be read as bars: "),
    ):
        result = invoke("--bars", str(path))
        assert result.exit_code == 1
        assert result.output.startswith(f"Error: {path}: {says}")
        assert len(result.output.strip().splitlines()) == 1
    short = tmp_path / "short.parquet"
    synthetic_bars(LEAK_SPEC, 600).to_frame().to_parquet(short)
    result = invoke("--bars", str(short))
    assert (result.exit_code, len(result.output.strip().splitlines())) == (1, 1)
    assert "no row has both valid features and a label" in result.output


def test_the_list_and_the_document_name_every_leak_and_its_detector() -> None:
    listed = json.loads(invoke("--list", "--json").stdout)
    assert [row["leak"] for row in listed] == [leak.name for leak in LEAKS]
    text = invoke("--list").output
    document = (REPOSITORY / "docs" / "concepts" / "leaks.md").read_text()
    for row in listed:
        assert row["leak"] in text
        assert f"| {row['leak']} |" in document
        assert f"`{row['detector']}`" in document
    for detector in (*detectors.DETECTORS, *detectors.PAST_DETECTORS):
        assert f"`{detector.__name__}`" in document
