"""The troubles that a node is in, from the ledger's figures and the settings."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from daemon.alerts.silence import missing_images
from daemon.config import Alerts, Config
from daemon.ledger import Alarm, Snapshot, Unresolved
from daemon.ledger.processes import SILENT_AFTER_S, host_of
from daemon.metrics.health import ROLES, age_of_sign
from daemon.metrics.host import UNSEEN_SPOOL, certificates, free_bytes

_MINUTE_S = 60.0
_HOUR_S = 3600.0
_DAY_S = 86400.0
_MB = 1024 * 1024
# How many images must be missing before learned silence counts as a trouble.
_MISSING_IMAGES = 5.0
_MOST_CHARACTERS = 500


@dataclass(frozen=True)
class Sight:
    """The facts of one look at the node."""

    figures: Snapshot
    unresolved: Sequence[Unresolved]
    sending_hours: Mapping[str, Mapping[int, int]]
    # By AE title ("": all together), what differs from the baseline, in words.
    drift: Mapping[str, str]
    # This host: its troubles can only be seen from here.
    machine: str
    # When this process began to look: no role is found to be silent earlier than some minutes after
    # that.
    began_at: float
    # By the key of the settings, what is wrong with a file of TLS, in words.
    file_faults: Mapping[str, str] = field(default_factory=dict)


def troubles(config: Config, alerts: Alerts, sight: Sight) -> list[Alarm]:
    """Every current trouble, each with a key that stays the same as long as the trouble lasts."""
    return [
        *_outages(config, alerts, sight),
        *_owed(config, alerts, sight),
        *_commitment(config, alerts, sight),
        *_backlog(alerts, sight),
        *_unresolved(sight),
        *_silence(alerts, sight),
        *_disk(config, alerts, sight),
        *_inbox(sight),
        *_clock(sight),
        *_certificates(config, alerts, sight),
        *_roles(alerts, sight),
        *_drift(sight),
    ]


def shown(text: str, most: int = _MOST_CHARACTERS) -> str:
    """A peer's text on one line: printable, bounded."""
    cut = text[:most]
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in cut)


def _outages(config: Config, alerts: Alerts, sight: Sight) -> Iterator[Alarm]:
    now = sight.figures.now
    for destination in config.destinations:
        circuit = sight.figures.circuits.get(destination.name)
        if circuit is None or circuit.down_since is None:
            continue
        if now - circuit.down_since >= alerts.outage_minutes * _MINUTE_S:
            owed = sight.figures.owed.get(destination.name)
            words = (
                f"it stores nothing since {_time(circuit.down_since)}; its last answer: "
                f"{shown(circuit.last_answer, 200)}; results owed: {owed.results if owed else 0}"
            )
            yield Alarm(f"outage:{destination.name}", "outage", destination.name, words)


def _owed(config: Config, alerts: Alerts, sight: Sight) -> Iterator[Alarm]:
    """Results that do not arrive, whatever the cause: a destination may take all others."""
    for destination in config.destinations:
        owed = sight.figures.owed.get(destination.name)
        if owed is None:
            continue
        if sight.figures.now - owed.since >= alerts.owed_minutes * _MINUTE_S:
            words = (
                f"results owed: {owed.results}, the oldest since {_time(owed.since)}; "
                f"allowed: {alerts.owed_minutes:g} minutes; "
                f"its last try: {shown(owed.why, 200) or 'none yet'}"
            )
            yield Alarm(f"owed:{destination.name}", "owed", destination.name, words)


def _commitment(config: Config, alerts: Alerts, sight: Sight) -> Iterator[Alarm]:
    """Results that a destination stored and does not commit to: their bytes stay until it does."""
    for destination in config.committing():
        oldest = sight.figures.uncommitted.get(destination.name)
        if oldest is None:
            continue
        if sight.figures.now - oldest.since >= alerts.commitment_hours * _HOUR_S:
            words = (
                f"the oldest result without its commitment was stored at {_time(oldest.since)}; "
                f"allowed: {alerts.commitment_hours:g} hours; the last request: "
                f"{shown(oldest.why, 200) or 'taken, and no report came'}"
            )
            yield Alarm(f"commitment:{destination.name}", "commitment", destination.name, words)


def _backlog(alerts: Alerts, sight: Sight) -> Iterator[Alarm]:
    since = sight.figures.waiting_since
    if since is None:
        return
    waits_s = sight.figures.now - since
    if waits_s >= alerts.backlog_minutes * _MINUTE_S:
        words = (
            f"images waiting: {sight.figures.waiting}, the oldest since {_time(since)}; "
            f"allowed: {alerts.backlog_minutes:g} minutes"
        )
        yield Alarm("backlog", "backlog", "analysis", words)


