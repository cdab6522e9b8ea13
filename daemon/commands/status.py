"""`pleura status`: the ledger for people. Counts, what waits and since when, each destination,
roles, failures.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daemon.ledger.digests import accession_digest
from daemon.ledger.overview import Overview
from daemon.ledger.processes import SILENT_AFTER_S, is_alive, this_machine
from daemon.spool import Spool, SpoolError

if TYPE_CHECKING:
    # For histories() alone: it loads SQLAlchemy.
    from daemon.ledger import Inspection

ROLES = ("receive", "analyse", "deliver")
_SHOWN = 20  # failed images, and refused deliveries
ALL = 1_000_000

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
        "roles": [
            {"role": row["role"], "owner": row["owner"], "last_sign": _date(row["beat_at"])}
            for row in inspect.roles()
        ],
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
    """The files that a person must look at, and why the spool does not tell."""
    try:
        return Spool.existing(spool_folder, inspect.spool_identity()).quarantined(), ""
    except (SpoolError, OSError) as error:
        return [], str(error)


def lines(inspect: Overview, configured: Collection[str], spool_folder: Path) -> Iterator[str]:
    """The same as text, with the newest failures."""
    now = inspect.now()
    counts = inspect.counts()
    for subject, states in counts.items():
        yield f"{subject}: " + ", ".join(f"{number} {state}" for state, number in states.items())

    since = inspect.waiting_since()
    if since is not None:
        yield f"waiting: the oldest image since {_date(since)} ({_age(now - since)})"
    same = inspect.same_reason()
    if same is not None:
        yield (
            f"NOBODY IS ANSWERED: the newest {same.images} images were all not analysed for one "
            f"reason, {same.reason}; is `admission` right?"
        )
    yield from _spool_lines(inspect, spool_folder)
    for row in inspect.reasons():
        yield f"not analysed: {row['number']} {row['reason']}, the last {_date(row['last'])}"
    yield from _audit_lines(inspect)
    yield from _role_lines(inspect.roles(), now)
    yield from settings_lines(inspect)
    yield from _destination_lines(inspect.destinations(), configured, now)
    yield from failure_lines(inspect, _SHOWN)


def _spool_lines(inspect: Overview, spool_folder: Path) -> Iterator[str]:
    """Files that the ledger did not know, as after a restore of an older ledger."""
    adopted = inspect.adopted()
    if adopted:
        yield f"adopted: {adopted} images that lay in the spool and that the ledger did not know"

    quarantined, trouble = _quarantined(inspect, spool_folder)
    if trouble:
        yield f"SPOOL: {trouble}"
    if quarantined:
        yield (
            f"QUARANTINE: {len(quarantined)} files in {spool_folder / 'quarantine'} that could not "
            f"be adopted, such as {quarantined[0]}; look at them (docs/backup.md)"
        )


def _audit_lines(inspect: Overview) -> Iterator[str]:
    """The messages that the audit trail still owes, and those that it lost."""
    waiting, lost = inspect.audit_waiting(), inspect.audit_lost()
    if waiting:
        yield f"audit: {waiting} messages wait for the repository or the file"
    if lost:
        yield f"AUDIT: {lost} events were not recorded: too many waited (docs/security.md)"


def _role_lines(rows: Collection[Mapping[str, Any]], now: float) -> Iterator[str]:
    for role in ROLES:
        signs = [row["beat_at"] for row in rows if row["role"] == role]
        alive = sum(now - sign < SILENT_AFTER_S for sign in signs)
        if alive:
            yield f"role {role}: {alive} running"
        elif signs:
            yield f"role {role}: SILENT since {_date(max(signs))} ({_age(now - max(signs))})"
        else:
            yield f"role {role}: NOT RUNNING"


def settings_lines(inspect: Overview) -> list[str]:
    """One line where every process works under the same settings, else a line for each."""
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
    """settings_of_roles(), without processes that are dead.

    A machine that lost its power, or was removed for good, leaves rows that nobody removes: only
    its own processes could. A machine has another name after each boot.
    """
    now, here = inspect.now(), this_machine()
    give_signs = {
        (row["role"], row["owner"])
        for row in inspect.roles()
        if now - row["beat_at"] < SILENT_AFTER_S
    }
    return [
        each
        for each in inspect.settings_of_roles()
        if (
            is_alive(each["owner"])
            if each["owner"].startswith(f"{here}:")
            else (each["role"], each["owner"]) in give_signs
        )
    ]


def _short(process: Mapping[str, Any]) -> str:
    # Without a digest: the ledger keeps generations for a year.
    return (process["digest"] or "unknown")[:12]


def _destination_lines(
    known: Mapping[str, Mapping[str, Any]], configured: Collection[str], now: float
) -> Iterator[str]:
    for name in sorted({*known, *configured}):
        row = known.get(name, {})
        owed = row.get("owed", 0)
        if name not in configured:
            if owed:
                yield (
                    f"destination {name}: NOT IN THE SETTINGS, {owed} owed; "
                    f"pleura retry --from {name} --to NAME"
                )
            continue

        parts = []
        if row.get("down_since") is not None:
            parts.append(f"DOWN since {_date(row['down_since'])} ({_age(now - row['down_since'])})")
            parts.append(f"last answer {_date(row['answered_at'])}: {row['last_answer']}")
            if row.get("next_try_at") is not None:
                parts.append(f"next try in {max(0.0, row['next_try_at'] - now):.0f} s")
        parts.append(f"{owed} owed" + _oldest_owed(row, now))
        if row.get("unreported"):
            why = f": {row['unreported_why']}" if row.get("unreported_why") else ""
            parts.append(
                f"{row['unreported']} asked for commitment without a report, "
                f"stored since {_date(row['unreported_since'])}{why}"
            )
        yield f"destination {name}: " + "; ".join(parts)


def _oldest_owed(row: Mapping[str, Any], now: float) -> str:
    """Since when the oldest result is owed, and what came of its last try."""
    since = row.get("owed_since")
    if since is None:
        return ""
    why = f", the oldest: {row['owed_why']}" if row.get("owed_why") else ""
    return f" since {_date(since)} ({_age(now - since)}){why}"


def failure_lines(inspect: Overview, limit: int = ALL) -> Iterator[str]:
    """Failed images and refused deliveries, the newest first."""
    failed = inspect.failed(limit)
    for row in failed["instances"]:
        told = [row["reason"], row["detail"], _date(row["completed_at"])]
        yield f"  image {row['sop_instance_uid']} failed " + " ".join(filter(None, told))
    for row in failed["deliveries"]:
        result = f"{row['kind']} {row['sop_instance_uid']}"
        yield f"  delivery of {result} refused by {row['destination']}: {row['why']}"


def histories(inspect: Inspection, uids: Collection[str]) -> dict[str, list[dict[str, Any]]]:
    """UID or accession number as asked -> the images that it names, with their results; times as
    dates.
    """
    told: dict[str, list[dict[str, Any]]] = {}

    for uid in uids:
        rows: list[dict[str, Any]] = []
        digest = accession_digest(uid, inspect.spool_identity() or "")
        images = inspect.images_of(uid) or inspect.images_of_accession(digest)

        for image in images:
            for row in inspect.history(image):
                dates = {name: _date(row[name]) for name in _TIMES}
                rows.append({"sop_instance_uid": image} | row | dates)

        told[uid] = rows
    return told


def _date(seconds: float | None) -> str | None:
    """The ledger's seconds as a local time."""
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
