"""A fault that passes is tried again; one of the data fails at once."""

from __future__ import annotations

import errno

import dagster as dg
import pytest

from cryptovol_dagster.defs import retries
from cryptovol_dagster.defs.build import build_defs
from cryptovol_dagster.defs.resources import build_resources
from cryptovol_dagster.lake.files import LakeError
from cryptovol_dagster.lake.raw_ticks import RawStore
from cryptovol_dagster_tests.synthetic import FIRST_HOUR
from ingestor.archive.errors import ArchiveError
from ingestor.audit.findings import Audit
from ingestor.settings import Settings


def _caused_by(cause: Exception) -> LakeError:
    error = LakeError("ticks: cannot be read")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "passing"),
    [
        (OSError(errno.ESTALE, "Stale file handle"), True),
        (_caused_by(OSError(errno.EIO, "Input/output error")), True),
        (_caused_by(OSError("Couldn't deserialize thrift")), False),
        (OSError(errno.ENOENT, "No such file or directory"), False),
        (ArchiveError("part.parquet is damaged"), False),
    ],
)
def test_what_time_mends(error: Exception, passing: bool) -> None:
    assert retries.is_passing(error) is passing


class _Away(RawStore):
    """Raw storage on a share that is away for the first looks."""

    looks = 0

    def audit(self, start_ns: int, end_ns: int, *, with_seals: bool = True) -> Audit:
        if not with_seals:  # the asset's look; its check has another
            _Away.looks += 1
            if _Away.looks <= 2:
                raise ArchiveError("raw storage cannot be read") from OSError(
                    errno.ESTALE, "Stale file handle"
                )
        return super().audit(start_ns, end_ns, with_seals=with_seals)


def test_a_share_that_is_away_for_a_moment_costs_a_pause(
    market: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "WAIT_S", 0.01)
    raw = build_resources(market)["raw"]
    job = build_defs(market, raw=_Away(raw.raw_dir)).resolve_job_def("hourly_pipeline")
    with dg.DagsterInstance.ephemeral() as instance:
        result = job.execute_in_process(
            instance=instance, partition_key=FIRST_HOUR, asset_selection=[dg.AssetKey("gap_ledger")]
        )
    assert result.success
    assert _Away.looks == 3
