"""The configuration of cryptovol: all settings, and the source of each value.

`model` declares every field with its unit and meaning; `load` merges the defaults, ``config.yaml``, ``.env``
and the environment, and turns every mistake into one line that names the key, the file and the line.
"""

from ingestor.settings.load import LoadedSettings, SettingsError, load_settings
from ingestor.settings.sections import Settings, TimescaleSettings

__all__ = ["LoadedSettings", "Settings", "SettingsError", "TimescaleSettings", "load_settings"]
