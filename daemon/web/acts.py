"""A person's actions: the ledger's own transitions, as in `pleura retry` and `resend`, which also
record the audit event.
"""

from __future__ import annotations

from collections.abc import Callable

from starlette.responses import Response

from daemon.commands.retry import Wanted, retry
from daemon.ledger import DeliveryState, ImageState
from daemon.web.visit import Visit, log

# The outcome of an action: the key of a text, and a number for it.
_Outcome = tuple[str, dict[str, object]]


class WrongFormError(Exception):
    """The form is not one of our pages'."""


def act(visit: Visit) -> Response:
    """Do what the form asks for, and return to its page."""
    form = {key: value for key, value in visit.form.items() if isinstance(value, str)}
    try:
        key, values = _ACTS[form.get("act", "")](visit, form)
    except (KeyError, WrongFormError):
        return visit.page("message.html", 400, title=visit.texts.say("problem"), key="wrong_form")

    log.info("%s: %s %s", visit.user, form["act"], values)
    visit.node.forget("now")
    return visit.back(_back_to(form), visit.texts.say(key, **values))


def _retry_images(visit: Visit, form: dict[str, str]) -> _Outcome:
    """Let failed images wait again: one, or all."""
    wanted = Wanted([ImageState.FAILED.value], _uids(form), by=visit.user)
    retried = retry(visit.node.ledger, wanted, visit.node.settings.owed())
    return "told_images_again", {"number": retried.rearmed}


def _retry_refused(visit: Visit, form: dict[str, str]) -> _Outcome:
    """Owe again, and now, the objects that a destination refused."""
    name = _destination(visit, form)
    wanted = Wanted([DeliveryState.REFUSED.value], to_destination=name, now=True, by=visit.user)
    retried = retry(visit.node.ledger, wanted, visit.node.settings.owed())
    return "told_owed_again", {"number": retried.rearmed, "name": name}


def _try_now(visit: Visit, form: dict[str, str]) -> _Outcome:
    """End the pause of a destination's courier."""
    name = _destination(visit, form)
    number = visit.node.ledger.hasten([name], _uids(form), visit.user)
    return "told_due_now", {"number": number, "name": name}


def _send_again(visit: Visit, form: dict[str, str]) -> _Outcome:
    """Owe again, for one image or object, what a destination has stored."""
    name = _destination(visit, form)
    uids = _uids(form)
    if not uids:
        raise WrongFormError
    number, gone = visit.node.ledger.resend(name, None, uids, visit.user)
    return "told_sent_again", {"number": number, "gone": gone, "name": name}


def _readdress(visit: Visit, form: dict[str, str]) -> _Outcome:
    """Send what is addressed to one name that has left the settings to another destination."""
    name = _destination(visit, form)
    old = form.get("from", "")
    if not old or old in visit.node.destinations:
        raise WrongFormError
    wanted = Wanted((), to_destination=name, by=visit.user, from_destination=old)
    retried = retry(visit.node.ledger, wanted, visit.node.settings.owed())
    values = {
        "number": retried.readdressed,
        "left": retried.not_taken,
        "already": retried.already_there,
        "name": name,
        "old": old,
    }
    return "told_readdressed", values


_ACTS: dict[str, Callable[[Visit, dict[str, str]], _Outcome]] = {
    "retry-images": _retry_images,
    "retry-refused": _retry_refused,
    "try-now": _try_now,
    "send-again": _send_again,
    "readdress": _readdress,
}


def _destination(visit: Visit, form: dict[str, str]) -> str:
    name = form.get("destination", "")
    if name not in visit.node.destinations:
        raise WrongFormError
    return name


def _uids(form: dict[str, str]) -> list[str]:
    uid = form.get("uid", "")
    return [uid] if uid else []


def _back_to(form: dict[str, str]) -> str:
    """The page to return to: of an image, or the first page."""
    number = form.get("image", "")
    return f"/images/{number}" if number.isdecimal() and len(number) < 20 else "/"
