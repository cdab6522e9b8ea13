"""`pleura doctor`: check that everything the settings name is there and does what the node needs.

It changes nothing.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from daemon import ownership, tls
from daemon.audit.syslog import open_channel
from daemon.commands.status import ROLES, left_destinations
from daemon.config import Audit, Config, DicomDestination
from daemon.config.terms import doubtful_body_parts
from daemon.deliver.folder import MARK, lost
from daemon.deliver.remote import remote_of
from daemon.dicom.link import (
    Link,
    LinkDownError,
    NotAdmittedError,
    Remote,
    commitment_proposal,
    proposal,
)
from daemon.dicom.negotiation import CALLED_AE_TITLE_NOT_RECOGNIZED
from daemon.dicom.requestor import Limits
from daemon.dicom.tables import (
    IMPLEMENTATION_CLASS_UID,
    STORAGE_COMMITMENT,
    UNCOMPRESSED,
    VERIFICATION,
)
from daemon.ledger import Inspection, LedgerError, describe
from daemon.ledger.database import lock_of_another
from daemon.ledger.processes import SILENT_AFTER_S, is_alive
from daemon.spool import identity

# A certificate that expires sooner is trouble: it should have been renewed by now.
_RENEWAL_DAYS = 14
_DAY_S = 86400.0

# How long another program may keep the roles from writing: their transactions take milliseconds.
_LOCK_S = 5.0
_LIMITS = Limits(connect_s=10.0, acse_s=10.0, answer_s=10.0)

# SOP class UID, transfer syntax UID.
Syntaxes = tuple[str, str]


@dataclass(frozen=True)
class Finding:
    """One thing that was examined."""

    subject: str
    # What is wrong and what to do about it; empty if all is well.
    trouble: str = ""
    # The node works, but a person should know.
    warning: str = ""
    note: str = ""

    def __str__(self) -> str:
        if self.trouble:
            return f"TROUBLE  {self.subject}: {self.trouble}"
        if self.warning:
            return f"WARNING  {self.subject}: {self.warning}"
        return f"ok       {self.subject}: {self.note}"


class Trouble(Exception):  # noqa: N818 - an examination finds it
    """What is wrong with one thing that was examined, and what to do about it."""


def examine(
    config: Config, model: Callable[[], str], kinds: Mapping[str, Syntaxes]
) -> Iterator[Finding]:
    """Examine everything that the settings name; one finding for each thing.

    `model` loads the model package and describes it, or raises Trouble. `kinds` gives each kind of
    result its SOP class and transfer syntax. An absent spool or ledger is not created.
    """
    if warning := ownership.root_warning(config):
        yield Finding("user", warning=warning)
    if trouble := ownership.trouble(config):
        yield Finding("owner of the files", trouble=trouble)

    # Each in its own thread: an archive that does not answer must not delay the others.
    remote = [(subject, _in_thread(examination)) for subject, examination in _remote(config, kinds)]

    local: list[tuple[str, Callable[[], str]]] = [
        ("ledger", partial(_ledger, config)),
        ("roles", partial(_roles, config)),
        (f"spool {config.spool}", partial(_spool, config)),
        ("model", model),
    ]
    for subject, examination in local:
        yield _finding(subject, examination)
    destinations = _destinations(config)
    outages = _outages(destinations)
    for subject, answer in remote:
        found = _finding(subject, answer.result)
        if not found.trouble and subject in outages:
            found = Finding(subject, warning=f"{found.note}, but {outages[subject]}")
        yield found

    configured = [each.name for each in config.destinations]
    for name, words in left_destinations(destinations, configured).items():
        yield Finding(f"destination {name}", warning=words)
    if warning := _same_reason(config):
        yield Finding("answers", warning=warning)
    if not config.destinations:
        yield Finding(
            "destinations", trouble="none is configured: results would be made, but never sent"
        )


def _remote(
    config: Config, kinds: Mapping[str, Syntaxes]
) -> Iterator[tuple[str, Callable[[], str]]]:
    """Examinations that may have to wait for another process, another host or a network share."""
    if config.port is not None:
        yield f"port {config.port}", partial(_listener, config, config.port)
    if config.tls is not None:
        yield f"TLS port {config.tls.port}", partial(_tls_listener, config)

    for credentials in tls.credentials(config):
        yield f"certificate {credentials.certificate}", partial(_certificate, credentials)
    for key, path in tls.trusted(config):
        yield f"{key} {path}", partial(_trusted, key, path)

    if doubtful_body_parts(config.admission.body_parts):
        yield "admission", partial(_admission, config)
    if config.inbox is not None:
        yield f"inbox {config.inbox}", partial(_folder, config.inbox)

    if config.audit is not None and config.audit.file is not None:
        yield f"audit file {config.audit.file}", partial(_audit_file, config.audit.file)
    if config.audit is not None and config.audit.repository is not None:
        repository = config.audit.repository
        yield f"audit repository {repository}", partial(_repository, config.audit, repository)

    for destination in config.destinations:
        subject = f"destination {destination.name}"
        if isinstance(destination, DicomDestination):
            yield subject, partial(_archive, config, destination, kinds)
        else:
            yield subject, partial(_outbox, config, destination.folder)


def _in_thread(examination: Callable[[], str]) -> Future[str]:
    """Examine in a daemon thread, so that Ctrl-C need not wait for it."""
    answer: Future[str] = Future()

    def examine() -> None:
        try:
            answer.set_result(examination())
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=examine, daemon=True).start()
    return answer


def analysing_device(config: Config, digest: str) -> str:
    """The device on which an analyse role of this machine serves the package with this digest.

    That role has replayed the package's golden inputs. "" if no such role runs, or if the settings
    name another device.
    """
    with suppress(LedgerError, SQLAlchemyError), closing(Inspection.open(config.ledger)) as inspect:
        oldest = inspect.now() - SILENT_AFTER_S
        for row in inspect.roles():
            is_running = row["beat_at"] > oldest and is_alive(row["owner"])
            if row["role"] != "analyse" or not is_running:
                continue

            facts = json.loads(row["facts"] or "{}")
            if facts.get("digest") == digest:
                device = str(facts.get("device"))
                return device if config.device in ("auto", device) else ""

    return ""


def _finding(subject: str, examination: Callable[[], str]) -> Finding:
    try:
        return Finding(subject, note=examination())
    except (Trouble, tls.TlsError, LedgerError, OSError, ModuleNotFoundError) as error:
        return Finding(subject, trouble=str(error))
    except SQLAlchemyError as error:
        # The error's own text may hold the password.
        return Finding(subject, trouble=f"the ledger's database: {describe(error)}")


def _ledger(config: Config) -> str:
    with closing(Inspection.open(config.ledger)) as inspect:
        counts = inspect.counts()
        has_troubles = any(inspect.troubles().values())
        is_open = any(is_alive(row["owner"]) for row in inspect.roles())
    if is_open and (locked := lock_of_another(config.ledger, _LOCK_S)):
        raise Trouble(f"it can be read, but no role can write: {describe(locked)}")

    waiting = counts["instances"]["received"]
    owed = counts["deliveries"]["owed"]
    note = f"{waiting} images wait, {owed} deliveries are owed"
    return f"{note}; `pleura status` lists those in trouble" if has_troubles else note


def _roles(config: Config) -> str:
    """Every role must be alive: a node without analyse receives images and never answers."""
    with closing(Inspection.open(config.ledger)) as inspect:
        now = inspect.now()
        alive = {row["role"] for row in inspect.roles() if now - row["beat_at"] < SILENT_AFTER_S}
        waiting = inspect.counts()["instances"]["received"]

    silent = [role for role in ROLES if role not in alive]
    if silent:
        raise Trouble(
            f"no process of {', '.join(silent)} sent a heartbeat in the last minute, "
            f"and {waiting} images wait: start it (pleura serve, or pleura {silent[0]})"
        )

    return f"{', '.join(ROLES)} run"


def _admission(config: Config) -> str:
    doubtful = ", ".join(doubtful_body_parts(config.admission.body_parts))
    raise Trouble(
        f"body_parts: {doubtful} found; no chest X-ray is expected under that term, and a misspelt "
        "term admits no image: correct or remove it"
    )


def _destinations(config: Config) -> Mapping[str, Mapping[str, Any]]:
    """What the ledger knows of each destination; nothing without a ledger."""
    with suppress(LedgerError, SQLAlchemyError), closing(Inspection.open(config.ledger)) as inspect:
        return inspect.destinations()
    return {}


def _outages(destinations: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """What deliveries found at each destination that is down, by its subject here.

    An association shows neither that an archive's disk is full, nor a look that a share's quota is.
    """
    found = {}
    for name, row in destinations.items():
        if row.get("down_since") is not None:
            since = time.strftime("%Y-%m-%d %H:%M:%S +0000", time.gmtime(row["down_since"]))
            found[f"destination {name}"] = (
                f"it has stored nothing since {since}; its last answer: {row['last_answer']}; "
                f"once that is mended: pleura retry --to {name} --now"
            )
    return found


def _same_reason(config: Config) -> str:
    """A warning if every recent image was excluded for one reason; "" without a ledger."""
    with suppress(LedgerError, SQLAlchemyError), closing(Inspection.open(config.ledger)) as inspect:
        same = inspect.same_reason()
        if same is not None:
            return (
                f"the newest {same.images} images were all excluded for the same reason, "
                f"{same.reason}: check `admission`"
            )
    return ""


def _spool(config: Config) -> str:
    note = _folder(config.spool)
    found = identity(config.spool)
    with closing(Inspection.open(config.ledger)) as inspect:
        known = inspect.spool_identity()

    if found != known:
        raise Trouble("not the folder whose files this ledger knows; is it mounted here?")

    free_mb = shutil.disk_usage(config.spool).free // 1_000_000
    if free_mb < config.spool_reserve_mb:
        raise Trouble(
            f"{free_mb} MB free, spool_reserve_mb is {config.spool_reserve_mb}: "
            "images are refused (0xA700); make room"
        )
    return note


def _folder(folder: Path) -> str:
    if not folder.is_dir():
        raise Trouble(
            "there is no such folder; it is not mounted, or the node has not needed it yet and "
            "will create it"
        )
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        raise _not_writable(folder)
    return f"writable, {shutil.disk_usage(folder).free // 1_000_000} MB free"


def _not_writable(path: Path, subject: str = "") -> Trouble:
    """Why this user cannot write an existing path, and the remedy."""
    if ownership.is_mounted_read_only(path):
        return Trouble(
            "its file system is mounted read-only: the kernel's log (dmesg) says why; repair it "
            "and mount it read-write"
        )
    return Trouble(
        f"{subject}not writable by this user; make the user that runs Pleura its owner, and run "
        "doctor as that user"
    )


def _audit_file(path: Path) -> str:
    """Whether the deliver role can append to the audit trail's file, or create it."""
    if path.is_dir():
        raise Trouble("a folder has this path; name a file")

    there = next(each for each in (path, *path.parents) if each.exists())
    if not os.access(there, os.W_OK):
        raise _not_writable(there, f"{there} is ")
    if shutil.disk_usage(there).free == 0:
        raise Trouble("no space left beside it; make room: messages wait in the ledger")
    return "writable"


