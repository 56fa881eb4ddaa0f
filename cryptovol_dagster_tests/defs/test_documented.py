"""Dagster's commands in the documentation: none is superseded, and they ask for what they say."""

from __future__ import annotations

import json
import re
import shlex

import click
from dagster._annotations import is_superseded
from dagster._cli import create_dagster_cli

from cryptovol_dagster.core.times import partition_window
from cryptovol_dagster.defs.build import build_defs
from cryptovol_dagster.verbs import runs
from cryptovol_dagster_tests.places import DOCS, REPOSITORY
from ingestor.settings import Settings

DOCUMENTS = [REPOSITORY / "README.md", *sorted(DOCS.rglob("*.md"))]
BLOCK = re.compile(r"^```sh\n(.*?)^```", re.DOTALL | re.MULTILINE)


def _commands() -> list[list[str]]:
    """List the words of each `dagster` command in the documents' code blocks."""
    blocks = [found.replace("\\\n", " ") for path in DOCUMENTS for found in BLOCK.findall(path.read_text())]
    lines = [line for block in blocks for line in re.findall(r"^ *(dagster [a-z].*)", block, re.MULTILINE)]
    return [shlex.split(line, comments=True) for line in lines]


def _command(words: list[str]) -> click.Command:
    group = create_dagster_cli()
    found = group.commands[words[1]]
    return found.commands[words[2]] if isinstance(found, click.Group) else found


def test_no_command_of_dagster_in_the_documents_is_superseded() -> None:
    found = [(words[1], words[2]) for words in _commands() if is_superseded(_command(words).callback)]
    assert found == []
    assert ("job", "backfill") in {(words[1], words[2]) for words in _commands()}
    assert is_superseded(_command(["dagster", "asset", "materialize"]).callback)


def test_the_documented_jobs_exist_and_the_range_is_one_of_hours() -> None:
    jobs = {job.name for job in build_defs(Settings()).get_repository_def().get_all_jobs()}
    launched = [words for words in _commands() if words[1] == "job"]
    assert {words[words.index("-j") + 1] for words in launched} <= jobs
    (ranged,) = (json.loads(words[words.index("--tags") + 1]) for words in launched if "--tags" in words)
    assert set(ranged) == {runs.RANGE_START, runs.RANGE_END}
    assert partition_window(ranged[runs.RANGE_START])[0] < partition_window(ranged[runs.RANGE_END])[0]
