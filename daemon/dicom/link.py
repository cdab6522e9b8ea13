"""One outbound association: propose what the objects at hand need, send them as they are, say what the peer answered.

An object whose transfer syntax the peer does not take is sent uncompressed where it takes that: the decoded pixels of
the same object under the same UID, its lossy history kept (PS3.3 C.7.6.1.1.5).
"""

from __future__ import annotations

import io
import socket
import struct
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom.dsutils import encode, split_dataset

from daemon.dicom.requestor import (
    AFFECTED_SOP_CLASS_UID,
    AFFECTED_SOP_INSTANCE_UID,
    C_ECHO_RQ,
    C_STORE_RQ,
    PRIORITY,
    Message,
    Requestor,
    Source,
)
from daemon.dicom.tables import UNCOMPRESSED, VERIFICATION, Priority, wanted_contexts

_HEAD_BYTES = 1024  # of a file: more than a plain file meta information has
_ELEMENT = struct.Struct("<HH2sH")  # PS3.5 Table 7.1-2

_CONNECT_S = 10.0
_ACSE_S = 30.0  # for the answer to an association or release request
_STALLED_S = 60.0  # a peer that takes no byte for so long is gone
_ANSWER_S = (
    60.0  # for the answer to a message, on top of the time its bytes need at _SLOWEST_BYTES_PER_S
)
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
        syntaxes = [(one.sop_class_uid, one.transfer_syntax_uid) for one in objects]
        contexts = wanted_contexts(syntaxes or [(VERIFICATION, str(ImplicitVRLittleEndian))])
        try:
            connection = socket.create_connection((remote.host, remote.port), timeout=_CONNECT_S)
        except OSError as error:
            raise LinkDownError(f"{remote}: cannot connect ({error.strerror or error})") from error
        try:
            self._requestor = Requestor(
                connection, (calling_ae_title, remote.ae_title), contexts, _ACSE_S
            )
        except OSError as error:
            raise LinkDownError(f"{remote}: {error.strerror or error}") from error

    def store(self, outgoing: Outgoing) -> int:
        """C-STORE one object; returns the peer's status. The association stays, whatever is wrong with the object.

        Raises:
            NotAcceptedError, UnsendableError: nothing was sent.
            LinkDownError: the association was lost.
        """
        own = outgoing.transfer_syntax_uid
        ways = [
            syntax for syntax in (own, *UNCOMPRESSED) if outgoing.part10 or syntax in UNCOMPRESSED
        ]
        accepted = self._requestor.accepted
        syntax = next(
            (syntax for syntax in ways if (outgoing.sop_class_uid, syntax) in accepted), None
        )
        if syntax is None:
            raise NotAcceptedError(
                f"no presentation context for SOP class {outgoing.sop_class_uid} in {own} "
                "or uncompressed is accepted; let the peer accept one of them"
            )
        try:
            data = (
                _as_it_is(outgoing)
                if outgoing.part10 and syntax == own
                else _uncompressed(outgoing, syntax)
            )
        except UnsendableError:
            raise
        except FileNotFoundError as error:
            raise UnsendableError("its file is gone") from error
        except OSError as error:
            raise LinkDownError(f"its file cannot be read: {error.strerror}") from error
        except Exception as error:  # a decoder or parser met what it cannot take
            raise UnsendableError(
                f"it cannot be read or decoded ({type(error).__name__})"
            ) from error
        # PS3.7 Table 9.3-1
        command: dict[int, int | str] = {
            AFFECTED_SOP_CLASS_UID: outgoing.sop_class_uid,
            PRIORITY: Priority.MEDIUM,
            AFFECTED_SOP_INSTANCE_UID: outgoing.sop_instance_uid,
        }
        with data:
            begin = data.tell()
            size_bytes = data.seek(0, io.SEEK_END) - begin
            data.seek(begin)
            if size_bytes <= 0:
                raise UnsendableError("it holds no data set")
            return self._ask(
                Message(
                    accepted[outgoing.sop_class_uid, syntax], C_STORE_RQ, command, data, size_bytes
                )
            )

    def echo(self) -> int:
        """C-ECHO; returns the status. Raises LinkDownError, NotAcceptedError."""
        contexts = (
            context_id
            for (sop_class, _), context_id in self._requestor.accepted.items()
            if sop_class == VERIFICATION
        )
        context_id = next(contexts, None)
        if context_id is None:
            raise NotAcceptedError("no presentation context for Verification is accepted")
        # PS3.7 Table 9.3-12
        return self._ask(Message(context_id, C_ECHO_RQ, {AFFECTED_SOP_CLASS_UID: VERIFICATION}))

    def __enter__(self) -> Link:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._requestor.release(_ACSE_S)

    def _ask(self, message: Message) -> int:
        within_s = _ANSWER_S + message.data_bytes / _SLOWEST_BYTES_PER_S
        try:
            return self._requestor.ask(message, _STALLED_S, within_s)
        except ValueError as error:
            raise UnsendableError(f"its UIDs cannot be encoded ({type(error).__name__})") from error
        except OSError as error:
            self._requestor.abort()
            raise LinkDownError(f"the association was lost: {error.strerror or error}") from error


