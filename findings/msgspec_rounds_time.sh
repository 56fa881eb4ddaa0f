#!/usr/bin/env bash
# Library:  msgspec 0.22.0
# Expected: Digits below a microsecond are cut off, as pydantic and Python's own parser do, or kept,
#           as pandas does.
# Happens:  msgspec rounds to the nearest microsecond, so the last tick of a day gets a time of the
#           next day.
# For us:   Wire types hold times as text; one parser of ours turns them into integer nanoseconds.
set -euo pipefail
VERSION=${VERSION:-0.22.0}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
"${PYTHON:-python3}" -m venv env
env/bin/pip install --quiet --disable-pip-version-check uv
env/bin/uv pip install --quiet --python env/bin/python "msgspec==$VERSION" pydantic==2.14.3 pandas==2.3.3

env/bin/python - <<'PYTHON'
import sys
from datetime import datetime
from importlib.metadata import version

import msgspec
import pandas as pd
import pydantic

text = "2026-11-30T23:59:59.9999996Z"  # a valid RFC 3339 time, as exchanges send it
read = {
    "msgspec": msgspec.json.decode(f'"{text}"', type=datetime),
    "pydantic": pydantic.TypeAdapter(datetime).validate_json(f'"{text}"'),
    "datetime.fromisoformat": datetime.fromisoformat(text),
    "pandas": pd.Timestamp(text),
}
print(f"msgspec {version('msgspec')}, pydantic {pydantic.VERSION}, pandas {pd.__version__}")
print(f"expected: every parser puts {text} on 30 November")
print("happened: " + ", ".join(f"{name} says {value:%d %B %H:%M:%S}" for name, value in read.items()))
if {name for name, value in read.items() if value.day != 30} != {"msgspec"}:
    sys.exit("changed: the parsers agree on the day, or others round too")
PYTHON
