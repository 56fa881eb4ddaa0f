"""What the images install is pinned, is what the repository's lock says, and leaves out what it should."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest

from cryptovol_dagster.cli import VERBS
from cryptovol_dagster_tests.deployment.files import DOCKER, DOCKERFILES, REPOSITORY, compose, instructions
from cryptovol_dagster_tests.deployment.images import in_context
from ingestor.cli import cli

PYPROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
each_dockerfile = pytest.mark.parametrize("dockerfile", DOCKERFILES.values(), ids=DOCKERFILES)
#: Import names that differ from the package's.
PACKAGES = {"yaml": "pyyaml"}


def pins(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if line and not line.startswith("#")]


def name_of(requirement: str) -> str:
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match, requirement
    return match[0].lower().replace("_", "-")


RUNTIME, DEVELOPMENT = REPOSITORY / "requirements.lock", REPOSITORY / "requirements-dev.lock"
LOCKS = (RUNTIME, *(DOCKER / f"requirements-{image}.lock" for image in DOCKERFILES))


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_the_locks_agree(lock: Path) -> None:
    # Markers may differ (psutil is for Windows in one, for every system in the other), versions may not.
    locked, whole = ({pin.partition(";")[0].strip() for pin in pins(path)} for path in (lock, DEVELOPMENT))
    assert all("==" in pin for pin in locked)
    assert locked <= whole


def test_the_runtime_lock_holds_the_dependencies_and_nothing_of_development() -> None:
    needed = {name_of(each) for each in PYPROJECT["project"]["dependencies"]}
    development = {name_of(each) for each in PYPROJECT["dependency-groups"]["dev"]}
    locked, whole = ({name_of(pin) for pin in pins(path)} for path in (RUNTIME, DEVELOPMENT))
    assert needed <= locked
    # MLflow needs psutil on Windows.
    assert development & locked == {"psutil"}
    assert needed | development <= whole


def test_the_pipelines_lock_holds_all_that_the_package_needs() -> None:
    project = PYPROJECT["project"]
    wanted = {
        name_of(each) for each in (*project["dependencies"], *project["optional-dependencies"]["deploy"])
    }
    locked = {name_of(pin) for pin in pins(DOCKER / "requirements-dagster.lock")}
    assert wanted <= locked
    assert not {"pytest", "ruff", "pyright", "playwright", "nvidia-nccl-cu12"} & locked


def test_the_recorders_lock_holds_what_its_code_imports_and_nothing_of_the_pipeline() -> None:
    group = set(PYPROJECT["dependency-groups"]["ingestor"])
    assert group <= {name_of(each) for each in PYPROJECT["project"]["dependencies"]}
    assert third_party(REPOSITORY / "ingestor") == group
    locked = {name_of(pin) for pin in pins(DOCKER / "requirements-ingestor.lock")}
    assert group <= locked
    assert not {"dagster", "mlflow", "pandas", "scikit-learn", "xgboost", "evidently"} & locked


def third_party(package: Path) -> set[str]:
    """Name the packages that a package's modules import, but for its own and the standard library's."""
    found: set[str] = set()
    for file in package.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.partition(".")[0])
    own = {package.name, *sys.stdlib_module_names}
    return {PACKAGES.get(name, name.replace("_", "-")) for name in found - own}


def test_the_recorder_alone_offers_every_verb_whose_code_it_holds() -> None:
    recorders = {verb for verb, target in VERBS.items() if target.startswith("ingestor.")}
    assert recorders == {*cli.commands, *getattr(cli, "_elsewhere")}  # noqa: B009 - a test may look


@each_dockerfile
def test_bases_and_the_installer_are_pinned_and_no_root_runs(dockerfile: Path) -> None:
    steps = instructions(dockerfile)
    arguments = dict(step.value.split("=", 1) for step in steps if step.name == "ARG")
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", arguments["PYTHON_IMAGE"])
    assert re.fullmatch(r"\d+\.\d+\.\d+", arguments["UV_VERSION"])
    assert {step.value.split(" ")[0] for step in steps if step.name == "FROM"} == {"${PYTHON_IMAGE}"}
    assert [step.value for step in steps if step.name == "USER"] == ["10001:10001"]
    assert not any("apt-get" in step.value for step in steps)
    default = {
        spec["build"]["args"]["PYTHON_IMAGE"] for spec in compose()["services"].values() if "build" in spec
    }
    assert default == {arguments["PYTHON_IMAGE"]}


@each_dockerfile
def test_what_is_copied_exists_and_reaches_the_builder(dockerfile: Path) -> None:
    for step in instructions(dockerfile):
        if step.name == "COPY" and "--from" not in step.value:
            for source in step.value.split()[:-1]:
                assert (REPOSITORY / source).exists(), source
                assert in_context(source), source


def test_nothing_private_reaches_the_builder() -> None:
    assert not any(
        in_context(path) for path in (".env", "docker/.env", "data/raw", ".venv", ".git", "config.yaml")
    )
