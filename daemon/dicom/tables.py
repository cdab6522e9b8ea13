"""What both ends of the wire share: statuses, the SOP classes and transfer syntaxes we take, and a quiet library.

Importing this module sets pynetdicom's own switches for the process: its logs quote what peers send, and its UID check
would abort an association where PS3.4 B.2.3 wants a status.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from importlib.metadata import version
from typing import Any, cast

from pydicom import config, uid
from pynetdicom import _config
from pynetdicom.dul import DULServiceProvider
from pynetdicom.presentation import PresentationContext, build_context

log = logging.getLogger("pleura.receive")

_config.LOG_HANDLER_LEVEL = "none"
_config.VALIDATORS["UI"] = lambda _: (True, "")  # scp.py answers a bad SOP Instance UID with 0x0117
_config.STORE_SEND_CHUNKED_DATASET = (
    True  # a file goes out as the bytes it is, never decoded and encoded again
)
logging.getLogger("pynetdicom").setLevel(logging.CRITICAL + 1)

# PS3.7 D.3.3.2: names the implementation, in associations and in the file meta information of what we receive.
IMPLEMENTATION_CLASS_UID = "2.25.185662961511293906917213657468255293311"
IMPLEMENTATION_VERSION_NAME = f"PLEURA_{version('pleura')}"[:16]

MAXIMUM_PDU_BYTES = (
    256 * 1024
)  # fewer, larger PDUs than the usual 16 KiB; a peer may still send smaller ones


class Status(IntEnum):
    """Statuses that this node answers with (PS3.4 Table B.2-1, PS3.7 Annex C)."""

    SUCCESS = 0x0000
    PROCESSING_FAILURE = 0x0110
    NO_SUCH_EVENT_TYPE = 0x0113
    INVALID_ARGUMENT_VALUE = 0x0115
    INVALID_OBJECT_INSTANCE = 0x0117
    NO_SUCH_SOP_CLASS = 0x0118
    SOP_CLASS_NOT_SUPPORTED = 0x0122
    OUT_OF_RESOURCES = 0xA700


class Priority(IntEnum):
    """(0000,0700), PS3.7 E.1-1."""

    MEDIUM = 0
    HIGH = 1
    LOW = 2


UNCOMPRESSED = (uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian)

# An acceptor picks the first of its own list that the peer proposes, so what loses nothing comes first: a sender that
# offers both in one context must not be made to compress.
_IMAGE_SYNTAXES = (
    *UNCOMPRESSED,
    uid.DeflatedExplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
    uid.JPEGLosslessSV1,
    uid.JPEGLossless,
    uid.JPEGLSLossless,
    uid.JPEG2000Lossless,
    uid.RLELossless,
    uid.HTJ2KLossless,
    uid.HTJ2KLosslessRPCL,
    uid.JPEGBaseline8Bit,
    uid.JPEGExtended12Bit,
    uid.JPEGLSNearLossless,
    uid.JPEG2000,
    uid.HTJ2K,
)
_OTHER_SYNTAXES = _IMAGE_SYNTAXES[:4]

# The images we are for, and what a router may well push along with them, our own results first: taken and recorded,
# never analysed. pynetdicom copies the contexts for each association: this table costs it 1.5 ms.
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
VERIFICATION = "1.2.840.10008.1.1"
STORAGE_COMMITMENT = "1.2.840.10008.1.20.1"  # Storage Commitment Push Model
STORAGE_COMMITMENT_INSTANCE = "1.2.840.10008.1.20.1.1"  # well-known, PS3.4 J.3.5


def accepted_contexts() -> list[PresentationContext]:
    """What the receive role takes: Verification, storage commitment reports, and Storage."""
    return [
        *report_contexts(),
        *(build_context(sop_class, list(_IMAGE_SYNTAXES)) for sop_class in _IMAGE_CLASSES),
        *(build_context(sop_class, list(_OTHER_SYNTAXES)) for sop_class in _OTHER_CLASSES),
    ]


def report_contexts() -> list[PresentationContext]:
    """What an archive that is asked for storage commitment may do here: Verification, and report (PS3.4 J.3.3)."""
    commitment = build_context(STORAGE_COMMITMENT, list(UNCOMPRESSED))
    commitment.scp_role = (
        True  # it may propose that role for itself; many report without negotiating one
    )
    commitment.scu_role = False
    return [build_context(VERIFICATION, list(UNCOMPRESSED)), commitment]


def no_delay(connection: socket.socket) -> None:
    """Send small messages at once: with Nagle's algorithm each DIMSE message can wait 40 ms for an acknowledgement."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def printable(text: object, limit: int = 64) -> str:
    """A peer's string as a log may show it: one line of ASCII, no longer than `limit` characters."""
    return "".join(c if " " <= c <= "~" else "?" for c in str(text)[:limit])


@contextmanager
def lenient_headers() -> Iterator[None]:
    """While it lasts, pydicom does not warn about values that break their VR's rules: its warnings quote them."""
    _Leniency.enter()
    try:
        yield
    finally:
        _Leniency.leave()


@contextmanager
def quiet_reactors() -> Iterator[None]:
    """While it lasts, an association whose state machine meets the impossible ends with one line, not a traceback.

    A peer that talks on while it is being answered can bring pynetdicom there (PS3.8 Table 9-10 has no such event);
    its thread then dies, and the association, with its connection, must end with it.
    """
    before = threading.excepthook

    def hook(args: threading.ExceptHookArgs) -> None:
        if isinstance(args.thread, DULServiceProvider):
            log.warning(
                "association ended: its peer kept to no protocol (%s)", args.exc_type.__name__
            )
            if args.thread.socket is not None:
                args.thread.socket.close()
            args.thread.to_user_queue.put(
                cast(Any, None)
            )  # its other thread may wait for a request, 30 s long
        else:
            before(args)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before


class _Leniency:
    """pydicom's setting is one for the process; the first thread to need it changes it, the last restores it."""

    lock = threading.Lock()
    users = 0
    before = (0, 0)

    @classmethod
    def enter(cls) -> None:
        settings = config.settings
        with cls.lock:
            if cls.users == 0:
                cls.before = settings.reading_validation_mode, settings.writing_validation_mode
                settings.reading_validation_mode = settings.writing_validation_mode = config.IGNORE
            cls.users += 1

    @classmethod
    def leave(cls) -> None:
        with cls.lock:
            cls.users -= 1
            if cls.users == 0:
                config.settings.reading_validation_mode, config.settings.writing_validation_mode = (
                    cls.before
                )
