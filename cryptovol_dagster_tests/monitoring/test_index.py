"""The page over all reports: every report keeps its entry, and every link leads somewhere."""

from __future__ import annotations

import json
import re
from pathlib import Path
from urllib.parse import unquote

import pytest

from cryptovol_dagster.chains import timescale_spec
from cryptovol_dagster.lake.files import Lake
from cryptovol_dagster.lake.latest import Reports
from cryptovol_dagster.monitoring.drift import SCHEMA_VERSION
from cryptovol_dagster.monitoring.index import SUMMARY, ReportIndexError, entries, write_index
from cryptovol_dagster_tests.synthetic import FIRST_HOUR, hours_from, small_settings

SPEC = timescale_spec(small_settings(Path()).timescales.seconds, "seconds")
FIRST, SECOND = hours_from(FIRST_HOUR, 2)


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path / "data" / "lake")


@pytest.fixture
def reports(tmp_path: Path) -> Reports:
    return Reports(tmp_path / "reports", tmp_path / "artifacts")


def _report(lake: Lake, key: str, kind: str, share: float | None, *, page: bool = True) -> None:
    side = {"name": "recent <hours>", "hours": key, "rows": 500, "sampled_from": 700}
    summary = {"kind": kind, "as_of": key, "measured_on": [side], "share_over": share, "verdict": "a & b"}
    lake.write_bytes(f"seconds/{kind}", key, json.dumps(summary).encode(), SUMMARY)
    if page:
        lake.write_bytes(f"seconds/{kind}", key, b"<html></html>", "html")


def _scored(lake: Lake, key: str, share: float | None, limit: float = 0.3, **more: object) -> None:
    numbers = {
        "schema_version": SCHEMA_VERSION,
        "as_of": key,
        "share_over": share,
        "over_limit": share is not None and share > limit,
        "limit": limit,
        "calibrated": limit != 0.3,
        "calibration": {"told": "calibrated on <40> pairs" if limit != 0.3 else "uncalibrated"},
    }
    lake.write_bytes("seconds/drift_scores", key, json.dumps(numbers | more).encode(), "json")


def test_an_empty_lake_has_a_page_that_says_what_to_do(lake: Lake, reports: Reports) -> None:
    page = write_index(lake, reports, SPEC).read_text()
    for text in ("cryptovol report</code> makes one", "No drift numbers yet", "makes the first"):
        assert text in page


def test_the_newest_come_first_and_links_lead_to_files_of_the_lake(lake: Lake, reports: Reports) -> None:
    _report(lake, FIRST, "drift_report", 0.41)
    _report(lake, FIRST, "data_quality_report", None, page=False)
    _report(lake, SECOND, "drift_report", 0.07)
    _scored(lake, FIRST, 0.5)
    _scored(lake, SECOND, None)
    reports.write(reports.model_card, b"# card")
    reports.write(reports.evaluation_page, b"<html></html>")
    reports.write(reports.evidently("drift_report", "html"), b"<html></html>")
    found = entries(lake, SPEC)
    assert [(one.as_of, one.kind, one.share_over) for one in found] == [
        (SECOND, "drift_report", 0.07),
        (FIRST, "drift_report", 0.41),
        (FIRST, "data_quality_report", None),
    ]
    assert found[2].path is None
    assert entries(lake, SPEC, limit=1) == found[:1]
    page = write_index(lake, reports, SPEC).read_text()
    links = re.findall(r'href="([^"]+)"', page)
    assert len(links) == 5
    assert links[0] == "evaluation.html"
    for link in links:
        assert not link.startswith(("/", "http", "file"))
        assert (reports.reports_dir / unquote(link)).resolve().is_file(), link
    assert page.index(SECOND) < page.rindex(FIRST)
    for text in (
        "41%",
        "removed",
        "500 rows sampled from 700",
        "1 of 2 hours over their limit",
        "no reference",
    ):
        assert text in page
    assert "recent &lt;hours&gt;" in page
    assert "a &amp; b" in page
    assert page.count('class="over"') == 1


