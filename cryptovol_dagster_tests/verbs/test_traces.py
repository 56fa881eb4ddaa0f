"""What a verb leaves behind and says besides its result: no file in /tmp, no library's line, no store."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cryptovol_dagster_tests.e2e.processes import cryptovol, environment
from cryptovol_dagster_tests.synthetic import small_settings

#: Where they are set ONNX Runtime is silent anyway.
_SILENCING = ("CI", "GITHUB_ACTIONS", "TF_BUILD", "ORT_DISABLE_TELEMETRY", "ORT_RUNNING_UNIT_TESTS")


def test_no_library_phones_home(tmp_path: Path) -> None:
    """ONNX Runtime would make an identifier of this machine in HOME, and a session's file in the other."""
    home, temporary = tmp_path / "home", tmp_path / "temporary"
    home.mkdir()
    temporary.mkdir()
    env = {name: value for name, value in os.environ.items() if name not in _SILENCING}
    env |= {"HOME": str(home), "TMPDIR": str(temporary), "XDG_CACHE_HOME": str(home)}
    code = "import cryptovol_dagster.core.models.onnx, onnxruntime"
    subprocess.run([sys.executable, "-c", code], env=env, check=True)
    assert [*home.iterdir(), *temporary.iterdir()] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("verb", "says"),
    [
        (("rollback", "--dry-run"), "seconds has no champion to roll back: `cryptovol evaluate` decides who"),
        (("infer",), "has no model: run `cryptovol evaluate`"),
        (("evaluate",), "has no labels yet: record with `cryptovol ingest`"),
        (("replay",), "holds no closed hour: record with `cryptovol ingest`"),
    ],
    ids=lambda given: given[0] if isinstance(given, tuple) else "",
)
def test_on_an_empty_folder_there_is_one_line_and_nothing_is_written(
    tmp_path: Path, verb: tuple[str, ...], says: str
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    env = environment(small_settings(tmp_path), tmp_path) | {"TMPDIR": str(temporary)}
    done = cryptovol(*verb, env=env)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: ")
    assert done.stderr.count("\n") == 1
    assert says in done.stderr
    assert list(temporary.iterdir()) == []
    assert not (tmp_path / "data").exists()


@pytest.mark.slow
def test_a_new_tracking_store_is_made_without_a_word(tmp_path: Path) -> None:
    """MLflow says at INFO that it creates tables, before whatever a verb has to say."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    env = environment(small_settings(tmp_path), tmp_path) | {"TMPDIR": str(temporary)}
    code = "\n".join(
        (
            "from cryptovol_dagster.tracking.runs import connect",
            "from ingestor.settings import load_settings",
            "connect(load_settings().settings)",
        )
    )
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
    assert list(temporary.iterdir()) == []
    assert (tmp_path / "data" / "mlflow" / "mlflow.db").exists()
