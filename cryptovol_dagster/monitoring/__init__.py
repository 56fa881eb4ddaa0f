"""Drift, performance, Evidently's reports, and the page that lists them."""
