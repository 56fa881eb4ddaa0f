"""MLflow through dagster-mlflow: the Dagster run is the parent, each (model, as-of partition) a nested child.

Two things differ from dagster-mlflow's own resource:

* It is imported when a run first needs it, since importing MLflow takes seconds that loading a code location,
  listing assets or computing bars should not cost.
* The parent's end state is taken from Dagster's own event log when the resource is torn down. The package's
  hook ends the run as a success only when the topologically last step carries the hook, so a run that ends
  with a check or a report would stay RUNNING, and a failed check would go unseen.

A server that is away is reported in one line with its address, within half a minute: MLflow's own client
would try for four minutes at each call.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from cryptovol_dagster.tracking import flavour as mlflow_model
from cryptovol_dagster.tracking.links import mlflow_page
from cryptovol_dagster.tracking.results import TEST_ROWS, Results
from cryptovol_dagster.tracking.store import prepare_store
from ingestor.errors import CryptovolError, first_line
from ingestor.settings.sections import Settings

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

FINISHED, FAILED, KILLED = "FINISHED", "FAILED", "KILLED"
#: MLflow's tag for the description of a run or an experiment, in Markdown.
NOTE = "mlflow.note.content"
ABOUT_EXPERIMENT = (
    "Each run here belongs to a Dagster run: its description has the results of the newest partition, its "
    "artifacts the pictures and the model card. The runs below it are the trained models."
)
#: Retries of MLflow's client: about 7 s without a server. Values of the environment take precedence.
CLIENT_LIMITS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    # No lines about created tables before the one that people are to read; MLflow reads it when imported.
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}


class TrackingError(CryptovolError):
    """MLflow cannot be reached or refuses; the message is one line."""


@contextmanager
def mlflow_answers(uri: str) -> Iterator[None]:
    """Convert MLflow's failures inside the block to one line with its address.

    Raises:
        TrackingError: MLflow, or what it stores artifacts in, cannot be reached or refuses.
    """
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, OSError) as error:  # exceptions of `requests` are OSErrors
        raise TrackingError(f"MLflow at {uri}: {first_line(error)}") from error


class Connection:
    """MLflow's client and its address, without a run: enough to read the registry."""

    def __init__(self, settings: Settings, client: MlflowClient) -> None:
        self._settings = settings
        self._client = client

    @property
    def client(self) -> MlflowClient:
        """MLflow's own client, for the registry; use it inside `answers`."""
        return self._client

    def answers(self) -> AbstractContextManager[None]:
        """Convert MLflow's failures inside the block to a `TrackingError` with its address."""
        return mlflow_answers(self._settings.mlflow_tracking_uri)

    def version_url(self, name: str, version: str) -> str:
        """Return the address of a version of a registered model in MLflow's UI."""
        return mlflow_page(self._settings.mlflow.ui_url, f"models/{name}/versions/{version}")

    @property
    def ui_url(self) -> str:
        """Address of MLflow's server."""
        return self._settings.mlflow.ui_url.rstrip("/")


def connect(settings: Settings) -> Connection:
    """Connect to MLflow outside a Dagster run, for verbs.

    Raises:
        TrackingError: MLflow cannot be reached or refuses.
    """
    _limit_client()
    from mlflow import MlflowClient

    uri = settings.mlflow_tracking_uri
    with mlflow_answers(uri):
        prepare_store(settings)
        return Connection(settings, MlflowClient(tracking_uri=uri))


