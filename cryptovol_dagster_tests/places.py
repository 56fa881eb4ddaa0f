"""Where things are, seen from the tests."""

from __future__ import annotations

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
DOCS = REPOSITORY / "docs"
#: Real recordings stand beside the checkout; they carry no licence to be copied into it.
SHARED_DATA = REPOSITORY.parent / "shared" / "data"
