"""Metadata of every asset in the UI, in one form: results, numbers, links, hashes, schema, pictures.

The UI lists what an asset reports in the order in which it was added, so all of a partition is added at once.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import dagster as dg
import pyarrow as pa

from cryptovol_dagster.core.cards.markdown import table
from cryptovol_dagster.core.specs import TimescaleSpec

OWNERS = ["team:cryptovol"]
#: Part of a chain: candles to labels, splits to model card, drift numbers to reports.
Part = Literal["market", "training", "monitoring"]
_GROUPS = {"market": "market", "training": "train", "monitoring": "watch"}
#: Columns shown in a table of distances; the file has all of them.
SHOWN_DISTANCES = 10
#: An event log keeps everything for ever; a larger picture stays out of it.
MAX_PICTURE_BYTES = 100 * 1024
#: Significant digits of a number in the UI; the stored files have all of them.
DIGITS = 4


def asset_key(spec: TimescaleSpec, name: str) -> dg.AssetKey:
    """Return the key of an asset of a chain, e.g. ``minutes/bars`` or ``minutes_h5/labels``."""
    return dg.AssetKey(spec.asset(name).split("/"))


def group_name(spec: TimescaleSpec, part: Part) -> str:
    """Return the group under which the UI draws a part of a chain, e.g. ``minutes_h5_train``.

    Horizons on one grid share their market: ``minutes_market`` contains the labels of all of them. The names
    are short because the lineage page cuts those of more than 17 characters in the middle.
    """
    return f"{spec.grid if part == 'market' else spec.name}_{_GROUPS[part]}"


def timescale_tags(timescale: str) -> dict[str, str]:
    """Return the tags by which the UI finds every asset of a timescale."""
    return {"cryptovol/timescale": timescale}


def code_version(*parts: str) -> str:
    """Join hashes and versions into an asset's code version; another one shows the asset as stale."""
    return "-".join(parts)


def column_schema(schema: pa.Schema, descriptions: Mapping[str, str] | None = None) -> dg.TableSchema:
    """Describe a table's columns for the catalog."""
    known = descriptions or {}
    return dg.TableSchema(
        [dg.TableColumn(field.name, str(field.type), description=known.get(field.name)) for field in schema]
    )


def schema_metadata(schema: pa.Schema, descriptions: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return the metadata entry from which the catalog shows columns."""
    return {"dagster/column_schema": column_schema(schema, descriptions)}


def lineage_metadata(sources: Mapping[str, Sequence[tuple[dg.AssetKey, str]]]) -> dict[str, Any]:
    """Return the metadata entry of column lineage for the catalog."""
    return {
        "dagster/column_lineage": dg.TableColumnLineage(
            {
                column: [dg.TableColumnDep(asset_key=key, column_name=name) for key, name in made_of]
                for column, made_of in sources.items()
            }
        )
    }


def shown(
    first: Mapping[str, Any] | None = None,
    *,
    rows: int | None = None,
    numbers: Mapping[str, Any] | None = None,
    links: Mapping[str, Any] | None = None,
    hashes: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return metadata in the order of display, numbers rounded; empty ones left out.

    Args:
        first: results: pictures and tables, a verdict and its reason.
        rows: of the partition.
        numbers: numbers that the UI charts over partitions, and further facts.
        links: pages and files; a `Path` is a file of this machine.
        hashes: hashes of contents.
    """
    named = {
        **(first or {}),
        "dagster/partition_row_count": rows,
        **(numbers or {}),
        **(links or {}),
        **(hashes or {}),
    }
    return {
        name: dg.MetadataValue.path(value) if isinstance(value, Path) else rounded(value)
        for name, value in named.items()
        if value is not None and value not in ("", {}, [])
    }


def add_all(context: dg.AssetExecutionContext, told: Mapping[str, Mapping[str, Any]]) -> None:
    """Add the metadata of several partitions."""
    for key, metadata in told.items():
        context.add_asset_metadata(metadata, partition_key=key)


def rounded(value: Any) -> Any:
    """Round floats to `DIGITS` significant digits, within mappings and sequences too."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else value
    if isinstance(value, dg.MetadataValue):  # some are tuples
        return value
    if isinstance(value, Mapping):
        return {name: rounded(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(one) for one in value]
    return value


def file_url(path: Path) -> dg.UrlMetadataValue:
    """Return the address of a page of this machine."""
    return dg.MetadataValue.url(path.resolve().as_uri())


def picture(png: bytes, alt: str) -> dg.MarkdownMetadataValue:
    """Return a PNG as Markdown, or the reason why it is too large to be shown."""
    return dg.MetadataValue.md(inline_picture(png, alt))


def inline_picture(png: bytes, alt: str) -> str:
    """Return the Markdown of a PNG, or the reason why it is too large to be shown."""
    if len(png) > MAX_PICTURE_BYTES:
        return f"{alt}: {len(png) // 1024} KiB, too large for the event log"
    return f"![{alt}](data:image/png;base64,{base64.b64encode(png).decode()})"


def distances_table(distances: Mapping[str, float]) -> dg.MarkdownMetadataValue:
    """Return a table of columns and their distances from the reference."""
    rows = [[name, f"{distance:.2f}"] for name, distance in distances.items()]
    return dg.MetadataValue.md("\n".join(table(["column", "distance"], rows)))
