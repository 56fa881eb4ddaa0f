"""The Dagster UI in a real browser: the graph is there, and a click materializes an hour."""

from __future__ import annotations

import shutil
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg
import pytest

from cryptovol_dagster.resources.lake import HOUR_NS, Lake, hour_key
from cryptovol_dagster_tests.defs.synthetic import small_settings, write_market
from cryptovol_dagster_tests.e2e.processes import environment, free_port, running, wait_until

if TYPE_CHECKING:
    from playwright.sync_api import Page

CHROMIUM_ARGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
]
GROUPS = ("ingestion", "market", "features", "training", "monitoring")


@pytest.mark.browser
@pytest.mark.slow
def test_the_graph_is_shown_and_an_hour_is_materialized_by_clicking(tmp_path: Path) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is absent: the Dagster UI was not looked at")
    from playwright.sync_api import sync_playwright

    # The UI offers the last 90 days first, so this is the hour before last. Left open: no sensor takes it.
    hour = hour_key(time.time_ns() - 2 * HOUR_NS)
    settings = small_settings(tmp_path, first_hour=hour)
    write_market(settings.storage.raw_dir, [hour], close=False)
    env, port, log = environment(settings, tmp_path), free_port(), tmp_path / "dagster.log"
    address, shots = f"http://127.0.0.1:{port}", tmp_path / "screenshots"
    target = ("-m", "cryptovol_dagster.definitions", "-h", "127.0.0.1", "-p", str(port))
    with running("dagster", "dev", *target, env=env, log=log) as server:
        wait_until(lambda: _answers(address), "the webserver", 90, server, log)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_ARGS)
            page = browser.new_page(viewport={"width": 1600, "height": 1000})
            opened = ",".join(f"global@global:{group}" for group in GROUPS)
            page.goto(f"{address}/asset-groups?expanded={opened}")
            page.get_by_role("button", name="Skip").click()
            for asset in ("raw_ticks", "gap_ledger", "ticks", "bars", "features", "splits", "model_xgboost"):
                page.get_by_text(asset, exact=True).last.wait_for()
            page.screenshot(path=shots / "graph.png")

            page.goto(f"{address}/assets/gap_ledger")
            page.get_by_role("button", name="Materialize").first.click()
            page.get_by_text("Partition selection").wait_for()
            _choose(page, hour)
            page.screenshot(path=shots / "dialog.png")
            page.get_by_role("button", name="Launch 1 run").click()
            lake = Lake(settings.storage.lake_dir)
            wait_until(lambda: lake.exists("gap_ledger", hour), "the losses of the hour", 60, server, log)
            page.goto(f"{address}/assets/gap_ledger?partition={hour}&view=partitions")
            page.get_by_text("Materialized").first.wait_for()
            page.screenshot(path=shots / "materialized.png")
            page.goto(f"{address}/runs")
            page.get_by_text("Success").first.wait_for(timeout=60_000)
            page.screenshot(path=shots / "runs.png")
            browser.close()
    with dg.DagsterInstance.from_config(env["DAGSTER_HOME"]) as instance:
        assert instance.get_materialized_partitions(dg.AssetKey("gap_ledger")) == {hour}
        assert [run.status for run in instance.get_runs()] == [dg.DagsterRunStatus.SUCCESS]


def _choose(page: Page, hour: str) -> None:
    """Type the partition until the dialog takes it: what is typed before it knows its partitions is lost."""
    launch = page.get_by_role("button", name="Launch 1 run")
    for _ in range(20):
        partitions = page.get_by_role("textbox").last
        partitions.fill(hour)
        partitions.press("Enter")
        page.wait_for_timeout(1_500)
        if launch.is_visible() and launch.is_enabled() and partitions.input_value() == hour:
            return
    raise AssertionError(f"the dialog never offered to launch {hour}")


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/server_info", timeout=2) as answer:
            return answer.status == 200
    except OSError:
        return False
