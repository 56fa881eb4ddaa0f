"""Additions of the site to a page: its weight in the search, and a decision's date and successor."""

from __future__ import annotations

import re
from typing import Any

#: By folder: people search for what to do before they search for why it is so.
_WEIGHTS = {"start": 3.0, "guides": 3.0, "concepts": 3.0, "results": 2.0, "decisions": 0.2}


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Weigh a page for the search; show under the title of a decision what its front matter says."""
    folder = page.file.src_uri.partition("/")[0]
    page.meta.setdefault("search", {"boost": _WEIGHTS.get(folder, 1.0)})
    if "status" not in page.meta:
        return markdown
    later = page.meta.get("superseded_by")
    state = f"[superseded by a later decision]({later})" if later else page.meta["status"]
    line = f"\n\n*{page.meta['date']}, {state}*"
    return re.sub(r"^# .*$", lambda title: title.group() + line, markdown, count=1, flags=re.MULTILINE)
