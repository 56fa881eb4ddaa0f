"""The status of this machine: raw storage, lake, models, services, disk, and problems.

Belongs here: inspection, and the definition of problems. It reads file names and a few footers and nothing
of Dagster, so that it may run every few seconds. Does not belong here: how it is shown (`verbs/status.py`).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptovol_dagster.chains import spec_of, timescale_specs
from cryptovol_dagster.core.specs import NS, SECONDS, TimescaleSpec
from cryptovol_dagster.core.times import DAY_NS, HOUR_NS, hour_key
from cryptovol_dagster.lake.files import ROLLED_BACK, Lake
from cryptovol_dagster.lake.raw_ticks import RawStore
from cryptovol_dagster.machine import owners
from cryptovol_dagster.machine.first_days import learning_line, minutes_line
from cryptovol_dagster.machine.instance import Running, running_instance
from cryptovol_dagster.machine.reachable import accepts, answers
from ingestor.archive.collection import SCORES
from ingestor.archive.layout import closing_paths
from ingestor.archive.member_name import FEATURIZERS, archive_runs, slot_held
from ingestor.archive.reader import RawReader
from ingestor.envelope import EVENTS, SCORES_TOPIC, TICKS
from ingestor.settings import Settings

#: How long after its closing an hour may lack its market assets.
PATIENCE_S = 900.0
#: The archive stores every `storage.flush_s`, and checkpoints come every few seconds.
SILENT_AFTER_FLUSHES = 3
LEAST_FREE_BYTES = 1024**3
SERVICES = ("recorder", "dagster", "mlflow", "kafka", "featurizer", "scorer")
#: Before the newest score: the span of the numbers on live scores.
LIVE_SPAN_NS = 600 * NS
#: Hours shown of a list of them.
_SHOWN = 3


@dataclass(frozen=True)
class RawLook:
    """Raw storage.

    Attributes:
        folder: its root.
        newest_tick_ns: event time of the newest tick stored; None without any.
        rows_today: ticks stored with today's event time (UTC).
        hours: hours with ticks.
        closed: of all hours, those recorded as complete.
        newest_closed: the last of them.
        open: hours with ticks that are not closed, newest first.
        recorder_runs: whether an archive writes it now, from this machine.
        stored_ago_s: how long ago the archive last stored anything; None when it never did.
        next_closing_ns: event time at which the next hour closes; None without an open one.
    """

    folder: Path
    newest_tick_ns: int | None
    rows_today: int
    hours: int
    closed: int
    newest_closed: str | None
    open: list[str]
    recorder_runs: bool
    stored_ago_s: float | None
    next_closing_ns: int | None


@dataclass(frozen=True)
class AssetLook:
    """An asset in the lake.

    Attributes:
        asset: its key.
        partitions: hours written.
        newest: the last of them; None where all were removed.
        missing: closed hours that it lacks, oldest first; empty for assets that need not have each hour.
    """

    asset: str
    partitions: int
    newest: str | None
    missing: list[str]


@dataclass(frozen=True)
class ModelsLook:
    """The newest evaluation and the newest decision of a timescale.

    Attributes:
        timescale: its name.
        evaluated: the newest evaluation's as-of hour.
        verdict: of that evaluation.
        sufficiency: models that its training rows support, in one line; None where unknown.
        decided: the newest decision's as-of hour.
        decision: its verdict; ROLLBACK where a person decided after it.
        champion: the kind of the champion.
        champion_as_of: as of when that was trained.
        learning: how far it is from its first models; None once there are some.
    """

    timescale: str
    evaluated: str | None
    verdict: str | None
    sufficiency: str | None
    decided: str | None
    decision: str | None
    champion: str | None
    champion_as_of: str | None
    learning: str | None = None


@dataclass(frozen=True)
class LiveLook:
    """The scores stored of the last ten minutes before the newest one.

    Attributes:
        newest_bar_end_ns: end of the newest bar.
        age_s: how long ago that was.
        stored_ago_s: how long ago a file of scores was last stored.
        scores: bars of products, each counted once.
        with_probability: share of them with a probability.
        reason: the most frequent reason of the others; None where there are none.
        model: kind of the model that scored last; None where none has.
        model_as_of: as of when that was trained.
    """

    newest_bar_end_ns: int
    age_s: float
    stored_ago_s: float
    scores: int
    with_probability: float
    reason: str | None
    model: str | None
    model_as_of: str | None

    def __str__(self) -> str:
        others = f" (mostly {self.reason})" if self.reason else ""
        model = f"{self.model} as of {self.model_as_of}" if self.model else "none yet"
        return (
            f"newest {datetime.fromtimestamp(self.newest_bar_end_ns / NS, UTC):%Y-%m-%d %H:%M:%S}, "
            f"stored {self.stored_ago_s:.0f} s ago; {self.with_probability:.0%} of {self.scores:,} in 10 min "
            f"with a probability{others}; model {model}"
        )


@dataclass(frozen=True)
class ServiceLook:
    """A service.

    Attributes:
        name: one of `SERVICES`.
        address: where it should be.
        runs: whether it answers there, for this data folder.
        state: a description, e.g. that it is starting, or that another folder's service answers there.
    """

    name: str
    address: str
    runs: bool
    state: str


@dataclass(frozen=True)
class Status:
    """Everything.

    Attributes:
        at_ns: time of the inspection.
        raw: raw storage.
        lake: its assets.
        models: by timescale.
        reports: latest copies, newest first, with the time they were written (ns).
        services: each of `SERVICES`.
        free_bytes: room for data.
        waits_for: the next step while there are no models yet, or None.
        problems: problems, one sentence each.
        minutes: how far the import of the last days is, in one line; None where none has begun.
        live: the newest scores; None where none is stored.
    """

    at_ns: int
    raw: RawLook
    lake: list[AssetLook]
    models: list[ModelsLook]
    reports: dict[str, int]
    services: list[ServiceLook]
    free_bytes: int
    waits_for: str | None
    problems: list[str]
    minutes: str | None = None
    live: LiveLook | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return json.loads(json.dumps(asdict(self), default=str))

    @property
    def newest_labels(self) -> str | None:
        """The newest hour with labels."""
        hours = (one.newest for one in self.lake if one.asset.endswith("/labels") and one.newest)
        return max(hours, default=None)


def look(settings: Settings, now_ns: int, required: Sequence[str] = ()) -> Status:
    """Inspect everything once.

    Args:
        settings: the configuration.
        now_ns: the wall clock.
        required: services whose absence is wrong.

    Raises:
        ArchiveError: a file of raw storage cannot be read.
    """
    storage = settings.storage
    closings, first = _closings(storage.raw_dir), settings.dagster.partitions_start
    closed_after_ns = round(settings.dagster.closed_after_s * NS)
    raw, lake = _raw(storage.raw_dir, closings, now_ns, closed_after_ns), Lake(storage.lake_dir)
    # Keys sort like their hours. Hours before the first partition are never materialized.
    closed_at_ns = {key: at_ns for key, at_ns in closings.items() if key >= first}
    due = _due_assets(spec_of(settings, SECONDS))
    assets = [_asset(lake, name, closed_at_ns if name in due else {}) for name in _assets(storage.lake_dir)]
    models = [_models(lake, spec) for spec in timescale_specs(settings).values()]
    services = _services(settings, raw, now_ns)
    free_bytes = shutil.disk_usage(_existing(storage.data_dir)).free
    return Status(
        at_ns=now_ns,
        raw=raw,
        lake=assets,
        models=models,
        reports=_reports(storage.reports_dir),
        services=services,
        free_bytes=free_bytes,
        waits_for=_waits_for(raw, assets, models, services, now_ns),
        problems=[
            *_recorder_problems(raw, settings.storage.flush_s),
            *_lake_problems(assets, due, closed_at_ns, now_ns),
            *_service_problems(settings, services, required),
            *_room_problems(storage.data_dir, free_bytes),
        ],
        minutes=minutes_line(settings, lake),
        live=_live(storage.raw_dir, now_ns),
    )


def _raw(raw_dir: Path, closings: Mapping[str, int], now_ns: int, closed_after_ns: int) -> RawLook:
    reader = RawReader(raw_dir)
    hours = reader.hours(TICKS)
    today_ns = now_ns // DAY_NS * DAY_NS
    newest_ns = None
    for hour_ns in reversed(hours):
        files = reader.files(TICKS, hour_ns, hour_ns + HOUR_NS)
        newest_ns = max((file.footer.max_time_ns for file in files), default=None)
        if newest_ns is not None:
            break
    today = reader.files(TICKS, today_ns, today_ns + DAY_NS) if newest_ns and newest_ns >= today_ns else []
    open_hours = [hour_ns for hour_ns in hours if hour_key(hour_ns) not in closings]
    due_ns = [hour_ns + HOUR_NS + closed_after_ns for hour_ns in open_hours]
    stored = [folder.stat().st_mtime_ns for folder in (raw_dir / EVENTS).glob("date=*/hour=*")]
    return RawLook(
        folder=raw_dir,
        newest_tick_ns=newest_ns,
        rows_today=sum(file.footer.rows for file in today),
        hours=len(hours),
        closed=len(closings),
        newest_closed=max(closings, default=None),
        open=[hour_key(hour_ns) for hour_ns in reversed(open_hours)],
        recorder_runs=archive_runs(raw_dir),
        stored_ago_s=(now_ns - max(stored)) / NS if stored else None,
        # An overdue hour was left open by a recorder that stopped in it.
        next_closing_ns=min((at_ns for at_ns in due_ns if newest_ns and at_ns > newest_ns), default=None),
    )


def _live(raw_dir: Path, now_ns: int) -> LiveLook | None:
    """Return the newest scores; None where none is stored."""
    raw, folder = RawStore(raw_dir), raw_dir / SCORES_TOPIC
    for hour_ns in reversed(raw.reader.hours(SCORES_TOPIC)):
        files = raw.reader.files(SCORES_TOPIC, hour_ns, hour_ns + HOUR_NS)
        newest_ns = max((file.footer.max_time_ns for file in files), default=0)
        table = raw.scores(newest_ns - LIVE_SPAN_NS, newest_ns + 1) if files else None
        if table is not None and len(table):
            break
    else:
        return None
    columns = ["product_id", "bar_end_ns", "revision", "reason", "model", "model_as_of"]
    rows = table.select(columns).to_pandas().sort_values(["bar_end_ns", "revision"], kind="stable")
    rows = rows.drop_duplicates(["product_id", "bar_end_ns"], keep="last")
    others, by_model = rows.loc[rows["reason"] != "ok", "reason"], rows.dropna(subset="model")
    newest_bar_ns = int(rows["bar_end_ns"].iloc[-1])
    stored_ns = max(path.stat().st_mtime_ns for path in folder.glob("date=*/hour=*"))
    return LiveLook(
        newest_bar_end_ns=newest_bar_ns,
        age_s=(now_ns - newest_bar_ns) / NS,
        stored_ago_s=(now_ns - stored_ns) / NS,
        scores=len(rows),
        with_probability=1 - len(others) / len(rows),
        reason=None if others.empty else str(others.mode().iloc[0]),
        model=None if by_model.empty else str(by_model["model"].iloc[-1]),
        model_as_of=None if by_model.empty else str(by_model["model_as_of"].iloc[-1]),
    )


def _newest(lake: Lake, asset: str, suffix: str) -> str | None:
    """Return the newest partition of an asset; None without any."""
    return max(lake.partitions(asset, suffix), default=None)


def _closings(raw_dir: Path) -> dict[str, int]:
    """Return when (wall clock, ns) each hour first closed, from file names alone: there may be thousands."""
    return {hour_key(hour_ns): paths[0].stat().st_mtime_ns for hour_ns, paths in closing_paths(raw_dir)}


def _assets(lake_dir: Path) -> list[str]:
    """Return the assets in the lake, by its folders."""
    found = {path.parent for pattern in ("*/date=*", "*/*/date=*") for path in lake_dir.glob(pattern)}
    return sorted(path.relative_to(lake_dir).as_posix() for path in found)


def _due_assets(spec: TimescaleSpec) -> list[str]:
    """Return the assets that every closed hour must have.

    Drift scores are not among them, nor the assets after labels, which follow the schedule of retrains.
    """
    return [name for name in (*spec.source_assets, *spec.market_assets) if name != spec.asset("drift_scores")]


def _asset(lake: Lake, name: str, due: Iterable[str]) -> AssetLook:
    keys = set(lake.partitions(name, "*"))
    return AssetLook(name, len(keys), max(keys, default=None), sorted(set(due) - keys))


def _models(lake: Lake, spec: TimescaleSpec) -> ModelsLook:
    evaluation, champion = spec.asset("model_evaluation"), spec.asset("champion")
    evaluated, decided = _newest(lake, evaluation, "json"), _newest(lake, champion, "json")
    report = json.loads(lake.read_bytes(evaluation, evaluated, "json")) if evaluated else {}
    suffix = ROLLED_BACK if decided and lake.exists(champion, decided, ROLLED_BACK) else "json"
    decision = json.loads(lake.read_bytes(champion, decided, suffix)) if decided else {}
    in_force = decision.get("champion") or {}
    return ModelsLook(
        timescale=spec.name,
        evaluated=evaluated,
        verdict=report.get("verdict"),
        sufficiency=report.get("sufficiency", {}).get("summary"),
        decided=decided,
        decision=decision.get("verdict"),
        champion=in_force.get("model"),
        champion_as_of=in_force.get("as_of"),
        learning=None if evaluated else learning_line(lake, spec),
    )


def _reports(reports_dir: Path) -> dict[str, int]:
    files = [
        (path.stat().st_mtime_ns, path)
        for path in reports_dir.rglob("*")
        if path.suffix in (".html", ".json", ".md")
    ]
    return {path.relative_to(reports_dir).as_posix(): at_ns for at_ns, path in sorted(files, reverse=True)}


#: Of each user interface: its name here, that of its service, a page that answers, and whose it is.
_INTERFACES: Sequence[tuple[str, str, str, Callable[[Settings, str], str]]] = (
    ("dagster", "Dagster", "server_info", owners.not_this_dagster),
    ("mlflow", "MLflow", "health", owners.not_this_mlflow),
)


def _services(settings: Settings, raw: RawLook, now_ns: int) -> list[ServiceLook]:
    running = running_instance(settings)
    urls = {
        "dagster": running.dagster_url if running else settings.dagster.ui_url,
        "mlflow": running.mlflow_url if running else settings.mlflow.ui_url,
    }
    # One that has stored something since is over: a simulated market ends.
    starts = (
        running is not None
        and "recorder" in running.services
        and (raw.stored_ago_s is None or raw.stored_ago_s > now_ns / NS - running.began_s)
    )
    begun = running if starts else None
    kafka = settings.kafka.bootstrap_servers
    # The embedded broker is the recorder's own: it lives and ends with it.
    kafka_runs = raw.recorder_runs if settings.kafka.is_embedded else any(map(accepts, kafka.split(",")))
    return [
        _seen("recorder", str(raw.folder), raw.recorder_runs, _not_yet(begun, now_ns)),
        *(
            _interface(settings, running, now_ns, title, sign, whose, name, urls[name].rstrip("/"))
            for name, title, sign, whose in _INTERFACES
        ),
        _seen("kafka", kafka, kafka_runs),
        *(
            _seen(name, where, runs, _not_yet(begun if begun and name in begun.services else None, now_ns))
            for name, where, runs in _live_services(settings)
        ),
    ]


def _live_services(settings: Settings) -> Iterator[tuple[str, str, bool]]:
    """Yield name, address and presence of featurizer and scorer, by the locks that they hold."""
    features, raw_dir = settings.storage.features_path, settings.storage.raw_dir
    yield "featurizer", str(features), slot_held(features.parent, FEATURIZERS)
    yield "scorer", str(raw_dir / SCORES_TOPIC), slot_held(raw_dir, SCORES.locks)


def _interface(
    settings: Settings,
    running: Running | None,
    now_ns: int,
    title: str,
    sign: str,
    whose: Callable[[Settings, str], str],
    name: str,
    url: str,
) -> ServiceLook:
    """Inspect a user interface: that of `cryptovol up` or `ui`, else what is at the configured address."""
    if running is not None and running.services and title not in running.services:
        return _seen(name, "–", False, f"was not requested from `cryptovol up` or `ui` (pid {running.pid})")
    if not answers(f"{url}/{sign}"):
        return _seen(name, url, False, _not_yet(running, now_ns))
    other = "" if running is not None else whose(settings, url)
    return _seen(name, url, not other, f"does not run: {other}")


def _seen(name: str, address: str, runs: bool, otherwise: str = "does not run") -> ServiceLook:
    return ServiceLook(name, address, runs, "runs" if runs else otherwise)


def _not_yet(running: Running | None, now_ns: int) -> str:
    """Return the state of a service that does not answer: when its supervisor began to start it."""
    if running is None or not running.began_s:
        return "does not run"
    ago_s = now_ns / NS - running.began_s
    return f"does not run yet: `cryptovol up` or `ui` (pid {running.pid}) began {ago_s:,.0f} s ago"


def _waits_for(
    raw: RawLook,
    assets: Sequence[AssetLook],
    models: Sequence[ModelsLook],
    services: Sequence[ServiceLook],
    now_ns: int,
) -> str | None:
    """Return the next step on the way to the first models; None once there are any."""
    if any(one.evaluated for one in models):
        return None
    recorder, dagster = services[0], services[1]
    if raw.hours == 0:
        started = recorder.runs or recorder.state.startswith("does not run yet")
        return "the first tick" if started else "a recorder: `cryptovol up` starts one"
    if raw.closed == 0:
        if not recorder.runs:
            return "a recorder: no hour has closed yet, and none closes without one; `cryptovol up` starts it"
        return f"the first hour to close, {_closing(raw.next_closing_ns, now_ns)}"
    if not any(one.asset.endswith("/labels") and one.newest for one in assets):
        if dagster.runs or dagster.state.startswith("does not run yet"):
            return "the labels of the first closed hour, which Dagster computes"
        return "Dagster, which computes closed hours: `cryptovol up` starts it"
    return "the first models: the retrain needs enough labelled hours"


def _closing(at_ns: int | None, now_ns: int) -> str:
    if at_ns is None:
        return "at the next tick of the market"
    # A market that is played back has a clock of its own.
    whose = "" if abs(at_ns - now_ns) < 2 * HOUR_NS else " of the market's own clock"
    return f"at {datetime.fromtimestamp(at_ns / NS, UTC):%H:%M} UTC{whose}"


def _recorder_problems(raw: RawLook, flush_s: float) -> Iterator[str]:
    limit_s = SILENT_AFTER_FLUSHES * flush_s
    if raw.recorder_runs and raw.stored_ago_s is not None and raw.stored_ago_s > limit_s:
        yield (
            f"a recorder runs but last stored anything {raw.stored_ago_s:.0f} s ago; expected at most "
            f"{limit_s:.0f} s (is the exchange, or Kafka, away?)"
        )


def _lake_problems(
    assets: Sequence[AssetLook], expected: Sequence[str], closed_at_ns: Mapping[str, int], now_ns: int
) -> Iterator[str]:
    made = {asset.asset: asset.missing for asset in assets}
    due = {key for key, at_ns in closed_at_ns.items() if now_ns - at_ns > PATIENCE_S * NS}
    lacking = {name: sorted(due.intersection(made.get(name, closed_at_ns))) for name in expected}
    by_hours: dict[tuple[str, ...], list[str]] = {}
    for name, hours in lacking.items():
        if hours:
            by_hours.setdefault(tuple(hours), []).append(name)
    for hours, names in by_hours.items():
        yield (
            f"{', '.join(names)}: {len(hours)} closed hours are missing ({_some(hours)}): "
            "start `cryptovol up`, or `cryptovol backfill --only-missing`"
        )


def _service_problems(
    settings: Settings, services: Sequence[ServiceLook], required: Sequence[str]
) -> Iterator[str]:
    uri = settings.mlflow.tracking_uri or ""
    needed: dict[str, Callable[[], bool]] = {
        "dagster": lambda: settings.dagster.report_closed_hours,
        "kafka": lambda: not settings.kafka.is_embedded,
    }
    for service in services:
        configured = needed.get(service.name)
        if not service.runs and (service.name in required or (configured is not None and configured())):
            yield f"{service.name} {service.state} ({service.address})"
    if uri.startswith(("http://", "https://")) and not answers(f"{uri.rstrip('/')}/health"):
        yield f"the tracking server {uri} does not answer"


def _room_problems(data_dir: Path, free_bytes: int) -> Iterator[str]:
    if free_bytes < LEAST_FREE_BYTES:
        yield f"{data_dir}: {free_bytes / 1024**2:.0f} MiB of disk space left; expected 1024 or more"


def _some(hours: Sequence[str]) -> str:
    more = f" and {len(hours) - _SHOWN} more" if len(hours) > _SHOWN else ""
    return ", ".join(hours[:_SHOWN]) + more


def _existing(folder: Path) -> Path:
    """Return the folder, or the nearest one above it that exists."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())
