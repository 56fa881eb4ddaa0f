"""Which kinds of model there are, and that a new one is a file and its name in the settings."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

import cryptovol_dagster
import ingestor
from cryptovol_dagster.core.models import MODELS, Model
from cryptovol_dagster.core.models.kinds import (
    BASELINES,
    FALLBACK,
    FIRST_CHAMPIONS,
    LEARNED,
    REFERENCES,
    SINGLE_COLUMN,
)
from ingestor.settings.sections import ModelName

#: A kind that only adds a file.
QUADRATIC = '''
from typing import ClassVar

from cryptovol_dagster.core.models.base import need_columns
from cryptovol_dagster.core.models.logistic import LogisticModel


class Quadratic(LogisticModel):
    """A test's own kind of model."""

    name: ClassVar[str] = "quadratic"
    rank: ClassVar[int] = 55
    colour: ClassVar[str] = "#123456"

    def _choose(self, train, y):
        return need_columns(self.name, train, ("ln_rv_60",))
'''
#: Everywhere that a list of models decides something.
DECISIONS = """
import json
import types

from cryptovol_dagster.core.evaluation.evaluate import evaluate
from cryptovol_dagster.core.models import MODELS, train_model
from cryptovol_dagster.core.pictures.evaluation import _colour
from cryptovol_dagster.core.promotion.measured import Measured
from cryptovol_dagster.defs.checks import learning
from cryptovol_dagster.verbs.train import train
from cryptovol_dagster_tests.core.clustered_market import MODEL_SPEC, SPEC, make_problem
from ingestor.settings.sections import ModelSettings

problem = make_problem(9_000, seed=2)
names = ("ewma", "har_logit", "logreg", "quadratic")
models = {name: train_model(name, problem, SPEC, MODEL_SPEC, feature_hash="f") for name in names}
report = evaluate(problem, models, SPEC, MODEL_SPEC, data_hash="d", feature_hash="f").to_dict()


def complaints(better):
    results = {name: {"average_precision": 0.2 if name == better else 0.1} for name in names}
    stored = types.SimpleNamespace(
        was_skipped=lambda spec: False, json=lambda: {"verdict": "ok", "models": results}
    )
    return learning._not_worse_than_baseline(SPEC)(stored)


measured = Measured("", 0, True, (), {}, {}, dict.fromkeys(names), "", "", "")
print(json.dumps({
    "models": list(MODELS),
    "pairs": [[entry["model"], entry["baseline"]] for entry in report["comparisons"]],
    "complaints": {name: len(complaints(name)) for name in names},
    "colour": _colour("quadratic"),
    "candidates": measured.candidates,
    "enabled": ModelSettings(enabled=("quadratic",)).enabled,
    "choices": list(train.params[0].type.choices),
}))
"""


def test_roles_are_those_of_the_house() -> None:
    assert tuple(MODELS) == ("persistence", "baseline_zscore", "ewma", "har_logit", "logreg", "xgboost")
    assert BASELINES == ("persistence", "baseline_zscore", "ewma", "har_logit")
    assert LEARNED == ("har_logit", "logreg", "xgboost")
    assert FIRST_CHAMPIONS == REFERENCES == ("ewma", "har_logit")
    assert SINGLE_COLUMN == ("persistence", "baseline_zscore", "ewma")
    assert FALLBACK == "har_logit"
    assert {name for name, kind in MODELS.items() if kind.catalog_kind == "scikitlearn"} == {
        "har_logit",
        "logreg",
    }


@pytest.mark.parametrize("kind", MODELS.values(), ids=list(MODELS))
def test_a_kind_is_a_baseline_or_may_challenge(kind: type[Model]) -> None:
    """A kind that was neither would be compared by no check."""
    assert kind.is_baseline or kind.may_challenge
    assert kind.may_challenge or not kind.is_fallback


def test_ranks_and_colours_are_each_used_once() -> None:
    for attribute in ("rank", "colour"):
        assert len({getattr(kind, attribute) for kind in MODELS.values()}) == len(MODELS)


def test_the_settings_name_the_kinds_there_are() -> None:
    assert get_args(ModelName) == tuple(MODELS)


def test_a_new_kind_is_a_file_and_its_name_in_the_settings(tmp_path: Path) -> None:
    """In a copy of the sources: every list of models takes it in, and all agree what it is."""
    import cryptovol_dagster_tests

    for package in (cryptovol_dagster, ingestor, cryptovol_dagster_tests):
        source = Path(str(package.__file__)).parent
        shutil.copytree(source, tmp_path / source.name, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "cryptovol_dagster" / "core" / "models" / "quadratic.py").write_text(QUADRATIC)
    sections = tmp_path / "ingestor" / "settings" / "sections.py"
    named = sections.read_text().replace('"logreg", "xgboost"]', '"logreg", "quadratic", "xgboost"]')
    sections.write_text(named)
    done = subprocess.run(
        [sys.executable, "-c", DECISIONS], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["models"] == [*list(MODELS)[:-1], "quadratic", "xgboost"]
    # Learned: compared with the baselines and with the other learned ones, and no baseline of any.
    pairs = [tuple(pair) for pair in found["pairs"]]
    assert [pair for pair in pairs if "quadratic" in pair] == [
        ("quadratic", "ewma"),
        ("quadratic", "har_logit"),
        ("quadratic", "logreg"),
    ]
    assert found["complaints"] == {"ewma": 1, "har_logit": 0, "logreg": 0, "quadratic": 0}
    assert found["candidates"] == ["har_logit", "logreg", "quadratic"]
    assert found["colour"] == "#123456"
    assert found["enabled"] == ["quadratic"]
    assert "quadratic" in found["choices"]
