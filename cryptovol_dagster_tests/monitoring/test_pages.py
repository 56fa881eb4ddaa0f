"""Pages from templates: values are escaped, and a missing one is an error."""

from __future__ import annotations

import pytest
from jinja2 import UndefinedError

from cryptovol_dagster.monitoring.pages import render_page

BANNER = {
    "title": "Drift",
    "as_of": "2026-04-04-03:00",
    "measured_on": "500 rows",
    "note": "",
    "not_counted": [],
    "left_out": [],
}


def test_values_are_escaped() -> None:
    hostile = "<script>alert('x')</script> & \"more\""
    page = render_page("banner.html", **BANNER | {"title": hostile, "left_out": [hostile]})
    assert "<script>" not in page
    assert page.count("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; &amp; &#34;more&#34;") == 2


def test_a_missing_value_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="'note' is undefined"):
        render_page("banner.html", **{name: text for name, text in BANNER.items() if name != "note"})
