"""From an empty folder to champions: the import of `up`, the sensor, and the runs that it asks for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import dagster as dg
import mlflow
import pandas as pd
import pyarrow as pa
import pytest

from cryptovol_dagster.chains import timescale_specs
from cryptovol_dagster.core.specs import TimescaleSpec
from cryptovol_dagster.defs.automation.imported_days import outdated_days
from cryptovol_dagster.defs.automation.retrain import why_days_not_trained
from cryptovol_dagster.defs.build import build_defs
from cryptovol_dagster.defs.partitions import RANGE_END, RANGE_START
from cryptovol_dagster.defs.resources import build_resources
from cryptovol_dagster.history.api import PAGE_MINUTES
from cryptovol_dagster.history.last_days import PAGES_AT_ONCE, LastDays
from cryptovol_dagster.history.progress import read_progress, the_only_import
from cryptovol_dagster.history.store import DAY_NS, History
from cryptovol_dagster.lake.files import Lake
from cryptovol_dagster.machine.first_days import learning_line, minutes_line
from cryptovol_dagster.verbs.runs import quiet_dagster
from cryptovol_dagster_tests.candle_server import CandleServer, Fault, serving_candles
from cryptovol_dagster_tests.defs.chains import test_minutes as chain
from cryptovol_dagster_tests.synthetic import PRODUCTS
from ingestor.settings import Settings

#: The last days, which are asked for.
DAYS = chain.DAYS[-4:]
LAST = DAYS[-1]
#: Ten hours into the day after the last one.
NOW_NS = pd.Timestamp(LAST, tz="UTC").value + DAY_NS + 10 * 3_600 * 10**9


class Day(NamedTuple):
    """An empty folder, an exchange, and Dagster."""

    settings: Settings
    server: CandleServer
    instance: dg.DagsterInstance
    defs: dg.Definitions

    @property
    def lake(self) -> Lake:
        return Lake(self.settings.storage.lake_dir)

    def spec(self, name: str) -> TimescaleSpec:
        return timescale_specs(self.settings)[name]

    def imports(self, later_ns: int = 0) -> None:
        """Do what the process beside the recorder does."""
        history = self.settings.history.model_copy(
            update={"url": self.server.url, "requests_per_s": 1e6, "tries": 1, "first_import_days": len(DAYS)}
        )
        LastDays(
            History(self.settings.storage.history_dir),
            history,
            PRODUCTS,
            0,
            tell=lambda line: None,
            clock_ns=lambda: NOW_NS + later_ns,
            sleep=_never_asked_again,
        ).run()

    def senses(self, cursor: str | None = None) -> dg.SensorResult | dg.SkipReason:
        """Evaluate the sensor once."""
        resources = {name: build_resources(self.settings)[name] for name in ("lake", "history")}
        context = dg.build_sensor_context(self.instance, cursor=cursor, resources=resources)
        result = self.defs.resolve_sensor_def("imported_days")(context)
        assert isinstance(result, dg.SensorResult | dg.SkipReason)
        return result

    def runs(self, request: dg.RunRequest) -> bool:
        """Do what was asked for, in process; return whether it succeeded."""
        assert request.job_name is not None
        assert request.run_key is not None
        with quiet_dagster():
            return (
                self.defs.resolve_job_def(request.job_name)
                .execute_in_process(
                    instance=self.instance,
                    partition_key=request.partition_key,
                    asset_selection=list(request.asset_selection) if request.asset_selection else None,
                    tags={**request.tags, "dagster/run_key": request.run_key},
                    raise_on_error=False,
                )
                .success
            )

    def says(self) -> str | None:
        return minutes_line(self.settings, self.lake)


def _never_asked_again(seconds: float) -> None:
    if seconds == 600.0:
        raise KeyboardInterrupt


def _requests(result: dg.SensorResult | dg.SkipReason) -> list[dg.RunRequest]:
    assert isinstance(result, dg.SensorResult), result
    return list(result.run_requests or ())


def _reason(result: dg.SensorResult | dg.SkipReason) -> str:
    assert isinstance(result, dg.SkipReason)
    return result.skip_message or ""


@pytest.fixture
def day(tmp_path: Path, own_dagster_home: None) -> Iterator[Day]:
    settings = chain.minutes_settings(tmp_path, models=("persistence", "ewma"))
    candles = {product: chain.market_candles(seed) for seed, product in enumerate(PRODUCTS)}
    with serving_candles(candles) as server, dg.instance_for_test() as instance:
        yield Day(settings, server, instance, build_defs(settings))


@pytest.mark.slow
def test_an_empty_folder_comes_to_champions_of_both_horizons(day: Day) -> None:
    assert _reason(day.senses()) == "`cryptovol up` has imported no minutes here"
    assert day.says() is None

    # The exchange goes away in the middle of the second product; whoever starts again asks for the rest.
    pages = -(-(len(DAYS) * 1_440 + 598) // PAGE_MINUTES)
    day.server.faults = [*[Fault()] * (pages + PAGES_AT_ONCE), Fault(status=503)]
    with pytest.raises(KeyboardInterrupt):
        day.imports()
    reached = "BTC-USD 4 of 4 days, ETH-USD 2 of 4 days"
    stopped = f"import of minutes stopped: {reached}; `cryptovol up` continues it"
    assert _reason(day.senses()) == day.says() == stopped
    with the_only_import(day.settings.storage.history_dir):
        assert "the exchange does not answer" in _reason(day.senses())
    answered = day.server.asked[:-1]
    day.imports()
    assert not {*answered} & {*day.server.asked[len(answered) + 1 :]}

    (labels,) = _requests(found := day.senses())
    assert isinstance(found, dg.SensorResult)
    assert [event.partition for event in found.asset_events] == DAYS
    assert (labels.tags[RANGE_START], labels.tags[RANGE_END]) == (DAYS[0], LAST)
    assert (day.says() or "").endswith("days computed: 0")
    assert learning_line(day.lake, day.spec("minutes_h5")) == "learning: 0 of 2 days"
    assert day.runs(labels)
    assert day.lake.partitions("minutes_h15/labels") == DAYS
    assert day.lake.partitions("minutes_h5/drift_scores", "json") == []
    assert (day.says() or "").endswith(f"days computed: {len(DAYS)}")
    assert learning_line(day.lake, day.spec("minutes_h5")) == "learning: 4 days, not trained yet"

    # Both at once would need twice the memory, so the second is asked for once the first is done.
    for name in ("minutes_h5", "minutes_h15"):
        (training,) = _requests(day.senses())
        assert (training.job_name, training.partition_key) == (f"{name}_retrain", LAST)
        assert day.runs(training)
    client = mlflow.MlflowClient(day.settings.mlflow_tracking_uri)
    registered = {model.name: model.aliases for model in client.search_registered_models()}
    assert {name: list(aliases) for name, aliases in registered.items()} == {
        "cryptovol-minutes-h5": ["champion"],
        "cryptovol-minutes-h15": ["champion"],
    }
    for name in ("minutes_h5", "minutes_h15"):
        decision = json.loads(day.lake.read_bytes(f"{name}/champion", LAST, "json"))
        assert decision["champion"]["registry_version"] == "1"

    (drift,) = _requests(day.senses())
    assert day.runs(drift)
    assert day.lake.partitions("minutes_h15/drift_scores", "json") == DAYS
    assert _reason(day.senses()) == f"all imported days up to {LAST} are computed"


def test_a_request_waits_for_runs_on_their_way_and_is_made_once_an_import(day: Day) -> None:
    day.imports()
    (labels,) = _requests(day.senses())
    run = dg.DagsterRun(
        job_name="minutes_market",
        status=dg.DagsterRunStatus.STARTED,
        tags={"dagster/run_key": labels.run_key or ""},
    )
    day.instance.add_run(run)
    assert _reason(day.senses()) == "a run of minutes_market is running or queued"
    day.instance.report_run_failed(run)
    assert _reason(day.senses()) == (
        f"run {run.run_id} of minutes_market ended and something is still missing: see its error; the next "
        "start of `cryptovol up` tries again"
    )
    day.imports(later_ns=1)
    (again,) = _requests(day.senses())
    assert again.run_key != labels.run_key
    progress = read_progress(day.settings.storage.history_dir)
    assert progress is not None
    assert _reason(day.senses(str(progress.at_ns))).startswith("all imported days up to ")


def test_a_failed_training_does_not_stop_the_others_and_days_are_not_read_again(
    day: Day, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ended(request: dg.RunRequest, status: dg.DagsterRunStatus) -> str:
        tags = {"dagster/run_key": request.run_key or ""}
        run = dg.DagsterRun(job_name=request.job_name or "", status=status, tags=tags)
        day.instance.add_run(run)
        return run.run_id

    day.imports()
    (labels,) = _requests(day.senses())
    for spec in (day.spec("minutes_h5"), day.spec("minutes_h15")):
        for key in DAYS:
            day.lake.write_table(spec.asset("labels"), key, pa.table({"x": [1]}))
    ended(labels, dg.DagsterRunStatus.SUCCESS)
    monkeypatch.delattr(History, "read_products")
    failed = ""
    for status in (dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE):
        (request,) = _requests(day.senses())
        run_id = ended(request, status)
        failed = failed or f"run {run_id} of {request.job_name} ended and something is still missing"
    assert request.run_key == (labels.run_key or "").replace("labels", "drift")
    assert "minutes_h5_retrain" in failed
    assert _reason(day.senses()).startswith(failed)


def test_days_are_outdated_that_lack_candles_or_labels(day: Day) -> None:
    day.server.candles = {PRODUCTS[0]: chain.market_candles(0)}
    day.imports()
    root, specs = day.settings.storage.history_dir, [day.spec("minutes_h5"), day.spec("minutes_h15")]
    progress = read_progress(root)
    assert progress is not None

    def outdated() -> list[str]:
        return outdated_days(day.lake, History(root), PRODUCTS, specs, progress)

    assert outdated() == DAYS
    for key in DAYS:
        taken = {"products": {PRODUCTS[0]: {"history": 1_440, "feed": 0}}}
        day.lake.write_bytes("minutes/candles", key, json.dumps(taken).encode(), "json")
        for spec in specs:
            day.lake.write_table(spec.asset("labels"), key, pa.table({"x": [1]}))
    assert outdated() == []
    day.lake.delete("minutes_h15/labels", DAYS[0])
    taken = {"products": {PRODUCTS[0]: {"history": 600, "feed": 800}}}
    day.lake.write_bytes("minutes/candles", DAYS[3], json.dumps(taken).encode(), "json")
    assert outdated() == [DAYS[0], DAYS[3]]


def test_models_are_due_where_there_are_none_and_where_a_turn_was_missed(day: Day) -> None:
    spec = day.spec("minutes_h5")

    def due(*, missed_only: bool) -> str:
        return why_days_not_trained(day.lake, spec, LAST, missed_only=missed_only)

    for key in DAYS:
        day.lake.write_table("minutes_h5/labels", key, pa.table({"x": [1]}))
    assert due(missed_only=True) == due(missed_only=False) == ""
    day.lake.write_bytes("minutes_h5/model_evaluation", chain.DAYS[-4], b"{}", "json")
    assert due(missed_only=True) == (
        f"the models of {chain.DAYS[-4]} are 3 days old as of {LAST}; trained every 3 days"
    )
    assert due(missed_only=False) == ""
    day.lake.delete("minutes_h5/model_evaluation", chain.DAYS[-4])
    day.lake.write_bytes("minutes_h5/model_evaluation", chain.DAYS[-5], b"{}", "json")
    assert due(missed_only=True) == due(missed_only=False) == ""


def test_a_training_on_its_way_is_not_asked_for_by_the_schedule(day: Day) -> None:
    for key in DAYS:
        day.lake.write_table("minutes_h5/labels", key, pa.table({"x": [1]}))

    def asked() -> object:
        resources = {"lake": build_resources(day.settings)["lake"]}
        with dg.build_schedule_context(day.instance, resources=resources) as context:
            return day.defs.resolve_schedule_def("minutes_h5_retrain")(context)

    request = asked()
    assert isinstance(request, dg.RunRequest)
    assert request.partition_key == LAST
    tags = {"dagster/partition": LAST}
    day.instance.add_run(
        dg.DagsterRun(job_name="minutes_h5_retrain", status=dg.DagsterRunStatus.STARTED, tags=tags)
    )
    waits = asked()
    assert isinstance(waits, dg.SkipReason)
    assert waits.skip_message == f"a retrain as of {LAST} is running or queued"
