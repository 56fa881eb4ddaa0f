"""Every setting, with its unit, its default and its meaning. No logic lives here."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr, field_validator, model_validator

from ingestor.settings.alerts import AlertsSettings, check_names
from ingestor.settings.base import PositiveFloat, PositiveInt, Section, require_http, require_products

Channel = Literal["ticker", "heartbeats", "market_trades"]
RawFormat = Literal["parquet", "ndjson"]

EMBEDDED = "embedded"
#: It may name products that are not followed, so that a market of one product needs no setting.
DEFAULT_REFERENCE_SET = ("BTC-USD", "ETH-USD")


class CoinbaseSettings(Section):
    """Source of the market data."""

    url: str = Field(
        default="wss://advanced-trade-ws.coinbase.com", description="WebSocket address of the feed"
    )
    products: tuple[str, ...] = Field(default=("BTC-USD", "ETH-USD"), description="products to follow")
    channels: tuple[Channel, ...] = Field(
        default=("ticker", "heartbeats", "market_trades"),
        description="channels to subscribe to; heartbeats keep quiet channels open",
    )

    @field_validator("url")
    @classmethod
    def _websocket_scheme(cls, url: str) -> str:
        if not url.startswith(("ws://", "wss://")):
            raise ValueError("must start with ws:// or wss://")
        return url

    @field_validator("products")
    @classmethod
    def _some_products(cls, products: tuple[str, ...]) -> tuple[str, ...]:
        return require_products(products)


class KafkaSettings(Section):
    """The broker and its topics."""

    bootstrap_servers: str = Field(
        default=EMBEDDED,
        description="host:port[,host:port] or 'embedded' (an ephemeral broker inside the ingestor)",
    )
    topic_prefix: str = Field(
        default="", description="put before every topic's name, so that two can share a broker"
    )
    partitions: PositiveInt = Field(
        default=3, description="partitions of ticks.raw and trades.raw when created here"
    )
    retention_hours: PositiveInt = Field(default=72, description="retention of topics created here")
    security: dict[str, SecretStr] = Field(
        default_factory=dict,
        description="librdkafka options passed through (security.protocol, sasl.*, ssl.*)",
    )
    connect_timeout_s: PositiveFloat = Field(
        default=10.0, description="how long a start waits for the broker"
    )

    @property
    def is_embedded(self) -> bool:
        """Whether the ingestor starts its own ephemeral broker."""
        return self.bootstrap_servers == EMBEDDED


class StorageSettings(Section):
    """Raw storage and the lake."""

    data_dir: Path = Field(
        default=Path("data"), description="folder of raw storage, lake and state; relative to config.yaml"
    )
    reports_dir: Path = Field(
        default=Path("reports"), description="folder of the latest reports; relative to config.yaml"
    )
    artifacts_dir: Path = Field(
        default=Path("models/artifacts"),
        description="folder of the latest exported models; relative to config.yaml",
    )
    raw_format: RawFormat = Field(
        default="parquet",
        description="format of new raw files: parquet (small) or ndjson (a record a line); both are read",
    )
    flush_s: PositiveFloat = Field(
        default=60.0, description="a raw file is published at least this often (wall clock)"
    )
    flush_rows: PositiveInt = Field(default=50_000, description="or as soon as it has this many rows")

    @property
    def raw_dir(self) -> Path:
        """Folder of raw storage."""
        return self.data_dir / "raw"

    @property
    def features_path(self) -> Path:
        """Folder of the live features, read as one table."""
        return self.data_dir / "processed" / "features.parquet"

    @property
    def lake_dir(self) -> Path:
        """Folder of Dagster's files."""
        return self.data_dir / "lake"

    @property
    def history_dir(self) -> Path:
        """Folder of imported candles (`cryptovol import-bars`)."""
        return self.data_dir / "history"


