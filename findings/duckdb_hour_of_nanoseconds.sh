#!/usr/bin/env bash
# Library:  duckdb 2.0.0
# Expected: date_trunc('hour', t) of a TIMESTAMP_NS is the hour that holds t, as a comparison with
#           the hour's bounds says.
# Happens:  date_trunc rounds to microseconds first, so the last 500 ns of an hour are counted in
#           the next hour. Comparisons do not round.
# For us:   Exchange times have nanoseconds. Hours are cut by integer arithmetic on int64
#           nanoseconds, never by SQL functions of time.
set -euo pipefail
VERSION=${VERSION:-2.0.0}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
"${PYTHON:-python3}" -m venv env
env/bin/pip install --quiet --disable-pip-version-check uv
env/bin/uv pip install --quiet --python env/bin/python "duckdb==$VERSION" pyarrow==25.0.1

env/bin/python - <<'PYTHON'
import sys

import duckdb
import pyarrow as pa

midnight = 1_796_083_200_000_000_000  # 2026-12-01T00:00:00Z
ticks = pa.table(
    {"t": pa.array([midnight - 400, midnight - 100, midnight, midnight + 100], pa.timestamp("ns"))}
)
before = "t < TIMESTAMP '2026-12-01 00:00:00'"
compared = duckdb.sql(f"SELECT count(*) FROM ticks WHERE {before}").fetchall()[0][0]
hour_before = "date_trunc('hour', t) < TIMESTAMP '2026-12-01 00:00:00'"
truncated = duckdb.sql(f"SELECT count(*) FROM ticks WHERE {hour_before}").fetchall()[0][0]
rows = duckdb.sql("SELECT t::VARCHAR, date_trunc('hour', t)::VARCHAR FROM ticks LIMIT 1").fetchall()[0]

print(f"duckdb {duckdb.__version__}, pyarrow {pa.__version__}")
print(
    f"expected: of four ticks around midnight, {compared} are in the hour before it, by either"
)
print(f"happened: {compared} by comparison, {truncated} by date_trunc; {rows[0]} is put into {rows[1]}")
if (compared, truncated) != (2, 0):
    sys.exit("changed: date_trunc and the comparison agree on the hour")
PYTHON
