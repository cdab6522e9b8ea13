"""One message as a mail and as JSON. Names and texts are escaped: no header can be injected."""

from __future__ import annotations

import datetime
import email.utils
import re
import socket
from collections.abc import Mapping, Sequence
from email.message import EmailMessage
from typing import Any

from daemon.alerts.kinds import KINDS
from daemon.alerts.troubles import shown
from daemon.ledger import AlarmMessage

# A mail's subject and a webhook's title.
_MOST_OF_TITLE = 180


def as_mail(
    message: AlarmMessage, node: str, sender: str, recipients: Sequence[str]
) -> EmailMessage:
    """The mail of one message. A repetition after a crash has the same Message-ID."""
    mail = EmailMessage()
    mail["Subject"] = f"[Pleura] {_title(message, node)}"
    mail["From"] = sender
    mail["To"] = ", ".join(recipients)
    mail["Date"] = email.utils.formatdate(message.made_at)
    mail["Message-ID"] = f"<{message.id}@{_host()}>"
    # RFC 3834: no vacation message answers it.
    mail["Auto-Submitted"] = "auto-generated"
    mail.set_content(_text(message, node))
    return mail


def as_json(message: AlarmMessage, node: str) -> dict[str, Any]:
    """The body of one webhook call. A repetition after a crash has the same `id`."""
    facts = message.facts
    kind = KINDS[str(facts["kind"])]

    return {
        "id": message.id,
        "event": facts["event"],
        "kind": facts["kind"],
        "subject": shown(str(facts["subject"])),
        "node": node,
        "title": _title(message, node),
        "text": shown(str(facts["words"])),
        "advice": kind.advice,
        "runbook": f'docs/faults.md, "{kind.runbook}"',
        "since": _time(facts, "since"),
        "over": _time(facts, "over"),
    }


def _title(message: AlarmMessage, node: str) -> str:
    facts = message.facts
    over = "over: " if facts["event"] == "over" else ""
    title = f"{node}: {over}{KINDS[str(facts['kind'])].title}: {facts['subject']}"
    return shown(title, _MOST_OF_TITLE)


def _text(message: AlarmMessage, node: str) -> str:
    facts = message.facts
    kind = KINDS[str(facts["kind"])]
    lines = [_title(message, node), "", shown(str(facts["words"])), ""]
    for name in ("since", "over"):
        if (when := _time(facts, name)) is not None:
            lines.append(f"{name}: {when}")

    if facts["event"] != "over":
        lines += ["", kind.advice, f'Runbook: docs/faults.md, "{kind.runbook}".']
    return "\n".join(lines) + "\n"


def _time(facts: Mapping[str, Any], name: str) -> str | None:
    seconds = facts.get(name)
    if seconds is None:
        return None
    return datetime.datetime.fromtimestamp(float(seconds), datetime.UTC).isoformat("T", "seconds")


def _host() -> str:
    return re.sub("[^A-Za-z0-9.-]", "-", socket.gethostname()) or "localhost"
