"""What the UI shows of every asset in the same way: rows, hashes, links, schema, pictures."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa

from cryptovol_dagster.core.cards.markdown import table
from cryptovol_dagster.core.specs import TimescaleSpec

OWNERS = ["team:cryptovol"]
#: Group of drift numbers, performance and reports.
MONITORING = "monitoring"
#: Columns named in a table of distances; the file holds all of them.
SHOWN_DISTANCES = 10
#: An event log keeps everything for ever; a larger picture stays out of it.
MAX_PICTURE_BYTES = 100 * 1024


def asset_key(spec: TimescaleSpec, name: str) -> dg.AssetKey:
    """Return the key of an asset of a chain, e.g. ``minutes/bars`` or ``minutes_h5/labels``."""
    return dg.AssetKey(spec.asset(name).split("/"))


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
    """Return the metadata entry from which the catalog shows what each column is computed from."""
    return {
        "dagster/column_lineage": dg.TableColumnLineage(
            {
                column: [dg.TableColumnDep(asset_key=key, column_name=name) for key, name in made_of]
                for column, made_of in sources.items()
            }
        )
    }


def rows_and_path(rows: int, path: Path) -> dict[str, Any]:
    """Return a partition's row count and file."""
    return {"dagster/partition_row_count": rows, "path": dg.MetadataValue.path(path)}


def picture(png: bytes, alt: str) -> dg.MarkdownMetadataValue:
    """Return a PNG as Markdown, or the reason why it is too large to be shown."""
    if len(png) > MAX_PICTURE_BYTES:
        return dg.MetadataValue.md(f"{alt}: {len(png) // 1024} KiB, too large for the event log")
    return dg.MetadataValue.md(f"![{alt}](data:image/png;base64,{base64.b64encode(png).decode()})")


def share_metadata(share: float | None) -> dict[str, float]:
    """Return the share of drifted columns; empty without one, since Dagster charts numbers only."""
    return {} if share is None else {"share_over": share}


def distances_table(distances: Mapping[str, float]) -> dg.MarkdownMetadataValue:
    """Show columns and their distances from the reference."""
    rows = [[name, f"{distance:.2f}"] for name, distance in distances.items()]
    return dg.MetadataValue.md("\n".join(table(["column", "distance"], rows)))
