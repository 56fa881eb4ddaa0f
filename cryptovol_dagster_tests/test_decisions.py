"""Each decision is a file of one form, and the index in docs/decisions/README.md names every file once."""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path

import pytest
import yaml

from cryptovol_dagster_tests.places import DOCS, REPOSITORY

DECISIONS = DOCS / "decisions"
FILES = sorted(DECISIONS.glob("*/*.md"))
PARTS = ["Context", "Decision", "Cost"]
LINK = re.compile(r"\]\((?!https?:)([^)#]+)[^)]*\)")
INDEX_ROW = re.compile(r"^\| (\S+) \| \[(.+)\]\((\S+)\) \| (.+) \|$", re.MULTILINE)


def front_matter(file: Path) -> tuple[dict[str, object], str]:
    """Return the fields of a decision and the text below them."""
    _, fields, text = file.read_text(encoding="utf-8").split("---\n", maxsplit=2)
    return yaml.safe_load(fields), text


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_a_decision_is_dated_and_has_its_parts(file: Path) -> None:
    fields, text = front_matter(file)
    superseded = fields.get("status") == "superseded"
    assert set(fields) == {"title", "date", "status"} | ({"superseded_by"} if superseded else set())
    assert fields["status"] in ("in force", "superseded")
    assert type(fields["date"]) is date
    assert text.startswith(f"# {fields['title']}\n")
    assert re.findall(rf"^\*\*({'|'.join(PARTS)})\.\*\* \S", text, re.MULTILINE) == PARTS
    links = [*LINK.findall(text), *([fields["superseded_by"]] if superseded else [])]
    assert [link for link in links if not (file.parent / str(link)).is_file()] == []


def test_the_index_names_every_decision_once() -> None:
    rows = INDEX_ROW.findall((DECISIONS / "README.md").read_text(encoding="utf-8"))
    named = [(path, title, day, gist.startswith("Superseded: ")) for day, title, path, gist in rows]
    expected = set()
    for file in FILES:
        fields, _ = front_matter(file)
        path = file.relative_to(DECISIONS).as_posix()
        expected.add((path, fields["title"], str(fields["date"]), fields["status"] == "superseded"))
    assert set(named) == expected
    assert len(named) == len(expected)


def test_decisions_lie_in_a_subject_and_nowhere_else() -> None:
    stray = set(DECISIONS.rglob("*.md")) - {*FILES, DECISIONS / "README.md"}
    assert stray == set()
    assert not (DOCS / "decisions.md").exists()


def test_every_decision_named_in_the_repository_exists() -> None:
    named = re.compile(r"docs/decisions/[\w./-]+\.md")
    texts = [
        *REPOSITORY.glob("*.md"),
        *REPOSITORY.glob("*.yaml"),
        *(
            path
            for room in ("cryptovol_dagster", "ingestor", "docs")
            for path in (REPOSITORY / room).rglob("*.*")
        ),
    ]
    mentions = {
        place
        for path in texts
        if path.suffix in {".py", ".md", ".yaml"}
        for place in named.findall(path.read_text(encoding="utf-8"))
    }
    assert mentions
    assert sorted(place for place in mentions if not (REPOSITORY / place).is_file()) == []
