"""Imported minute candles: from the exchange's REST interface or a file to the stored months."""