def _repository(audit: Audit, repository: str) -> str:
    """Connect to the audit repository, with TLS where it is set. No message is sent."""
    security = tls.repository_client(audit)
    try:
        open_channel(repository, security).close()
    except OSError as error:
        words = security.in_words(error) if security else error.strerror or str(error)
        raise Trouble(
            f"cannot be reached ({words}); messages wait in the ledger until it answers"
        ) from error

    if security is None:
        return "its host is known; UDP has no answer that would show more"
    return "a TLS connection to it comes about"


def _outbox(config: Config, folder: Path) -> str:
    with suppress(LedgerError), closing(Inspection.open(config.ledger)) as inspect:
        if why := lost(folder, inspect):
            raise Trouble(f"{why} If it is meant to be a new folder: mkdir -p {folder / MARK}")
    return _folder(folder)


def _certificate(credentials: tls.Credentials) -> str:
    """Whether the node's certificate is valid, and for how long."""
    certificate = credentials.own()
    left_days = (certificate.valid_until - time.time()) / _DAY_S
    until = time.strftime("%Y-%m-%d", time.gmtime(certificate.valid_until))

    if left_days < _RENEWAL_DAYS:
        raise Trouble(
            f"expires in {left_days:.1f} days, on {until}; renew it and replace the file, no "
            "restart is needed"
        )
    return f"{certificate}, valid until {until} ({left_days:.0f} days)"


