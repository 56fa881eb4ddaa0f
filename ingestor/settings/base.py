"""What sections of the settings share: their base, and checks of single values."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

PositiveFloat = Annotated[float, Field(gt=0)]
PositiveInt = Annotated[int, Field(gt=0)]


class Section(BaseModel):
    """A frozen part of the configuration; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def require_http(url: str) -> str:
    """Return an address of HTTP.

    Raises:
        ValueError: it has another scheme.
    """
    if not url.startswith(("http://", "https://")):
        raise ValueError("must begin with http:// or https://")
    return url


def require_products(products: tuple[str, ...]) -> tuple[str, ...]:
    """Return names of products.

    Raises:
        ValueError: there is none, or one twice.
    """
    if not products:
        raise ValueError("names no product")
    if len(set(products)) != len(products):
        raise ValueError("names a product twice")
    return products
