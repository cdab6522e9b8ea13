"""A folder as a destination: complete files under their UID, or none; and the mark by which it is known again.

The mark is an empty hidden folder in it: who picks the files up leaves it alone, whether with `mv`, `rm *` or rsync's
--remove-source-files. The ledger remembers where a mark was made. Without that a share that is not mounted would be
made anew on the local disk, or its empty mount point taken for it, and what nobody sees there would count as stored.
"""

from __future__ import annotations

import re
from pathlib import Path

from daemon.dicom.link import LinkDownError, Outgoing, UnsendableError
from daemon.dicom.tables import Status
from daemon.ledger import Ledger
from daemon.spool import sweep_unfinished, sync_folder, write_durably

MARK = ".pleura"
_UID = re.compile(r"[0-9]+(\.[0-9]+)*")


class Folder:
    """A folder destination behind the same seam as an association."""

    def __init__(self, folder: Path, ledger: Ledger) -> None:
        """The folder that results went to before; where none ever did, it is made.

        Raises:
            LinkDownError: it is not there, or cannot be written.
        """
        self._folder = folder
        try:
            if why := lost(folder, ledger):
                raise LinkDownError(why)
            if not ledger.knows_folder(str(folder)):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                (folder / MARK).mkdir(mode=0o700, exist_ok=True)
                for made in (
                    folder,
                    folder.parent,
                ):  # what the ledger knows of must outlive a power loss
                    sync_folder(made)
                ledger.remember_folder(str(folder))
            sweep_unfinished(folder)
        except OSError as error:
            raise LinkDownError(f"{folder}: {error.strerror}") from error

    def echo(self) -> int:
        """It is there: the constructor saw that."""
        return Status.SUCCESS

    def store(self, outgoing: Outgoing) -> int:
        """Write one object."""
        if not _UID.fullmatch(outgoing.sop_instance_uid) or len(outgoing.sop_instance_uid) > 64:
            raise UnsendableError("its SOP Instance UID is no UID and cannot name a file")
        try:
            data = outgoing.path.read_bytes()
        except FileNotFoundError as error:
            raise UnsendableError("its file is gone") from error
        except OSError as error:
            raise LinkDownError(f"its file cannot be read: {error.strerror}") from error
        try:
            write_durably(self._folder / f"{outgoing.sop_instance_uid}.dcm", data)
            if not (
                self._folder / MARK
            ).is_dir():  # it went meanwhile, and the file went to what is under it
                raise LinkDownError(_not_there(self._folder))
        except OSError as error:
            raise LinkDownError(f"{self._folder}: {error.strerror}") from error
        return Status.SUCCESS


def lost(folder: Path, ledger: Ledger) -> str | None:
    """Why this is not the folder that results went to before, if they did. Raises OSError."""
    return (
        _not_there(folder)
        if not (folder / MARK).is_dir() and ledger.knows_folder(str(folder))
        else None
    )


def _not_there(folder: Path) -> str:
    return f"{folder}: not the folder that results went to before, its {MARK} is missing; is it mounted?"
