"""The explorer's notebook: clean in the repository, and run top to bottom on a small synthetic market."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
import yaml
from nbclient import NotebookClient

from cryptovol_dagster.core.leaks.ladder import LEAKS
from cryptovol_dagster.verbs import runs
from cryptovol_dagster_tests.places import REPOSITORY
from cryptovol_dagster_tests.pipeline import MARKET
from cryptovol_dagster_tests.synthetic import FIRST_HOUR, hours_from, small_settings, write_market

NOTEBOOK = REPOSITORY / "notebooks" / "eda.ipynb"
RUNGS = ("honest", "honest logreg", *(leak.name for leak in LEAKS))
HIGH = ("random split", "previous row's label", "label of the present")


def read_notebook() -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


def test_the_notebook_is_committed_without_outputs() -> None:
    notebook = read_notebook()
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}


def test_it_uses_nothing_of_the_package_but_the_api() -> None:
    code = [cell.source for cell in read_notebook().cells if cell.cell_type == "code"]
    imports = re.findall(r"^ *(?:from|import) .*$", "\n".join(code), re.MULTILINE)
    assert [line for line in imports if "cryptovol" in line or "ingestor" in line] == [
        "from cryptovol_dagster import api"
    ]
    first = [line for line in code[0].splitlines() if line]
    assert len(first) == 3
    assert first[1].startswith("market = api.open()")


def run_notebook(
    folder: Path, monkeypatch: pytest.MonkeyPatch, hours: int, *, moving: bool = True
) -> nbformat.NotebookNode:
    """Run it on so many hours of market; its kernel gets the configuration by the environment."""
    settings = small_settings(folder)
    keys = hours_from(FIRST_HOUR, hours)
    write_market(settings.storage.raw_dir, keys, gap_in=keys[0], moving=moving)
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    runs.materialize_range(settings, keys[0], keys[-1], MARKET)
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(settings.model_dump(mode="json", exclude={"kafka"})))
    monkeypatch.setenv("CRYPTOVOL_CONFIG", str(config))
    resources = {"metadata": {"path": str(NOTEBOOK.parent)}}
    return NotebookClient(read_notebook(), timeout=240, kernel_name="python3", resources=resources).execute()


def shown(notebook: nbformat.NotebookNode) -> list[dict]:
    """What every cell displayed, by MIME type; every picture says in words what it shows."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs if "data" in output]
    assert all(output.metadata["image/png"]["alt"] for output in outputs if "image/png" in output.data)
    return [output["data"] for output in outputs]


@pytest.mark.slow
def test_it_runs_top_to_bottom_and_the_leaks_stand_above_the_honest_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = shown(run_notebook(tmp_path, monkeypatch, hours=4))
    pictures = [output for output in data if "image/png" in output]
    assert len(pictures) == 9
    words = "\n".join(output.get("text/markdown", "") for output in data)
    assert "4 hours, BTC-USD, ETH-USD" in words
    assert "not recorded" in words  # nobody served these connections
    tables = [output["text/html"] for output in data if "text/html" in output]
    assert "train_episodes" in "".join(tables)
    rungs = dict(re.findall(r"<th[^>]*>([^<]+)</th>\s*<td[^>]*>([0-9.]+)</td>", tables[-1]))
    precision = {name.replace("&#x27;", "'"): float(value) for name, value in rungs.items()}
    assert set(precision) == set(RUNGS)
    assert all(precision["honest"] < precision[name] for name in HIGH)
    assert precision["label of the present"] > 0.95


@pytest.mark.slow
def test_on_a_market_that_stands_still_it_says_why_nothing_can_be_trained_and_shows_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = shown(run_notebook(tmp_path, monkeypatch, hours=1, moving=False))
    assert len([output for output in data if "image/png" in output]) == 4
    words = "\n".join(output.get("text/markdown", "") for output in data)
    assert "Nothing can be trained as of" in words
    assert "degenerate spike threshold for BTC-USD" in words