class HistorySettings(Section):
    """Source of past minute candles, limits of requests, and the days that `cryptovol up` imports."""

    url: str = Field(
        default="https://api.coinbase.com", description="address of the exchange's REST interface"
    )
    requests_per_s: PositiveFloat = Field(
        default=5.0, description="requests a second, at most; the exchange refuses more than 10"
    )
    timeout_s: PositiveFloat = Field(default=20.0, description="how long an answer may take")
    tries: PositiveInt = Field(
        default=6, description="attempts for a page whose request fails (429, 5xx, broken, silent)"
    )
    backoff_initial_s: PositiveFloat = Field(default=1.0, description="first wait before asking again")
    backoff_max_s: PositiveFloat = Field(
        default=60.0, description="longest wait before asking again (full jitter)"
    )
    retry_after_max_s: PositiveFloat = Field(
        default=600.0, description="an import ends when the server's Retry-After is longer than this"
    )
    first_import_days: int = Field(
        default=120,
        ge=0,
        description="`cryptovol up` imports the missing minutes of so many last days, in the "
        "background, and models learn from them (0: none)",
    )

    @field_validator("url")
    @classmethod
    def _is_http(cls, url: str) -> str:
        return require_http(url)


class IngestSettings(Section):
    """Connection, liveness and bounds of the ingestor."""

    subscribe_timeout_s: PositiveFloat = Field(
        default=5.0, description="the exchange disconnects a client silent longer"
    )
    open_timeout_s: PositiveFloat = Field(default=10.0, description="limit for the WebSocket handshake")
    backoff_initial_s: PositiveFloat = Field(default=0.5, description="first wait before reconnecting")
    backoff_max_s: PositiveFloat = Field(
        default=30.0, description="longest wait before reconnecting (full jitter)"
    )
    frame_silence_s: PositiveFloat = Field(
        default=5.0, description="reconnect after this long without any frame"
    )
    heartbeat_silence_s: PositiveFloat = Field(
        default=10.0, description="reconnect after this long without a heartbeat"
    )
    max_frame_bytes: PositiveInt = Field(
        default=16 * 1024 * 1024, description="largest frame accepted (level2 passes 4 MiB)"
    )
    max_queue_frames: PositiveInt = Field(
        default=1024, description="frames buffered before the socket is no longer read"
    )
    checkpoint_s: PositiveFloat = Field(default=10.0, description="interval of checkpoints in feed.events")
    future_limit_s: PositiveFloat = Field(
        default=300.0, description="a frame further in the future is a dead letter"
    )
    embedded_unarchived_bytes: int = Field(
        default=2 * 1024 * 1024,
        ge=2 * 1024 * 1024,  # the archive stores a file at 1 MiB; less would wait for its clock
        le=4 * 1024 * 1024,  # the broker evicts at 5 MiB
        description="on the embedded broker: acknowledged but unarchived bytes per partition, at most",
    )
    spill_bytes: int = Field(
        default=1024 * 1024 * 1024,
        ge=0,
        le=4 * 1024 * 1024 * 1024,  # in files of 4 MiB, each of them open
        description="while a real broker is away: bytes kept on disk in storage.data_dir before the "
        "feed is no longer read (0: none)",
    )


#: Every kind of model; the pipeline, which this package may not import, has a class for each.
ModelName = Literal["persistence", "baseline_zscore", "ewma", "har_logit", "logreg", "xgboost"]


