"""Each kind of trouble: its title, what to do, and its entry in the runbook."""

from __future__ import annotations

from typing import NamedTuple


class Kind(NamedTuple):
    """The words of messages on one kind of trouble."""

    title: str
    advice: str
    # A heading of docs/faults.md.
    runbook: str


KINDS: dict[str, Kind] = {
    "outage": Kind(
        "a destination is down or stores nothing",
        "Results wait and nothing is lost. Look at the archive and the network; "
        "`pleura doctor` asks it.",
        "Alarm: outage",
    ),
    "owed": Kind(
        "a result does not reach its destination",
        "`pleura status` says what the destination answered; look into its own log.",
        "Alarm: owed",
    ),
    "commitment": Kind(
        "a destination does not commit to what it stored",
        "Its results keep their place on the disk. Have it take this node's storage commitment "
        "requests, or set `commitment: false`.",
        "Alarm: commitment",
    ),
    "backlog": Kind(
        "images wait for their analysis",
        "`pleura status` says whether analyse runs; `pleura doctor` asks the device and the model.",
        "Alarm: backlog",
    ),
    "failed": Kind(
        "images failed and need a person",
        "`pleura status --failed` lists them; `pleura retry` tries them again.",
        "Alarm: failed",
    ),
    "refused": Kind(
        "a destination refused results",
        "`pleura status --failed` lists them; `pleura retry` sends them again.",
        "Alarm: refused",
    ),
    "silence": Kind(
        "a sender that usually sends is silent",
        "Look at the modality, its network and its send queue.",
        "Alarm: silence",
    ),
    "disk": Kind(
        "the spool's disk is almost full, or the spool is missing",
        "Mount a missing spool. Make room beside the spool, or shorten `retention`. Below "
        "`spool_reserve_mb` images are refused.",
        "Alarm: disk",
    ),
    "inbox": Kind(
        "files in the inbox are not taken",
        "Mount its share, or give the service's user the right to read and remove its files.",
        "Alarm: inbox",
    ),
    "clock": Kind(
        "the clock was set by days, or the node was off for more than a week",
        "Is its date right now? If not, correct it within three days: after that, bytes are "
        "removed by their age on this clock.",
        "Alarm: clock",
    ),
    "certificate": Kind(
        "a certificate ends soon, or its files cannot be used",
        "Replace it with a valid file; no restart is needed.",
        "Alarm: certificate",
    ),
    "role": Kind(
        "a role sends no heartbeat",
        "Look at its log and start it: `systemctl status 'pleura-*'`.",
        "Alarm: role",
    ),
    "drift": Kind(
        "the answers differ from their baseline",
        "Ask the department whether its patients, its devices or its settings have changed.",
        "Alarm: drift",
    ),
    "test": Kind("a trial message", "Nothing is to be done.", "Alerts"),
}
