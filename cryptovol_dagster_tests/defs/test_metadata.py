"""In which order, and how rounded, the UI shows what an asset reports."""

from __future__ import annotations

import math
from pathlib import Path

import dagster as dg

from cryptovol_dagster.defs.metadata import rounded, shown


def test_results_come_first_then_numbers_links_and_hashes_and_what_is_empty_is_left_out() -> None:
    picture = dg.MetadataValue.md("![episode](data:)")
    found = shown(
        {"picture": picture, "status": "ok", "reason": ""},
        rows=0,
        numbers={"AP": 0.123456, "none": None, "off": False},
        links={"path": Path("/lake/part.json"), "page": None},
        hashes={"data_hash": "f00d"},
    )
    assert list(found.items()) == [
        ("picture", picture),
        ("status", "ok"),
        ("dagster/partition_row_count", 0),
        ("AP", 0.1235),
        ("off", False),
        ("path", dg.MetadataValue.path("/lake/part.json")),
        ("data_hash", "f00d"),
    ]


def test_floats_keep_four_digits_and_their_type_and_nothing_else_changes() -> None:
    assert rounded(
        {"small": 1.23456e-9, "large": 98_765.4, "whole": 123_456, "in": [0.99999, "0.99999"]}
    ) == {
        "small": 1.235e-9,
        "large": 98_770.0,
        "whole": 123_456,
        "in": [1.0, "0.99999"],
    }
    assert isinstance(rounded(0.30000000000000004), float)
    assert math.isnan(rounded(math.nan))
