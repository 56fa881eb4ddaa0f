"""MLflow's model registry: which version is `champion`, `previous` and `challenger`.

Belongs here: registering a model once, and letting the aliases follow a decision in an order in which a crash
loses nothing. Does not belong here: who is champion, and when aliases may move at all.

The order is: versions → verdict → `previous` → `champion` → `challenger`. Whatever step was the last one,
`champion` names a version that served until now or the new one, and the same calls again finish the move.
MLflow offers no compare-and-set; the as-of time of the present champion is read right before an alias is set.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

from cryptovol_dagster.core.promotion.decision import Champion, Decision
from cryptovol_dagster.core.specs import TimescaleSpec
from cryptovol_dagster.core.times import partition_window
from cryptovol_dagster.tracking.flavour import FILE, FOLDER
from cryptovol_dagster.tracking.results import about_model, about_version
from cryptovol_dagster.tracking.runs import Connection, Tracking
from ingestor.errors import CryptovolError

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"
_MODEL, _AS_OF, _PROBLEM = "cryptovol.model", "cryptovol.as_of", "cryptovol.problem_hash"
_FEATURES, _UNPROVEN = "cryptovol.feature_hash", "cryptovol.unproven"
_UNSEEN_FROM, _TIMESCALE = "cryptovol.unseen_from_ns", "cryptovol.timescale"
#: MLflow refuses longer ones.
_TAG_LENGTH = 5_000


def registered_name(spec: TimescaleSpec) -> str:
    """Return the name of the registered model of a chain."""
    return f"cryptovol-{spec.grid}-h{spec.horizon_bars}"


class RegistryError(CryptovolError):
    """The registry has no such version; the message is one line."""


class Registry:
    """The registered model of one timescale and horizon."""

    def __init__(self, connection: Connection, spec: TimescaleSpec) -> None:
        self.name = registered_name(spec)
        self._spec, self._connection = spec, connection

    def url(self, version: str) -> str:
        """Return the address of a version in MLflow's UI."""
        return self._connection.version_url(self.name, version)

    def register(self, tracking: Tracking, model: Champion, content: bytes, tags: Mapping[str, str]) -> str:
        """Return a model's version; register the model first if it has none.

        Args:
            tracking: the run at work.
            model: champion or challenger.
            content: its file; stored again where its training run is not in this MLflow.
            tags: of a new version, further ones.

        Raises:
            TrackingError: MLflow cannot be reached or refuses.
        """
        with tracking.answers():
            self._ensure_registered_model()
            if (found := self._version_of(model)) is not None:
                return found
            source, run = _stored_model(tracking, model, content)
            created = tracking.client.create_model_version(
                self.name,
                source=source,
                run_id=run.info.run_id,
                description=about_version(run, tracking.ui_url),
                tags={
                    _TIMESCALE: self._spec.name,
                    _MODEL: model.model,
                    _AS_OF: model.as_of,
                    _PROBLEM: model.problem_hash,
                    _FEATURES: model.feature_hash,
                    _UNPROVEN: str(model.unproven).lower(),
                    _UNSEEN_FROM: str(model.unseen_from_ns),
                    **tags,
                },
            )
            return str(created.version)

    def tag_verdict(self, version: str, decision: Decision) -> None:
        """Store the decision about a version in its tags.

        Raises:
            TrackingError: MLflow cannot be reached or refuses.
        """
        tags = {
            "cryptovol.verdict": decision.verdict,
            "cryptovol.decision": decision.kind,
            "cryptovol.decided_as_of": decision.as_of,
            "cryptovol.reasons": json.dumps(list(decision.reasons), ensure_ascii=False)[:_TAG_LENGTH],
        }
        with self._connection.answers():
            for name, value in tags.items():
                self._connection.client.set_model_version_tag(self.name, version, name, value)

    def follow(self, decision: Decision) -> str:
        """Move the aliases to the champion and the challenger of a decision.

        `champion` moves only forward in as-of time. It moves back only from a version that the decision bars,
        which is one that a person rolled back.

        Returns:
            One sentence: the changes, or why there are none.

        Raises:
            TrackingError: MLflow cannot be reached or refuses.
        """
        champion = decision.champion
        if champion is None or champion.registry_version is None:
            return "there is no champion"
        with self._connection.answers():
            done, is_current = self._move_champion(champion, champion.registry_version, decision.barred)
            if not is_current:
                return done
            challenger = None if decision.contest is None else decision.contest.challenger.registry_version
            return done + self._move_challenger(challenger)

    def _move_champion(
        self, champion: Champion, version: str, barred: tuple[tuple[str, str, str], ...]
    ) -> tuple[str, bool]:
        """Return the changes, and whether `champion` is the version now."""
        client = self._connection.client
        current = self._alias(CHAMPION)
        before = "none"
        if current is not None:
            number, (model, as_of, problem) = str(current.version), _identity(current)
            if number == version:
                return f"champion is version {version} already", True
            if (model, as_of, problem) in barred:
                # Only `rollback --to` leads back to a barred version, never the alias `previous`.
                client.delete_registered_model_alias(self.name, PREVIOUS)
            elif as_of > champion.as_of:
                stays = f"champion stays version {number} of {as_of}, which is later than {champion.as_of}"
                return stays, False
            else:
                client.set_registered_model_alias(self.name, PREVIOUS, number)
                before = f"version {number}"
        client.set_registered_model_alias(self.name, CHAMPION, version)
        return f"champion is version {version} now, previous is {before}", True

    def _move_challenger(self, version: str | None) -> str:
        client = self._connection.client
        found = client.get_registered_model(self.name).aliases.get(CHALLENGER)
        if version is None:
            if found is not None:
                client.delete_registered_model_alias(self.name, CHALLENGER)
            return ""
        if str(found) != version:
            client.set_registered_model_alias(self.name, CHALLENGER, version)
        return f", challenger is version {version}"

    def model_of(self, wanted: str) -> Champion:
        """Return the model of a version number or an alias.

        Args:
            wanted: ``"7"`` or ``"previous"``.

        Raises:
            RegistryError: there is no such version, or it was not registered by cryptovol.
            TrackingError: MLflow cannot be reached or refuses.
        """
        from mlflow.exceptions import MlflowException

        client = self._connection.client
        with self._connection.answers():
            try:
                found = (
                    client.get_model_version(self.name, wanted) if wanted.isdigit() else self._alias(wanted)
                )
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                found = None
        if found is None:
            raise RegistryError(f"{self.name} has no version {wanted}")
        return champion_of(self.name, str(found.version), str(found.run_id), found.tags)

    def file_of(self, model: Champion) -> bytes:
        """Read the model file of a version.

        Raises:
            TrackingError: MLflow or its artifacts cannot be reached.
        """
        import tempfile
        from pathlib import Path

        from mlflow.artifacts import download_artifacts

        client = self._connection.client
        with self._connection.answers(), tempfile.TemporaryDirectory() as folder:
            source = client.get_model_version(self.name, str(model.registry_version)).source
            found = download_artifacts(
                artifact_uri=f"{source}/data/{FILE}", dst_path=folder, tracking_uri=client.tracking_uri
            )
            return Path(found).read_bytes()

    def _ensure_registered_model(self) -> None:
        from mlflow.exceptions import MlflowException

        client = self._connection.client
        about = about_model(self._spec, self.name, self._connection.ui_url)
        try:
            found = client.get_registered_model(self.name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            tags = {_TIMESCALE: self._spec.name, "cryptovol.horizon_s": str(self._spec.horizon_s)}
            client.create_registered_model(self.name, tags, about)
            return
        if found.description != about:
            client.update_registered_model(self.name, about)

    def _version_of(self, model: Champion) -> str | None:
        wanted = dict(zip((_MODEL, _AS_OF, _PROBLEM), model.identity, strict=True))
        for version in self._connection.client.search_model_versions(f"name='{self.name}'"):
            if wanted.items() <= version.tags.items():
                return str(version.version)
        return None

    def _alias(self, alias: str) -> ModelVersion | None:
        client = self._connection.client
        found = client.get_registered_model(self.name).aliases.get(alias)
        return None if found is None else client.get_model_version(self.name, str(found))


def champion_of(name: str, version: str, run_id: str, tags: Mapping[str, str]) -> Champion:
    """Return the model that a version of the registry contains, according to its tags.

    Args:
        name: of the registered model.
        version: its number.
        run_id: its training run.
        tags: of the version.

    Raises:
        RegistryError: cryptovol did not register it.
    """
    if missing := [tag for tag in (_MODEL, _AS_OF, _PROBLEM, _FEATURES) if tag not in tags]:
        raise RegistryError(f"{name} version {version} lacks the tags {', '.join(missing)}")
    return Champion(
        model=tags[_MODEL],
        as_of=tags[_AS_OF],
        problem_hash=tags[_PROBLEM],
        feature_hash=tags[_FEATURES],
        mlflow_run_id=run_id,
        unproven=tags.get(_UNPROVEN) == "true",
        registry_version=version,
        # Versions of before the gate lack it; the end of their partition is a safe bound.
        unseen_from_ns=int(tags.get(_UNSEEN_FROM, partition_window(tags[_AS_OF])[1])),
    )


def _identity(version: ModelVersion) -> tuple[str, str, str]:
    """Return the identity of a trained model (`Champion.identity`)."""
    return version.tags[_MODEL], version.tags[_AS_OF], version.tags[_PROBLEM]


def _stored_model(tracking: Tracking, model: Champion, content: bytes) -> tuple[str, Run]:
    """Return the address of the model in MLflow and its run: the training run, else the current one."""
    from mlflow.exceptions import MlflowException

    client = tracking.client
    try:
        run = client.get_run(model.mlflow_run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        run = client.get_run(tracking.parent_run_id)
    run_id = run.info.run_id
    if not client.list_artifacts(run_id, FOLDER):
        tracking.log_model(content, run_id)
    return f"{run.info.artifact_uri}/{FOLDER}", run