def _unresolved(sight: Sight) -> Iterator[Alarm]:
    """Failures by day: each day with failures is a trouble of its own."""
    for each in sorted(sight.unresolved, key=lambda each: (each.kind, each.subject, each.day)):
        day = _day(each.day * _DAY_S)
        what = "failed images" if each.kind == "failed" else "refused results"
        named = ", ".join(shown(uid, 64) for uid in each.sop_instance_uids)
        words = f"{what} of {day} (UTC): {each.number}: {named}"
        if each.number > len(each.sop_instance_uids):
            words += f" and {each.number - len(each.sop_instance_uids)} more"
        yield Alarm(f"{each.kind}:{each.subject}:{day}", each.kind, each.subject, words)


def _silence(alerts: Alerts, sight: Sight) -> Iterator[Alarm]:
    limits = {each.ae_title: each.minutes for each in alerts.silence.limits}
    now = sight.figures.now
    senders = sight.figures.senders
    for title in sorted(senders.keys() | limits.keys()):
        if title in senders:
            last_at = senders[title].last_at
            words = f"no image since {_time(last_at)}"
        else:
            last_at = sight.began_at
            words = f"no image ever; this process has looked since {_time(last_at)}"
        silent_s = now - last_at

        if title in limits:
            if silent_s >= limits[title] * _MINUTE_S:
                words += f"; allowed: {limits[title]:g} minutes"
                yield Alarm(f"silence:{title}", "silence", title, words)
            continue

        hours = sight.sending_hours.get(title, {})
        if alerts.silence.learn:
            missing = missing_images(hours, last_at, now)
            if missing >= _MISSING_IMAGES:
                words += f"; by its last weeks about {missing:.0f} images are missing"
                yield Alarm(f"silence:{title}", "silence", title, words)


def _disk(config: Config, alerts: Alerts, sight: Sight) -> Iterator[Alarm]:
    free = free_bytes(config.spool, sight.figures.spool)
    # The deliver role reads the spool. If it cannot see it, the spool is unreachable, not a disk
    # with room.
    words = UNSEEN_SPOOL
    if free is not None:
        words = f"{free // _MB} MB free beside the spool; wanted: {alerts.disk_free_mb} MB"
    if free is None or free < alerts.disk_free_mb * _MB:
        yield Alarm(f"disk:{sight.machine}", "disk", sight.machine, words, sight.machine)


def _inbox(sight: Sight) -> Iterator[Alarm]:
    """What the receive role of each host reports of its inbox."""
    oldest = sight.figures.now - SILENT_AFTER_S
    for process in sight.figures.roles:
        trouble = process.facts.get("inbox_trouble")
        if trouble and process.beat_at >= oldest:
            host = host_of(process.owner)
            yield Alarm(f"inbox:{host}", "inbox", host, shown(str(trouble)))


def _clock(sight: Sight) -> Iterator[Alarm]:
    leap = sight.figures.leap
    if leap is None:
        return
    words = (
        f"it moved by {leap.by_s / _DAY_S:+.1f} days, to {_time(leap.to)}; "
        f"no bytes are removed by age before {_time(leap.ages_count_at)}"
    )
    yield Alarm("clock", "clock", "ledger", words)


def _certificates(config: Config, alerts: Alerts, sight: Sight) -> Iterator[Alarm]:
    for key, words in sight.file_faults.items():
        name = f"certificate:{sight.machine}:{key}"
        yield Alarm(name, "certificate", key, shown(words), sight.machine)

    for key, ends_at in certificates(config):
        if key in sight.file_faults:
            continue
        days = (ends_at - sight.figures.now) / _DAY_S
        if days < alerts.certificate_days:
            verb = "ends" if days >= 0 else "ended"
            words = f"it {verb} on {_day(ends_at)}; renew it"
            name = f"certificate:{sight.machine}:{key}"
            yield Alarm(name, "certificate", key, words, sight.machine)


def _roles(alerts: Alerts, sight: Sight) -> Iterator[Alarm]:
    watched_s = sight.figures.now - sight.began_at
    for role in ROLES:
        age_s = age_of_sign(sight.figures, role)
        silent_s = watched_s if age_s is None else age_s
        # After a power cut, the roles start one after another: this process may be the first.
        is_known = ("role", role) in sight.figures.troubles
        noticed_s = silent_s if is_known else min(silent_s, watched_s)
        if noticed_s >= alerts.role_minutes * _MINUTE_S:
            words = f"no process of it has sent a heartbeat for {silent_s:.0f} s"
            yield Alarm(f"role:{role}", "role", role, words)


def _drift(sight: Sight) -> Iterator[Alarm]:
    for title, words in sorted(sight.drift.items()):
        subject = title or "all senders"
        yield Alarm(f"drift:{title}", "drift", subject, shown(words))


def _time(seconds: float) -> str:
    moment = datetime.datetime.fromtimestamp(seconds).astimezone()
    return moment.strftime("%Y-%m-%d %H:%M:%S %z")


def _day(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d")
