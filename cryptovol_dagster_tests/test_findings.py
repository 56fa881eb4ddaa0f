"""Every script of findings/ is in the index, says what it shows, and is a script; none of them runs in CI."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from cryptovol_dagster_tests.places import REPOSITORY

FINDINGS = REPOSITORY / "findings"
SCRIPTS = sorted(FINDINGS.glob("*.sh"))
INDEX = (FINDINGS / "README.md").read_text(encoding="utf-8")
#: What the comment at the top of a script says, in this order.
HEADER = ["Library", "Expected", "Happens", "For us"]
every_script = pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)


def test_the_index_lists_exactly_the_scripts_there_are() -> None:
    assert re.findall(r"^\| \[(\S+\.sh)\]\(\1\) \|", INDEX, re.MULTILINE) == [path.name for path in SCRIPTS]


@every_script
def test_the_header_and_the_index_name_the_version_that_is_installed(script: Path) -> None:
    text = script.read_text(encoding="utf-8")
    header = text.split("\nset -euo pipefail\n")[0]
    assert re.findall(r"^# ([A-Z][a-z ]+): +\S", header, re.MULTILINE) == HEADER
    (version,) = re.findall(r"^VERSION=\$\{VERSION:-(\S+)\}$", text, re.MULTILINE)
    (row,) = [line for line in INDEX.splitlines() if line.startswith(f"| [{script.name}]")]
    assert version in header
    assert version in row
    assert row.count(" | ") == 4


@every_script
def test_a_script_is_one_that_cleans_up_and_says_when_the_behaviour_changed(script: Path) -> None:
    text = script.read_text(encoding="utf-8")
    assert script.stat().st_mode & 0o111
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    assert {"expected: ", "happened: ", "changed: "} <= set(re.findall(r"[a-z]+: ", text))
    assert re.search(r"^trap '.*rm -rf \"\$work\"' EXIT$", text, re.MULTILINE)
    assert "cryptovol" not in text.split("\nset -euo pipefail\n")[1]
