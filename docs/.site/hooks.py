"""What the site adds to a page: a decision's date, and which later decision replaced it."""

from __future__ import annotations

import re
from typing import Any


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Show under the title of a decision what its front matter says."""
    if "status" not in page.meta:
        return markdown
    later = page.meta.get("superseded_by")
    state = f"[superseded by a later decision]({later})" if later else page.meta["status"]
    line = f"\n\n*{page.meta['date']}, {state}*"
    return re.sub(r"^# .*$", lambda title: title.group() + line, markdown, count=1, flags=re.MULTILINE)
