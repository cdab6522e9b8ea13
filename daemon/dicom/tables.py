"""The standard's tables that acceptor and requestor share.

Statuses, the SOP classes and transfer syntaxes that the node accepts, its implementation UID.
"""

from __future__ import annotations

import socket
from enum import IntEnum
from importlib.metadata import version

from daemon.dicom.negotiation import Supported

# PS3.7 D.3.3.2: identifies this implementation in associations, and in the file meta information of
# received objects.
IMPLEMENTATION_CLASS_UID = "2.25.185662961511293906917213657468255293311"
IMPLEMENTATION_VERSION_NAME = f"PLEURA_{version('pleura')}"[:16]

# Fewer and larger PDUs than the usual 16 KiB. A peer may still send smaller ones.
MAXIMUM_PDU_BYTES = 256 * 1024


class Status(IntEnum):
    """Statuses that this node answers with (PS3.4 Table B.2-1, PS3.7 Annex C)."""

    SUCCESS = 0x0000
    PROCESSING_FAILURE = 0x0110
    NO_SUCH_EVENT_TYPE = 0x0113
    INVALID_ARGUMENT_VALUE = 0x0115
    INVALID_OBJECT_INSTANCE = 0x0117
    NO_SUCH_SOP_CLASS = 0x0118
    SOP_CLASS_NOT_SUPPORTED = 0x0122
    UNRECOGNIZED_OPERATION = 0x0211
    OUT_OF_RESOURCES = 0xA700
    CANNOT_UNDERSTAND = 0xC000


class Priority(IntEnum):
    """(0000,0700), PS3.7 E.1-1."""

    MEDIUM = 0
    HIGH = 1
    LOW = 2


IMPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2"
EXPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
UNCOMPRESSED = (EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN)

# The acceptor picks the first syntax in this list that the peer proposes. Uncompressed and lossless
# syntaxes come first, so that no sender has to compress with loss. The UIDs are written out,
# because importing pydicom (and numpy) would cost the receive role 40 MB.
_IMAGE_SYNTAXES = (
    *UNCOMPRESSED,
    "1.2.840.10008.1.2.1.99",  # Deflated Explicit VR Little Endian
    "1.2.840.10008.1.2.2",  # Explicit VR Big Endian
    "1.2.840.10008.1.2.4.70",  # JPEG Lossless, First-Order Prediction
    "1.2.840.10008.1.2.4.57",  # JPEG Lossless
    "1.2.840.10008.1.2.4.80",  # JPEG-LS Lossless
    "1.2.840.10008.1.2.4.90",  # JPEG 2000, lossless only
    "1.2.840.10008.1.2.5",  # RLE Lossless
    "1.2.840.10008.1.2.4.201",  # High-Throughput JPEG 2000, lossless only
    "1.2.840.10008.1.2.4.202",  # High-Throughput JPEG 2000, lossless only, RPCL
    "1.2.840.10008.1.2.4.50",  # JPEG Baseline, 8 bit
    "1.2.840.10008.1.2.4.51",  # JPEG Extended, 12 bit
    "1.2.840.10008.1.2.4.81",  # JPEG-LS Near-Lossless
    "1.2.840.10008.1.2.4.91",  # JPEG 2000
    "1.2.840.10008.1.2.4.203",  # High-Throughput JPEG 2000
)
_OTHER_SYNTAXES = _IMAGE_SYNTAXES[:4]

# The images that the node analyses, and other objects that a router may send along with them, among
# them our own results. Those are accepted and recorded, but never analysed.
_IMAGE_CLASSES = (
    "1.2.840.10008.5.1.4.1.1.1",  # Computed Radiography Image Storage
    "1.2.840.10008.5.1.4.1.1.1.1",  # Digital X-Ray Image Storage - For Presentation
    "1.2.840.10008.5.1.4.1.1.1.1.1",  # Digital X-Ray Image Storage - For Processing
    "1.2.840.10008.5.1.4.1.1.7",  # Secondary Capture Image Storage
    "1.2.840.10008.5.1.4.1.1.7.1",  # Multi-frame Single Bit Secondary Capture Image Storage
    "1.2.840.10008.5.1.4.1.1.7.2",  # Multi-frame Grayscale Byte Secondary Capture Image Storage
    "1.2.840.10008.5.1.4.1.1.7.3",  # Multi-frame Grayscale Word Secondary Capture Image Storage
    "1.2.840.10008.5.1.4.1.1.7.4",  # Multi-frame True Color Secondary Capture Image Storage
    "1.2.840.10008.5.1.4.1.1.66.4",  # Segmentation Storage
)
_OTHER_CLASSES = (
    "1.2.840.10008.5.1.4.1.1.11.1",  # Grayscale Softcopy Presentation State Storage
    "1.2.840.10008.5.1.4.1.1.88.11",  # Basic Text SR Storage
    "1.2.840.10008.5.1.4.1.1.88.22",  # Enhanced SR Storage
    "1.2.840.10008.5.1.4.1.1.88.33",  # Comprehensive SR Storage
    "1.2.840.10008.5.1.4.1.1.88.34",  # Comprehensive 3D SR Storage
    "1.2.840.10008.5.1.4.1.1.88.59",  # Key Object Selection Document Storage
)
# Only these may be stored: a peer that may only verify or report proposes none of them.
STORAGE_CLASSES = frozenset((*_IMAGE_CLASSES, *_OTHER_CLASSES))

VERIFICATION = "1.2.840.10008.1.1"
STORAGE_COMMITMENT = "1.2.840.10008.1.20.1"  # Storage Commitment Push Model
STORAGE_COMMITMENT_INSTANCE = "1.2.840.10008.1.20.1.1"  # well-known, PS3.4 J.3.5


def reported_classes() -> dict[str, Supported]:
    """What an archive that we ask for storage commitment may propose, by abstract syntax.

    Verification, and commitment reports (PS3.4 J.3.3). For reports it may propose the SCP role;
    many archives report without role selection.
    """
    return {
        VERIFICATION: Supported(UNCOMPRESSED),
        STORAGE_COMMITMENT: Supported(UNCOMPRESSED, takes_scp=True),
    }


def stored_classes() -> dict[str, Supported]:
    """What a peer that stores may propose: `reported_classes` and Storage, by abstract syntax."""
    images = Supported(_IMAGE_SYNTAXES)
    others = Supported(_OTHER_SYNTAXES)
    return (
        reported_classes()
        | dict.fromkeys(_IMAGE_CLASSES, images)
        | dict.fromkeys(_OTHER_CLASSES, others)
    )


def no_delay(connection: socket.socket) -> None:
    """Send small messages at once (TCP_NODELAY).

    With Nagle's algorithm, each DIMSE message can wait 40 ms for an acknowledgement.
    """
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def printable(text: object, limit: int = 64) -> str:
    """A peer's string, safe to log: one line of ASCII, at most `limit` characters."""
    return "".join(c if " " <= c <= "~" else "?" for c in str(text)[:limit])