def describe(path: Path) -> Outgoing:
    """What a file holds, with or without file meta information. Raises UnsendableError, OSError."""
    try:
        uids, _ = _file_meta(path)
        return Outgoing(path, *uids)
    except (InvalidDicomError, AttributeError):
        pass  # no preamble, or no complete file meta information: what the data set says
    header = _read(path, header_only=True)
    try:
        return Outgoing(
            path, str(header.SOPClassUID), str(header.SOPInstanceUID), _syntax(header), part10=False
        )
    except AttributeError as error:
        raise UnsendableError(
            "no DICOM object: SOP Class UID or SOP Instance UID is absent"
        ) from error


def _as_it_is(outgoing: Outgoing) -> Source:
    """The file, where its data set begins."""
    uids, offset = _file_meta(outgoing.path)
    if uids != (outgoing.sop_class_uid, outgoing.sop_instance_uid, outgoing.transfer_syntax_uid):
        raise UnsendableError("its file meta information tells of another object")
    file = outgoing.path.open("rb", buffering=0)
    file.seek(offset)
    return file


def _file_meta(path: Path) -> tuple[tuple[str, str, str], int]:
    """The UIDs of SOP class, SOP instance and transfer syntax, and where the data set begins.

    Raises:
        OSError, InvalidDicomError; AttributeError: one of the UIDs is absent.
    """
    with path.open("rb", buffering=0) as file:
        plain = _plain_file_meta(file.read(_HEAD_BYTES))
    if plain is not None:
        return plain
    meta, offset = split_dataset(path)
    uids = (meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID, meta.TransferSyntaxUID)
    return (str(uids[0]), str(uids[1]), str(uids[2])), offset


def _plain_file_meta(head: bytes) -> tuple[tuple[str, str, str], int] | None:
    """The same from the first bytes of a file that is as PS3.10 7.1 has it, in a tenth of the time; else None."""
    if head[128:140] != b"DICM\x02\0\0\0UL\x04\0":  # the prefix; (0002,0000), the group's length
        return None
    at, end = 144, 144 + int.from_bytes(head[140:144], "little")
    values: dict[int, bytes] = {}
    while at + _ELEMENT.size <= min(end, len(head)):
        group, number, vr, length = _ELEMENT.unpack_from(head, at)
        if group != 0x0002:
            return None
        at += _ELEMENT.size
        if vr == b"OB":  # PS3.5 7.1.2: a length of four bytes, after two reserved ones
            length, at = int.from_bytes(head[at : at + 4], "little"), at + 4
        values[number], at = head[at : at + length], at + length
    if (
        at != end
        or end + 2 > len(head)
        or head[end : end + 2] == b"\x02\0"
        or not values.keys() >= {0x02, 0x03, 0x10}
    ):
        return None
    sop_class, sop_instance, syntax = (
        values[number].rstrip(b"\0 ").decode("ascii", "replace") for number in (0x02, 0x03, 0x10)
    )
    return (sop_class, sop_instance, syntax), end


def _uncompressed(outgoing: Outgoing, syntax: str) -> Source:
    """The data set, its pixels decoded, in one of the uncompressed syntaxes."""
    dataset = _read(outgoing.path)
    dataset.file_meta.TransferSyntaxUID = UID(outgoing.transfer_syntax_uid)
    if dataset.file_meta.TransferSyntaxUID.is_compressed:
        # The same object in another encoding keeps its UID (PS3.4 B.4.1.3).
        dataset.decompress(generate_instance_uid=False)
    if dataset.original_encoding[1] is False:
        raise UnsendableError(
            "it is big endian, which the peer does not take"
        )  # nobody would swap its pixels' bytes
    encoded = encode(dataset, UID(syntax).is_implicit_VR, True)
    if encoded is None:
        raise UnsendableError("it cannot be encoded")
    return io.BytesIO(encoded)


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
