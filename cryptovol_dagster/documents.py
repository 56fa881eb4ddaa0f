"""The pages of features, rendered from the declared tables with default settings.

``python -m cryptovol_dagster.documents > docs/reference/features.md`` renders the first page; with the
argument ``minutes``, the second, `features-minutes.md`. A test compares the files with the declaration.
"""

from __future__ import annotations

import sys

from cryptovol_dagster.chains import SECONDS, timescale_specs
from cryptovol_dagster.core.cards.markdown import table
from cryptovol_dagster.core.features.block import WARM_PERCENT
from cryptovol_dagster.core.features.catalogue import (
    MAX_REQUIRED_WINDOW_BARS,
    Feature,
    feature_hash,
    feature_list,
)
from cryptovol_dagster.core.specs import TimescaleSpec
from ingestor.settings.sections import Settings

_HEAD = """# Features of the timescale `{name}`

{count} columns, version `{version}`. Made from the code by
`python -m cryptovol_dagster.documents{command} > docs/reference/{file}`;
a test fails where they differ.

A row is known at its bar's end and uses nothing later. Windows are in bars of {bar_s} s, the row's own
included, and count the valid bars among them; a window is warm when at least {warm} % are valid, otherwise
its feature is null. r is a bar's log return, GK its Garman–Klass term. No feature is a level of prices,
sizes or volumes.

*Optional* features may be null in a valid row: those of trades and of quoted sizes where the feed has none,
those of other products where there is no other, and windows over {longest} bars until they are full. Every
other feature is a finite number in every valid row. Live rows (`ticks.features`) carry every family but
`cross`, which needs the products of all partitions.
"""


def render(spec: TimescaleSpec) -> str:
    """Return the page: one table per family of features."""
    features = feature_list(spec)
    text = _HEAD.format(
        name=spec.grid,
        command="" if spec.grid == SECONDS else f" {spec.grid}",
        file="features.md" if spec.grid == SECONDS else f"features-{spec.grid}.md",
        count=len(features),
        version=feature_hash(spec),
        bar_s=spec.bar_interval_s,
        warm=WARM_PERCENT,
        longest=f"{MAX_REQUIRED_WINDOW_BARS:,}",
    )
    for family in dict.fromkeys(feature.family for feature in features):
        rows = [_row(feature) for feature in features if feature.family == family]
        lines = table(["name", "unit", "bars", "made of", "formula"], rows)
        text += "\n".join([f"\n## {family[0].upper()}{family[1:]}\n", *lines, ""])
    return text


def _row(feature: Feature) -> list[str]:
    sources = ", ".join(f"`{name}`" for name in feature.sources)
    formula = feature.formula.replace("|", r"\|") + (" (optional)" if feature.optional else "")
    return [f"`{feature.name}`", feature.unit, f"{feature.window_bars:,}", sources, formula]


if __name__ == "__main__":
    wanted = sys.argv[1] if len(sys.argv) > 1 else SECONDS
    sys.stdout.write(render(next(s for s in timescale_specs(Settings()).values() if s.grid == wanted)))
