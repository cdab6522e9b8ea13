"""The pages *Images* (search) and one image: what arrived, how it ended, and where the results
went.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any
from urllib.parse import urlencode

from starlette.exceptions import HTTPException
from starlette.responses import Response

from daemon.ledger import ImageState, accession_digest, timeline
from daemon.ledger.view import Search
from daemon.web.model import card_of
from daemon.web.pictures import Pictures
from daemon.web.shown import Shown
from daemon.web.visit import Visit

_UID = re.compile(r"[0-9.]{1,64}")
_FIELDS = ("uid", "accession", "sender", "state", "reason", "since", "until")
# This value of the search field is not a state of the ledger.
_POSITIVE = "positive"
_MOST_CHARACTERS = 64


def listing(visit: Visit) -> Response:
    """The images that a search finds, newest first."""
    query = visit.request.query_params
    asked = {name: query.get(name, "").strip()[:_MOST_CHARACTERS] for name in _FIELDS}
    view = visit.node.view
    found = view.images(_search(visit, asked), _number(query.get("before", "")))
    visit.audit("query", ", ".join(sorted(name for name in asked if asked[name])) or "all images")

    given = {name: value for name, value in asked.items() if value}
    older = urlencode({**given, "before": found.older}) if found.older else ""
    values: dict[str, Any] = {
        "asked": asked,
        "found": found,
        "rows": Shown(visit.texts).rows(found.rows),
        "older": older,
        "is_first": not query.get("before"),
        "senders": visit.node.once_every(30.0, "senders", view.senders),
        "reasons": visit.node.once_every(30.0, "reasons", view.reasons_seen),
        "states": [state.value for state in ImageState],
    }
    return visit.page("images.html", title=visit.texts.say("images"), **values)


def _search(visit: Visit, asked: dict[str, str]) -> Search:
    state = asked["state"]
    identity = visit.node.view.spool_identity() or ""
    return Search(
        # A text that is not a UID is searched for all the same, and finds nothing.
        uid=asked["uid"],
        accession_digest=accession_digest(asked["accession"], identity),
        sender=asked["sender"],
        state="" if state == _POSITIVE else state,
        is_positive=state == _POSITIVE,
        reason=asked["reason"],
        since=_seconds(asked["since"]),
        until=_seconds(asked["until"]),
    )


def _seconds(text: str) -> float | None:
    """A browser's date and time, in the node's time zone; None if it is invalid."""
    try:
        return datetime.fromisoformat(text).astimezone().timestamp()
    except (ValueError, OverflowError, OSError):
        return None


def _number(text: str) -> int | None:
    """A row's number; None if the text is not a number."""
    return int(text) if text.isdecimal() and len(text) < 16 else None


def one(visit: Visit, files: Pictures) -> Response:
    """One image: picture, score, timeline, objects."""
    image = visit.node.view.image(visit.request.path_params["number"])
    if image is None:
        raise HTTPException(404)

    visit.audit("query", f"image {image['sop_instance_uid']}")
    overlay = next((each["id"] for each in image["results"] if each["kind"] == "SC"), None)
    is_shown = visit.node.web.show_patients and visit.may_look
    values: dict[str, Any] = {
        "image": image,
        "card": card_of(visit.node.settings.model),
        "events": timeline.events(image),
        "overlay": overlay if image["removed_at"] is None else None,
        "viewer": _viewer(visit, image),
        "patient": files.patient(image) if is_shown else {},
        "destinations": visit.node.destinations,
    }
    return visit.page("image.html", title=visit.texts.say("image"), **values)


def _viewer(visit: Visit, image: dict[str, Any]) -> str:
    """The study in the site's viewer; "" without a viewer, or without a usable UID."""
    template = visit.node.web.viewer_url
    study = image["study_instance_uid"] or ""
    if template is None or not _UID.fullmatch(study):
        return ""

    sop = image["sop_instance_uid"]
    known = sop if _UID.fullmatch(sop) else ""
    return template.format(study_instance_uid=study, sop_instance_uid=known)
