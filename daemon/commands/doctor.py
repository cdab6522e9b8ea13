"""`pleura doctor`: is everything that the settings name there, and does it do what the node needs?
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

from sqlalchemy.exc import SQLAlchemyError

from daemon import ownership, tls
from daemon.commands.status import ROLES
from daemon.config import Config, DicomDestination
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
from daemon.ledger.processes import SILENT_AFTER_S, is_alive
from daemon.spool import identity

# A certificate that expires so soon is trouble: its renewal should have come.
_RENEWAL_DAYS = 14
_DAY_S = 86400.0

_LIMITS = Limits(connect_s=10.0, acse_s=10.0, answer_s=10.0)

Syntaxes = tuple[str, str]  # SOP class UID, transfer syntax UID


@dataclass(frozen=True)
class Finding:
    """One thing that was examined."""

    subject: str
    # With the thing to do about it; empty where all is well.
    trouble: str = ""
    # The node works; a person should know all the same.
    warning: str = ""
    note: str = ""

    def __str__(self) -> str:
        if self.trouble:
            return f"TROUBLE  {self.subject}: {self.trouble}"
        if self.warning:
            return f"WARNING  {self.subject}: {self.warning}"
        return f"ok       {self.subject}: {self.note}"


class Trouble(Exception):  # noqa: N818 - an examination finds it
    """The fault of one thing that was examined, and the thing to do about it."""


def examine(
    config: Config, model: Callable[[], str], kinds: Mapping[str, Syntaxes]
) -> Iterator[Finding]:
    """Examine everything that the settings name, one finding each.

    `model` loads the model package and describes it, or raises Trouble. `kinds` gives each kind of
    result its SOP class and transfer syntax.

    It makes neither a spool nor a ledger where there is none yet.
    """
    if warning := ownership.root_warning(config):
        yield Finding("user", warning=warning)
    if trouble := ownership.trouble(config):
        yield Finding("owner of the files", trouble=trouble)

    # Each in a thread of its own: an archive that is away must not keep the others waiting.
    waiting = [(subject, _begun(asked)) for subject, asked in _elsewhere(config, kinds)]

    own: list[tuple[str, Callable[[], str]]] = [
        ("ledger", partial(_ledger, config)),
        ("roles", partial(_roles, config)),
        (f"spool {config.spool}", partial(_spool, config)),
        ("model", model),
    ]
    for subject, examination in own:
        yield _finding(subject, examination)
    for subject, answer in waiting:
        yield _finding(subject, answer.result)
    if warning := _same_reason(config):
        yield Finding("answers", warning=warning)
    if not config.destinations:
        yield Finding(
            "destinations", trouble="none is named: results would be made and sent nowhere"
        )


def _elsewhere(
    config: Config, kinds: Mapping[str, Syntaxes]
) -> Iterator[tuple[str, Callable[[], str]]]:
    """What may wait for another process, another host, or a share that is away."""
    if config.port is not None:
        yield f"port {config.port}", partial(_listener, config, config.port)
    if config.tls is not None:
        yield f"TLS port {config.tls.port}", partial(_tls_listener, config)

    for own in tls.credentials(config):
        yield f"certificate {own.certificate}", partial(_certificate, own)
    for key, path in tls.trusted(config):
        yield f"{key} {path}", partial(_trusted, key, path)

    if doubtful_body_parts(config.admission.body_parts):
        yield "admission", partial(_admission, config)
    if config.inbox is not None:
        yield f"inbox {config.inbox}", partial(_folder, config.inbox)

    for destination in config.destinations:
        subject = f"destination {destination.name}"
        if isinstance(destination, DicomDestination):
            yield subject, partial(_archive, config, destination, kinds)
        else:
            yield subject, partial(_outbox, config, destination.folder)


def _begun(examination: Callable[[], str]) -> Future[str]:
    """The answer to come. Ctrl-C does not wait for the thread that asks."""
    answer: Future[str] = Future()

    def ask() -> None:
        try:
            answer.set_result(examination())
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=ask, daemon=True).start()
    return answer


def analysing_device(config: Config, digest: str) -> str:
    """The device of an analyse role on this machine that has loaded this very package and replayed
    its golden inputs; "" where none runs, or the settings name another device.
    """
    with suppress(LedgerError, SQLAlchemyError), closing(Inspection.open(config.ledger)) as inspect:
        oldest = inspect.now() - SILENT_AFTER_S
        for row in inspect.roles():
            facts = json.loads(row["facts"] or "{}")
            is_running = row["beat_at"] > oldest and is_alive(row["owner"])
            if row["role"] == "analyse" and is_running and facts.get("digest") == digest:
                device = str(facts.get("device"))
                return device if config.device in ("auto", device) else ""
    return ""


def _finding(subject: str, examination: Callable[[], str]) -> Finding:
    try:
        return Finding(subject, note=examination())
    except (Trouble, tls.TlsError, LedgerError, OSError, ModuleNotFoundError) as error:
        return Finding(subject, trouble=str(error))
    except SQLAlchemyError as error:
        # Its text may hold the password.
        why = f"the ledger's database: {describe(error)}"
        return Finding(subject, trouble=why)


def _ledger(config: Config) -> str:
    with closing(Inspection.open(config.ledger)) as inspect:
        counts = inspect.counts()
        troubles = inspect.troubles()
    waiting = counts["instances"]["received"]
    owed = counts["deliveries"]["owed"]
    note = f"{waiting} images wait, {owed} deliveries are owed"
    return note + ("; `pleura status` tells of trouble with some" if any(troubles.values()) else "")


def _roles(config: Config) -> str:
    """Each role must have given a sign of life: a node without analyse receives, and nobody
    answers.
    """
    with closing(Inspection.open(config.ledger)) as inspect:
        now = inspect.now()
        alive = {row["role"] for row in inspect.roles() if now - row["beat_at"] < SILENT_AFTER_S}
        waiting = inspect.counts()["instances"]["received"]

    silent = [role for role in ROLES if role not in alive]
    if silent:
        raise Trouble(
            f"no process of {', '.join(silent)} gave a sign of life in the last minute, "
            f"and {waiting} images wait: start it (pleura serve, or pleura {silent[0]})"
        )

    return f"{', '.join(ROLES)} run"


def _admission(config: Config) -> str:
    doubtful = ", ".join(doubtful_body_parts(config.admission.body_parts))
    raise Trouble(
        f"body_parts: {doubtful} found; no chest X-ray is expected under that term, and an image "
        "under a misspelt term is never analysed: correct or remove it"
    )


def _same_reason(config: Config) -> str:
    """A word on a node that answers nobody; "" where it does, or where there is no ledger."""
    with suppress(LedgerError, SQLAlchemyError), closing(Inspection.open(config.ledger)) as inspect:
        same = inspect.same_reason()
        if same is not None:
            return (
                f"the newest {same.images} images were all not analysed for one reason, "
                f"{same.reason}: is `admission` right?"
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
            "there is no such folder; the node makes it when it first needs it, or it is not "
            "mounted"
        )
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        raise Trouble(
            "not writable by this user; give it to the user that runs Pleura, and ask as that user"
        )
    return f"writable, {shutil.disk_usage(folder).free // 1_000_000} MB free"


def _outbox(config: Config, folder: Path) -> str:
    with suppress(LedgerError), closing(Inspection.open(config.ledger)) as inspect:
        if why := lost(folder, inspect):
            raise Trouble(f"{why} Where this is to be a new one: mkdir -p {folder / MARK}")
    return _folder(folder)


def _certificate(own: tls.Credentials) -> str:
    """Whether the node's certificate is valid, and for how long."""
    left_days = (own.own().valid_until - time.time()) / _DAY_S
    until = time.strftime("%Y-%m-%d", time.gmtime(own.own().valid_until))
    if left_days < _RENEWAL_DAYS:
        raise Trouble(
            f"expires in {left_days:.1f} days, on {until}; renew it and put it in its place, no "
            "restart is needed"
        )
    return f"{own.own()}, valid until {until} ({left_days:.0f} days)"


