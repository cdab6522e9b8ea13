"""A folder as a destination: complete files named by their UID, and the mark that identifies the
folder.

The mark is an empty hidden folder inside it. A program that picks the files up leaves it there,
whether it uses `mv`, `rm *` or rsync's --remove-source-files. The ledger remembers which folders
were marked. Without a mark, a share that is not mounted would be created on the local disk, or its
empty mount point mistaken for it, and files that nobody sees there would count as stored.
"""

from __future__ import annotations

import os
from pathlib import Path

from daemon.dicom.link import LinkDownError
from daemon.dicom.outgoing import FileGoneError, Outgoing, UnsendableError
from daemon.dicom.requestor import Answer
from daemon.dicom.tables import Status
from daemon.dicom.uids import can_name_a_file
from daemon.ledger import Inspection, Ledger
from daemon.spool import sweep_unfinished, sync_folder, write_durably

MARK = ".pleura"


class Folder:
    """A folder destination behind the same interface as an association."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @classmethod
    def open(cls, folder: Path, ledger: Ledger) -> Folder:
        """Open the folder that results went to before. It is created if none ever did.

        Raises:
            LinkDownError: the folder is absent, or cannot be written.
        """
        try:
            if why := lost(folder, ledger.inspect):
                raise LinkDownError(why)
            if not ledger.inspect.knows_folder(str(folder)):
                _mark(folder)
                ledger.remember_folder(str(folder))
            sweep_unfinished(folder)
        except OSError as error:
            raise LinkDownError(f"{folder}: {error.strerror}") from error

        return cls(folder)

    def store(self, outgoing: Outgoing) -> Answer:
        """Write one object."""
        if not can_name_a_file(outgoing.sop_instance_uid):
            raise UnsendableError("its SOP Instance UID is not a UID and cannot name a file")

        try:
            data = outgoing.path.read_bytes()
        except FileNotFoundError as error:
            raise FileGoneError("its file is gone") from error
        except OSError as error:
            raise LinkDownError(f"its file cannot be read: {error.strerror}") from error

        try:
            before = self._folder.stat()
            write_durably(self._folder / f"{outgoing.sop_instance_uid}.dcm", data)
            # If the folder was unmounted meanwhile, the file went to its mount point, though the
            # folder may be back. The file itself may have been picked up.
            is_same = os.path.samestat(before, self._folder.stat())
            if not is_same or not (self._folder / MARK).is_dir():
                raise LinkDownError(_not_there(self._folder))
        except OSError as error:
            raise LinkDownError(f"{self._folder}: {error.strerror}") from error
        return Answer(Status.SUCCESS)


def _mark(folder: Path) -> None:
    """Make the folder and its mark durably: they must last as long as the ledger's record of them.

    Raises OSError.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    (folder / MARK).mkdir(mode=0o700, exist_ok=True)
    for made in (folder, folder.parent):
        sync_folder(made)


def lost(folder: Path, inspect: Inspection) -> str | None:
    """Why this is not the folder that results went to before, if they did. Raises OSError."""
    if (folder / MARK).is_dir() or not inspect.knows_folder(str(folder)):
        return None
    return _not_there(folder)


def _not_there(folder: Path) -> str:
    return (
        f"{folder}: not the folder that results went to before, its {MARK} is missing; "
        "is it mounted?"
    )
