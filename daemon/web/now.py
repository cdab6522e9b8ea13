"""The page *Now*: is the node alive, what waits, where do results go, what needs a person."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.responses import Response

from daemon import tls
from daemon.config import Config
from daemon.ledger import SameReason
from daemon.ledger.alarms import LastingAlarm
from daemon.ledger.processes import is_running
from daemon.ledger.view import Activity, Count, Queue, Refused
from daemon.metrics import host
from daemon.metrics.health import ROLES as NEEDED_ROLES
from daemon.spool import Spool, SpoolError
from daemon.web.model import Card, card_of
from daemon.web.visit import Node, Visit

log = logging.getLogger("pleura.web")

# How long all browsers are shown the same figures.
_FRESH_S = 2.0
# Certificates and the spool's quarantine change seldom.
_SELDOM_S = 60.0
_CERTIFICATE_DAYS = 30
_DAY_S = 86400.0
# Free space counts as low below this multiple of what the node reserves.
_LITTLE_ROOM = 2
# Alarms that another line of the list already reports, with its button.
_TOLD_ELSEWHERE = {"outage", "failed", "refused", "disk", "certificate", "role"}


@dataclass(frozen=True)
class Role:
    """A role: how many processes are alive, and the last heartbeat (None: never)."""

    name: str
    alive: int
    last_sign_s: float | None


@dataclass(frozen=True)
class Destination:
    """One destination, as its courier last found it."""

    name: str
    is_configured: bool
    owed: Count
    owed_since: float | None = None
    down_since: float | None = None
    last_answer: str | None = None
    answered_at: float | None = None
    next_try_at: float | None = None


@dataclass(frozen=True)
class Certificate:
    """A certificate of ours: the key of the settings that names it, and its days left."""

    where: str
    days: float
    trouble: str = ""


@dataclass(frozen=True)
class Need:
    """Something that needs a person: a text's key with its values, and the action that helps."""

    key: str
    values: dict[str, Any] = field(default_factory=dict)
    is_grave: bool = True
    # The action's name and its fields; "" if no button helps.
    act: str = ""
    fields: dict[str, str] = field(default_factory=dict)
    # Names to choose from, for the field "destination".
    choices: Sequence[str] = ()
    link: str = ""


@dataclass(frozen=True)
class Picture:
    """Everything that the page shows, at one time. Times are seconds since 1970."""

    at: float
    roles: list[Role]
    queue: Queue
    activity: Activity
    median_s: float | None
    slow_s: float | None
    destinations: list[Destination]
    free_bytes: int | None
    certificates: list[Certificate]
    card: Card | None
    failed: Count
    needs: list[Need]
    # The troubles that mail, webhook and Prometheus report, oldest first.
    alarms: list[LastingAlarm]

    @property
    def is_well(self) -> bool:
        return not self.needs and not self.alarms

    @property
    def troubles(self) -> int:
        """How many things need a person, each counted once."""
        alone = [alarm for alarm in self.alarms if alarm.kind not in _TOLD_ELSEWHERE]
        return max(1, len(self.needs) + len(alone))


def page(visit: Visit, spool: Spool) -> Response:
    """The whole page."""
    picture = _latest(visit.node, spool)
    return visit.page("now.html", title=visit.texts.say("now"), now=picture)


def live(visit: Visit, spool: Spool) -> Response:
    """The part that renews itself every few seconds."""
    return visit.page("live.html", now=_latest(visit.node, spool))


def _latest(node: Node, spool: Spool) -> Picture:
    # Made under the node's lock, which is not re-entrant: so the rarely changing parts come first.
    certificates = node.once_every(_SELDOM_S, "certificates", lambda: _certificates(node.settings))
    quarantined = node.once_every(_SELDOM_S, "quarantine", lambda: _quarantined(spool))
    picture: Picture = node.once_every(
        _FRESH_S, "now", lambda: look(node, spool, certificates, quarantined)
    )
    return picture


def look(node: Node, spool: Spool, certificates: list[Certificate], quarantined: int) -> Picture:
    """Ask the ledger and the spool."""
    view = node.view
    at = view.now()
    roles = _roles(node.settings, view.roles(), at)
    destinations = _destinations(node)
    failed, newest_failed = view.failed_images(1)
    times = view.times_to_archive()
    free_bytes = _free_bytes(spool)

    needs = [
        *_needs_of_roles(roles),
        *_needs_of_reason(view.same_reason()),
        *_needs_of_room(node.settings, free_bytes, quarantined),
        *_needs_of_destinations(destinations, node.destinations),
        *_needs_of_failures(failed, newest_failed, view.refused(), node.destinations),
        *_needs_of_certificates(certificates),
    ]
    return Picture(
        at=at,
        roles=roles,
        queue=view.queue(),
        activity=view.activity(at),
        median_s=statistics.median(times) if times else None,
        slow_s=times[int(0.95 * (len(times) - 1))] if times else None,
        destinations=destinations,
        free_bytes=free_bytes,
        certificates=certificates,
        card=card_of(node.settings.model),
        failed=failed,
        needs=sorted(needs, key=lambda need: not need.is_grave),
        alarms=view.alarms(),
    )


