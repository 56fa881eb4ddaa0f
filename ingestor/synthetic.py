"""Marker that distinguishes the folder of a synthetic market from one of a real recording."""

from __future__ import annotations

from ingestor.errors import USAGE, CryptovolError
from ingestor.settings.sections import Settings

#: In the folder of a synthetic market from its creation on. Locked while somebody creates the market; kept
#: when the rest of the folder is emptied.
MARKET_LOCK = "market.lock"


class SyntheticFolderError(CryptovolError):
    """The real market would be recorded into a synthetic one; the message contains the remedy."""

    exit_code = USAGE


def is_synthetic(settings: Settings) -> bool:
    """Return whether the data folder is that of a synthetic market."""
    return (settings.storage.data_dir / MARKET_LOCK).exists()


def require_real(settings: Settings, command: str) -> None:
    """Check that a command which records the real market does not do so into a synthetic one.

    Raises:
        SyntheticFolderError: it would.
    """
    if is_synthetic(settings):
        raise SyntheticFolderError(
            f"{settings.storage.data_dir} contains a synthetic market, and `{command}` records the real one: "
            "omit --config (`cryptovol ui` opens this market)"
        )
