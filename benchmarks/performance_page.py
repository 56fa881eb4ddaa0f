"""The page of measured speeds, `docs/performance/index.md`: a command wrote each number on it.

`make bench-NAME` prints its table and publishes it here: a JSON file for each command, and the page rendered
from all of them. `python -m benchmarks.NAME` alone only prints. ``python -m benchmarks.performance_page``
renders the page again.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.table import Line, machine

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "performance"
#: name of the file → title, command. In the order of the page.
COMMANDS = {
    "features": ("Bars, features and replay", "make bench"),
    "recorder": ("The recorder on a real Kafka", "make bench-recorder"),
    "live": ("The live path: delay, processor, memory", "make bench-live"),
    "backfill": ("A week of two products, an hour, a retrain", "make bench-backfill"),
    "verbs": ("Backtest, import, one score", "make bench-verbs"),
    "day_one": ("A first start on an empty folder", "make bench-day-one"),
    "idle": ("Memory of idle services", "make bench-idle"),
    "api": ("The Python API", "make bench-api"),
    "reports": ("Reports", "make bench-reports"),
    "gate": ("How often the promotion gate is wrong", "make bench-gate"),
    "drift": ("How often drift is reported on real minutes", "make bench-drift"),
}
_HEAD = """\
# Performance

Each table was written by the command above it, on the machine and at the commit it names. Nothing here is
typed by hand. Tables may come from different machines, so compare within a table. A missed target says so.
Type a command to measure again: it replaces its table.
"""


def publish(name: str, measured_on: str, lines: Sequence[Line] = (), text: str = "") -> None:
    """Write what a command measured, and the page anew; do nothing where `make` did not ask for it.

    Args:
        name: one of `COMMANDS`.
        measured_on: which data, in a few words.
        lines: the table.
        text: what is no table, as printed.

    Raises:
        KeyError: no command has that name.
    """
    title, _ = COMMANDS[name]
    if not os.environ.get("PUBLISH"):
        return
    content = {
        "title": title,
        "at": datetime.now(UTC).isoformat(timespec="minutes"),
        "commit": _commit(),
        "machine": machine(),
        "measured_on": measured_on,
        "lines": [asdict(line) for line in lines],
        "text": text,
    }
    file = FOLDER / "results" / f"{name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (FOLDER / "index.md").write_text(render(), encoding="utf-8")
    print(f"\npublished in {file} and {FOLDER / 'index.md'}")


def render() -> str:
    """Return the page, from the published files."""
    return "\n".join([_HEAD, *(_section(name) for name in COMMANDS)])


def _section(name: str) -> str:
    title, command = COMMANDS[name]
    file = FOLDER / "results" / f"{name}.json"
    if not file.is_file():
        return f"## {title}\n\n`{command}` has not been published yet.\n"
    found = json.loads(file.read_text(encoding="utf-8"))
    parts = [
        f"## {title}",
        f"`{command}`, {found['at'][:10]}, commit `{found['commit']}`, on {found['measured_on']}.\\\n"
        f"Machine: {found['machine']}.",
    ]
    if found["lines"]:
        parts.append("\n".join(_rows([Line(**line) for line in found["lines"]])))
    if found["text"]:
        parts.append(f"```text\n{found['text'].strip()}\n```")
    return "\n\n".join(parts) + "\n"


def _rows(lines: Sequence[Line]) -> list[str]:
    head = ["| what | measured | target | | details |", "|---|---|---|---|---|"]
    return head + [
        f"| {line.what} | {line.figure} | {line.bound} | {'met' if line.is_met else '**missed**'} "
        f"| {line.detail} |".replace("|  |", "| |")
        for line in lines
    ]


def _commit() -> str:
    """Return the commit measured; a `+` after it where tracked files beside published ones were changed."""
    head = _git("rev-parse", "--short", "HEAD").strip()
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!docs/performance")
    return head + ("+" if changed else "")


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=FOLDER.parent.parent, capture_output=True, text=True)
    return done.stdout


if __name__ == "__main__":
    (FOLDER / "index.md").write_text(render(), encoding="utf-8")
