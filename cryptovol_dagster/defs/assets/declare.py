"""Declaration of the assets of a chain: their shared options.

Does not belong here: the computation of an asset, which is beside its declaration.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import dagster as dg

from cryptovol_dagster.core.specs import TimescaleSpec
from cryptovol_dagster.defs.metadata import OWNERS, Part, asset_key, group_name, timescale_tags

Body = Callable[..., dg.MaterializeResult]


def chain_asset(
    spec: TimescaleSpec,
    name: str,
    *,
    deps: Sequence[dg.AssetKey | dg.AssetDep],
    partitions: dg.PartitionsDefinition,
    part: Part,
    pool: str,
    kinds: set[str],
    version: str,
    tags: Mapping[str, str] | None = None,
    metadata: Mapping[str, Any] | None = None,
    description: str | None = None,
) -> Callable[[Body], dg.AssetsDefinition]:
    """Declare an asset of a chain; a run over a range of partitions is one run.

    Args:
        spec: the chain.
        name: of the asset within the chain, e.g. ``"labels"``.
        deps: the assets it is computed from.
        partitions: hours or days.
        part: of the chain, which decides the group under which the UI draws it.
        pool: runs of one pool do not overlap.
        kinds: technologies that the UI shows.
        version: of the meaning of its contents; another version shows the asset as stale.
        tags: besides that of the timescale.
        metadata: shown in the UI for every partition.
        description: for the UI; by default the docstring of the body.
    """
    key = asset_key(spec, name)
    return dg.asset(
        key=key,
        deps=deps,
        partitions_def=partitions,
        backfill_policy=dg.BackfillPolicy.single_run(),
        group_name=group_name(spec, part),
        owners=OWNERS,
        pool=pool,
        kinds=kinds,
        code_version=version,
        tags={**timescale_tags(key.path[0]), **(tags or {})},
        metadata=metadata,
        description=description,
    )
