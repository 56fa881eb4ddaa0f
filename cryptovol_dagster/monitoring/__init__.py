"""Drift, performance, Evidently's reports, the page that lists them, and alerts."""
