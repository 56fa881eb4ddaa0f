#!/usr/bin/env bash
# Library:  grafana-foundation-sdk 1769699998!10.1.0
# Expected: Dashboard.from_json refuses keys and types that its model does not have.
# Happens:  from_json drops a misspelt key and keeps a number as a title and a panel type that does
#           not exist, without a warning.
# For us:   This model is no check of a dashboard. Each of its queries has to be run against a real
#           Prometheus.
set -euo pipefail
VERSION=${VERSION:-1769699998!10.1.0}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
"${PYTHON:-python3}" -m venv env
env/bin/pip install --quiet --disable-pip-version-check uv
env/bin/uv pip install --quiet --python env/bin/python "grafana-foundation-sdk==$VERSION"

env/bin/python - <<'PYTHON'
import json
import sys
from importlib.metadata import version

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

wrong = {"title": "Recorder", "refrsh": "5s", "panels": [{"type": "timeseriess", "title": 5}]}
try:
    read = json.loads(JSONEncoder().encode(Dashboard.from_json(wrong)))
except (KeyError, TypeError, ValueError) as error:
    sys.exit(f"changed: the dashboard is refused: {error!r}")
panel = read["panels"][0]

print(f"grafana-foundation-sdk {version('grafana-foundation-sdk')}")
print("expected: an error for `refrsh`, for `title: 5` or for the panel type `timeseriess`")
kept = "kept" if "refrsh" in read else "dropped"
print(f"happened: no error; refrsh {kept}, title {panel['title']!r}, type {panel['type']!r}")
PYTHON
