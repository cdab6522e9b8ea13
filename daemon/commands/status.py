"""`pleura status`: counts, waiting images, roles, destinations and failures, from the ledger."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daemon.ledger.digests import accession_digest
from daemon.ledger.overview import Overview
from daemon.ledger.processes import SILENT_AFTER_S, is_alive, is_gone, is_running
from daemon.spool import Spool, SpoolError

if TYPE_CHECKING:
    # For histories() alone: it loads SQLAlchemy.
    from daemon.ledger import Inspection

ROLES = ("receive", "analyse", "deliver")
# Failed images, and refused deliveries, that `pleura status` lists.
_LISTED_FAILURES = 20
_ALL_FAILURES = 1_000_000

# Kinds of daemon/alerts/kinds.py.
_TOLD_AS_TROUBLES = ("clock", "inbox")
# Columns that hold a time.
_TIMES = ("received_at", "completed_at")


def summary(inspect: Overview, configured: Collection[str], spool_folder: Path) -> dict[str, Any]:
    """All that `pleura status --json` prints. `configured`: the names of the destinations."""
    known = inspect.destinations()
    same = inspect.same_reason()
    quarantined, spool_trouble = _quarantined(inspect, spool_folder)

    return {
        **inspect.counts(),
        "waiting_since": _date(inspect.waiting_since()),
        "all_excluded_for": None if same is None else same.reason,
        "adopted": inspect.adopted(),
        "quarantined": quarantined,
        "spool_trouble": spool_trouble or None,
        "audit": {"waiting": inspect.audit_waiting(), "lost": inspect.audit_lost()},
        "alerts": [{**row, "since": _date(row["since"])} for row in inspect.alerts_waiting()],
        "roles": [
            {"role": row["role"], "owner": row["owner"], "last_sign": _date(row["beat_at"])}
            for row in inspect.roles()
        ],
        "troubles": [{**row, "since": _date(row["since"])} for row in inspect.lasting_troubles()],
        "settings": _settings_of_living(inspect),
        "destinations": {
            name: _destination(known.get(name, {}), name in configured)
            for name in sorted({*known, *configured})
        },
    }


def _destination(row: Mapping[str, Any], is_configured: bool) -> dict[str, Any]:
    return {
        "configured": is_configured,
        "down_since": _date(row.get("down_since")),
        "last_answer": row.get("last_answer"),
        "answered_at": _date(row.get("answered_at")),
        "next_try": _date(row.get("next_try_at")),
        "owed": row.get("owed", 0),
        "owed_since": _date(row.get("owed_since")),
        "owed_why": row.get("owed_why"),
        "commitment_unreported": row.get("unreported", 0),
        "commitment_unreported_since": _date(row.get("unreported_since")),
        "commitment_why": row.get("unreported_why"),
    }


def _quarantined(inspect: Overview, spool_folder: Path) -> tuple[list[str], str]:
    """The files that a person must look at; or none, and why the spool cannot be read."""
    try:
        return Spool.existing(spool_folder, inspect.spool_identity()).quarantined(), ""
    except (SpoolError, OSError) as error:
        return [], str(error)


def lines(inspect: Overview, configured: Collection[str], spool_folder: Path) -> Iterator[str]:
    """What `pleura status` prints: the summary as text, and the newest failures."""
    now = inspect.now()
    for subject, states in inspect.counts().items():
        yield f"{subject}: " + ", ".join(f"{number} {state}" for state, number in states.items())

    since = inspect.waiting_since()
    if since is not None:
        yield f"waiting: the oldest image since {_date(since)} ({_age(now - since)})"
    same = inspect.same_reason()
    if same is not None:
        yield (
            f"NO IMAGE IS ANALYSED: the newest {same.images} were all excluded for the same "
            f"reason, {same.reason}; check `admission`"
        )

    yield from _spool_lines(inspect, spool_folder)
    for row in inspect.reasons():
        yield f"not analysed: {row['number']} {row['reason']}, the last {_date(row['last'])}"
    yield from _audit_lines(inspect)
    yield from _alert_lines(inspect, now)
    roles = inspect.roles()
    yield from _role_lines(roles, now)
    yield from _model_lines(roles, now)
    yield from _trouble_lines(inspect)
    yield from settings_lines(inspect)
    yield from _destination_lines(inspect.destinations(), configured, now)
    yield from failure_lines(inspect, _LISTED_FAILURES)


def _spool_lines(inspect: Overview, spool_folder: Path) -> Iterator[str]:
    """Files that the ledger did not know, as after the restore of an older ledger."""
    adopted = inspect.adopted()
    if adopted:
        yield f"adopted: {adopted} images from the spool that the ledger did not know"

    quarantined, trouble = _quarantined(inspect, spool_folder)
    if trouble:
        yield f"SPOOL: {trouble}"
    if quarantined:
        yield (
            f"QUARANTINE: {len(quarantined)} files in {spool_folder / 'quarantine'} that could not "
            f"be adopted, such as {quarantined[0]}; look at them (docs/backup.md)"
        )


def _audit_lines(inspect: Overview) -> Iterator[str]:
    """The audit messages that still wait, and those that were lost."""
    waiting, lost = inspect.audit_waiting(), inspect.audit_lost()
    if waiting:
        yield f"audit: {waiting} messages wait for the repository or the file"
    if lost:
        yield f"AUDIT: {lost} events were not recorded: too many waited (docs/security.md)"


def _alert_lines(inspect: Overview, now: float) -> Iterator[str]:
    """Alerts that reach nobody: a person who waits for them would take silence for health."""
    for row in inspect.alerts_waiting():
        since = f"{_date(row['since'])} ({_age(now - row['since'])})"
        yield (
            f"ALERTS: {row['waiting']} messages wait for {row['route']}, the oldest since {since}; "
            "`pleura alerts test` says why"
        )


def _role_lines(rows: Collection[Mapping[str, Any]], now: float) -> Iterator[str]:
    # The web and shadow roles need not run: they are listed once they have.
    others = {row["role"] for row in rows} - {*ROLES}

    for role in (*ROLES, *sorted(others)):
        processes = [row for row in rows if row["role"] == role]
        alive = sum(is_running(row["owner"], now - row["beat_at"]) for row in processes)
        newest = max((row["beat_at"] for row in processes), default=0.0)

        if alive:
            yield f"role {role}: {alive} running"
        elif not processes:
            yield f"role {role}: NOT RUNNING"
        elif all(is_gone(row["owner"]) for row in processes):
            yield f"role {role}: NOT RUNNING; its process ended after {_date(newest)}"
        else:
            yield f"role {role}: SILENT since {_date(newest)} ({_age(now - newest)})"


def _model_lines(rows: Collection[Mapping[str, Any]], now: float) -> Iterator[str]:
    """A package that was refused at a reload, while the earlier one goes on serving."""
    told = set()
    for row in rows:
        facts = json.loads(row["facts"] or "{}")
        trouble = facts.get("model_trouble")
        if trouble and now - row["beat_at"] < SILENT_AFTER_S:
            serving = f"{facts['model']} {facts['version']}"
            told.add(f"MODEL: {trouble}; {serving} goes on serving until the role ends")
    yield from sorted(told)


def _trouble_lines(inspect: Overview) -> Iterator[str]:
    """The troubles that no other line tells of."""
    for row in inspect.lasting_troubles():
        if row["kind"] in _TOLD_AS_TROUBLES:
            yield f"{row['kind'].upper()} of {row['subject']}: {row['words']}"


def settings_lines(inspect: Overview) -> list[str]:
    """One line if every process uses the same settings; otherwise one line for each process."""
    processes = _settings_of_living(inspect)
    if not processes:
        return []

    if len({each["digest"] for each in processes}) == 1:
        newest = max(each["generation"] for each in processes)
        return [f"settings: generation {newest}, {_short(processes[0])}, in every role"]

    return ["settings: THE ROLES DIFFER; make their files the same, then pleura reload"] + [
        f"  {each['role']} ({each['owner']}): generation {each['generation']}, {_short(each)}"
        for each in processes
    ]


def _settings_of_living(inspect: Overview) -> list[dict[str, Any]]:
    """settings_of_roles() of the processes that are alive.

    A machine that lost its power, or was removed for good, leaves rows behind: only its own
    processes would remove them. A machine has another name after each boot.
    """
    now = inspect.now()
    with_heartbeat = {
        (row["role"], row["owner"])
        for row in inspect.roles()
        if now - row["beat_at"] < SILENT_AFTER_S
    }

    def is_living(process: Mapping[str, Any]) -> bool:
        role, owner = process["role"], process["owner"]
        return is_alive(owner) or ((role, owner) in with_heartbeat and not is_gone(owner))

    return [process for process in inspect.settings_of_roles() if is_living(process)]


def _short(process: Mapping[str, Any]) -> str:
    # The digest is absent once the ledger has dropped the generation, after a year.
    return (process["digest"] or "unknown")[:12]


def _destination_lines(
    known: Mapping[str, Mapping[str, Any]], configured: Collection[str], now: float
) -> Iterator[str]:
    for name in sorted({*known, *configured}):
        row = known.get(name, {})
        owed = row.get("owed", 0)
        if name in configured:
            parts = [*_outage(row, now), f"{owed} owed{_oldest_owed(row, now)}", *_unreported(row)]
            yield f"destination {name}: " + "; ".join(parts)
        elif owed:
            yield (
                f"destination {name}: NOT IN THE SETTINGS, {owed} owed; "
                f"pleura retry --from {name} --to NAME"
            )


def left_destinations(
    destinations: Mapping[str, Mapping[str, Any]], configured: Collection[str]
) -> dict[str, str]:
    """The names outside the settings that results are owed to, each with what becomes of them.

    `destinations`: Overview.destinations().
    """
    owed = {name: row.get("owed", 0) for name, row in destinations.items()}
    return {
        name: f"not in the settings, and {number} results are owed to it: they are refused once no "
        "host's settings have named it for ten minutes; name it again, or pleura retry --from "
        f"{name} --to NAME"
        for name, number in sorted(owed.items())
        if number and name not in configured
    }


def _outage(row: Mapping[str, Any], now: float) -> Iterator[str]:
    """Since when a destination is down, and when it is tried again."""
    if row.get("down_since") is None:
        return

    yield f"DOWN since {_date(row['down_since'])} ({_age(now - row['down_since'])})"
    yield f"last answer {_date(row['answered_at'])}: {row['last_answer']}"
    if row.get("next_try_at") is not None:
        yield f"next try in {max(0.0, row['next_try_at'] - now):.0f} s"


def _unreported(row: Mapping[str, Any]) -> Iterator[str]:
    """Stored results whose commitment was requested and has not been reported."""
    if row.get("unreported"):
        why = f": {row['unreported_why']}" if row.get("unreported_why") else ""
        yield (
            f"{row['unreported']} asked for commitment without a report, "
            f"stored since {_date(row['unreported_since'])}{why}"
        )


def _oldest_owed(row: Mapping[str, Any], now: float) -> str:
    """Since when the oldest result is owed, and how its last try ended."""
    since = row.get("owed_since")
    if since is None:
        return ""

    why = f", the oldest: {row['owed_why']}" if row.get("owed_why") else ""
    return f" since {_date(since)} ({_age(now - since)}){why}"


def failure_lines(inspect: Overview, limit: int = _ALL_FAILURES) -> Iterator[str]:
    """Failed images and refused deliveries, newest first."""
    failed = inspect.failed(limit)
    for row in failed["instances"]:
        details = [row["reason"], row["detail"], _date(row["completed_at"])]
        yield f"  image {row['sop_instance_uid']} failed " + " ".join(filter(None, details))
    for row in failed["deliveries"]:
        result = f"{row['kind']} {row['sop_instance_uid']}"
        yield f"  delivery of {result} refused by {row['destination']}: {row['why']}"


def histories(inspect: Inspection, uids: Collection[str]) -> dict[str, list[dict[str, Any]]]:
    """UID or accession number -> history of each image that it names; times are dates."""
    return {uid: list(_history(inspect, uid)) for uid in uids}


def _history(inspect: Inspection, uid: str) -> Iterator[dict[str, Any]]:
    digest = accession_digest(uid, inspect.spool_identity() or "")
    images = inspect.images_of(uid) or inspect.images_of_accession(digest)

    for image in images:
        for row in inspect.history(image):
            dates = {name: _date(row[name]) for name in _TIMES}
            yield {"sop_instance_uid": image} | row | dates


def _date(seconds: float | None) -> str | None:
    """The ledger's seconds as local time."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds).astimezone().isoformat(" ", "seconds")


def _age(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    if seconds < 172_800:
        return f"{seconds / 3600:.0f} h"
    return f"{seconds / 86400:.0f} days"
