"""`pleura doctor`: is what the settings name there, and does it do what the node needs? It changes nothing."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pynetdicom import AE
from sqlalchemy.exc import SQLAlchemyError

from daemon.config import Config, DicomDestination
from daemon.deliver.folder import MARK, lost
from daemon.dicom.tables import (
    IMPLEMENTATION_CLASS_UID,
    IMPLEMENTATION_VERSION_NAME,
    STORAGE_COMMITMENT,
    VERIFICATION,
)
from daemon.ledger import Ledger, LedgerError
from daemon.spool import identity

_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    what: str
    trouble: str = ""  # and what to do about it; empty: it is well
    note: str = ""

    def __str__(self) -> str:
        return (
            f"TROUBLE  {self.what}: {self.trouble}"
            if self.trouble
            else f"ok       {self.what}: {self.note}"
        )


class Trouble(Exception):  # noqa: N818 - what an examination finds
    """What is wrong with what was looked at, and what to do."""


def examine(
    config: Config, model: Callable[[], str], sop_classes: Mapping[str, str]
) -> Iterator[Finding]:
    """Look at everything the settings name, one finding each.

    `model` loads the model package and says what it is, or raises Trouble. `sop_classes` are those of the kinds of
    result.

    Nothing is made: neither a spool nor a ledger where there is none yet.
    """
    examinations: list[tuple[str, Callable[[], str]]] = [
        ("ledger", partial(_ledger, config)),
        (f"spool {config.spool}", partial(_spool, config)),
        ("model", model),
        (f"port {config.port}", partial(_listener, config)),
    ]
    if config.inbox is not None:
        examinations.append((f"inbox {config.inbox}", partial(_folder, config.inbox)))
    for one in config.destinations:
        if isinstance(one, DicomDestination):
            examinations.append(
                (f"destination {one.name}", partial(_archive, config, one, sop_classes))
            )
        else:
            examinations.append((f"destination {one.name}", partial(_outbox, config, one.folder)))
    for what, look in examinations:
        try:
            yield Finding(what, note=look())
        except (Trouble, LedgerError, OSError, ModuleNotFoundError) as error:
            yield Finding(what, trouble=str(error))
        except SQLAlchemyError as error:  # its text may hold the password
            why = f"the ledger's database does not answer ({type(error).__name__}); is it running?"
            yield Finding(what, trouble=why)
    if not config.destinations:
        yield Finding(
            "destinations", trouble="none is named: results would be made and sent nowhere"
        )


def _ledger(config: Config) -> str:
    with closing(Ledger.existing(config.ledger, as_it_is=True)) as ledger:
        counts, troubles = ledger.counts(), ledger.troubles()
    waiting, owed = counts["instances"]["received"], counts["deliveries"]["owed"]
    note = f"{waiting} images wait, {owed} deliveries are owed"
    return note + ("; `pleura status` tells of trouble with some" if any(troubles.values()) else "")


def _spool(config: Config) -> str:
    note = _folder(config.spool)
    found = identity(config.spool)
    with closing(Ledger.existing(config.ledger, as_it_is=True)) as ledger:
        known = ledger.spool_identity(None)
    if found != known:
        raise Trouble("not the folder whose files this ledger knows; is it mounted here?")
    free_mb = shutil.disk_usage(config.spool).free // 1_000_000
    if free_mb < config.spool_reserve_mb:
        raise Trouble(
            f"{free_mb} MB free, spool_reserve_mb is {config.spool_reserve_mb}: images are refused (0xA700); make room"
        )
    return note


def _folder(folder: Path) -> str:
    if not folder.is_dir():
        raise Trouble(
            "there is no such folder; the node makes it when it first needs it, or it is not mounted"
        )
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        raise Trouble(
            "not writable by this user; give it to the user that runs Pleura, and ask as that user"
        )
    return f"writable, {shutil.disk_usage(folder).free // 1_000_000} MB free"


def _outbox(config: Config, folder: Path) -> str:
    with suppress(LedgerError), closing(Ledger.existing(config.ledger, as_it_is=True)) as ledger:
        if why := lost(folder, ledger):
            raise Trouble(f"{why} Where this is to be a new one: mkdir -p {folder / MARK}")
    return _folder(folder)


def _listener(config: Config) -> str:
    who = (
        f"{len(config.peers)} peers may associate"
        if config.peers
        else "peers names none: only loopback may associate"
    )
    host = "127.0.0.1" if config.host in ("0.0.0.0", "::") else config.host  # noqa: S104
    try:
        socket.create_connection((host, config.port), _TIMEOUT_S).close()
    except OSError as error:
        raise Trouble(
            f"nobody listens there ({error.strerror or error}); is the node running? {who}"
        ) from error
    return f"somebody listens; {who}"


def _archive(config: Config, destination: DicomDestination, sop_classes: Mapping[str, str]) -> str:
    """Propose what would be sent there. The archive's answer to the proposal says what it takes."""
    wanted: dict[str, str] = {kind: sop_classes[kind] for kind in destination.results}
    if destination.commitment:
        wanted["storage commitment"] = STORAGE_COMMITMENT
    entity = AE(config.ae_title)
    entity.implementation_class_uid = IMPLEMENTATION_CLASS_UID
    entity.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    entity.connection_timeout = entity.acse_timeout = entity.dimse_timeout = _TIMEOUT_S
    for sop_class in (VERIFICATION, *wanted.values()):
        entity.add_requested_context(sop_class)
    there = f"{destination.ae_title} at {destination.host}:{destination.port}"
    association = entity.associate(
        destination.host, destination.port, ae_title=destination.ae_title
    )
    if not association.is_established:
        rejected = (
            "rejects this node: name its AE title and address there"
            if association.is_rejected
            else "no answer"
        )
        raise Trouble(
            f"{there}: {rejected}; called {destination.ae_title}, calling {config.ae_title}"
        )
    try:
        accepted = {context.abstract_syntax for context in association.accepted_contexts}
        if VERIFICATION in accepted and not association.send_c_echo():
            raise Trouble(f"{there}: associates, but does not answer C-ECHO")
    finally:
        if association.is_established:
            association.release()
    if declined := [kind for kind, sop_class in wanted.items() if sop_class not in accepted]:
        raise Trouble(
            f"{there}: does not accept {', '.join(declined)}; take it out of `results`, or enable it there"
        )
    return f"{there} answers and accepts {', '.join(wanted)}"
