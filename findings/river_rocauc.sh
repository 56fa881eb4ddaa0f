#!/usr/bin/env bash
# Library:  river 0.26.1, metrics.ROCAUC
# Expected: A running ROC AUC is near the exact one, which depends on the order of the scores alone.
# Happens:  ROCAUC has ten thresholds from 0 to 1. With rare events nearly all scores lie between
#           two of them, so real skill reads as chance.
# For us:   Spikes are rare. Rankings are evaluated exactly, over all stored rows, not by running
#           metrics.
set -euo pipefail
VERSION=${VERSION:-0.26.1}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
"${PYTHON:-python3}" -m venv env
env/bin/pip install --quiet --disable-pip-version-check uv
env/bin/uv pip install --quiet --python env/bin/python "river==$VERSION" scikit-learn==1.9.1

env/bin/python - <<'PYTHON'
import sys
from importlib.metadata import version

import numpy as np
from river import metrics
from sklearn.metrics import roc_auc_score

rng = np.random.default_rng(0)
score = rng.beta(1, 40, 20_000)  # calibrated: each is its row's true probability
event = rng.random(score.size) < score
running = {n: metrics.ROCAUC(n_thresholds=n) for n in (10, 1_000)}
for truth, value in zip(event.tolist(), score.tolist(), strict=True):
    for metric in running.values():
        metric.update(truth, value)
exact = roc_auc_score(event, score)

print(f"river {version('river')}; {event.mean():.1%} of {score.size:,} rows are events")
print(f"expected: close to the exact AUC, {exact:.3f}")
print(
    f"happened: {running[10].get():.3f} with the default of 10 thresholds, {running[1_000].get():.3f} with 1,000"
)
if abs(running[10].get() - exact) < 0.05:
    sys.exit("changed: the default is close to the exact AUC")
PYTHON