def test_a_hostile_file_name_is_escaped_as_text_and_quoted_as_link(lake: Lake, reports: Reports) -> None:
    name = "\"><script>alert('x')<%2f.png"
    reports.write(reports.reports_dir / "plots" / name, b"")
    page = write_index(lake, reports, SPEC).read_text()
    assert "<script>" not in page
    assert "<b>&#34;&gt;&lt;script&gt;alert(&#39;x&#39;)&lt;%2f</b>" in page
    (link,) = re.findall(r'href="([^"]+)"', page)
    assert unquote(link) == f"plots/{name}"


def test_each_hour_shows_the_limit_that_was_in_force_for_it(lake: Lake, reports: Reports) -> None:
    _scored(lake, FIRST, 0.25)
    _scored(lake, SECOND, 0.25, limit=0.2)
    page = write_index(lake, reports, SPEC).read_text()
    fixed, calibrated = re.findall(r'<line class="(\w+)" .*? y1="([\d.]+)"', page)
    assert (fixed[0], calibrated[0]) == ("fixed", "calibrated")
    # The tallest is 1.5 × 0.3 = 0.45 of 90 pixels.
    assert (float(fixed[1]), float(calibrated[1])) == (30.0, 50.0)
    assert f"<title>{SECOND}: 25%, limit 20%, calibrated on &lt;40&gt; pairs</title>" in page
    assert "calibrated on past pairs for 1 of them" in page
    assert re.findall(r'class="(under|over)"', page) == ["under", "over"]


def _performed(lake: Lake, key: str, estimate: float | None, interval: tuple[float, float] | None) -> None:
    pooled = {
        "base_rate": 0.1,
        "average_precision": {
            "estimate": estimate,
            "interval": interval and dict(zip(("low", "high"), interval, strict=True)),
        },
        "measured_on": "<900> rows",
        "verdict": "ok" if interval else "insufficient_data",
        "reasons": [] if interval else ["too few blocks"],
    }
    numbers = {
        "schema_version": SCHEMA_VERSION,
        "as_of": key,
        "pooled": {"24 h": pooled},
        "columns": {"score": 1.25, "ln_sigma": None},
        "over": ["score"],
        "calibration": {"told": "calibrated on 44 past pairs"},
    }
    lake.write_bytes("seconds/performance", key, json.dumps(numbers).encode(), "json")


def test_performance_is_drawn_over_time_with_what_it_was_measured_on(lake: Lake, reports: Reports) -> None:
    assert "No matured labels were scored yet" in write_index(lake, reports, SPEC).read_text()
    _performed(lake, FIRST, 0.5, None)
    _performed(lake, SECOND, 0.4, (0.3, 0.6))
    page = write_index(lake, reports, SPEC).read_text()
    assert re.findall(r'<circle class="(\w+)" .*? cy="([\d.]+)"', page) == [
        ("thin", "45.0"),
        ("sure", "54.0"),
    ]
    assert re.findall(r'<rect class="interval" .*? y="([\d.]+)" height="([\d.]+)"', page) == [
        ("36.0", "27.0")
    ]
    for text in (
        f"Newest, {SECOND}: AP 0.40 [0.30, 0.60], base rate 0.10, on &lt;900&gt; rows (ok)",
        "score 1.25, over its limit; ln_sigma has no distance (calibrated on 44 past pairs)",
    ):
        assert text in page
    _performed(lake, SECOND, None, None)
    assert (
        "nothing to rank, on &lt;900&gt; rows (insufficient_data; too few blocks)"
        in write_index(lake, reports, SPEC).read_text()
    )


def test_numbers_of_another_schema_are_not_shown_and_stop_nothing(lake: Lake, reports: Reports) -> None:
    _scored(lake, FIRST, 0.5, schema_version=1)
    _scored(lake, SECOND, 0.1)
    page = write_index(lake, reports, SPEC).read_text()
    assert "0 of 1 hours over their limit" in page
    assert FIRST not in page


def test_a_summary_that_cannot_be_understood_is_named(lake: Lake) -> None:
    for content in (b"{", b"{}", b"[]"):
        lake.write_bytes("seconds/drift_report", FIRST, content, SUMMARY)
        with pytest.raises(ReportIndexError, match=f"seconds/drift_report of {FIRST}: its summary cannot"):
            entries(lake, SPEC)
