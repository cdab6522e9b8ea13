"""One outbound association: propose what the objects at hand need, send them as they are, say what the peer answered.

An object whose transfer syntax the peer does not take is sent uncompressed where it takes that: the decoded pixels of
the same object under the same UID, its lossy history kept (PS3.3 C.7.6.1.1.5).
"""

from __future__ import annotations

import socket
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import cast

from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.events import Event
from pynetdicom.pdu_primitives import A_ASSOCIATE

from daemon.dimse import (
    IMPLEMENTATION_CLASS_UID,
    IMPLEMENTATION_VERSION_NAME,
    MAXIMUM_PDU_BYTES,
    UNCOMPRESSED,
    VERIFICATION,
    Priority,
    no_delay,
    wanted_contexts,
)

_CONNECT_S = 10.0
_DIAGNOSIS_S = 2.0
_ACSE_S = 30.0  # for the answer to an association or release request
_STALLED_S = 60.0  # a peer that takes no byte for so long is gone
_ANSWER_S = 60.0  # for the answer to a message, on top of the time its bytes need at _SLOWEST_BYTES_PER_S
_SLOWEST_BYTES_PER_S = 50_000


class LinkDownError(Exception):
    """No association, or it was lost. Nobody's object is to blame; trying again may help. The message says what was."""


class NotAcceptedError(Exception):
    """The peer takes this object in none of the syntaxes it could be sent in."""


class UnsendableError(Exception):
    """The file holds no object that could be sent."""


@dataclass(frozen=True)
class Remote:
    """An application entity on the network."""

    ae_title: str
    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.ae_title} at {self.host}:{self.port}"


@dataclass(frozen=True)
class Outgoing:
    """One object to send. `part10`: the file has a file meta information, so its bytes can go out as they are."""

    path: Path
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    part10: bool = True


class Link:
    """An open association with one peer, as a context manager that releases it."""

    def __init__(self, calling_ae_title: str, remote: Remote, objects: Sequence[Outgoing]) -> None:
        """Associate, proposing what `objects` need; with none, Verification.

        Raises:
            LinkDownError: not connected, rejected, aborted or not answered.
        """
        entity = AE(calling_ae_title)
        entity.implementation_class_uid = IMPLEMENTATION_CLASS_UID
        entity.implementation_version_name = IMPLEMENTATION_VERSION_NAME
        entity.connection_timeout, entity.acse_timeout, entity.network_timeout = _CONNECT_S, _ACSE_S, _STALLED_S
        entity.dimse_timeout = _ANSWER_S
        syntaxes = [(one.sop_class_uid, one.transfer_syntax_uid) for one in objects]
        self._socket: socket.socket | None = None
        try:
            self._association = entity.associate(
                remote.host,
                remote.port,
                contexts=wanted_contexts(syntaxes or [(VERIFICATION, str(ImplicitVRLittleEndian))]),
                ae_title=remote.ae_title,
                max_pdu=MAXIMUM_PDU_BYTES,
                evt_handlers=[(evt.EVT_CONN_OPEN, self._on_open)],
            )
        except OSError as error:
            raise LinkDownError(f"{remote}: {error.strerror or error}") from error
        self._accepted = {(cx.abstract_syntax, cx.transfer_syntax[0]) for cx in self._association.accepted_contexts}
        if not self._association.is_established and not self._answered_without_contexts():
            self._close()
            raise LinkDownError(f"{remote}: {self._why_not(remote)}")

    def store(self, outgoing: Outgoing) -> int:
        """C-STORE one object; returns the peer's status. The association stays, whatever is wrong with the object.

        Raises:
            NotAcceptedError, UnsendableError: nothing was sent.
            LinkDownError: the association was lost.
        """
        taken = [
            syntax
            for syntax in (outgoing.transfer_syntax_uid, *UNCOMPRESSED)
            if (outgoing.sop_class_uid, syntax) in self._accepted
        ]
        if not taken:
            raise NotAcceptedError(
                f"no presentation context for SOP class {outgoing.sop_class_uid} in {outgoing.transfer_syntax_uid} "
                "or uncompressed is accepted; let the peer accept one of them"
            )
        as_it_is = outgoing.part10 and taken[0] == outgoing.transfer_syntax_uid
        try:
            size_bytes = outgoing.path.stat().st_size
            read_file_meta_info(outgoing.path) if as_it_is else None
            what = outgoing.path if as_it_is else _uncompressed(outgoing)
        except FileNotFoundError as error:
            raise UnsendableError("its file is gone") from error
        except OSError as error:
            raise LinkDownError(f"its file cannot be read: {error.strerror}") from error
        except Exception as error:  # a decoder or parser met what it cannot take
            raise UnsendableError(f"it cannot be read or decoded ({type(error).__name__})") from error
        self._association.dimse_timeout = _ANSWER_S + size_bytes / _SLOWEST_BYTES_PER_S
        try:
            answer = self._association.send_c_store(what, priority=Priority.MEDIUM)
        except (AttributeError, TypeError, ValueError) as error:  # raised before anything is sent
            raise UnsendableError(f"it cannot be encoded ({type(error).__name__})") from error
        except (RuntimeError, OSError) as error:  # lost between two objects; or the file failed under the sender
            self._association.abort()
            raise LinkDownError("the association was lost") from error
        return self._status(answer)

    def echo(self) -> int:
        """C-ECHO; returns the status. Raises LinkDownError."""
        return self._status(self._association.send_c_echo())

    def __enter__(self) -> Link:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._association.is_established:
            self._association.release()
        self._close()

    def _status(self, answer: Dataset) -> int:
        if "Status" not in answer:
            raise LinkDownError("the association was aborted, or no answer came in time")
        return int(answer.Status)

    def _close(self) -> None:
        if self._socket is not None:  # pynetdicom leaves it open where the peer was quicker
            self._socket.close()

    def _on_open(self, event: Event) -> None:
        transport = event.assoc.dul.socket
        if transport is not None and transport.socket is not None:
            self._socket = transport.socket
            no_delay(transport.socket)
            transport.socket.settimeout(_STALLED_S)  # pynetdicom would wait for ever for room to send

    def _answered_without_contexts(self) -> bool:
        """The peer accepted the association but no context: pynetdicom ends it, and each object is told so."""
        answer = self._association.acceptor.primitive
        return isinstance(answer, A_ASSOCIATE) and answer.result == 0

    def _why_not(self, remote: Remote) -> str:
        if self._socket is None:
            return f"cannot connect ({_network_trouble(remote)})"
        if self._association.is_rejected:
            answer = cast(A_ASSOCIATE, self._association.acceptor.primitive)
            numbers = f"{answer.result}/{answer.result_source}/{answer.diagnostic}"
            return f"association rejected with {numbers} ({answer.reason_str})"
        return "connected, but the association request was aborted or not answered"


