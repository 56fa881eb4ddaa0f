"""The tables of faults, of bad input and of Dagster's traps in the documentation name tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from cryptovol_dagster_tests.places import DOCS, REPOSITORY

#: File → header of its table; the tests stand in the last column.
TABLES = {
    DOCS / "reference/faults.md": "| fault | what you see | what is kept | test |",
    DOCS / "reference/bad-input.md": "| what comes in | what you see, and where | what is kept | test |",
    DOCS / "reference/dagster-traps.md": "| trap | how it is avoided | test |",
}
_ID = re.compile(r"`([\w/]+\.py)::(\w+)`")


def rows(file: Path) -> list[list[str]]:
    lines = file.read_text().splitlines()
    begin = lines.index(TABLES[file]) + 2
    table = [line for line in lines[begin:] if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table]


@pytest.mark.parametrize(
    ("file", "row"),
    [(file, row) for file in TABLES for row in rows(file)],
    ids=lambda value: str(value[0]) if isinstance(value, list) else value.stem,
)
def test_a_row_says_everything_and_its_tests_exist(file: Path, row: list[str]) -> None:
    assert len(row) == TABLES[file].count("|") - 1
    assert all(row)
    named = _ID.findall(row[-1])
    assert ", ".join(f"`{path}::{test}`" for path, test in named) == row[-1]
    for path, test in named:
        tree = ast.parse((REPOSITORY / path).read_text())
        tests = {node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))}
        assert test in tests, f"{path} has no {test}"


@pytest.mark.parametrize("file", TABLES, ids=lambda file: file.stem)
def test_a_fault_has_one_row(file: Path) -> None:
    faults = [row[0] for row in rows(file)]
    assert len(set(faults)) == len(faults) > 10
