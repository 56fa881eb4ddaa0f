"""Fixtures every room uses."""

from __future__ import annotations

from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
#: Real recordings stand beside the checkout; they carry no licence to be copied into it.
SHARED_DATA = REPOSITORY.parent / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the real recordings; skips, saying so, where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"real recordings are absent ({SHARED_DATA.name} beside the checkout)")
    return SHARED_DATA


@pytest.fixture(scope="session")
def recordings(shared_data: Path) -> Path:
    """Folder of the real feed recordings."""
    return shared_data / "recordings"