class ModelSettings(Section):
    """Model parameters and the seed of everything random."""

    enabled: tuple[ModelName, ...] = Field(
        default=("baseline_zscore", "ewma", "har_logit", "logreg", "xgboost"),
        description="models trained at each as-of",
    )
    seed: int = Field(default=7, description="seed of training and of the bootstrap")
    logreg_c: PositiveFloat = Field(
        default=0.1, description="inverse L2 strength of the logistic regressions"
    )
    xgboost_trees: PositiveInt = Field(
        default=300, description="most boosting rounds; early stopping may take fewer"
    )
    xgboost_depth: PositiveInt = Field(default=3, description="depth of the trees")
    xgboost_learning_rate: PositiveFloat = Field(
        default=0.05, description="learning rate (eta): the share of each tree that is added"
    )
    xgboost_min_child_weight: PositiveFloat = Field(default=50.0, description="least hessian in a leaf")
    bootstrap_resamples: PositiveInt = Field(
        default=500, description="block-bootstrap resamples of an interval"
    )
    alert_budget_per_hour: PositiveFloat = Field(
        default=2.0, description="false alarms an hour the operating point may cost"
    )
    champion_max_age_days: PositiveFloat = Field(
        default=7.0,
        description="a champion that has learned nothing for longer, and ranks below a new HAR logit, falls "
        "back to it",
    )


class SplitSettings(Section):
    """Split of a labelled span into training, validation and test."""

    train_span_s: PositiveInt = Field(description="longest training span before the test block")
    test_span_s: PositiveInt = Field(description="longest test block, at the end of the span")
    max_test_share: float = Field(
        default=0.4, gt=0, lt=1, description="of a short span, at most this share is test"
    )
    validation_share: float = Field(
        default=0.2, gt=0, lt=1, description="last share of training: early stop, operating point"
    )
    embargo_s: PositiveInt = Field(
        default=300, description="least distance of training and test beyond the purge"
    )


# Fields of both timescales. Not a base class: its fields would come first, and the order of the keys
# in `cryptovol config` would change.
BarInterval = Annotated[PositiveInt, Field(description="length of a bar")]
Windows = Annotated[tuple[PositiveInt, ...], Field(description="feature windows, in bars")]
HalfLives = Annotated[tuple[PositiveInt, ...], Field(description="half-lives of the EWMA features, in bars")]
Quantile = Annotated[
    float, Field(gt=0.5, lt=1, description="a spike is at or over this quantile of the training span")
]
DEFAULT_QUANTILE = 0.90


class TimescaleSettings(Section):
    """One timescale of the chain bars → features → labels → splits → models → evaluation."""

    bar_interval_s: BarInterval
    windows_bars: Windows
    ewma_half_lives_bars: HalfLives
    horizon_bars: PositiveInt = Field(description="H: the label covers (t, t+H]")
    quantile: Quantile = DEFAULT_QUANTILE
    stale_after_s: PositiveFloat = Field(default=10.0, description="a quote older than this is stale")
    gap_after_s: PositiveFloat = Field(default=30.0, description="no message for this long opens a gap")
    label_max_age_s: PositiveFloat = Field(
        default=15.0, description="no label where its span contains an older quote"
    )
    late_after_s: PositiveFloat = Field(
        default=2.0, description="a message older than its product's newest by more is late"
    )
    retrain_every_hours: PositiveInt = Field(
        default=24,
        description="a run over a range of hours trains at every such hour (from the epoch) and at its last "
        "one; the hours between carry the models forward",
    )
    splits: SplitSettings

    @property
    def horizon_s(self) -> int:
        """H in seconds."""
        return self.horizon_bars * self.bar_interval_s


def _seconds() -> TimescaleSettings:
    return TimescaleSettings(
        bar_interval_s=1,
        windows_bars=(5, 15, 30, 60, 120, 300, 900, 3_600),
        ewma_half_lives_bars=(5, 20, 60, 300),
        horizon_bars=60,
        splits=SplitSettings(train_span_s=7 * 86_400, test_span_s=86_400),
    )


class HorizonSettings(Section):
    """One thing to learn on the minutes: how far ahead, and the volatility meant."""

    bars: PositiveInt = Field(description="H in bars: the label covers (t, t+H]")
    target: Literal["garman_klass", "close_to_close"] = Field(
        description="volatility of these bars: from their ranges (Garman-Klass), or from close to close"
    )


