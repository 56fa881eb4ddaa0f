"""docs/guides/python-api.md: its python blocks run, and its tables are those that the code declares."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest
import yaml

from cryptovol_dagster.api.columns import FEATURES, KINDS, kind_of
from cryptovol_dagster.chains import timescale_specs
from cryptovol_dagster_tests.pipeline import Pipeline
from cryptovol_dagster_tests.places import DOCS
from ingestor.settings import Settings

PAGE = (DOCS / "guides/python-api.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
#: The day of the demo, and that of the small pipeline, which has hours from three to seven.
DEMO_DAY, DAY = "2025-12-01", "2026-04-04"


def test_its_blocks_run_one_after_the_other(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "data" / "demo" / "config.yaml"
    config.parent.mkdir(parents=True)
    config.write_text(yaml.safe_dump(pipeline.settings.model_dump(mode="json", exclude={"kafka"})))
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in BLOCKS:
        exec(compile(block.replace(DEMO_DAY, DAY), "docs/guides/python-api.md", "exec"), names)
    assert len(BLOCKS) == 8
    assert isinstance(names["closes"], pd.DataFrame)
    assert list(names["closes"].columns) == ["BTC-USD", "ETH-USD"]
    assert names["rows"] == 4 * 2 * 720


def test_no_page_holds_a_placeholder() -> None:
    for page in sorted(DOCS.rglob("*.md")):
        found = re.findall(
            r"^(?:[A-Z_]{3,}|.*\b(?:TODO|TBD|FIXME|XXX)\b.*)$", page.read_text("utf-8"), re.MULTILINE
        )
        assert not found, page


def test_the_speed_names_the_command_that_measures_it() -> None:
    assert "`make bench-api`" in PAGE.split("\n## Speed\n")[1]


def test_the_first_example_needs_no_day() -> None:
    assert DEMO_DAY not in BLOCKS[0]
    assert f"`.venv/bin/cryptovol demo --end {DEMO_DAY}T18:00Z`" in PAGE.split("\n## ")[0]


@pytest.mark.parametrize("name", [name for name in KINDS if name != FEATURES])
def test_a_table_is_what_the_code_declares(name: str) -> None:
    kind = kind_of(name, timescale_specs(Settings())["seconds"])
    expected = [f"| `{column.name}` | {column.unit} | {column.text} |" for column in kind.columns]
    section = PAGE.split(f"### `{name}`\n")[1].split("\n#")[0]
    assert [line for line in section.splitlines() if line.startswith("| `")] == expected
    assert f"| `{name}` |" in PAGE
    assert re.search(rf"\| `{name}` \|.*\| `{kind.index}` \|", PAGE)
