"""The Dagster UI in a real browser, as `cryptovol ui` opens it: what people look at and click on."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

import dagster as dg
import pytest

from cryptovol_dagster.core.times import HOUR_NS, hour_key
from cryptovol_dagster.lake.files import Lake
from cryptovol_dagster.machine.instance import open_instance
from cryptovol_dagster.machine.reachable import answers, free_port
from cryptovol_dagster.verbs import runs
from cryptovol_dagster_tests.e2e.processes import CRYPTOVOL, environment, running, wait_until
from cryptovol_dagster_tests.synthetic import hours_from, small_settings, write_market
from ingestor.envelope import TICKS
from ingestor.settings import Settings
from ingestor.settings.sections import MlflowSettings

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, ViewportSize

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(600)]

CHROMIUM_ARGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
]
VIEW: ViewportSize = {"width": 1500, "height": 900}
GROUPS = ("ingestion", "seconds_market", "seconds_train", "seconds_watch")
MODELS = ("baseline_zscore", "ewma")
#: Screenshots are kept where this names a folder: for people, and for the documentation.
SHOTS = "CRYPTOVOL_SCREENSHOTS"


@dataclass(frozen=True)
class Shown:
    """A running UI and what it is of.

    Attributes:
        page: of the browser.
        address: of the UI.
        settings: of the pipeline.
        trained: hours that were made from raw to report.
        damaged: an hour of which raw storage has lost a file.
        untouched: hours in a row of which nothing was made.
        shots: folder of the screenshots; None where nobody asked for them.
    """

    page: Page
    address: str
    settings: Settings
    trained: list[str]
    damaged: str
    untouched: list[str]
    shots: Path | None

    def open(self, path: str) -> None:
        self.page.goto(f"{self.address}{path}")

    def shot(self, name: str) -> None:
        if self.shots is None:
            return
        self.page.wait_for_timeout(500)  # what opens moves into its place
        self.page.screenshot(path=self.shots / f"{name}.png")

    def wait_for(self, asset: str, hour: str, timeout_s: float = 120) -> None:
        """Wait until a run has written an hour. The page stays: leaving it could cut the launch off."""
        lake = Lake(self.settings.storage.lake_dir)
        deadline_s = time.monotonic() + timeout_s
        while not lake.exists(asset, hour):
            assert time.monotonic() < deadline_s, f"{asset} of {hour} was not written in {timeout_s:g} s"
            self.page.wait_for_timeout(500)

    def materialized(self, asset: str) -> set[str]:
        with open_instance(Path(os.environ["DAGSTER_HOME"])) as instance:
            return instance.get_materialized_partitions(dg.AssetKey(asset))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is absent: the Dagster UI was not looked at")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_ARGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def shown(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    """Hours of a small market behind `cryptovol ui`; left open, so that no sensor takes them."""
    folder = tmp_path_factory.mktemp("browser")
    # The UI offers the last 90 days first.
    hours = hours_from(hour_key(time.time_ns() - 9 * HOUR_NS), 7)
    trained, damaged, untouched = hours[:3], hours[3], hours[4:]
    mlflow = f"http://127.0.0.1:{free_port()}"
    settings = small_settings(folder, first_hour=hours[0], models=MODELS)
    settings = settings.model_copy(update={"mlflow": MlflowSettings(ui_url=mlflow)})
    _write_hours(settings, hours, damaged)
    shots = Path(os.environ[SHOTS]) if os.environ.get(SHOTS) else None
    env, port, log = environment(settings, folder), free_port(), folder / "ui.log"
    address = f"http://127.0.0.1:{port}"
    ports = ("--dagster-port", str(port), "--mlflow-port", mlflow.rpartition(":")[2])
    command = (*CRYPTOVOL[1:], "ui", *ports)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAGSTER_HOME", env["DAGSTER_HOME"])
        with running("python", *command, env=env, log=log) as server:
            # What is looked at is made while the server comes up.
            _make(settings, trained, damaged)
            wait_until(lambda: answers(f"{address}/server_info"), "the webserver", 90, server, log)
            wait_until(lambda: answers(f"{mlflow}/health"), "MLflow", 90, server, log)
            page = browser.new_page(viewport=VIEW)
            yield Shown(page, address, settings, trained, damaged, untouched, shots)


def _write_hours(settings: Settings, hours: list[str], damaged: str) -> None:
    """Write the hours; of the damaged one a file is lost, with every tick of a product."""
    raw_dir = settings.storage.raw_dir
    write_market(raw_dir, hours, close=False)
    folder = raw_dir / TICKS / f"date={damaged[:10]}" / f"hour={damaged[11:13]}"
    min(folder.glob("*.parquet")).unlink()


def _make(settings: Settings, trained: list[str], damaged: str) -> None:
    """Make everything of the good hours; of the damaged one the ledger, and bars all the same."""
    chain = [*runs.chain_selection(settings), "seconds/train_test_report"]
    runs.materialize_range(settings, trained[0], trained[-1], chain)
    with pytest.raises(runs.RunFailed, match="nothing_unaccounted_for"):
        runs.materialize_range(settings, damaged, damaged, ["gap_ledger", "ticks"])
    runs.materialize_range(settings, damaged, damaged, ["ticks", "seconds/bars"])


def _choose(page: Page, partitions: str, button: str) -> None:
    """Type partitions until the dialog takes them (what is typed before it knows its own is lost); launch."""
    page.get_by_role("button", name="Materialize").first.click()
    page.get_by_text("Partition selection").wait_for()
    launch = page.get_by_role("button", name=button, exact=True)
    for _ in range(40):
        field = page.get_by_role("textbox").last
        field.fill(partitions)
        field.press("Enter")
        page.wait_for_timeout(1_000)
        if launch.is_visible() and launch.is_enabled() and field.input_value() == partitions:
            return launch.click()
    raise AssertionError(f"the dialog never offered {button!r} for {partitions}")


def test_the_first_page_draws_the_chains_apart_and_invites_to_nothing(shown: Shown) -> None:
    shown.open("/asset-groups")
    for group in GROUPS:
        # In the list and in the graph, where a long name would be cut.
        shown.page.get_by_text(group, exact=True).filter(visible=True).nth(1).wait_for()
    shown.shot("groups")
    assert not shown.page.get_by_role("button", name="Skip").is_visible()


def test_the_whole_lineage_is_shown(shown: Shown) -> None:
    opened = ",".join(f"global@global:{group}" for group in GROUPS)
    shown.open(f"/asset-groups?expanded={opened}")
    for asset in (
        "raw_ticks",
        "gap_ledger",
        "ticks",
        "bars",
        "features",
        "splits",
        "model_ewma",
        "model_card",
    ):
        shown.page.get_by_text(asset, exact=True).last.wait_for()
    shown.page.get_by_text("Hide navigation").click()
    shown.page.set_viewport_size({"width": 1700, "height": 900})
    shown.page.reload()
    shown.page.get_by_text("model_card", exact=True).last.wait_for()
    shown.shot("lineage")
    shown.page.set_viewport_size(VIEW)


def test_a_failing_check_says_what_was_expected_and_found(shown: Shown) -> None:
    shown.open("/assets/seconds/bars?view=checks&checkDetail=gap_share")
    shown.page.get_by_text("non-blocking", exact=True).wait_for()
    found = f"{shown.damaged}: BTC-USD: expected at most 20% of the bars in a gap, found 99%"
    shown.page.get_by_text(found).wait_for()
    shown.shot("check_warning")
    shown.open("/assets/gap_ledger?view=checks&checkDetail=nothing_unaccounted_for")
    shown.page.get_by_text("blocking", exact=True).wait_for()
    shown.page.get_by_text(f"{shown.damaged}: {shown.damaged}, connection c0ffee, sequence ").wait_for()
    shown.page.get_by_text("expected 4320 frames with entries, found 2880").wait_for()
    shown.shot("check_failed")


def test_an_evaluation_shows_its_page_then_its_numbers_and_curves(shown: Shown) -> None:
    shown.open(f"/assets/seconds/model_evaluation?view=partitions&partition={shown.trained[-1]}")
    shown.page.get_by_text("insufficient_data").first.wait_for()
    names = [row.inner_text().split("\t")[0].strip() for row in shown.page.locator("table tr").all()]
    order = ("evaluation page", "evaluation", "status", "AP ewma", "mlflow_run", "path")
    assert [name for name in names if name in order] == list(order)
    shown.page.get_by_text("[Show Markdown]").first.click()
    picture = shown.page.locator("img[alt='episode']")
    picture.wait_for()
    assert picture.evaluate("image => image.naturalWidth") > 200
    shown.shot("evaluation")
    page = shown.settings.storage.reports_dir / "evaluation.html"
    shown.page.goto(page.as_uri())
    shown.page.get_by_text(f"Evaluation of seconds, as of {shown.trained[-1]} UTC").wait_for()
    assert shown.page.evaluate("[...document.images].every(image => image.naturalWidth > 200)")
    assert shown.page.locator("img").count() == 5
    shown.shot("evaluation_page")


def test_an_evaluation_leads_to_its_results_in_mlflow(shown: Shown) -> None:
    shown.open(f"/assets/seconds/model_evaluation?view=partitions&partition={shown.trained[-1]}")
    link = shown.page.locator(f"a[href^='{shown.settings.mlflow.ui_url}']").first
    link.wait_for()
    shown.page.goto(str(link.get_attribute("href")))
    shown.page.get_by_text("has the highest PR-AUC").wait_for()
    # MLflow's view for GenAI, which is its default, has no model registry.
    shown.page.get_by_role("link", name="Model registry").wait_for()
    shown.shot("mlflow_run")


def test_a_report_is_opened_from_its_asset(shown: Shown) -> None:
    shown.open(f"/assets/seconds/train_test_report?view=partitions&partition={shown.trained[-1]}")
    link = shown.page.get_by_text("/part.html").first
    link.wait_for()
    report = Path(unquote(link.inner_text().replace("\n", "").removeprefix("file://")))
    assert report == Lake(shown.settings.storage.lake_dir).path(
        "seconds/train_test_report", shown.trained[-1], "html"
    )
    shown.page.goto(report.as_uri())
    shown.page.get_by_text(f"Training against test, as of {shown.trained[-1]} UTC").wait_for()
    shown.page.get_by_text("Data Drift Summary").first.wait_for()  # Evidently's own part, drawn by its script
    shown.shot("report")


def test_an_hour_is_materialized_by_clicking(shown: Shown) -> None:
    hour = shown.untouched[0]
    shown.open("/assets/gap_ledger")
    _choose(shown.page, hour, "Launch 1 run")
    shown.wait_for("gap_ledger", hour)
    shown.open(f"/assets/gap_ledger?partition={hour}&view=partitions")
    shown.page.get_by_text("Materialized", exact=True).first.wait_for(timeout=90_000)
    shown.shot("materialized")
    assert hour in shown.materialized("gap_ledger")


def test_a_backfill_is_launched_and_watched(shown: Shown) -> None:
    first, last = shown.untouched[1], shown.untouched[-1]
    shown.open("/assets/gap_ledger")
    _choose(shown.page, f"[{first}...{last}]", "Launch backfill")
    told = shown.page.get_by_text("Created backfill").last.inner_text().split()
    shown.open(f"/runs/b/{told[told.index('backfill') + 1]}")
    shown.page.get_by_text("100% completed").wait_for(timeout=120_000)
    shown.page.get_by_text("Succeeded").first.wait_for()
    shown.shot("backfill")
    assert {first, last} <= shown.materialized("gap_ledger")
    with open_instance(Path(os.environ["DAGSTER_HOME"])) as instance:
        (backfill,) = instance.get_backfills()
        launched = instance.get_runs(dg.RunsFilter(tags={"dagster/backfill": backfill.backfill_id}))
    assert [run.status for run in launched] == [dg.DagsterRunStatus.SUCCESS]
    assert launched[0].tags[runs.RANGE_START] == first
    assert launched[0].tags[runs.RANGE_END] == last
