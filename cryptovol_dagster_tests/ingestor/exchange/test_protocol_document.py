"""docs/reference/protocol.md lists exactly the fields that the code declares."""

from __future__ import annotations

import re

import pytest

from cryptovol_dagster_tests.places import DOCS
from ingestor.exchange import messages as wire
from ingestor.exchange.drift import Field, documented

DOCUMENT = (DOCS / "reference/protocol.md").read_text()
PARTS: dict[str, type[wire.Documented]] = {"The frame": wire.Envelope}
for channel, part in wire.CHANNELS.items():
    PARTS[f"`{channel}`: event"] = part.event
    if part.entry is not None:
        PARTS[f"`{channel}`: each of `{part.entries}`"] = part.entry


def value(field: Field) -> str:
    """How the document writes what a field may be."""
    kinds = " or ".join(f"`{text}`" for text in field.values) or " or ".join(field.kinds)
    return kinds if field.required else f"{kinds}; may be absent"


@pytest.mark.parametrize("title", PARTS)
def test_the_document_lists_the_declared_fields(title: str) -> None:
    section = re.split(r"^#+ ", DOCUMENT.split(f"### {title}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \|", section, re.MULTILINE)
    assert rows == [(name, value(field)) for name, field in documented(PARTS[title]).items()]


def test_the_document_has_no_other_part() -> None:
    assert re.findall(r"^### (.+)$", DOCUMENT, re.MULTILINE) == list(PARTS)
