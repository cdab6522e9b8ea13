"""`pleura trace`: where an image's time was spent, from its receipt to each archive's answer."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from datetime import datetime
from typing import Any

from daemon.ledger.timeline import Event, trace
from daemon.ledger.view import View
from daemon.web.texts import Texts

# Steps between the events that the page also shows. Each name says what ended then.
_STEPS = {
    "analysis_claimed": "claimed by analyse",
    "analysis_begun": "a thread was free",
    "analysis_read": "read from the spool",
    "analysis_decoded": "admitted and decoded",
    "analysis_batched": "the device was free",
    "analysis_gated": "the plausibility gate answered",
    "analysis_classified": "the classifier answered",
    "analysis_answered": "answer complete: segmented, where positive",
    "analysis_resumed": "a thread was free",
    "analysis_measured": "mask and measurements made",
    "analysis_encoded": "{kind} encoded",
    "analysis_checked": "{kind} checked",
    "analysis_made": "all result objects made",
    "analysis_written": "result objects flushed to the spool",
    "delivery_claimed": "{kind} claimed for {name}",
    "delivery_associated": "{kind}: association with {name} open",
    "delivery_begun": "{kind}: its turn on the association",
    "delivery_answered": "{kind}: {name} answered",
}
_TEXTS = Texts("en")


def found(view: View, uids: Collection[str]) -> dict[str, list[dict[str, Any]]]:
    """UID as asked -> the images that it names, oldest first, each with its events.

    `at` is local time; `milliseconds` count from the receipt.
    """
    traces: dict[str, list[dict[str, Any]]] = {}
    for uid in uids:
        rows = [row for image in view.images_of(uid) for row in view.history(image)]
        images = [view.image(row["id"]) for row in rows]
        traces[uid] = [_as_json(image) for image in images if image is not None]
    return traces


def _as_json(image: dict[str, Any]) -> dict[str, Any]:
    began = image["received_at"]

    return {
        "image": image["id"],
        "sop_instance_uid": image["sop_instance_uid"],
        "state": image["state"],
        "received_at": _date(began),
        "events": [
            {
                "event": event.key.removeprefix("event_"),
                "milliseconds": None if event.at is None else round((event.at - began) * 1e3, 1),
                "words": _words(event),
                **{name: event.values[name] for name in ("kind", "name") if name in event.values},
            }
            for event in trace(image)
        ],
    }


def lines(traces: dict[str, list[dict[str, Any]]]) -> Iterator[str]:
    """The same as text: milliseconds since the receipt, and since the previous line."""
    for uid, images in traces.items():
        if not images:
            yield f"{uid}: not in the ledger"

        for image in images:
            yield (
                f"image {image['image']} {image['sop_instance_uid']}: {image['state']}, "
                f"received {image['received_at']}"
            )

            before = 0.0
            for event in image["events"]:
                at = event["milliseconds"]
                if at is None:
                    yield f"{'still open':>24}  {event['words']}"
                    continue

                yield f"{at:11.1f} ms {at - before:+8.1f}  {event['words']}"
                before = at


def _words(event: Event) -> str:
    if event.key in _STEPS:
        return _STEPS[event.key].format(**event.values)

    values = {name: "" if value is None else value for name, value in event.values.items()}
    if "seconds" in values:
        values["seconds"] = f"{values['seconds']:.3f} s"
    words = _TEXTS.say(event.key, **values).strip()
    return words[:1].lower() + words[1:] if words[1:2].islower() else words


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().isoformat(" ", "milliseconds")