def _minutes_models() -> ModelSettings:
    return ModelSettings(
        enabled=("persistence", "baseline_zscore", "ewma", "har_logit", "logreg", "xgboost"),
        logreg_c=0.01,
        xgboost_trees=1_200,
        xgboost_depth=3,
        xgboost_learning_rate=0.03,
        champion_max_age_days=90.0,
    )


class MinutesSettings(Section):
    """1-min bars from imported candles and the feed's trades; days as partitions."""

    enabled: bool = Field(default=True, description="whether the chain of the minutes is there at all")
    bar_interval_s: BarInterval = 60
    windows_bars: Windows = (1, 2, 3, 5, 10, 15, 30, 60, 120, 240, 720, 1_440)
    ewma_half_lives_bars: HalfLives = (5, 20, 60, 300)
    horizons: tuple[HorizonSettings, ...] = Field(
        default=(
            HorizonSettings(bars=5, target="garman_klass"),
            HorizonSettings(bars=15, target="close_to_close"),
        ),
        min_length=1,
        description="one chain each, from labels to champion",
    )
    quantile: Quantile = DEFAULT_QUANTILE
    stale_after_s: PositiveFloat = Field(default=180.0, description="an older price is stale")
    gap_after_s: PositiveFloat = Field(default=300.0, description="no trade for this long opens a gap")
    label_max_age_s: PositiveFloat = Field(
        default=180.0, description="no label where its span contains an older price"
    )
    retrain_every_days: PositiveInt = Field(
        default=30,
        description="a run over a range of days trains at every such day and at its last one; the days "
        "between carry the models forward",
    )
    retrain_anchor: date = Field(
        default=date(2024, 12, 31),
        description="a day at which such a run trains; the others follow; folds end there",
    )
    holdout_from: date = Field(
        default=date(2025, 1, 1),
        description="days from here on are evaluated only by `cryptovol backtest --holdout`",
    )
    splits: SplitSettings = Field(
        default_factory=lambda: SplitSettings(train_span_s=60 * 86_400, test_span_s=30 * 86_400),
        description="60 days of training, 30 of test",
    )
    models: ModelSettings = Field(default_factory=_minutes_models, description="models of the minutes")


class TimescalesSettings(Section):
    """The timescales that the one factory builds."""

    reference_set: tuple[str, ...] = Field(
        default=DEFAULT_REFERENCE_SET,
        description="products whose means the cross features are, in the order in which they are summed; "
        "products outside it get the means of all of it. `cryptovol reference-set` changes stored features",
    )
    seconds: TimescaleSettings = Field(default_factory=_seconds, description="1-s bars from the feed")
    minutes: MinutesSettings = Field(
        default_factory=MinutesSettings, description="1-min bars from candles and trades"
    )

    @field_validator("reference_set")
    @classmethod
    def _some_products(cls, products: tuple[str, ...]) -> tuple[str, ...]:
        return require_products(products)


class LiveSettings(Section):
    """Live features and scores: `cryptovol featurize`, `cryptovol score`."""

    lateness_s: PositiveFloat = Field(
        default=2.0, description="a bar closes this long after its end; later ticks cause revisions"
    )
    flush_s: PositiveFloat = Field(
        default=60.0, description="features.parquet is brought up to date this often (wall clock)"
    )
    commit_s: PositiveFloat = Field(
        default=5.0,
        description="how often the consumer group's offsets are committed (they only show the lag)",
    )
    cross_wait_s: PositiveFloat = Field(
        default=0.5,
        description="how long a row waits for those of the reference set before it is published without a "
        "probability",
    )
    not_heard_after_s: PositiveFloat = Field(
        default=5.0,
        description="a second without a row is published as not_heard when the feed is this far past its end",
    )
    champion_check_s: PositiveFloat = Field(
        default=5.0, description="how often the scorer looks whether the champion changed"
    )
    outcome_deadline_s: PositiveFloat = Field(
        default=1.0,
        description="live_outcomes counts scores that were published by a bar's end + lateness_s + this",
    )


