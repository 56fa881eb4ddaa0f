"""`cryptovol notebook`: the page lies beside the configured reports, and a failure is one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from click.testing import CliRunner
from nbformat.v4 import new_code_cell, new_notebook

from cryptovol_dagster.cli import main
from cryptovol_dagster_tests.e2e.processes import cryptovol, environment
from cryptovol_dagster_tests.synthetic import small_settings


def run(folder: Path, name: str | Path) -> subprocess.CompletedProcess[str]:
    temporary = folder / "temporary"
    temporary.mkdir(exist_ok=True)
    env = environment(small_settings(folder), folder) | {"TMPDIR": str(temporary)}
    done = cryptovol("notebook", name, env=env)
    assert list(temporary.iterdir()) == []
    return done


def written(folder: Path, code: str) -> Path:
    path = folder / "small.ipynb"
    nbformat.write(new_notebook(cells=[new_code_cell(code)]), path)
    return path


@pytest.mark.slow
def test_the_page_lies_where_the_reports_do(tmp_path: Path) -> None:
    done = run(tmp_path, written(tmp_path, "'seen' + ' by cell'"))
    page = tmp_path / "reports" / "small.html"
    assert (done.returncode, done.stdout, done.stderr) == (0, f"written to {page}\n", "")
    assert "seen by cell" in page.read_text()


@pytest.mark.slow
def test_a_cell_that_fails_is_one_line(tmp_path: Path) -> None:
    path = written(tmp_path, "raise LookupError('holds no labels:\\ntype this')")
    done = run(tmp_path, path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"Error: {path}: LookupError: holds no labels: type this\n"
    assert not (tmp_path / "reports").exists()


def test_without_a_kernel_one_line_says_what_to_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRYPTOVOL_CONFIG", str(tmp_path / "config.yaml"))
    (tmp_path / "config.yaml").touch()
    monkeypatch.setitem(sys.modules, "ipykernel", None)
    done = CliRunner().invoke(main, ["notebook", str(written(tmp_path, "1"))])
    assert done.exit_code == 1
    assert done.stderr == (
        "Error: ipykernel is not installed: notebooks need the development packages; type `make notebook`\n"
    )


def test_a_notebook_that_is_absent_or_none_is_one_line(tmp_path: Path) -> None:
    done = run(tmp_path, tmp_path / "absent.ipynb")
    assert (done.returncode, done.stdout) == (1, "")
    assert "absent.ipynb: no such notebook; go to a clone of the repository" in done.stderr
    (tmp_path / "text.ipynb").write_text("words\n")
    assert "text.ipynb: cannot be read as a notebook: " in run(tmp_path, tmp_path / "text.ipynb").stderr