def _network_trouble(remote: Remote) -> str:
    """What the operating system says: pynetdicom keeps that to itself."""
    try:
        socket.create_connection((remote.host, remote.port), timeout=_DIAGNOSIS_S).close()
    except OSError as error:
        return error.strerror or str(error)
    return "a second try did"


def describe(path: Path) -> Outgoing:
    """What a file holds, with or without file meta information. Raises UnsendableError, OSError."""
    try:
        meta = read_file_meta_info(path)
        sop_class_uid, sop_instance_uid = str(meta.MediaStorageSOPClassUID), str(meta.MediaStorageSOPInstanceUID)
        return Outgoing(path, sop_class_uid, sop_instance_uid, str(meta.TransferSyntaxUID))
    except (InvalidDicomError, AttributeError):
        pass  # no preamble, or no complete file meta information: what the data set says
    header = _read(path, header_only=True)
    try:
        return Outgoing(path, str(header.SOPClassUID), str(header.SOPInstanceUID), _syntax(header), part10=False)
    except AttributeError as error:
        raise UnsendableError("no DICOM object: SOP Class UID or SOP Instance UID is absent") from error


def _uncompressed(outgoing: Outgoing) -> Dataset:
    dataset = _read(outgoing.path)
    dataset.file_meta.TransferSyntaxUID = UID(outgoing.transfer_syntax_uid)
    if dataset.file_meta.TransferSyntaxUID.is_compressed:
        # The same object in another encoding keeps its UID (PS3.4 B.4.1.3).
        dataset.decompress(generate_instance_uid=False)
    return dataset


def _read(path: Path, header_only: bool = False) -> Dataset:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they quote header values
        try:
            dataset = dcmread(path, force=True, stop_before_pixels=header_only)
            len(dataset)
        except OSError:
            raise
        except Exception as error:
            raise UnsendableError(f"no DICOM object ({type(error).__name__})") from error
    return dataset


def _syntax(header: Dataset) -> str:
    """The transfer syntax, told or seen: a data set without file meta information is not compressed."""
    told = header.file_meta.get("TransferSyntaxUID")
    implicit, _ = header.original_encoding
    return str(told or (ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian))
