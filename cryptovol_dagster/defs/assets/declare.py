"""How an asset of a chain is declared: what all of them share stands here, once.

Does not belong here: what an asset computes, which stays beside its declaration.
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
        pool: whose runs may not overlap with this one.
        kinds: technologies that the UI shows.
        version: what its contents mean; another one shows the asset as stale.
        tags: besides that of the timescale.
        metadata: what the UI shows of every partition.
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
