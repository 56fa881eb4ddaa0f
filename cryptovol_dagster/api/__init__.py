"""The data of a market for notebooks and scripts: three lines to a frame.

>>> from cryptovol_dagster import api
>>> market = api.open("data/demo")
>>> market.features("BTC-USD", "-2h")

`docs/guides/python-api.md` shows each method. Belongs here: reading stored data, in readable units.
Does not belong here: computing stored data, writing.
"""

from cryptovol_dagster.api.errors import ApiError
from cryptovol_dagster.api.market import Market, open

__all__ = ["ApiError", "Market", "open"]
