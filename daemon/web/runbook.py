"""The runbook: what to do about each kind of alarm. docs/faults.md ships with the code for it.

A node in a hospital's network may not reach the documentation's site at 3 a.m.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

from markupsafe import Markup, escape
from starlette.responses import Response

from daemon import installed
from daemon.web.visit import Visit

_HEADING = re.compile(r"^### Alarm: (\w+)$", re.MULTILINE)
_END = re.compile(r"^## ", re.MULTILINE)
_STEP = re.compile(r"^\d+\. ", re.MULTILINE)
_CODE = re.compile(r"`([^`]+)`")
_LINK = re.compile(r"\[([^]]+)\]\([^)]+\)")


def page(visit: Visit) -> Response:
    """Every entry, each under the kind of its alarm."""
    return visit.page("runbook.html", title=visit.texts.say("runbook"), entries=entries())


@lru_cache(maxsize=1)
def entries() -> dict[str, Markup]:
    """The entry of each kind of alarm, as HTML."""
    text = installed.shipped_file("daemon", "faults.md").read_text(encoding="utf-8")
    parts = _HEADING.split(text)[1:]
    kinds, bodies = parts[::2], parts[1::2]
    return {
        kind: Markup("").join(_blocks(_END.split(body)[0]))
        for kind, body in zip(kinds, bodies, strict=True)
    }


def _blocks(body: str) -> Iterator[Markup]:
    """Paragraphs and numbered steps, which are all that an entry consists of."""
    for block in re.split(r"\n\s*\n", body.strip()):
        if _STEP.match(block):
            steps = [step for step in _STEP.split(block) if step]
            items = Markup("").join(Markup("<li>{}</li>").format(_line(step)) for step in steps)
            yield Markup("<ol>{}</ol>").format(items)
        else:
            yield Markup("<p>{}</p>").format(_line(block))


def _line(text: str) -> Markup:
    """One paragraph's text. Linked pages are not here, so only a link's text remains."""
    plain = _LINK.sub(r"\1", " ".join(text.split()))
    return Markup(_CODE.sub(r"<code>\1</code>", str(escape(plain))))  # noqa: S704 - escaped before