# -- the parts -------------------------------------------------------------------------------------


def _roles(settings: Config, rows: Sequence[Mapping[str, Any]], at: float) -> list[Role]:
    names = [*NEEDED_ROLES, "web"]
    if settings.shadow is not None:
        names.append("shadow")

    roles = []
    for name in names:
        ages = [(row["owner"], at - row["beat_at"]) for row in rows if row["role"] == name]
        alive = sum(is_running(owner, age) for owner, age in ages)
        roles.append(Role(name, alive, min((age for _, age in ages), default=None)))
    return roles


def _destinations(node: Node) -> list[Destination]:
    configured = node.destinations
    notes = node.view.destination_notes()
    return [
        Destination(
            name=name,
            is_configured=name in configured,
            **owed,
            **{key: value for key, value in notes.get(name, {}).items() if key != "name"},
        )
        for name, owed in node.view.owed_to(configured).items()
    ]


def _free_bytes(spool: Spool) -> int | None:
    try:
        spool.require()
        return spool.free_bytes()
    except (SpoolError, OSError):
        return None


def _quarantined(spool: Spool) -> int:
    try:
        return len(spool.quarantined())
    except OSError:
        return 0


def _certificates(settings: Config) -> list[Certificate]:
    """Every certificate of the settings with its days, and every file of TLS that has a fault."""
    now = time.time()
    faults = dict(tls.faults(settings))
    ends = {key: ends_at for key, ends_at in host.certificates(settings) if key not in faults}
    return [
        *(Certificate(key, 0.0, words) for key, words in faults.items()),
        *(Certificate(key, (ends_at - now) / _DAY_S) for key, ends_at in ends.items()),
    ]


# -- what needs a person ---------------------------------------------------------------------------


def _needs_of_roles(roles: Sequence[Role]) -> Iterator[Need]:
    for role in roles:
        # Not the web role: a reader of the page sees that it runs.
        if not role.alive and role.name != "web":
            is_grave = role.name in NEEDED_ROLES
            yield Need(f"need_role_{role.name}", {"since": role.last_sign_s}, is_grave=is_grave)


def _needs_of_reason(same: SameReason | None) -> Iterator[Need]:
    if same is not None:
        values = {"number": same.images, "reason": same.reason}
        yield Need("need_same_reason", values, link=f"/images?reason={same.reason}")


def _needs_of_room(settings: Config, free_bytes: int | None, quarantined: int) -> Iterator[Need]:
    reserve = settings.spool_reserve_mb * 1_000_000
    if free_bytes is None:
        yield Need("need_spool")
    elif free_bytes < reserve:
        yield Need("need_no_room", {"size": free_bytes})
    elif free_bytes < _LITTLE_ROOM * reserve:
        yield Need("need_little_room", {"size": free_bytes}, is_grave=False)
    if quarantined:
        yield Need("need_quarantine", {"number": quarantined}, is_grave=False)


def _needs_of_destinations(
    destinations: Sequence[Destination], configured: Sequence[str]
) -> Iterator[Need]:
    for each in destinations:
        if not each.is_configured and each.owed.number:
            values = {"name": each.name, "count": each.owed}
            yield _readdressing("need_unknown", values, configured)
        elif each.down_since is not None:
            values = {
                "name": each.name, "since": each.down_since, "answer": each.last_answer,
                "count": each.owed,
            }  # fmt: skip
            yield Need("need_down", values, act="try-now", fields={"destination": each.name})


def _needs_of_failures(
    failed: Count,
    newest: Sequence[Mapping[str, Any]],
    refused: Sequence[Refused],
    configured: Sequence[str],
) -> Iterator[Need]:
    if failed.number:
        values = {"count": failed, "reason": newest[0]["reason"]}
        yield Need("need_failed", values, act="retry-images", link="/images?state=failed")

    for each in refused:
        values = {"name": each.destination, "number": each.number, "why": each.why}
        if each.destination in configured:
            yield Need(
                "need_refused",
                values,
                act="retry-refused",
                fields={"destination": each.destination},
            )
        else:
            yield _readdressing("need_refused_unknown", values, configured)


def _readdressing(key: str, values: dict[str, Any], configured: Sequence[str]) -> Need:
    """Results for a name that left the settings: a person may choose another destination."""
    return Need(key, values, act="readdress", fields={"from": values["name"]}, choices=configured)


def _needs_of_certificates(certificates: Sequence[Certificate]) -> Iterator[Need]:
    for each in certificates:
        if each.trouble:
            yield Need("need_certificate", {"where": each.where, "trouble": each.trouble})
        elif each.days < _CERTIFICATE_DAYS:
            values = {"where": each.where, "days": f"{each.days:.0f}"}
            yield Need("need_certificate_days", values, is_grave=each.days < 0)
