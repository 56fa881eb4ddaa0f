"""Fixtures every room uses."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from cryptovol_dagster_tests.brokers import any_broker, embedded_broker, real_broker, real_kafka  # noqa: F401
from cryptovol_dagster_tests.pipeline import market, own_dagster_home, pipeline  # noqa: F401
from cryptovol_dagster_tests.places import SHARED_DATA
from cryptovol_dagster_tests.quick_stores import quick_stores, shared_by_workers  # noqa: F401

TESTS = Path(__file__).parent
#: Files that wait for minutes: for a tick of a schedule, and for a browser.
LONGEST = ("test_browser.py", "test_dagster_cli.py")
#: Files that look at the pipeline, which takes 15 s of CPU: one worker has them all.
OF_PIPELINE = {
    "api/test_document.py",
    "api/test_market.py",
    "champion/test_rollback.py",
    "champion/test_scoring.py",
    "champion/test_succession.py",
    "defs/assets/test_champion.py",
    "defs/assets/test_live_outcomes.py",
    "defs/assets/test_reports.py",
    "defs/automation/test_closed_hours.py",
    "defs/chains/test_seconds.py",
    "defs/checks/test_poison.py",
    "defs/checks/test_rules.py",
    "defs/test_traps.py",
    "inference/test_scorer.py",
    "monitoring/test_live_outcomes.py",
    "test_replay.py",
    "verbs/test_export.py",
    "verbs/test_infer.py",
    "verbs/test_leak_audit_of_lake.py",
    "verbs/test_train_evaluate_backfill.py",
}

# A shell that runs the tests in the background has them ignore Ctrl-C, and so would every process they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the real recordings; skips, saying so, where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"real recordings are absent ({SHARED_DATA.name} beside the checkout)")
    return SHARED_DATA


@pytest.fixture(scope="session")
def recordings(shared_data: Path) -> Path:
    """Folder of the real feed recordings."""
    return shared_data / "recordings"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take long: one left for the end keeps a single worker busy.

    `make test` has xdist hand files out in this order.
    """
    of_pipeline = {item.path for item in items if "pipeline" in getattr(item, "fixturenames", ())}
    if missing := sorted({str(path.relative_to(TESTS)) for path in of_pipeline} - OF_PIPELINE):
        raise pytest.UsageError(f"{', '.join(missing)}: uses the pipeline, so name it in OF_PIPELINE")
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(
        key=lambda item: (
            item.path.name not in LONGEST,
            item.path not in of_pipeline,
            item.path not in slow,
        )
    )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Leave a file with one worker, and with one worker also all files that look at the pipeline.

    xdist's own groups (`--dist loadgroup`) do nothing under pytest 9.2.
    """
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class ByFileOrPipeline(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "pipeline" if file.removeprefix(f"{TESTS.name}/") in OF_PIPELINE else file

    return ByFileOrPipeline(config, log)


def _allowed_skips() -> set[str]:
    lines = (TESTS / "allowed_skips.txt").read_text(encoding="utf-8").splitlines()
    return {line.split("#")[0].strip() for line in lines} - {""}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """In CI a skip hides what CI exists to show: name each one."""
    for nodeid in _forbidden_skips(terminalreporter):
        terminalreporter.write_line(f"FAILED (skipped where nothing may be absent): {nodeid}", red=True)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Turn a forbidden skip into a failing run."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None and _forbidden_skips(reporter) and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _forbidden_skips(reporter: pytest.TerminalReporter) -> list[str]:
    if not os.environ.get("CRYPTOVOL_FAIL_ON_SKIP"):
        return []
    allowed = _allowed_skips()
    return sorted({report.nodeid for report in reporter.stats.get("skipped", [])} - allowed)
