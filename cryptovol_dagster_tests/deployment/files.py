"""The deployment's files as data: compose.yaml with its variables filled in, Dockerfiles as instructions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import yaml
from dockerfile_parse import DockerfileParser

from cryptovol_dagster_tests.places import REPOSITORY

DOCKER = REPOSITORY / "docker"
COMPOSE = DOCKER / "compose.yaml"
DOCKERFILES = {"ingestor": DOCKER / "Dockerfile.ingestor", "dagster": DOCKER / "Dockerfile.dagster"}

#: What a user must set; characters that have a meaning in URIs and shells are meant to be among them.
SECRETS = {
    "POSTGRES_PASSWORD": "root's p@ss/word",
    "DAGSTER_POSTGRES_PASSWORD": "d:@g/st$r%20",
    "MLFLOW_POSTGRES_PASSWORD": "ml'fl@w/#1",
}
_VARIABLE = re.compile(r"\$(?:\{(?P<name>\w+)(?::(?P<kind>[-?])(?P<rest>[^}]*))?\}|(?P<dollar>\$))")


class MissingVariableError(Exception):
    """A variable that must be set is not, as Compose would say."""


@dataclass(frozen=True)
class Instruction:
    """One instruction of a Dockerfile, continuation lines joined."""

    name: str
    value: str


def compose(environ: Mapping[str, str] = SECRETS) -> dict[str, Any]:
    """Read compose.yaml with variables filled in from `environ`, and from nothing else."""
    return _filled(yaml.safe_load(COMPOSE.read_text(encoding="utf-8")), environ)


def instructions(dockerfile: Path) -> list[Instruction]:
    """List a Dockerfile's instructions, comments left out."""
    parser = DockerfileParser(fileobj=BytesIO(dockerfile.read_bytes()))
    return [
        Instruction(step["instruction"], step["value"])
        for step in parser.structure
        if step["instruction"] != "COMMENT"
    ]


def _filled(node: Any, environ: Mapping[str, str]) -> Any:
    if isinstance(node, dict):
        return {key: _filled(value, environ) for key, value in node.items()}
    if isinstance(node, list):
        return [_filled(value, environ) for value in node]
    return _VARIABLE.sub(lambda match: _value(match, environ), node) if isinstance(node, str) else node


def _value(match: re.Match[str], environ: Mapping[str, str]) -> str:
    if match["dollar"]:
        return "$"
    value = environ.get(match["name"], "")
    if value:
        return value
    if match["kind"] == "-":
        return match["rest"]
    raise MissingVariableError(f"{match['name']}: {match['rest'] or 'not set'}")