def _trusted(key: str, path: Path) -> str:
    """Whether a file of trusted certificates holds some, and none is broken."""
    tls.require_trusted(key, path)
    return "every certificate in it can be used"


def _tls_listener(config: Config) -> str:
    """A handshake as a peer does it. The node must present the certificate of the settings."""
    assert config.tls is not None
    credentials = next(tls.credentials(config))
    versions = (config.tls.profile, config.tls.minimum_version)
    context = tls.client_context(
        "tls.certificate", credentials, credentials.certificate, True, *versions
    )

    try:
        with (
            _connected(config, config.tls.port) as connection,
            context.wrap_socket(connection, server_hostname=_own_host(config)) as secured,
        ):
            found = tls.PeerCertificate.of(secured)
            version = secured.version()
    except ssl.SSLError as error:
        why = tls.in_words(error, "tls", "tls.certificate")
        raise Trouble(
            f"another certificate or program answers there: {why}; if the files were just "
            "renewed, the node's log says why it does not use them"
        ) from error

    return f"the node answers in {version} as {found}; {_peers(config)}"


def _peers(config: Config) -> str:
    if config.peers:
        return f"{len(config.peers)} peers may associate"
    return "no peers are configured: only loopback may associate"


def _own_host(config: Config) -> str:
    return "127.0.0.1" if config.host in ("0.0.0.0", "::") else config.host  # noqa: S104


