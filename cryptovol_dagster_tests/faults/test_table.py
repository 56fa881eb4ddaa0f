"""The tables of faults and of bad input in the documentation name tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
#: document → the header of its table.
TABLES = {
    "faults.md": "| fault | what you see | what is kept | test |",
    "bad_input.md": "| what comes in | what you see, and where | what is kept | test |",
}
_ID = re.compile(r"`([\w/]+\.py)::(\w+)`")


def rows(document: str) -> list[list[str]]:
    lines = (REPOSITORY / "docs" / document).read_text().splitlines()
    begin = lines.index(TABLES[document]) + 2
    table = [line for line in lines[begin:] if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table]


@pytest.mark.parametrize(
    "row", [row for document in TABLES for row in rows(document)], ids=lambda row: row[0]
)
def test_a_row_says_everything_and_its_tests_exist(row: list[str]) -> None:
    assert len(row) == 4
    assert all(row)
    named = _ID.findall(row[3])
    assert ", ".join(f"`{path}::{test}`" for path, test in named) == row[3]
    for path, test in named:
        tree = ast.parse((REPOSITORY / path).read_text())
        tests = {node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))}
        assert test in tests, f"{path} has no {test}"


@pytest.mark.parametrize("document", TABLES)
def test_a_fault_has_one_row(document: str) -> None:
    faults = [row[0] for row in rows(document)]
    assert len(set(faults)) == len(faults) > 10
