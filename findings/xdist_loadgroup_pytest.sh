#!/usr/bin/env bash
# Library:  pytest-xdist 3.8.0 with pytest 9.2.0
# Expected: With --dist loadgroup, tests marked with one xdist_group run in one worker.
# Happens:  The groups are ignored without a word: tests of one group are spread over the workers.
# For us:   Tests that share a costly fixture are given to one worker by a scheduler of our own.
set -euo pipefail
VERSION=${VERSION:-9.2.0}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
"${PYTHON:-python3}" -m venv env
env/bin/pip install --quiet --disable-pip-version-check uv
env/bin/uv pip install --quiet --python env/bin/python "pytest==$VERSION" pytest-xdist==3.8.0

cat > test_group.py <<'PYTHON'
import os
import time

import pytest


@pytest.mark.xdist_group("costly")
@pytest.mark.parametrize("number", range(8))
def test_of_the_group(number):
    time.sleep(0.2)
    with open("workers", "a") as file:
        file.write(os.environ["PYTEST_XDIST_WORKER"] + "\n")
PYTHON
env/bin/python -m pytest -q -p no:cacheprovider -n 2 --dist loadgroup test_group.py >output || { cat output; exit 1; }
env/bin/python - <<'PYTHON'
import sys
from collections import Counter
from importlib.metadata import version

workers = Counter(open("workers").read().split())
print(f"pytest {version('pytest')}, pytest-xdist {version('pytest-xdist')}")
print("expected: the 8 tests of one group in one worker")
print("happened: " + ", ".join(f"{count} in {name}" for name, count in sorted(workers.items())))
if len(workers) == 1:
    sys.exit("changed: the group stays together")
PYTHON
