"""The states of images and deliveries, and every transition between them, as two tables.

ledger.py makes each transition in one transaction, and takes the new state from these tables.
`python -m daemon.ledger.states` draws them; docs/states.md holds the drawing.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import TypeVar


class _Described(StrEnum):
    """A value with a sentence."""

    sentence: str

    def __new__(cls, value: str, sentence: str = "") -> _Described:
        member = str.__new__(cls, value)
        member._value_ = value
        member.sentence = sentence
        return member


class ImageState(_Described):
    """The state of one accepted instance."""

    RECEIVED = "received", "The bytes are durable; the image waits for a worker, or is in work."
    ANALYSED = "analysed", "The networks answered; the result objects are owed."
    NOT_ANALYSED = "not_analysed", "The image must not be analysed; the reason is recorded."
    FAILED = "failed", "No answer could be made in a bounded number of tries."
    DUPLICATE = "duplicate", "The same content ended before; this copy makes no work."


class DeliveryState(_Described):
    """The state of one result object for one destination."""

    OWED = "owed", "The destination must get the object; it is retried without end."
    STORED = "stored", "The destination answered that it has the object."
    COMMITTED = "committed", "The destination took responsibility (PS3.4 Annex J)."
    REFUSED = "refused", "The destination will not take the object; a person must look."


class GenerationState(_Described):
    """The state of settings that the processes of a machine were asked to take."""

    PROPOSED = "proposed", "Each process checks them; nothing has changed yet."
    ACCEPTED = "accepted", "Every process can take them, and takes them now."
    REFUSED = "refused", "A process cannot take them; every process keeps its settings."


class ImageEvent(_Described):
    """The events in the life of an image."""

    CLAIM = "claim", "A worker leases the image."
    RENEW = "renew", "The worker is alive and keeps its lease."
    GIVE_BACK = "give back", "The attempt ends through no fault of the image."
    ABANDON = "abandon", "The attempt broke; it counts as unfinished."
    RELEASE_LEASE = "release lease", "The process that held the lease is dead."
    ANALYSE = "analyse", "The worker has an answer."
    EXCLUDE = "exclude", "Admission excludes the image from analysis."
    FAIL = "fail", "The worker gives the image up."
    RECOGNISE = "recognise", "An earlier image has the same UID and content digest."
    REMAKE = "remake", "A result file is lost, and the same result is made again."
    REARM = "rearm", "A person asks for another try (`pleura retry`)."
    GIVE_UP_BYTES = "give up bytes", "Retention removes the files; the row stays."


class DeliveryEvent(_Described):
    """The events in the life of a delivery."""

    CLAIM = "claim", "A courier leases the delivery."
    RENEW = "renew", "The courier is alive and keeps its lease."
    GIVE_BACK = "give back", "The delivery's turn did not come."
    RETRY_LATER = "retry later", "The attempt failed, but may succeed later."
    RELEASE_LEASE = "release lease", "The process that held the lease is dead."
    REMAKE = "remake", "The result file is lost, and is made again."
    STORE = "store", "The destination answered the C-STORE with success or a warning."
    REFUSE = "refuse", "The destination will not take this object."
    FORGET_DESTINATION = "forget destination", "The destination has left the settings."
    ASK = "ask", "Storage commitment is requested."
    POSTPONE = "postpone", "The commitment request did not get through."
    COMMIT = "commit", "The commitment report says that the archive keeps the object."
    LOSE = "lose", "The commitment report says that the archive has lost the object."
    DENY = "deny", "The commitment report says that the archive will never keep it."
    REARM = "rearm", "A person asks for another try (`pleura retry`)."
    RESEND = "resend", "A person asks to send again an object that was stored (`pleura resend`)."


_I, _ON = ImageState, ImageEvent
IMAGE_TRANSITIONS: Mapping[tuple[ImageState, ImageEvent], ImageState] = {
    (_I.RECEIVED, _ON.CLAIM): _I.RECEIVED,
    (_I.RECEIVED, _ON.RENEW): _I.RECEIVED,
    (_I.RECEIVED, _ON.GIVE_BACK): _I.RECEIVED,
    (_I.RECEIVED, _ON.ABANDON): _I.RECEIVED,
    (_I.RECEIVED, _ON.RELEASE_LEASE): _I.RECEIVED,
    (_I.RECEIVED, _ON.ANALYSE): _I.ANALYSED,
    (_I.RECEIVED, _ON.EXCLUDE): _I.NOT_ANALYSED,
    (_I.RECEIVED, _ON.FAIL): _I.FAILED,
    (_I.RECEIVED, _ON.RECOGNISE): _I.DUPLICATE,
    (_I.RECEIVED, _ON.REMAKE): _I.RECEIVED,
    (_I.ANALYSED, _ON.REMAKE): _I.RECEIVED,
    (_I.ANALYSED, _ON.GIVE_UP_BYTES): _I.ANALYSED,
    (_I.NOT_ANALYSED, _ON.REMAKE): _I.RECEIVED,
    (_I.NOT_ANALYSED, _ON.GIVE_UP_BYTES): _I.NOT_ANALYSED,
    (_I.FAILED, _ON.REARM): _I.RECEIVED,
    (_I.FAILED, _ON.GIVE_UP_BYTES): _I.FAILED,
    (_I.DUPLICATE, _ON.GIVE_UP_BYTES): _I.DUPLICATE,
}

_D, _AT = DeliveryState, DeliveryEvent
DELIVERY_TRANSITIONS: Mapping[tuple[DeliveryState, DeliveryEvent], DeliveryState] = {
    (_D.OWED, _AT.CLAIM): _D.OWED,
    (_D.OWED, _AT.RENEW): _D.OWED,
    (_D.OWED, _AT.GIVE_BACK): _D.OWED,
    (_D.OWED, _AT.RETRY_LATER): _D.OWED,
    (_D.OWED, _AT.RELEASE_LEASE): _D.OWED,
    (_D.OWED, _AT.REMAKE): _D.OWED,
    (_D.OWED, _AT.STORE): _D.STORED,
    (_D.OWED, _AT.REFUSE): _D.REFUSED,
    (_D.OWED, _AT.FORGET_DESTINATION): _D.REFUSED,
    (_D.STORED, _AT.ASK): _D.STORED,
    (_D.STORED, _AT.POSTPONE): _D.STORED,
    (_D.STORED, _AT.COMMIT): _D.COMMITTED,
    (_D.STORED, _AT.LOSE): _D.OWED,
    (_D.STORED, _AT.DENY): _D.REFUSED,
    (_D.REFUSED, _AT.REARM): _D.OWED,
    (_D.STORED, _AT.RESEND): _D.OWED,
    (_D.COMMITTED, _AT.RESEND): _D.OWED,
}

# The event that ends an image, by the state that the worker found.
ENDINGS = {
    ImageState.ANALYSED: ImageEvent.ANALYSE,
    ImageState.NOT_ANALYSED: ImageEvent.EXCLUDE,
    ImageState.FAILED: ImageEvent.FAIL,
    ImageState.DUPLICATE: ImageEvent.RECOGNISE,
}

_State = TypeVar("_State", ImageState, DeliveryState)
_Event = TypeVar("_Event", ImageEvent, DeliveryEvent)


def image_after(event: ImageEvent) -> str:
    """The state that an image is in after this event, wherever it came from."""
    return _only(IMAGE_TRANSITIONS, event).value


def delivery_after(event: DeliveryEvent) -> str:
    """The state that a delivery is in after this event, wherever it came from."""
    return _only(DELIVERY_TRANSITIONS, event).value


def images_before(event: ImageEvent) -> tuple[str, ...]:
    """The states in which this event may happen to an image."""
    return tuple(state.value for state, named in IMAGE_TRANSITIONS if named is event)


def deliveries_before(event: DeliveryEvent) -> tuple[str, ...]:
    """The states in which this event may happen to a delivery."""
    return tuple(state.value for state, named in DELIVERY_TRANSITIONS if named is event)


def _only(table: Mapping[tuple[_State, _Event], _State], event: _Event) -> _State:
    (state,) = {after for (_, named), after in table.items() if named is event}
    return state


def drawing() -> str:
    """Both tables as Markdown: the states, a Mermaid diagram, and each transition as a row."""
    parts = [
        "# States of the ledger\n\nWritten by `python -m daemon.ledger.states`; a test compares.\n",
        _drawn("Images", ImageState, IMAGE_TRANSITIONS),
        _drawn("Deliveries", DeliveryState, DELIVERY_TRANSITIONS),
    ]
    return "\n".join(parts)


def _drawn(
    title: str, states: type[_Described], table: Mapping[tuple[_State, _Event], _State]
) -> str:
    lines = [f"## {title}", "", "| state | meaning |", "|---|---|"]
    lines += [f"| `{state}` | {state.sentence} |" for state in states]

    lines += ["", "```mermaid", "stateDiagram-v2", f"    [*] --> {next(iter(states))}"]
    lines += [
        f"    {before} --> {after}: {event}"
        for (before, event), after in table.items()
        if before != after
    ]

    lines += ["```", "", "| in state | event | goes to | when |", "|---|---|---|---|"]
    lines += [
        f"| `{before}` | {event} | `{after}` | {event.sentence} |"
        for (before, event), after in table.items()
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(drawing(), end="")  # noqa: T201
