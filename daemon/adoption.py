"""Adopt strays: complete files in the spool that the ledger has never known.

A crash between a file and its row leaves one stray. A ledger restored from an older backup may
leave thousands, including acknowledged images, so a stray is never deleted. A received image is
adopted: its file meta information identifies it, and it waits for the analyse role like any other
image. If its sender has sent it again meanwhile, it ends as a duplicate (docs/rules.md,
"Duplicates"). Every other stray goes to the spool's quarantine folder.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from daemon.dicom.part10 import HEAD_BYTES, FileMeta, read_file_meta
from daemon.dicom.tables import IMPLEMENTATION_CLASS_UID
from daemon.dicom.uids import is_uid
from daemon.ledger import Arrival, Ledger
from daemon.spool import ORPHAN_AGE_S, Faults, Spool

log = logging.getLogger("pleura.spool")

# Routine: the DIMSE priority of an adopted image is lost.
_PRIORITY = 1
# The root of our results' UIDs (docs/rules.md, "Identity").
_RESULT_ROOT = "2.25."


@dataclass
class Strays:
    """Counts of strays, by what was done with them."""

    adopted: int = 0
    # Results that no transaction refers to: the analyse role makes them again from their image.
    results: int = 0
    # Files that could not be identified: a person must look at them.
    quarantined: int = 0


def adopt_strays(ledger: Ledger, spool: Spool, age_s: float = ORPHAN_AGE_S) -> Strays:
    """Adopt or quarantine the strays that are older than `age_s` seconds.

    A younger file may be between its write and its commit, on this host or another one.

    Raises:
        OSError, SpoolError: the spool cannot be read or changed; the other strays were adopted.
        SQLAlchemyError: the ledger cannot be read or written.
    """
    strays = Strays()
    faults = Faults()
    with faults.noted():
        for names in spool.old_names(age_s):
            arrivals = []
            for name in sorted(ledger.inspect.unknown_spool_names(names)):
                with faults.noted():
                    if arrival := _arrival_or_quarantined(spool, name, strays):
                        arrivals.append(arrival)
            _adopt(ledger, arrivals, strays)

    if strays.results:
        log.warning(
            "%d result files that no delivery needs were moved to %s; they can be removed",
            strays.results,
            spool.quarantine_folder,
        )
    faults.raise_first()
    return strays


class _UnidentifiedError(Exception):
    """A stray is neither a received image nor a result. The message says why."""


def _arrival_or_quarantined(spool: Spool, name: str, strays: Strays) -> Arrival | None:
    """A stray as an image to adopt; None if it was quarantined."""
    try:
        arrival = _arrival(spool, name)
    except _UnidentifiedError as error:
        spool.quarantine(name)
        strays.quarantined += 1
        log.error(
            "spool file %s: the ledger does not know it, and %s; it was moved to %s",
            name,
            error,
            spool.quarantine_folder,
        )
        return None

    if arrival is None:
        spool.quarantine(name, ".result")
        strays.results += 1
    return arrival


def _adopt(ledger: Ledger, arrivals: Sequence[Arrival], strays: Strays) -> None:
    if not arrivals:
        return

    adopted = ledger.adopt(arrivals)
    strays.adopted += len(adopted)
    for arrival in adopted:
        log.warning(
            "spool file %s: the ledger did not know it; image %s is adopted and analysed",
            arrival.spool_name,
            arrival.sop_instance_uid,
        )


def _arrival(spool: Spool, name: str) -> Arrival | None:
    """A stray as an image to adopt; None if it is one of our results.

    Raises:
        _UnidentifiedError: it is neither.
    """
    path = spool.path(name)
    try:
        meta = _file_meta(path)
        size_bytes = path.stat().st_size
    except OSError as error:
        raise _UnidentifiedError(f"it cannot be read ({error.strerror})") from error

    if meta is None or not is_uid(meta.sop_instance_uid):
        raise _UnidentifiedError("its file meta information does not identify it")
    if _is_result(meta):
        return None
    if size_bytes <= meta.data_set_at:
        raise _UnidentifiedError("it holds no data set")

    return Arrival(
        spool_name=name,
        # Checked as the inbox checks them: a file holds any bytes, and PostgreSQL would refuse the
        # whole batch for a NUL byte.
        sop_class_uid=meta.sop_class_uid if is_uid(meta.sop_class_uid) else "",
        sop_instance_uid=meta.sop_instance_uid,
        transfer_syntax_uid=meta.transfer_syntax_uid if is_uid(meta.transfer_syntax_uid) else "",
        calling_ae_title=meta.source_ae_title if meta.source_ae_title.isprintable() else "",
        origin="adopted",
        priority=_PRIORITY,
        size_bytes=size_bytes,
    )


def _is_result(meta: FileMeta) -> bool:
    """Whether this node made the object.

    An image from the inbox has no source AE title either, so that alone does not tell.
    """
    return (
        meta.sop_instance_uid.startswith(_RESULT_ROOT)
        and meta.implementation_class_uid == IMPLEMENTATION_CLASS_UID
        and not meta.source_ae_title
    )


def _file_meta(path: Path) -> FileMeta | None:
    with path.open("rb") as file:
        return read_file_meta(file.read(HEAD_BYTES))