class MonitoringSettings(Section):
    """Reports, drift from the hours before, alerts, and when something is overdue."""

    report_max_rows: PositiveInt = Field(
        default=20_000, description="rows of a side sampled for an Evidently report"
    )
    report_pages_kept: PositiveInt = Field(
        default=100,
        description="HTML pages kept of each kind of report, the newest; numbers are kept for ever",
    )
    drift_reference_hours: PositiveInt = Field(
        default=24, description="hours before an hour with which its features are compared"
    )
    drift_calibration_hours: PositiveInt = Field(
        default=720,
        description="hours before an hour whose own comparisons calibrate its limits, once there are 30 of "
        "them; until then, and where fewer than 30 are set, the two limits below apply",
    )
    drift_distance_limit: PositiveFloat = Field(
        default=1.2,
        description="distance (Wasserstein over the mixture's standard deviation, 0 to 2) above which a "
        "feature has drifted, as long as limits are uncalibrated",
    )
    drift_limit_share: float = Field(
        default=0.3,
        ge=0.0,
        lt=1.0,
        description="an hour is over the limit when a greater share of its features drifted, as long as "
        "limits are uncalibrated",
    )
    drift_hours_needed: PositiveInt = Field(
        default=3, description="hours over the limit after which the drift sensor requests a report"
    )
    drift_hours_looked_at: PositiveInt = Field(
        default=6, description="newest closed hours in which the sensor counts them"
    )
    drift_cool_down_hours: PositiveInt = Field(
        default=24,
        description="hours of the market between two drift reports that the sensor requests",
    )
    alert_webhook_url: SecretStr | None = Field(
        default=None,
        description="receives each alert as JSON by POST; in rules of alerts it is the target `webhook`",
    )
    alert_timeout_s: PositiveFloat = Field(
        default=5.0, description="how long a target of alerts may take to answer"
    )
    alert_tries: PositiveInt = Field(
        default=3,
        description="how often an alert is sent at least to a target before it is given up "
        "(alerts.give_up_after_s)",
    )
    alert_pause_s: PositiveFloat = Field(
        default=2.0, description="pause after the first of these tries; it doubles up to a minute"
    )
    labels_due_after_s: PositiveFloat = Field(
        default=1_800.0, description="a closed hour without labels for longer than this raises an alert"
    )
    hour_due_after_s: PositiveFloat = Field(
        default=5_400.0,
        description="a live market on which no hour closed for this long since one ended raises an alert",
    )

    @field_validator("alert_webhook_url", mode="before")
    @classmethod
    def _unset_if_empty(cls, url: object) -> object:
        # compose.yaml passes the variable on, empty where docker/.env does not set it.
        return url or None

    @field_validator("alert_webhook_url")
    @classmethod
    def _is_http(cls, url: SecretStr | None) -> SecretStr | None:
        if url is not None:
            require_http(url.get_secret_value())
        return url


class MlflowSettings(Section):
    """Experiment tracking."""

    tracking_uri: str | None = Field(default=None, description="default: sqlite in the data folder")
    experiment: str = Field(default="cryptovol", description="experiment of every run")
    ui_url: str = Field(
        default="http://127.0.0.1:5000", description="where people open the MLflow UI; used in links"
    )


