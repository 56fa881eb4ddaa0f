#!/usr/bin/env bash
# Library:  duckdb 2.0.0 with pandas 2.3.3
# Expected: A column of UTC nanoseconds comes back from DuckDB as it went in, whether as Arrow or as
#           pandas.
# Happens:  As Arrow it does. Out to pandas the time zone is lost; in from pandas the nanoseconds
#           are lost.
# For us:   Times of the lake are UTC nanoseconds. Whoever takes them into pandas through DuckDB
#           goes by Arrow, both ways.
set -euo pipefail
VERSION=${VERSION:-2.0.0}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
"${PYTHON:-python3}" -m venv env
env/bin/pip install --quiet --disable-pip-version-check uv
env/bin/uv pip install --quiet --python env/bin/python "duckdb==$VERSION" pandas==2.3.3 pyarrow==25.0.1 pytz

env/bin/python - <<'PYTHON'
import sys

import duckdb
import pandas as pd
import pyarrow as pa

ticks = pa.table({"t": pa.array([1_796_083_199_123_456_789], pa.timestamp("ns", "UTC"))})
frame = ticks.to_pandas()
arrow_out = duckdb.sql("SELECT t FROM ticks").to_arrow_table().schema.field("t").type
pandas_out = duckdb.sql("SELECT t FROM ticks").df()["t"].dtype
lost = int(frame["t"].astype("int64")[0]) - duckdb.sql("SELECT epoch_ns(t) FROM frame").fetchall()[0][0]

print(f"duckdb {duckdb.__version__}, pandas {pd.__version__}, pyarrow {pa.__version__}")
print(f"expected: {frame['t'].dtype} out to pandas, 0 ns lost in from pandas")
print(
    f"happened: {arrow_out} out to Arrow, {pandas_out} out to pandas, {lost} ns lost in from pandas"
)
if str(pandas_out) != "datetime64[ns]" or lost != 789:
    sys.exit("changed: pandas keeps the zone or the nanoseconds")
PYTHON
