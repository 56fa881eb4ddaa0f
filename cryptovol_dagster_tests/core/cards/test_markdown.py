"""Pieces of Markdown: tables, numbers, intervals."""

from __future__ import annotations

import pytest

from cryptovol_dagster.core.cards.markdown import number, table, with_interval


def test_a_table_has_a_head_a_rule_and_its_rows() -> None:
    assert table(["model", "PR-AUC"], [["ewma", "0.2"]]) == [
        "| model | PR-AUC |",
        "| --- | --- |",
        "| ewma | 0.2 |",
    ]


def test_an_unknown_number_is_a_dash() -> None:
    assert [number(None), number(0.12345), number(0.12345, 1)] == ["–", "0.123", "0.1"]


@pytest.mark.parametrize(
    ("numbers", "signed", "text"),
    [
        ((None, 0.1, 0.2), False, "–"),
        ((0.5, None, None), False, "0.500"),
        ((0.5, 0.25, 0.75), False, "0.500 [0.250, 0.750]"),
        ((0.5, -0.25, 0.75), True, "+0.500 [-0.250, +0.750]"),
    ],
)
def test_an_interval_is_written_where_it_is_known(
    numbers: tuple[float | None, float | None, float | None], signed: bool, text: str
) -> None:
    assert with_interval(*numbers, signed=signed) == text
