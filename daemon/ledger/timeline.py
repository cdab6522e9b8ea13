"""Everything that happened to one image, in order of time, for the operator's page and `pleura
trace`. Pure: it reads what View.image() gives.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from daemon.ledger.states import DeliveryState, ImageState


@dataclass(frozen=True)
class Event:
    """One thing that happened to an image. `key` names a text."""

    # Seconds since 1970; None: still to come.
    at: float | None
    key: str
    values: dict[str, Any] = field(default_factory=dict)
    # How the page marks it: ok, bad, wait, plain.
    tone: str = "plain"


class Stopwatch:
    """Notes the steps of one piece of work, as the ledger keeps them: seconds since the claim."""

    def __init__(self) -> None:
        self.since = time.monotonic()
        self.steps: dict[str, float] = {}

    def note(self, step: str) -> None:
        """A step has ended."""
        self.steps[step] = round(time.monotonic() - self.since, 4)


def events(image: Mapping[str, Any]) -> list[Event]:
    """Receipt, the end of the analysis, each delivery, the removal of its files."""
    came = {
        "sender": image["calling_ae_title"],
        "address": image["calling_address"] or "",
        "origin": image["origin"],
    }
    found = [Event(image["received_at"], f"event_{_came(image)}", came)]
    if image["completed_at"] is not None:
        found.append(_ended(image))
    else:
        key = "event_in_work" if image["owner"] else "event_waits"
        found.append(Event(None, key, {"attempts": image["attempt"]}, "wait"))

    for result in image["results"]:
        for delivery in result["deliveries"]:
            found += _delivered(result["kind"], delivery)
    if image["removed_at"] is not None:
        found.append(Event(image["removed_at"], "event_removed"))
    return _in_order(found)


def trace(image: Mapping[str, Any]) -> list[Event]:
    """The events, and the steps of the analysis and of each delivery that lead to them.

    An image or delivery that ended before version 7 of the tables has no steps.
    """
    found = list(_steps(image["steps"], image["completed_at"], "analysis", {}))
    for result in image["results"]:
        for delivery in result["deliveries"]:
            values = {"kind": result["kind"], "name": delivery["destination"]}
            found += _steps(delivery["steps"], delivery["stored_at"], "delivery", values)
    return _in_order([*found, *events(image)])


def _steps(
    recorded: str | None, ended_at: float | None, work: str, values: dict[str, Any]
) -> Iterator[Event]:
    """The steps that one piece of work recorded, as seconds from its claim to the end of each.

    A step that is about one kind of result has it behind its name: "encoded SEG". The last one ends
    as the ledger's clock says when the work ended.
    """
    if recorded is None or ended_at is None:
        return

    offsets: dict[str, float] = json.loads(recorded)
    claimed_at = ended_at - max(offsets.values(), default=0.0)
    yield Event(claimed_at, f"{work}_claimed", values)
    for step, offset in offsets.items():
        name, _, kind = step.partition(" ")
        about = {"kind": kind} if kind else {}
        yield Event(claimed_at + offset, f"{work}_{name}", values | about)


def _in_order(found: list[Event]) -> list[Event]:
    # Future events have no time, and come last.
    return sorted(found, key=lambda event: (event.at is None, event.at or 0.0))


def _came(image: Mapping[str, Any]) -> str:
    return "received" if image["calling_address"] else "received_without_address"


def _ended(image: Mapping[str, Any]) -> Event:
    state = image["state"]
    values = {
        "seconds": image["completed_at"] - image["received_at"],
        "reason": image["reason"],
        "detail": image["detail"] or "",
        "device": image["device"] or "",
        "model": image["model"] or "",
        "original": image["duplicate_of"],
    }
    tone = {ImageState.ANALYSED.value: "ok", ImageState.FAILED.value: "bad"}.get(state, "plain")
    return Event(image["completed_at"], f"event_{state}", values, tone)


def _delivered(kind: str, delivery: Mapping[str, Any]) -> list[Event]:
    values = {
        "kind": kind,
        "name": delivery["destination"],
        "why": delivery["why"] or "",
        "attempts": delivery["attempt"],
    }
    state = delivery["state"]
    if state == DeliveryState.OWED:
        return [Event(None, "event_owed", values, "wait")]
    if state == DeliveryState.REFUSED:
        return [Event(None, "event_refused", values, "bad")]

    found = [Event(delivery["stored_at"], "event_stored", values, "ok")]
    if delivery["committed_at"] is not None:
        found.append(Event(delivery["committed_at"], "event_committed", values, "ok"))
    return found
