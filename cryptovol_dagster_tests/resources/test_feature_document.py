"""docs/features.md is what the declared table renders."""

from __future__ import annotations

from pathlib import Path

from cryptovol_dagster.core.features import FEATURES
from cryptovol_dagster.resources.feature_document import render
from cryptovol_dagster.resources.specs import timescale_spec
from ingestor.settings.model import Settings

SPEC = timescale_spec(Settings().timescales.seconds, "seconds")
DOCUMENT = Path(__file__).parents[2] / "docs" / "features.md"


def test_the_document_is_the_rendered_declaration() -> None:
    assert DOCUMENT.read_text() == render(SPEC), (
        "python -m cryptovol_dagster.resources.feature_document > docs/features.md"
    )


def test_every_feature_has_a_row_of_five_cells() -> None:
    rows = [line for line in render(SPEC).splitlines() if line.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == sorted(
        (feature.name for feature in FEATURES(SPEC)),
        key=[row.split("`")[1] for row in rows].index,
    )
    assert {row.replace(r"\|", "").count("|") for row in rows} == {6}
