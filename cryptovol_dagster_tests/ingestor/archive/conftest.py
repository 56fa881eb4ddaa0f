"""Both formats of raw storage."""

from __future__ import annotations

from typing import get_args

import pytest

from ingestor.settings.sections import RawFormat


@pytest.fixture(scope="module", params=get_args(RawFormat))
def raw_format(request: pytest.FixtureRequest) -> RawFormat:
    """Parquet, then NDJSON."""
    return request.param
