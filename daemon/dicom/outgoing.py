"""Objects to send: read from a file, and encoded as a data set for the wire.

The bytes are sent unchanged if the peer accepts their transfer syntax. Otherwise the pixels are
decoded: the object keeps its UID and its lossy history (PS3.3 C.7.6.1.1.5). Only that needs
pydicom, which is imported there.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from daemon.dicom.part10 import HEAD_BYTES, read_file_meta
from daemon.dicom.tables import EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN

if TYPE_CHECKING:
    from pydicom import Dataset


class UnsendableError(Exception):
    """The file holds no object that can be sent."""


class FileGoneError(UnsendableError):
    """The file is absent: it was removed, or its folder is not mounted."""


@dataclass(frozen=True)
class Outgoing:
    """One object to send.

    `part10`: the file has a file meta information, so its bytes can go out as they are.
    """

    path: Path
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    part10: bool = True

    @property
    def syntaxes(self) -> tuple[str, str]:
        """Its abstract syntax (SOP class) and transfer syntax UID."""
        return self.sop_class_uid, self.transfer_syntax_uid


def describe(path: Path) -> Outgoing:
    """The object in a file, with or without file meta information.

    Raises UnsendableError, OSError.
    """
    from pydicom.errors import InvalidDicomError

    try:
        uids, _ = _file_meta(path)
        return Outgoing(path, *uids)
    except (InvalidDicomError, AttributeError):
        # No preamble, or no complete file meta information: the data set says what it is.
        pass

    header = _read(path, header_only=True)
    try:
        uids = (str(header.SOPClassUID), str(header.SOPInstanceUID), _syntax(header))
    except AttributeError as error:
        raise UnsendableError(
            "no DICOM object: SOP Class UID or SOP Instance UID is absent"
        ) from error
    return Outgoing(path, *uids, part10=False)


def as_is(outgoing: Outgoing) -> io.FileIO | io.BytesIO:
    """The file, at the place where its data set begins. Raises UnsendableError, OSError."""
    uids, offset = _file_meta(outgoing.path)
    if uids != (outgoing.sop_class_uid, outgoing.sop_instance_uid, outgoing.transfer_syntax_uid):
        raise UnsendableError("its file meta information names another object")
    file = outgoing.path.open("rb", buffering=0)
    file.seek(offset)
    return file


def uncompressed(outgoing: Outgoing, syntax: str) -> io.FileIO | io.BytesIO:
    """The data set with decoded pixels, in one of the uncompressed little endian syntaxes.

    Raises:
        UnsendableError, OSError; whatever a decoder raises on pixels that it cannot take.
    """
    from pydicom.uid import UID
    from pynetdicom.dsutils import encode

    dataset = _read(outgoing.path)
    dataset.file_meta.TransferSyntaxUID = UID(outgoing.transfer_syntax_uid)
    if dataset.file_meta.TransferSyntaxUID.is_compressed:
        # The same object in another encoding keeps its UID (PS3.4 B.4.1.3).
        dataset.decompress(generate_instance_uid=False)

    if dataset.original_encoding[1] is False:
        # Nothing here swaps the bytes of its pixels.
        raise UnsendableError("it is big endian, which the peer does not take")
    is_implicit = syntax == IMPLICIT_VR_LITTLE_ENDIAN
    if is_implicit:
        _keep_values(dataset)
    encoded = encode(dataset, is_implicit, True)
    if encoded is None:
        raise UnsendableError("it cannot be encoded")
    return io.BytesIO(encoded)


def _keep_values(dataset: Dataset) -> None:
    """Let pydicom write each value in Implicit VR as the bytes that were read.

    Text that is decoded and encoded again may become another text: another patient's ID.
    """
    for tag in dataset.keys():  # noqa: SIM118 - iteration itself would decode the values
        if dataset.get_item(tag).VR == "SQ":
            for item in dataset[tag].value:
                _keep_values(item)
    dataset.set_original_encoding(True, True)


def _file_meta(path: Path) -> tuple[tuple[str, str, str], int]:
    """The UIDs of SOP class, SOP instance and transfer syntax, and the offset of the data set.

    Raises:
        OSError, InvalidDicomError; AttributeError: one of the UIDs is absent.
    """
    with path.open("rb", buffering=0) as file:
        plain = read_file_meta(file.read(HEAD_BYTES))
    if plain is not None:
        uids = (plain.sop_class_uid, plain.sop_instance_uid, plain.transfer_syntax_uid)
        return uids, plain.data_set_at

    from pynetdicom.dsutils import split_dataset

    meta, offset = split_dataset(path)
    uids = (
        str(meta.MediaStorageSOPClassUID),
        str(meta.MediaStorageSOPInstanceUID),
        str(meta.TransferSyntaxUID),
    )
    return uids, offset


def _read(path: Path, header_only: bool = False) -> Dataset:
    from pydicom import dcmread

    with warnings.catch_warnings():
        # pydicom's warnings quote header values.
        warnings.simplefilter("ignore")
        try:
            dataset = dcmread(path, force=True, stop_before_pixels=header_only)
            len(dataset)
        except OSError:
            raise
        except Exception as error:
            raise UnsendableError(f"no DICOM object ({type(error).__name__})") from error
    return dataset


def _syntax(header: Dataset) -> str:
    """The transfer syntax, stated or recognised: a data set without file meta information is not
    compressed.
    """
    stated = header.file_meta.get("TransferSyntaxUID")
    implicit, _ = header.original_encoding
    return str(stated or (IMPLICIT_VR_LITTLE_ENDIAN if implicit else EXPLICIT_VR_LITTLE_ENDIAN))
