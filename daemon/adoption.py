"""Strays: whole files in the spool that the ledger has never known.

A crash between a file and its row leaves one; a ledger that was restored from an older backup may
leave thousands, among them images that were acknowledged. So a stray is never deleted. A received
image is adopted: its file meta information tells what it is, and it waits for the analyse role like
any other image. An image whose sender has repeated it meanwhile ends as a duplicate
(docs/rules.md, "Duplicates"). Every other stray goes to the quarantine folder of the spool.
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
from daemon.spool import ORPHAN_AGE_S, Spool

log = logging.getLogger("pleura.spool")

# An adopted image is neither urgent nor unimportant: its DIMSE priority is lost.
_PRIORITY = 1
# The root of the UIDs that results get (docs/rules.md, "Identity").
_RESULT_ROOT = "2.25."


@dataclass
class Strays:
    """How many strays there were, by what became of them."""

    adopted: int = 0
    # Results that no transaction owes: they are made again from their image.
    results: int = 0
    # Files that cannot be told: a person must look.
    quarantined: int = 0


def take_in_strays(ledger: Ledger, spool: Spool, age_s: float = ORPHAN_AGE_S) -> Strays:
    """Adopt or quarantine strays that are older than `age_s` seconds.

    A young file may be between its write and its commit, here or on another host.

    Raises:
        OSError, SpoolError: the spool. SQLAlchemyError: the ledger.
    """
    strays = Strays()
    for names in spool.old_names(age_s):
        unknown = ledger.inspect.unknown_spool_names(names)
        arrivals = []
        for name in sorted(unknown):
            arrival = _arrival(spool, name)
            if isinstance(arrival, Arrival):
                arrivals.append(arrival)
            elif arrival:
                spool.quarantine(name)
                strays.quarantined += 1
                log.error("spool file %s: %s; it is in %s", name, arrival, spool.quarantine_folder)
            else:
                spool.quarantine(name, ".result")
                strays.results += 1
        _adopt(ledger, arrivals, strays)

    if strays.results:
        log.warning(
            "%d result files that no delivery needs went to %s; they can be removed",
            strays.results,
            spool.quarantine_folder,
        )
    return strays


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


def _arrival(spool: Spool, name: str) -> Arrival | str:
    """A stray as an arrival; or why it cannot be taken; or "" for one of our results."""
    path = spool.path(name)
    try:
        meta = _file_meta(path)
        size_bytes = path.stat().st_size
    except OSError as error:
        return f"the ledger does not know it, and it cannot be read ({error.strerror})"
    if meta is None or not is_uid(meta.sop_instance_uid):
        return "the ledger does not know it, and its file meta information does not tell what it is"
    if _is_result(meta):
        return ""
    if size_bytes <= meta.data_set_at:
        return "the ledger does not know it, and it holds no data set"

    return Arrival(
        spool_name=name,
        # As the inbox takes them, from which a file comes as it was written: PostgreSQL would
        # refuse a NUL byte, and with it every other stray.
        sop_class_uid=meta.sop_class_uid if is_uid(meta.sop_class_uid) else "",
        sop_instance_uid=meta.sop_instance_uid,
        transfer_syntax_uid=meta.transfer_syntax_uid if is_uid(meta.transfer_syntax_uid) else "",
        calling_ae_title=meta.source_ae_title if meta.source_ae_title.isprintable() else "",
        origin="adopted",
        priority=_PRIORITY,
        size_bytes=size_bytes,
    )


def _is_result(meta: FileMeta) -> bool:
    """Whether we made this object. An image of the inbox has no source AE title either."""
    return (
        meta.sop_instance_uid.startswith(_RESULT_ROOT)
        and meta.implementation_class_uid == IMPLEMENTATION_CLASS_UID
        and not meta.source_ae_title
    )


def _file_meta(path: Path) -> FileMeta | None:
    with path.open("rb") as file:
        return read_file_meta(file.read(HEAD_BYTES))