class DagsterSettings(Section):
    """Partitions and links."""

    partitions_start: str = Field(
        default="2025-12-01-00:00", description="first hourly partition, UTC, %Y-%m-%d-%H:%M"
    )
    partitions_end: str | None = Field(
        default=None, description="end of the last partition, where the market has ended: %Y-%m-%d-%H:%M, UTC"
    )
    minutes_start: date = Field(
        default=date(2023, 10, 1), description="first daily partition of the minutes, UTC"
    )
    ui_url: str = Field(
        default="http://127.0.0.1:3000", description="where people open the Dagster UI; used in links"
    )
    closed_after_s: PositiveFloat = Field(
        default=120.0, description="an hour closes when the watermark passes its end by this"
    )
    revised_after_s: PositiveFloat = Field(
        default=120.0,
        description="a closed hour with late rows closes again after this long without another",
    )
    retrain_every_closed_hours: int = Field(
        default=0,
        ge=0,
        description="ask for a retrain whenever so many further hours of the market have closed, besides the "
        "hourly schedule; for a market played faster than the clock (0: only the schedule)",
    )
    report_closed_hours: bool = Field(
        default=False, description="the recorder reports each closed hour to the webserver at ui_url"
    )

    @field_validator("partitions_start", "partitions_end")
    @classmethod
    def _on_the_hour(cls, text: str | None) -> str | None:
        from datetime import datetime

        if text is None:
            return None
        try:
            moment = datetime.strptime(text, "%Y-%m-%d-%H:%M")  # noqa: DTZ007 - a partition key has no zone; it is UTC
        except ValueError as error:
            raise ValueError("must look like 2026-01-31-00:00") from error
        if moment.minute:
            raise ValueError("must be a full hour")
        return text


class Settings(Section):
    """The whole configuration."""

    coinbase: CoinbaseSettings = Field(default_factory=CoinbaseSettings)
    kafka: KafkaSettings = Field(default_factory=KafkaSettings)
    storage: StorageSettings = Field(default_factory=StorageSettings)
    history: HistorySettings = Field(default_factory=HistorySettings)
    ingest: IngestSettings = Field(default_factory=IngestSettings)
    timescales: TimescalesSettings = Field(default_factory=TimescalesSettings)
    live: LiveSettings = Field(default_factory=LiveSettings)
    models: ModelSettings = Field(default_factory=ModelSettings)
    monitoring: MonitoringSettings = Field(default_factory=MonitoringSettings)
    alerts: AlertsSettings = Field(default_factory=AlertsSettings)
    mlflow: MlflowSettings = Field(default_factory=MlflowSettings)
    dagster: DagsterSettings = Field(default_factory=DagsterSettings)

    @model_validator(mode="after")
    def _pauses_make_sense(self) -> Settings:
        if self.ingest.backoff_initial_s > self.ingest.backoff_max_s:
            raise ValueError("ingest.backoff_initial_s is above ingest.backoff_max_s")
        return self

    @model_validator(mode="after")
    def _drift_can_be_reached(self) -> Settings:
        monitoring = self.monitoring
        if monitoring.drift_hours_needed > monitoring.drift_hours_looked_at:
            raise ValueError("monitoring.drift_hours_needed is above monitoring.drift_hours_looked_at")
        return self

    @model_validator(mode="after")
    def _rules_name_what_exists(self) -> Settings:
        check_names(self.alerts, self.monitoring.alert_webhook_url is not None, self.coinbase.products)
        return self

    @model_validator(mode="after")
    def _reference_set_is_followed(self) -> Settings:
        chosen, followed = self.timescales.reference_set, self.coinbase.products
        if chosen != DEFAULT_REFERENCE_SET and (unknown := [p for p in chosen if p not in followed]):
            raise ValueError(
                f"timescales.reference_set names {', '.join(unknown)}, which is not followed; "
                f"coinbase.products are {', '.join(followed)}: add it there, or choose among them"
            )
        return self

    @model_validator(mode="after")
    def _partitions_end_after_they_start(self) -> Settings:
        start, end = self.dagster.partitions_start, self.dagster.partitions_end
        if end is not None and end <= start:
            raise ValueError("dagster.partitions_end is not after dagster.partitions_start")
        return self

    @property
    def mlflow_tracking_uri(self) -> str:
        """Effective tracking URI: the configured one, or sqlite in the data folder."""
        return self.mlflow.tracking_uri or f"sqlite:///{self.storage.data_dir / 'mlflow' / 'mlflow.db'}"