def _connected(config: Config, port: int) -> socket.socket:
    """Connect to a port of the node. Raises Trouble."""
    try:
        return socket.create_connection((_own_host(config), port), _LIMITS.connect_s)
    except OSError as error:
        raise Trouble(
            f"nothing listens there ({error.strerror or error}); is the node running? "
            f"{_peers(config)}"
        ) from error


def _listener(config: Config, port: int) -> str:
    """Associate with the port. The node must answer, not another program."""
    _connected(config, port).close()

    remote = Remote(config.ae_title, _own_host(config), port)
    other_program = "another program holds the port: end it, or give the node another port"
    try:
        with Link.open(config.ae_title, remote, proposal([]), _LIMITS) as link:
            if link.implementation_class_uid != IMPLEMENTATION_CLASS_UID:
                raise Trouble(f"a DICOM node that is not Pleura answers; {other_program}")
    except NotAdmittedError as error:
        if error.rejected == CALLED_AE_TITLE_NOT_RECOGNIZED:
            raise Trouble(
                f"a DICOM node answers whose AE title is not {config.ae_title}; {other_program}"
            ) from error
        # Any other rejection comes from our node: doctor need not be one of its peers.
    except LinkDownError as error:
        raise Trouble(f"{error}; {other_program}") from error

    return f"the node answers; {_peers(config)}"


def _archive(config: Config, destination: DicomDestination, kinds: Mapping[str, Syntaxes]) -> str:
    """Associate as a delivery does. The archive must accept all that is to be sent to it."""
    wanted = {kind: kinds[kind] for kind in destination.results}
    contexts = [*proposal([]), *proposal(list(wanted.values()))]
    if destination.commitment:
        contexts += commitment_proposal()
    remote = remote_of(config, destination)

    try:
        with Link.open(config.ae_title, remote, contexts, _LIMITS) as link:
            accepted = set(link.accepted)
            if VERIFICATION in {sop_class for sop_class, _ in accepted}:
                link.echo()
    except LinkDownError as error:
        raise Trouble(str(error)) from error

    declined = [str(kind) for kind, syntaxes in wanted.items() if not _takes(accepted, *syntaxes)]
    services = [str(kind) for kind in wanted]
    if destination.commitment:
        services.append("storage commitment")
        if STORAGE_COMMITMENT not in {sop_class for sop_class, _ in accepted}:
            declined.append("storage commitment")

    if declined:
        raise Trouble(
            f"{remote}: does not accept {', '.join(declined)}; "
            "enable it there, or remove it from the settings"
        )
    return f"{remote} answers and accepts {', '.join(services)}"


def _takes(accepted: set[Syntaxes], sop_class_uid: str, transfer_syntax_uid: str) -> bool:
    """Whether an object can be sent, either as it is or uncompressed."""
    possible = (transfer_syntax_uid, *UNCOMPRESSED)
    return any((sop_class_uid, syntax) in accepted for syntax in possible)
