"""The configuration: merged in order, every mistake named by key, file and line."""

from __future__ import annotations

from pathlib import Path

import pytest

from cryptovol_dagster_tests.places import REPOSITORY
from ingestor.settings import Settings, SettingsError, load_settings
from ingestor.settings.sections import MinutesSettings, TimescaleSettings


@pytest.fixture
def config(tmp_path: Path):
    """Write a config file and return its path."""

    def write(text: str) -> Path:
        path = tmp_path / "config.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def source_of(loaded, key: str) -> str:
    return {row[0]: row[2] for row in loaded.rows()}[key]


def test_without_a_file_everything_is_a_default(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    loaded = load_settings(environ={})
    assert loaded.config_file is None
    assert loaded.settings.kafka.is_embedded
    assert {source for _, _, source in loaded.rows()} == {"default"}


def test_both_timescales_declare_alike_what_they_share() -> None:
    seconds, minutes = TimescaleSettings.model_fields, MinutesSettings.model_fields
    for name in ("bar_interval_s", "windows_bars", "ewma_half_lives_bars", "quantile"):
        first, second = seconds[name], minutes[name]
        assert (first.annotation, first.description) == (second.annotation, second.description), name
        assert first.metadata == second.metadata, name


def test_one_key_of_a_section_leaves_the_others_at_their_defaults(config):
    loaded = load_settings(config("timescales:\n  seconds:\n    splits:\n      embargo_s: 60\n"), {})
    seconds = loaded.settings.timescales.seconds
    assert (seconds.splits.embargo_s, seconds.splits.test_span_s, seconds.horizon_bars) == (60, 86_400, 60)
    assert source_of(loaded, "timescales.seconds.splits.embargo_s").endswith("config.yaml:4")
    assert source_of(loaded, "timescales.seconds.horizon_bars") == "default"


def test_environment_beats_dotenv_beats_file(config):
    path = config("models:\n  seed: 1\n  logreg_c: 0.5\n  xgboost_depth: 4\n")
    (path.parent / ".env").write_text("CRYPTOVOL__MODELS__SEED=2\nCRYPTOVOL__MODELS__LOGREG_C=0.7\nOTHER=1\n")
    loaded = load_settings(path, {"CRYPTOVOL__MODELS__SEED": "3"})
    models = loaded.settings.models
    assert (models.seed, models.logreg_c, models.xgboost_depth) == (3, 0.7, 4)
    assert source_of(loaded, "models.seed") == "environment CRYPTOVOL__MODELS__SEED"
    assert source_of(loaded, "models.logreg_c").endswith(".env")
    assert source_of(loaded, "models.xgboost_depth").endswith("config.yaml:4")


def test_relative_folders_are_relative_to_the_file(config):
    path = config("storage:\n  data_dir: elsewhere\n")
    storage = load_settings(path, {}).settings.storage
    assert storage.raw_dir == path.parent / "elsewhere" / "raw"
    assert storage.reports_dir == path.parent / "reports"


def test_the_file_is_found_through_the_environment(config):
    path = config("models:\n  seed: 11\n")
    assert load_settings(environ={"CRYPTOVOL_CONFIG": str(path)}).settings.models.seed == 11


def test_secrets_are_hidden(config):
    loaded = load_settings(config("kafka:\n  security:\n    sasl.password: hunter2\n"), {})
    assert loaded.settings.kafka.security["sasl.password"].get_secret_value() == "hunter2"
    assert not any("hunter2" in value for _, value, _ in loaded.rows())


@pytest.mark.parametrize(
    ("text", "environ", "expected"),
    [
        ("kafka:\n  boostrap: 1\n", {}, "config.yaml:2: unknown key 'kafka.boostrap'"),
        ("kafak: 1\n", {}, "config.yaml:1: unknown key 'kafak'"),
        ("models:\n  seed: abc\n", {}, "config.yaml:2: models.seed: "),
        ("timescales:\n  seconds:\n    quantile: 2\n", {}, "config.yaml:3: timescales.seconds.quantile: "),
        ("coinbase:\n  url: http://x\n", {}, "config.yaml:2: coinbase.url: must start with ws:// or wss://"),
        ("coinbase:\n  products: []\n", {}, "config.yaml:2: coinbase.products: names no product"),
        ("models:\n  seed: 1\n  seed: 2\n", {}, "config.yaml:3: models.seed: set twice"),
        ("dagster:\n  partitions_start: soon\n", {}, "must look like 2026-01-31-00:00"),
        ("dagster:\n  partitions_end: 2026-01-31-00:30\n", {}, "must be a full hour"),
        (
            "dagster:\n  partitions_start: 2026-01-31-00:00\n  partitions_end: 2026-01-31-00:00\n",
            {},
            "dagster.partitions_end is not after dagster.partitions_start",
        ),
        ("kafka: 3\n", {}, "config.yaml:1: kafka: "),
        ("a: [\n", {}, "not valid YAML"),
        ("- 1\n", {}, "config.yaml:1: expected sections"),
        (
            "",
            {"CRYPTOVOL__MODELS__SEDE": "8"},
            "environment: CRYPTOVOL__MODELS__SEDE: unknown key 'models.sede'",
        ),
        ("", {"CRYPTOVOL__MODELS__SEED": "x"}, "environment CRYPTOVOL__MODELS__SEED: models.seed: "),
        (
            "",
            {"CRYPTOVOL__COINBASE__PRODUCTS": "BTC-USD"},
            "environment CRYPTOVOL__COINBASE__PRODUCTS: not valid JSON",
        ),
        ("ingest:\n  backoff_initial_s: 60\n", {}, "ingest.backoff_initial_s is above ingest.backoff_max_s"),
        (
            "monitoring:\n  drift_hours_looked_at: 2\n",
            {},
            "monitoring.drift_hours_needed is above monitoring.drift_hours_looked_at",
        ),
    ],
)
def test_a_mistake_is_one_line_that_names_it(config, text, environ, expected):
    with pytest.raises(SettingsError) as caught:
        load_settings(config(text), environ)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(SettingsError, match=r"nowhere\.yaml: no such configuration file"):
        load_settings(tmp_path / "nowhere.yaml", {})


@pytest.mark.parametrize(
    ("folder", "command"), [("demo", "cryptovol demo"), ("simulated", "cryptovol up --simulate")]
)
def test_a_market_that_nobody_created_yet_says_how(tmp_path, monkeypatch, folder, command):
    monkeypatch.chdir(tmp_path / "..")
    for path in (tmp_path / "data" / folder / "config.yaml", Path("data") / folder / "config.yaml"):
        with pytest.raises(SettingsError, match=f"no such configuration file; `{command}` creates it"):
            load_settings(path, {})


def test_the_committed_configuration_states_the_defaults():
    """config.yaml is the tour of what people set; it must not silently differ from the code's defaults."""
    file = load_settings(REPOSITORY / "config.yaml", {}).settings
    relative = file.storage.model_copy(
        update={
            name: getattr(file.storage, name).relative_to(REPOSITORY)
            for name in ("data_dir", "reports_dir", "artifacts_dir")
        }
    )
    assert file.model_copy(update={"storage": relative}) == Settings()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "coinbase:\n  product: [A]\n",
            "config.yaml:2: unknown key 'coinbase.product'. Did you mean 'coinbase.products'?",
        ),
        ("coinbse:\n  products: [A]\n", "config.yaml:1: unknown key 'coinbse'. Did you mean 'coinbase'?"),
        ("data_dir: x\n", "config.yaml:1: unknown key 'data_dir'. Did you mean 'storage.data_dir'?"),
        ("histroy:\n  url: x\n", "config.yaml:1: unknown key 'histroy'. Did you mean 'history'?"),
        ("qwerty: x\n", "config.yaml:1: unknown key 'qwerty'"),
        ("models:\n  enabled: [xgbost]\n", "or 'xgboost', got 'xgbost'. Did you mean 'xgboost'?"),
    ],
)
def test_an_unknown_key_asks_for_a_similar_one(config, text: str, says: str) -> None:
    with pytest.raises(SettingsError) as found:
        load_settings(config(text), environ={})
    assert str(found.value).endswith(says)


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("histroy.url", "history.url"),
        ("timescales.minuts.quantile", "timescales.minutes.quantile"),
        ("dagster.seed", "models.seed"),
    ],
)
def test_of_several_keys_of_that_name_the_most_similar_is_meant(key: str, meant: str) -> None:
    name = "CRYPTOVOL__" + key.upper().replace(".", "__")
    with pytest.raises(SettingsError, match=rf"unknown key '{key}'\. Did you mean '{meant}'\?"):
        load_settings(environ={name: "1"})


