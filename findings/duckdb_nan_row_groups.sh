#!/usr/bin/env bash
# Library:  duckdb 2.0.0 on Parquet by pyarrow 25.0.1
# Expected: WHERE x > 5 gives the same rows however the Parquet file is divided into row groups.
# Happens:  DuckDB treats NaN as greater than any number, but skips row groups by statistics that
#           leave NaN out: the layout decides whether NaN rows are found.
# For us:   The lake stores null, never NaN, where a value is unknown. A NaN score would pass a
#           threshold in one file and not in another.
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
import pyarrow.parquet as pq

table = pa.table({"row": [1, 2, 3, 4], "x": [1.0, float("nan"), 10.0, float("nan")]})
found = {}
for size in (4, 2):
    pq.write_table(table, f"{size}.parquet", row_group_size=size)
    query = f"SELECT row FROM '{size}.parquet' WHERE x > 5 ORDER BY row"
    found[size] = [row for (row,) in duckdb.sql(query).fetchall()]

print(f"duckdb {duckdb.__version__}, pyarrow {pa.__version__}; x is 1, NaN, 10, NaN in rows 1 to 4")
print("expected: WHERE x > 5 finds the same rows in one row group and in two")
print(f"happened: rows {found[4]} in one row group, rows {found[2]} in two")
if found[4] == found[2]:
    sys.exit("changed: the rows found no longer depend on the row groups")
PYTHON
