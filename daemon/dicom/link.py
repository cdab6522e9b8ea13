"""A way to one peer: the contexts to propose, one association, and the services asked over it.

pydicom is imported only where a data set must be decoded: bytes that are sent unchanged do not need
it.
"""

from __future__ import annotations

import io
import socket
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from daemon.dicom.negotiation import ContextResult, Proposal, Rejected
from daemon.dicom.outgoing import FileGoneError, Outgoing, UnsendableError, as_is, uncompressed
from daemon.dicom.pdu import Command, Element
from daemon.dicom.requestor import (
    DEFAULT_LIMITS,
    Answer,
    EventHandler,
    Limits,
    RejectedError,
    Request,
    Requestor,
    Source,
)
from daemon.dicom.tables import (
    IMPLICIT_VR_LITTLE_ENDIAN,
    STORAGE_COMMITMENT,
    UNCOMPRESSED,
    VERIFICATION,
    Priority,
)

if TYPE_CHECKING:
    from pydicom import Dataset


# PS3.8 Table 9-18: the results that blame the syntaxes, not a fault of the peer.
_LASTING = {
    ContextResult.ABSTRACT_SYNTAX_NOT_SUPPORTED,
    ContextResult.TRANSFER_SYNTAXES_NOT_SUPPORTED,
}

# What to do about an A-ASSOCIATE-RJ, by source and reason (PS3.8 Table 9-21).
_ADVICE = {
    (1, 1): "see whether the AE title {calling} and this machine's address are configured there",
    (1, 2): "is this the port of a DICOM node?",
    (1, 3): "add the AE title {calling}, with this machine's address, there; or correct "
    "{calling_key}",
    (1, 7): "its AE title is not {called}: correct {called_key}",
    (2, 1): "its log may tell",
    (2, 2): "is this the port of a DICOM node?",
    (3, 1): "it is busy",
    (3, 2): "it is busy; let it take more associations at a time",
}


class LinkDownError(Exception):
    """No association, or it was lost.

    No object is to blame, and trying again may help. The message says why.
    """


class NotAdmittedError(LinkDownError):
    """The peer rejected the association."""

    def __init__(self, message: str, rejected: Rejected) -> None:
        super().__init__(message)
        self.rejected = rejected


class NotAcceptedError(Exception):
    """The peer accepts no presentation context that this request could use.

    `is_lasting`: it named the syntaxes as the reason. `accepts_others`: it accepted another context
    of the same association.
    """

    def __init__(self, message: str, is_lasting: bool = True, accepts_others: bool = True) -> None:
        super().__init__(message)
        self.is_lasting = is_lasting
        self.accepts_others = accepts_others


class Security(Protocol):
    """TLS toward one peer (daemon.tls.TlsClient)."""

    def wrap(self, connection: socket.socket, host: str) -> socket.socket:
        """The connection after its handshake. Raises OSError; the connection is closed then."""

    def in_words(self, error: OSError) -> str:
        """The meaning of an error of a secured connection, and the remedy."""


@dataclass(frozen=True)
class TitleKeys:
    """Where a person sets the two AE titles of an association, for the advice in errors."""

    calling: str = "`ae_title`"
    called: str = "`ae_title` of the destination"


_OF_SETTINGS = TitleKeys()


@dataclass(frozen=True)
class Remote:
    """An application entity on the network.

    `security`: how it is reached; None: without TLS. `title_keys`: where a person sets its AE title
    and ours.
    """

    ae_title: str
    host: str
    port: int
    security: Security | None = None
    title_keys: TitleKeys = _OF_SETTINGS

    def __str__(self) -> str:
        over = " over TLS" if self.security else ""
        return f"{self.ae_title} at {self.host}:{self.port}{over}"

    def connect(self, timeout_s: float) -> socket.socket:
        """A connection, with its TLS handshake done. Raises OSError."""
        connection = socket.create_connection((self.host, self.port), timeout=timeout_s)
        return self.security.wrap(connection, self.host) if self.security else connection

    def in_words(self, error: OSError) -> str:
        """The meaning of an error of the connection."""
        if self.security is not None:
            return self.security.in_words(error)
        return error.strerror or str(error)