class Tracking(Connection):
    """MLflow inside a Dagster run; obtained as the resource ``tracking``."""

    def __init__(self, mlflow_resource: Any, settings: Settings, dagster_run_id: str) -> None:
        super().__init__(settings, mlflow_resource.tracking_client)
        self._mlflow = mlflow_resource
        self._dagster_run_id = dagster_run_id
        self._parent: Run = mlflow_resource.active_run()
        self._sections: dict[str, str] = {}

    @property
    def parent_run_id(self) -> str:
        """The MLflow run of the Dagster run."""
        return self._parent.info.run_id

    def run_url(self, run_id: str) -> str:
        """Return the address of an MLflow run in MLflow's UI."""
        experiment = self._parent.info.experiment_id
        return mlflow_page(self._settings.mlflow.ui_url, f"experiments/{experiment}/runs/{run_id}")

    @property
    def dagster_run_id(self) -> str:
        """The Dagster run that works here."""
        return self._dagster_run_id

    @contextmanager
    def child(self, *, asset: str, partition_key: str, tags: Mapping[str, str]) -> Iterator[Any]:
        """Open the nested run of one (asset, as-of partition); an exception inside ends it as FAILED.

        Args:
            asset: the asset's key as users write it (``seconds/model_ewma``).
            partition_key: the as-of partition.
            tags: further tags.

        Yields:
            The ``mlflow.ActiveRun``.

        Raises:
            TrackingError: MLflow cannot be reached or refuses.
        """
        with self.answers():
            run = self._mlflow.start_run(run_name=f"{asset} {partition_key}", nested=True)
        try:
            with self.answers():
                self._mlflow.set_tags({**self.origin(asset, partition_key), **tags})
            yield run
        except BaseException:
            self._give_up()
            raise
        with self.answers():
            self._mlflow.end_run(FINISHED)

    def _give_up(self) -> None:
        """End the open run as failed; where the server is away, the error already raised is enough."""
        with suppress(TrackingError), self.answers():
            self._mlflow.end_run(FAILED)

    def origin(self, asset: str, partition_key: str) -> dict[str, str]:
        """Return the tags that link to the Dagster run, asset and partition."""
        dagster_url = self._settings.dagster.ui_url.rstrip("/")
        return {
            # Not "dagster_run_id": dagster-mlflow finds the parent by that tag.
            "dagster.run_id": self._dagster_run_id,
            "dagster.run_url": f"{dagster_url}/runs/{self._dagster_run_id}",
            "dagster.asset": asset,
            "dagster.asset_url": f"{dagster_url}/assets/{asset}?partition={partition_key}",
            "dagster.partition": partition_key,
        }

    def log(self, *, params: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """Log to the open run. MLflow accepts finite metrics only; others are left out.

        Raises:
            TrackingError: MLflow cannot be reached or refuses.
        """
        with self.answers():
            self._mlflow.log_params(dict(params))
            self._mlflow.log_metrics({name: float(v) for name, v in metrics.items() if isfinite(v)})

    def log_model(self, content: bytes, run_id: str) -> None:
        """Attach a model file to a run, as a model that ``mlflow.pyfunc`` loads.

        Args:
            content: the model file, from `Model.to_bytes`.
            run_id: an MLflow run, open or not.

        Raises:
            TrackingError: MLflow cannot be reached or refuses.
            ModelError: the bytes are not a model file.
        """
        import tempfile

        with tempfile.TemporaryDirectory() as folder, self.answers():
            written = Path(folder) / mlflow_model.FOLDER
            mlflow_model.write_mlflow_model(content, written)
            self.client.log_artifacts(run_id, str(written), mlflow_model.FOLDER)

    def log_test_metrics(self, run_id: str, metrics: Mapping[str, float], *, test_rows: str) -> None:
        """Add test metrics to the run of a model that was trained before, perhaps by another Dagster run.

        Args:
            run_id: of the training run.
            metrics: by name.
            test_rows: names the rows that they were measured on.

        Raises:
            TrackingError: MLflow cannot be reached or refuses.
        """
        self._log_batch(run_id, metrics, {TEST_ROWS: test_rows})

    def show(self, results: Results) -> None:
        """Show results on the parent run: metrics, tags, its description, and files among its artifacts.

        Raises:
            TrackingError: MLflow cannot be reached or refuses.
        """
        import tempfile

        tags = dict(results.tags)
        if results.text:
            self._sections[results.section] = results.text
            tags[NOTE] = "\n\n".join(self._sections.values())
        if tags or results.metrics:
            self._log_batch(self.parent_run_id, results.metrics, tags)
        if results.files:
            with tempfile.TemporaryDirectory() as folder, self.answers():
                for path, content in results.files.items():
                    file = Path(folder) / path
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_bytes(content)
                self.client.log_artifacts(self.parent_run_id, folder)

    def _log_batch(self, run_id: str, metrics: Mapping[str, float | None], tags: Mapping[str, str]) -> None:
        """Log in one transaction: a call for each metric takes ten times as long."""
        from mlflow.entities import Metric, RunTag

        now_ms = time.time_ns() // 1_000_000
        finite = {
            name: float(value) for name, value in metrics.items() if value is not None and isfinite(value)
        }
        with self.answers():
            self.client.log_batch(
                run_id,
                metrics=[Metric(name, value, now_ms, 0) for name, value in finite.items()],
                tags=[RunTag(name, value) for name, value in tags.items()],
            )


def tracking_resource(settings: Settings) -> dg.ResourceDefinition:
    """Build the resource ``tracking``: one MLflow parent run for each Dagster run that trains something."""

    @dg.resource(description="MLflow: the Dagster run as parent, each model and as-of partition as child")
    def tracking(context: dg.InitResourceContext) -> Iterator[Tracking]:
        run, instance = context.run, context.instance
        if run is None or instance is None:
            raise TrackingError("the tracking resource exists only inside a Dagster run")
        _limit_client()
        # Models are stored with skops, which looks through all modules there are: 1 s now, 3 s after MLflow.
        import skops.io  # noqa: F401

        uri = settings.mlflow_tracking_uri
        with mlflow_answers(uri):
            mlflow_resource = _start(uri, settings, context)
        try:
            with mlflow_answers(uri):
                mlflow_resource.set_tags(_parent_tags(settings, run))
                _describe_experiment(mlflow_resource)
            yield Tracking(mlflow_resource, settings, run.run_id)
        finally:
            with mlflow_answers(uri):
                mlflow_resource.end_run(status=_end_state(instance, run.run_id))

    return tracking


def _limit_client() -> None:
    """Limit retries and telemetry of MLflow's client; call it before MLflow's first import."""
    for name, limit in CLIENT_LIMITS.items():
        os.environ.setdefault(name, limit)


def _parent_tags(settings: Settings, run: dg.DagsterRun) -> dict[str, str]:
    """Return the tags that name the parent run by its hours and link it to the Dagster run."""
    first = run.tags.get("dagster/asset_partition_range_start", run.tags.get("dagster/partition", ""))
    last = run.tags.get("dagster/asset_partition_range_end", first)
    job = "assets" if run.job_name.startswith("__") else run.job_name
    hours = first if first == last else f"{first} … {last}"
    return {
        "mlflow.runName": f"{job} {hours}".strip(),
        "dagster.run_url": f"{settings.dagster.ui_url.rstrip('/')}/runs/{run.run_id}",
    }


def _describe_experiment(mlflow_resource: Any) -> None:
    """Set the description above the list of runs; a description by a user stays."""
    client, number = mlflow_resource.tracking_client, mlflow_resource.active_run().info.experiment_id
    if NOTE not in client.get_experiment(number).tags:
        client.set_experiment_tag(number, NOTE, ABOUT_EXPERIMENT)


def _start(uri: str, settings: Settings, context: dg.InitResourceContext) -> Any:
    from dagster_mlflow.resources import MlFlow

    prepare_store(settings)
    return MlFlow(
        context.replace_config(
            {"experiment_name": settings.mlflow.experiment, "mlflow_tracking_uri": uri, "env": {}}
        )
    )


def _end_state(instance: dg.DagsterInstance, run_id: str) -> str:
    """Return MLflow's end state for the state that Dagster recorded."""
    run = instance.get_run_by_id(run_id)
    if run is not None and run.status in (dg.DagsterRunStatus.CANCELING, dg.DagsterRunStatus.CANCELED):
        return KILLED
    failures = instance.all_logs(run_id, of_type=dg.DagsterEventType.STEP_FAILURE)
    return FAILED if failures else FINISHED
