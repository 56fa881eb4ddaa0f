"""The Dagster instance of this machine: brought up to date where it is ours, held by one supervisor."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest

from cryptovol_dagster.machine import instance as module
from cryptovol_dagster.machine.instance import (
    DAGSTER_YAML,
    EARLIER_YAML,
    InstanceError,
    Running,
    ensure_dagster_home,
    hold_instance,
    open_instance,
    own_config_note,
    running_instance,
)
from cryptovol_dagster_tests.synthetic import small_settings
from ingestor.settings import Settings

URLS = ("http://127.0.0.1:3000", "http://127.0.0.1:5000")


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    return small_settings(tmp_path)


def test_what_an_earlier_version_wrote_is_brought_up_to_date(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ensure_dagster_home(settings) / "dagster.yaml"
    earlier = "telemetry: {enabled: false}\n"
    monkeypatch.setattr(module, "EARLIER_YAML", {hashlib.sha256(earlier.encode()).hexdigest()})
    config.write_text(earlier)
    ensure_dagster_home(settings)
    assert config.read_text() == DAGSTER_YAML
    assert own_config_note(config.parent) is None


def test_what_somebody_changed_is_left_alone_and_said(settings: Settings) -> None:
    home = ensure_dagster_home(settings)
    changed = DAGSTER_YAML.replace("max_concurrent_runs: 2", "max_concurrent_runs: 5")
    (home / "dagster.yaml").write_text(changed)
    assert ensure_dagster_home(settings) == home
    assert (home / "dagster.yaml").read_text() == changed
    note = own_config_note(home)
    assert note is not None
    assert note.startswith(f"{home / 'dagster.yaml'} has your own changes and was kept")


def test_this_version_is_no_earlier_one() -> None:
    assert hashlib.sha256(DAGSTER_YAML.encode()).hexdigest() not in EARLIER_YAML
    assert EARLIER_YAML


def test_the_ui_opens_without_an_invitation_and_nothing_phones_home(settings: Settings) -> None:
    with open_instance(ensure_dagster_home(settings)) as instance:
        assert not instance.nux_enabled
        assert not instance.telemetry_enabled


def test_one_supervisor_holds_an_instance(settings: Settings) -> None:
    home = ensure_dagster_home(settings)
    assert running_instance(settings) is None
    with hold_instance(home, *URLS, ["recorder", "Dagster"]):
        running = running_instance(settings)
        assert running is not None
        assert running.began_s > 0
        assert running == Running(os.getpid(), *URLS, ("recorder", "Dagster"), running.began_s)
        message = (
            rf"is in use: .* runs already \(pid {os.getpid()}, http://127\.0\.0\.1:3000\); "
            rf"use it, or stop it: Ctrl-C there, or `kill {os.getpid()}`$"
        )
        with pytest.raises(InstanceError, match=message), hold_instance(home, *URLS):
            pass
    assert running_instance(settings) is None
    with hold_instance(home, *URLS):
        assert running_instance(settings) is not None


#: Opens a new home, and is slow just where Dagster's tables are made and their revision is not yet written.
SLOW_TO_OPEN = """
import sys, time
from pathlib import Path
from alembic.runtime.migration import HeadMaintainer
from cryptovol_dagster.machine.instance import open_instance

def insert(maintainer, version, insert=HeadMaintainer._insert_version):
    print("tables made", flush=True)
    time.sleep(2)
    insert(maintainer, version)

HeadMaintainer._insert_version = insert
with open_instance(Path(sys.argv[1])):
    pass
"""


@pytest.mark.slow
def test_two_that_open_a_new_home_do_not_spoil_it(settings: Settings) -> None:
    home = ensure_dagster_home(settings)
    slow = subprocess.Popen(
        (sys.executable, "-c", SLOW_TO_OPEN, str(home)), stdout=subprocess.PIPE, text=True
    )
    with slow:
        assert slow.stdout is not None
        assert slow.stdout.readline() == "tables made\n"
        with open_instance(home) as instance:
            assert isinstance(instance, dg.DagsterInstance)
            assert instance.get_runs() == []
    assert slow.returncode == 0
    with open_instance(home) as instance:
        assert instance.get_runs() == []


def test_a_home_that_cannot_be_written_is_not_opened(settings: Settings) -> None:
    home = ensure_dagster_home(settings)
    (home / "opening.lock").mkdir()
    with pytest.raises(InstanceError, match=r"opening\.lock cannot be written"), open_instance(home):
        pass
