"""MLflow's model registry: which version is `champion`, which one was before.

Belongs here: registering a champion once, and moving the aliases forward in an order in which a crash loses
nothing. Does not belong here: who is champion, and when aliases may move at all.

The order is: version → `previous` → `champion`. Whatever step was the last one, `champion` names a version
that served until now or the new one, and the same calls again finish the move. MLflow offers no
compare-and-set; the as-of time of the version in force is read right before an alias is set.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from cryptovol_dagster.core.promotion import Champion
from cryptovol_dagster.core.specs import TimescaleSpec
from cryptovol_dagster.resources.mlflow_model import FOLDER
from cryptovol_dagster.resources.tracking import Tracking

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

CHAMPION, PREVIOUS = "champion", "previous"
_MODEL, _AS_OF, _PROBLEM = "cryptovol.model", "cryptovol.as_of", "cryptovol.problem_hash"


class Registry:
    """The registered model of one timescale and horizon."""

    def __init__(self, tracking: Tracking, spec: TimescaleSpec) -> None:
        self.name = f"cryptovol-{spec.grid}-h{spec.horizon_bars}"
        self._tracking = tracking

    def url(self, version: str) -> str:
        """Where people open a version."""
        return self._tracking.version_url(self.name, version)

    def register(self, champion: Champion, content: bytes, tags: Mapping[str, str]) -> str:
        """Give the champion's version, made now if there is none.

        Args:
            champion: the model in force.
            content: its file; stored anew where its training run is not in this MLflow.
            tags: of a new version, further ones.

        Raises:
            TrackingError: MLflow cannot be reached or refuses.
        """
        with self._tracking.answers():
            self._ensure_registered_model()
            if (found := self._version_of(champion)) is not None:
                return found
            source, run_id = self._stored_model(champion, content)
            made = self._tracking.client.create_model_version(
                self.name,
                source=source,
                run_id=run_id,
                tags={
                    _MODEL: champion.model,
                    _AS_OF: champion.as_of,
                    _PROBLEM: champion.problem_hash,
                    "cryptovol.feature_hash": champion.feature_hash,
                    "cryptovol.unproven": str(champion.unproven).lower(),
                    **tags,
                },
            )
            return str(made.version)

    def move_champion(self, champion: Champion, version: str) -> str:
        """Let `champion` name the version, and `previous` what it named before; only forward in as-of time.

        Returns:
            What was done, or why nothing, in a sentence.

        Raises:
            TrackingError: MLflow cannot be reached or refuses.
        """
        client = self._tracking.client
        with self._tracking.answers():
            current = self._alias(CHAMPION)
            if current is not None:
                number, as_of = str(current.version), current.tags[_AS_OF]
                if number == version:
                    return f"champion is version {version} already"
                if as_of > champion.as_of:
                    return f"champion stays version {number} of {as_of}, which is later than {champion.as_of}"
                client.set_registered_model_alias(self.name, PREVIOUS, number)
            client.set_registered_model_alias(self.name, CHAMPION, version)
        before = "none" if current is None else f"version {current.version}"
        return f"champion is version {version} now, previous is {before}"

    def _ensure_registered_model(self) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._tracking.client.get_registered_model(self.name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            self._tracking.client.create_registered_model(
                self.name,
                description="P(spike) of a product's next minute or so. `champion` is the version in force, "
                "`previous` the one before; both move only as of the newest closed hour.",
            )

    def _version_of(self, champion: Champion) -> str | None:
        wanted = dict(zip((_MODEL, _AS_OF, _PROBLEM), champion.identity, strict=True))
        for version in self._tracking.client.search_model_versions(f"name='{self.name}'"):
            if wanted.items() <= version.tags.items():
                return str(version.version)
        return None

    def _stored_model(self, champion: Champion, content: bytes) -> tuple[str, str]:
        """Give where MLflow holds the model, and in which run: its training run, else the one at work."""
        from mlflow.exceptions import MlflowException

        client = self._tracking.client
        try:
            run = client.get_run(champion.mlflow_run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            run = client.get_run(self._tracking.parent_run_id)
        run_id = run.info.run_id
        if not client.list_artifacts(run_id, FOLDER):
            self._tracking.log_model(content, run_id)
        return f"{run.info.artifact_uri}/{FOLDER}", run_id

    def _alias(self, alias: str) -> ModelVersion | None:
        found = self._tracking.client.get_registered_model(self.name).aliases.get(alias)
        return None if found is None else self._tracking.client.get_model_version(self.name, str(found))
