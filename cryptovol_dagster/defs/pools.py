"""Dagster's pools: which runs may not overlap (each has one slot, see `dagster.yaml`)."""

#: Gap ledger to labels: an hour reads the one before it, so hours are computed one after the other.
MARKET = "market"
#: Everything after labels: two trainings at once would need twice the memory.
TRAINING = "training"
