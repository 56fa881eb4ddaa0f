"""docs/reference/features.md and docs/reference/features-minutes.md are what the declared tables render."""

from __future__ import annotations

import pytest

from cryptovol_dagster.chains import timescale_specs
from cryptovol_dagster.core.features.catalogue import feature_list
from cryptovol_dagster.documents import render
from cryptovol_dagster_tests.places import DOCS
from ingestor.settings.sections import Settings

SPECS = timescale_specs(Settings())
every_page = pytest.mark.parametrize(
    ("name", "file"), [("seconds", "reference/features.md"), ("minutes_h5", "reference/features-minutes.md")]
)


@every_page
def test_the_document_is_the_rendered_declaration(name: str, file: str) -> None:
    assert (DOCS / file).read_text() == render(SPECS[name]), (
        f"python -m cryptovol_dagster.documents [minutes] > docs/{file}"
    )


@every_page
def test_every_feature_has_a_row_of_five_cells(name: str, file: str) -> None:
    spec = SPECS[name]
    rows = [line for line in render(spec).splitlines() if line.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == sorted(
        (feature.name for feature in feature_list(spec)),
        key=[row.split("`")[1] for row in rows].index,
    )
    assert {row.replace(r"\|", "").count("|") for row in rows} == {6}