def test_so_it_does_in_dotenv_and_environment(config) -> None:
    path = config("{}\n")
    says = "CRYPTOVOL__COINBASE__PRODUCT: unknown key 'coinbase.product'. Did you mean 'coinbase.products'?"
    with pytest.raises(SettingsError) as found:
        load_settings(path, environ={"CRYPTOVOL__COINBASE__PRODUCT": "A"})
    assert str(found.value) == f"environment: {says}"
    (path.parent / ".env").write_text("CRYPTOVOL__COINBASE__PRODUCT=A\n")
    with pytest.raises(SettingsError) as found:
        load_settings(path, environ={})
    assert str(found.value) == f"{path.parent / '.env'}: {says}"


def test_the_reference_set_is_among_the_products_followed(config) -> None:
    path = config(
        "coinbase:\n  products: [SOL-USD, ADA-USD]\ntimescales:\n  reference_set: [ADA-USD, BTC-USD]\n"
    )
    with pytest.raises(SettingsError) as refused:
        load_settings(path, {})
    assert str(refused.value) == (
        f"{path}:4: timescales.reference_set names BTC-USD, which is not followed; coinbase.products are "
        "SOL-USD, ADA-USD: add it there, or choose among them"
    )


def test_without_a_choice_any_products_may_be_followed(config) -> None:
    settings = load_settings(config("coinbase:\n  products: [SOL-USD]\n"), {}).settings
    assert settings.timescales.reference_set == ("BTC-USD", "ETH-USD")


@pytest.mark.parametrize(("given", "said"), [("[]", "names no product"), ("[A, A]", "names a product twice")])
def test_a_reference_set_without_a_meaning_is_refused(config, given: str, said: str) -> None:
    with pytest.raises(SettingsError, match=f":2: timescales.reference_set: {said}"):
        load_settings(config(f"timescales:\n  reference_set: {given}\n"), {})
