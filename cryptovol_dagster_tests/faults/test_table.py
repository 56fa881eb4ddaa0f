"""The table of faults in the documentation names tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
TABLE = REPOSITORY / "docs" / "faults.md"
HEADER = "| fault | what you see | what is kept | test |"
_ID = re.compile(r"`([\w/]+\.py)::(\w+)`")


def rows() -> list[list[str]]:
    lines = TABLE.read_text().splitlines()
    begin = lines.index(HEADER) + 2
    table = [line for line in lines[begin:] if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table]


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0])
def test_a_row_says_everything_and_its_tests_exist(row: list[str]) -> None:
    assert len(row) == 4
    assert all(row)
    named = _ID.findall(row[3])
    assert ", ".join(f"`{path}::{test}`" for path, test in named) == row[3]
    for path, test in named:
        tree = ast.parse((REPOSITORY / path).read_text())
        tests = {node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))}
        assert test in tests, f"{path} has no {test}"


def test_a_fault_has_one_row() -> None:
    faults = [row[0] for row in rows()]
    assert len(set(faults)) == len(faults) > 10