def _trusted(key: str, path: Path) -> str:
    """Whether a file of trusted certificates holds some, and no broken one."""
    tls.require_trusted(key, path)
    return "every certificate in it can be used"


def _tls_listener(config: Config) -> str:
    """A handshake as a peer would do it. The node must present the certificate of the settings."""
    assert config.tls is not None
    own = next(tls.credentials(config))
    versions = (config.tls.profile, config.tls.minimum_version)
    context = tls.client_context("tls", own, own.certificate, True, *versions)

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
            "renewed, the node's log says why they are not taken"
        ) from error

    return f"the node answers in {version} as {found}; {_peers(config)}"


def _peers(config: Config) -> str:
    if config.peers:
        return f"{len(config.peers)} peers may associate"
    return "peers names none: only loopback may associate"


def _own_host(config: Config) -> str:
    return "127.0.0.1" if config.host in ("0.0.0.0", "::") else config.host  # noqa: S104


def _connected(config: Config, port: int) -> socket.socket:
    """A connection to a port of the node. Raises Trouble."""
    try:
        return socket.create_connection((_own_host(config), port), _LIMITS.connect_s)
    except OSError as error:
        raise Trouble(
            f"nobody listens there ({error.strerror or error}); is the node running? "
            f"{_peers(config)}"
        ) from error


def _listener(config: Config, port: int) -> str:
    peers = _peers(config)
    _connected(config, port).close()

    remote = Remote(config.ae_title, _own_host(config), port)
    stranger = "another program holds the port: end it, or give the node another port"
    try:
        with Link.open(config.ae_title, remote, proposal([]), _LIMITS) as link:
            if link.implementation_class_uid != IMPLEMENTATION_CLASS_UID:
                raise Trouble(f"a DICOM node that is not Pleura answers; {stranger}")
    except NotAdmittedError as error:
        if error.rejected == CALLED_AE_TITLE_NOT_RECOGNIZED:
            raise Trouble(
                f"a DICOM node answers whose AE title is not {config.ae_title}; {stranger}"
            ) from error
        # This check need not be a peer: the node that rejects it knows its own AE title.
    except LinkDownError as error:
        raise Trouble(f"{error}; {stranger}") from error
    return f"the node answers; {peers}"


def _archive(config: Config, destination: DicomDestination, kinds: Mapping[str, Syntaxes]) -> str:
    """Associate as a delivery does, proposing what is to be sent. The answer says what the archive
    takes.
    """
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
    services = [*map(str, wanted)]
    if destination.commitment:
        services.append("storage commitment")
        if STORAGE_COMMITMENT not in {sop_class for sop_class, _ in accepted}:
            declined.append("storage commitment")
    if declined:
        raise Trouble(
            f"{remote}: does not accept {', '.join(declined)}; "
            "take it out of the settings, or enable it there"
        )
    return f"{remote} answers and accepts {', '.join(services)}"


def _takes(accepted: set[Syntaxes], sop_class_uid: str, transfer_syntax_uid: str) -> bool:
    """Whether an object could be sent as it is, or uncompressed."""
    possible = (transfer_syntax_uid, *UNCOMPRESSED)
    return any((sop_class_uid, syntax) in accepted for syntax in possible)