def proposal(objects: Sequence[tuple[str, str]]) -> list[Proposal]:
    """The presentation contexts that objects need, each given as (SOP class UID, transfer syntax
    UID).

    Each syntax has its own context, so that the peer's answer says of each whether it is taken: the
    object's own, and the uncompressed syntaxes that the object could be turned into. Without
    objects, the contexts of Verification. The requestor numbers the contexts.
    """
    wanted: dict[tuple[str, str], None] = {}
    for sop_class, own in objects or [(VERIFICATION, IMPLICIT_VR_LITTLE_ENDIAN)]:
        for syntax in (own, *UNCOMPRESSED):
            wanted[sop_class, syntax] = None
    return [Proposal(0, sop_class, (syntax,)) for sop_class, syntax in wanted]


def commitment_proposal() -> list[Proposal]:
    """The presentation context of a request for storage commitment (PS3.4 J.3.2)."""
    return [Proposal(0, STORAGE_COMMITMENT, UNCOMPRESSED)]


class Link:
    """An open association with one peer, as a context manager that releases it."""

    def __init__(self, requestor: Requestor) -> None:
        self._requestor = requestor

    @classmethod
    def open(
        cls,
        calling_ae_title: str,
        remote: Remote,
        contexts: Sequence[Proposal],
        limits: Limits = DEFAULT_LIMITS,
        on_event_report: EventHandler | None = None,
    ) -> Link:
        """Connect and associate.

        `on_event_report` takes the reports that the peer sends on this association.

        Raises:
            LinkDownError: not connected, rejected, aborted or not answered.
        """
        try:
            connection = remote.connect(limits.connect_s)
        except OSError as error:
            raise LinkDownError(f"{remote}: cannot connect ({remote.in_words(error)})") from error

        ae_titles = (calling_ae_title, remote.ae_title)
        try:
            return cls(Requestor.open(connection, ae_titles, contexts, limits, on_event_report))
        except RejectedError as error:
            advice = _advice(error.rejected, calling_ae_title, remote)
            raise NotAdmittedError(f"{remote}: {error}: {advice}", error.rejected) from error
        except OSError as error:
            # In TLS 1.3, a peer that refuses our certificate says so only now.
            raise LinkDownError(f"{remote}: {remote.in_words(error)}") from error

    @property
    def implementation_class_uid(self) -> str:
        """The peer's, as it wrote it."""
        return self._requestor.implementation_class_uid

    @property
    def accepted(self) -> Collection[tuple[str, str]]:
        """The pairs of SOP class and transfer syntax UID that the peer accepts."""
        return self._requestor.accepted.keys()

    def store(self, outgoing: Outgoing) -> Answer:
        """C-STORE one object. A fault of the object does not end the association.

        Raises:
            NotAcceptedError, UnsendableError: nothing was sent.
            LinkDownError: the association was lost.
        """
        syntax = self._syntax_for(outgoing)
        context_id = self._requestor.accepted[outgoing.sop_class_uid, syntax]

        # PS3.7 Table 9.3-1
        command: dict[int, int | str | bytes] = {
            Element.AFFECTED_SOP_CLASS_UID: outgoing.sop_class_uid,
            Element.PRIORITY: Priority.MEDIUM,
            Element.AFFECTED_SOP_INSTANCE_UID: outgoing.sop_instance_uid,
        }
        with _data_set(outgoing, syntax) as data:
            begin = data.tell()
            size_bytes = data.seek(0, io.SEEK_END) - begin
            data.seek(begin)
            if size_bytes <= 0:
                raise UnsendableError("it holds no data set")
            return self._ask(Request(context_id, Command.C_STORE_RQ, command, data, size_bytes))

    def echo(self) -> Answer:
        """C-ECHO. Raises LinkDownError, NotAcceptedError."""
        context_id, _ = self._context_of(VERIFICATION, "Verification")
        # PS3.7 Table 9.3-12
        command: dict[int, int | str | bytes] = {Element.AFFECTED_SOP_CLASS_UID: VERIFICATION}
        return self._ask(Request(context_id, Command.C_ECHO_RQ, command))

    def action(
        self, sop_class_uid: str, sop_instance_uid: str, action_type: int, information: Dataset
    ) -> Answer:
        """N-ACTION. Raises LinkDownError, NotAcceptedError, UnsendableError."""
        from pydicom.uid import UID
        from pynetdicom.dsutils import encode

        context_id, syntax = self._context_of(sop_class_uid, UID(sop_class_uid).name)
        encoded = encode(information, syntax == IMPLICIT_VR_LITTLE_ENDIAN, True)
        if encoded is None:
            raise UnsendableError("its action information cannot be encoded")

        # PS3.7 Table 10.3-5
        command: dict[int, int | str | bytes] = {
            Element.REQUESTED_SOP_CLASS_UID: sop_class_uid,
            Element.REQUESTED_SOP_INSTANCE_UID: sop_instance_uid,
            Element.ACTION_TYPE_ID: action_type,
        }
        data = io.BytesIO(encoded)
        return self._ask(Request(context_id, Command.N_ACTION_RQ, command, data, len(encoded)))

    def await_event_report(self, within_s: float) -> bool:
        """Whether the peer sent an event report in time; it has gone to the handler.

        Raises LinkDownError.
        """
        try:
            return self._requestor.await_event_report(within_s)
        except OSError as error:
            raise self._lost(error) from error

    def __enter__(self) -> Link:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._requestor.release()

    def _syntax_for(self, outgoing: Outgoing) -> str:
        """The transfer syntax to send the object in: its own, otherwise an uncompressed one."""
        own = outgoing.transfer_syntax_uid
        possible = [own, *UNCOMPRESSED] if outgoing.part10 or own in UNCOMPRESSED else UNCOMPRESSED
        for syntax in possible:
            if (outgoing.sop_class_uid, syntax) in self._requestor.accepted:
                return syntax

        declined = self._requestor.declined
        pairs = [(outgoing.sop_class_uid, syntax) for syntax in possible]
        results = {declined.get(pair, ContextResult.NO_REASON) for pair in pairs}
        numbers = ", ".join(str(int(result)) for result in sorted(results))
        raise NotAcceptedError(
            f"no presentation context for SOP class {outgoing.sop_class_uid} in {own} "
            f"or uncompressed is accepted (result {numbers}); let the peer accept one of them",
            is_lasting=results <= _LASTING,
            accepts_others=bool(self._requestor.accepted),
        )

    def _context_of(self, sop_class_uid: str, name: str) -> tuple[int, str]:
        """The ID and the transfer syntax of an accepted context of this class."""
        for (accepted_class, syntax), context_id in self._requestor.accepted.items():
            if accepted_class == sop_class_uid:
                return context_id, syntax
        raise NotAcceptedError(f"no presentation context for {name} is accepted")

    def _ask(self, request: Request) -> Answer:
        try:
            return self._requestor.ask(request)
        except ValueError as error:
            raise UnsendableError(f"its UIDs cannot be encoded ({type(error).__name__})") from error
        except OSError as error:
            raise self._lost(error) from error

    def _lost(self, error: OSError) -> LinkDownError:
        self._requestor.abort()
        return LinkDownError(f"the association was lost: {error.strerror or error}")


def _advice(rejected: Rejected, calling_ae_title: str, remote: Remote) -> str:
    """What to do about a rejection."""
    advice = _ADVICE.get((rejected.source, rejected.reason), "its log may tell")
    return advice.format(
        calling=calling_ae_title,
        calling_key=remote.title_keys.calling,
        called=remote.ae_title,
        called_key=remote.title_keys.called,
    )


def _data_set(outgoing: Outgoing, syntax: str) -> Source:
    """The object's data set in `syntax`. Raises UnsendableError, LinkDownError."""
    try:
        if outgoing.part10 and syntax == outgoing.transfer_syntax_uid:
            return as_is(outgoing)
        return uncompressed(outgoing, syntax)
    except (UnsendableError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise FileGoneError("its file is gone") from error
    except OSError as error:
        raise LinkDownError(f"its file cannot be read: {error.strerror}") from error
    except Exception as error:
        # A decoder or parser may raise anything on arbitrary bytes.
        raise UnsendableError(f"it cannot be read or decoded ({type(error).__name__})") from error
