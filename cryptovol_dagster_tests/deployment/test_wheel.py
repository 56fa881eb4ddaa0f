"""The wheel holds the whole package, asks for the runtime alone, and works in an empty folder."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from cryptovol_dagster.cli import VERBS
from cryptovol_dagster_tests.places import REPOSITORY

PACKAGES = ("cryptovol_dagster", "ingestor")
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built by the installed hatchling without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(build, cwd=REPOSITORY, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def unpacked(wheel: Path) -> Path:
    folder = wheel.parent / "unpacked"
    with zipfile.ZipFile(wheel) as file:
        file.extractall(folder)
    return folder


def files(root: Path) -> set[str]:
    """Return the files of the packages below a folder, bytecode left out."""
    found = (path for package in PACKAGES for path in (root / package).rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix() for path in found if "__pycache__" not in path.parts}


def test_every_module_and_data_file_is_inside(unpacked: Path) -> None:
    assert files(unpacked) == files(REPOSITORY)
    assert len([*unpacked.glob("*.dist-info/licenses/LICENSE")]) == 1


def test_it_asks_for_the_runtime_alone(unpacked: Path) -> None:
    (path,) = unpacked.glob("*.dist-info/METADATA")
    metadata = Parser().parsestr(path.read_text(encoding="utf-8"))
    asked = {Requirement(each) for each in metadata.get_all("Requires-Dist", [])}
    plain = {each for each in asked if each.marker is None}
    assert plain == {Requirement(each) for each in PROJECT["dependencies"]}
    extras = {str(each.marker) for each in asked - plain}
    assert extras == {f'extra == "{name}"' for name in PROJECT["optional-dependencies"]}
    assert metadata["License-Expression"] == "Apache-2.0"


def test_from_an_empty_folder_it_answers_and_imports_every_module(unpacked: Path, tmp_path: Path) -> None:
    help_text = run(unpacked, tmp_path, "from cryptovol_dagster.cli import main; main(['--help'])")
    assert all(f"  {verb} " in help_text for verb in VERBS)
    modules = run(unpacked, tmp_path, IMPORT_ALL).splitlines()
    assert {"cryptovol_dagster.definitions", "cryptovol_dagster.verbs.demo", "ingestor.recorder"} <= {
        *modules
    }
    assert not any(tmp_path.iterdir())


#: A module that lacks another, or a file that it reads at once, fails here; `__main__` would run the verbs.
IMPORT_ALL = f"""
import importlib, pkgutil
for name in {PACKAGES}:
    package = importlib.import_module(name)
    assert package.__file__.startswith(sys.path[0]), package.__file__
    for module in pkgutil.walk_packages(package.__path__, name + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
            print(module.name)
"""


def run(unpacked: Path, folder: Path, code: str) -> str:
    """Run code in `folder` that finds our packages in the unpacked wheel and nowhere else."""
    command = [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {str(unpacked)!r})\n{code}"]
    environ = {
        key: value for key, value in os.environ.items() if not key.startswith(("CRYPTOVOL", "DAGSTER"))
    }
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
