"""The watch folder: files put there are accepted as if they had been sent, and removed once they
are durable.

What counts as a file to take: a regular file in the folder or below it, whose name and sub-folders'
names do not begin with a dot and whose name does not end in .part, .tmp, .partial, .filepart or ~
(copy programs rename when they are done). Symbolic links are never followed: a link could make the
node read what its writer may not.

A file is taken and removed when its writer has closed it or moved it in. Without such an event
(found at start, network mounts), it is taken when its size and time have stayed the same for a
short time, and removed a minute later: if its writer had only stalled, it has become another file
by then, which is taken too. An empty file, or one that events show is being written, gets more
time, because an upload over a bad line stalls. Events only make it faster: a scan every two seconds
finds everything, and is the only way on network mounts, where the kernel does not report what other
hosts do.

Any content is accepted; a file that is not DICOM ends `failed`, visibly. A file that cannot be
read, taken or removed stays, and is retried with back-off; one process never takes it twice. If a
process ends between taking and removing, the next one takes the file again and records a duplicate.
"""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import re
import stat
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from watchdog.events import (
    FileClosedEvent,
    FileModifiedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers.inotify import InotifyObserver

from daemon.backoff import doubled_s
from daemon.dicom.uids import is_uid
from daemon.ledger import Arrival, Outage
from daemon.receive.intake import Intake, NoRoomError

log = logging.getLogger("pleura.receive")

_UNFINISHED = (".part", ".tmp", ".partial", ".filepart", "~")
_LIMIT_BYTES = 1 << 30  # as for one C-STORE
_ROUTINE = 1
# How long a start waits for the folder, in seconds.
_PATIENCE_S = 5.0
# A file that failed this often needs a person.
_STUCK_AFTER = 3
_NETWORK_FILE_SYSTEMS = (
    "nfs",
    "cifs",
    "smb",
    "ceph",
    "fuse",
    "9p",
    "lustre",
    "gluster",
    "afs",
    "beegfs",
    "gpfs",
)


@dataclass(frozen=True)
class Pace:
    """How often the folder is looked at, and how long a file is left alone. Seconds."""

    # Events can be lost (queue overflow) and never come from other hosts; a scan costs little.
    rescan_s: float = 2.0
    # Without any event, a file that has been unchanged for this long is complete.
    settled_s: float = 2.0
    # The same for an empty file, or one that was written to and not closed.
    stalled_s: float = 120.0
    # How long a file stays after it was taken, if no event said that it was complete.
    kept_s: float = 60.0
    # The pause before a file that could not be taken is tried again; doubled each time.
    first_pause_s: float = 5.0
    longest_pause_s: float = 300.0
    # A look at one file or folder that takes longer is a trouble: the share hangs.
    hanging_s: float = 300.0


@dataclass
class _Seen:
    """A file that is still in the folder. Times are those of time.monotonic()."""

    # Size in bytes, modification time in ns, inode.
    signature: tuple[int, int, int]
    since: float
    # An event says that its writer is done.
    is_closed: bool = False
    failures: int = 0
    # Why the last try failed.
    why: str = ""
    not_before: float = 0.0
    # Since when it is durable and committed.
    taken_at: float | None = None


class Inbox:
    """One watch folder: start() returns at once, stop() when the file in hand is finished."""

    def __init__(self, folder: Path, intake: Intake, pace: Pace | None = None) -> None:
        self._folder = folder
        self._intake = intake
        self._pace = pace or Pace()

        # What events say: files that their writers have closed or moved in, and files that were
        # written to since.
        self._closed: set[Path] = set()
        self._written: set[Path] = set()
        self._seen: dict[Path, _Seen] = {}
        self._wake = threading.Event()
        self._first_try = threading.Event()
        self._stopping = False
        # What facts() reports: why the folder cannot be used, how many files are stuck and why, and
        # when the thread last did a step (time.monotonic()).
        self._folder_trouble = ""
        self._stuck: tuple[int, str] = (0, "")
        self._stepped_at = time.monotonic()
        self._observer: InotifyObserver | None = None
        self._thread = threading.Thread(target=self._run, name="inbox", daemon=True)

    def reserve(self, megabytes: int) -> None:
        """Change the reserve of room on the spool's disk."""
        self._intake.reserve(megabytes)

    def facts(self) -> dict[str, Any]:
        """What keeps files from being taken, for heartbeats: in words, and how many are stuck.

        File names are left out: they often hold a patient's name.
        """
        number, why = self._stuck
        trouble = self._folder_trouble
        if time.monotonic() - self._stepped_at > self._pace.hanging_s:
            trouble = trouble or "the folder does not answer; does its share hang?"
        if number and not trouble:
            trouble = f"files that cannot be taken and removed: {number}; the last try: {why}"
        return {"inbox_trouble": trouble, "inbox_stuck_files": number}

    def start(self) -> None:
        """Take the files that lie there, and watch for more.

        While the folder cannot be made or read, the log says so, and tries go on: a share that is
        not mounted must not keep the role from receiving over the network. Returns after the first
        try, or after a few seconds if a share hangs.
        """
        self._thread.start()
        self._first_try.wait(_PATIENCE_S)

    def _open(self) -> None:
        """Make the folder, and watch it. Raises OSError."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.scandir(self._folder).close()

        if not _on_network(self._folder):
            self._watch()

    def _watch(self) -> None:
        # With full events, a file that is moved in from outside has an event too.
        observer = InotifyObserver(generate_full_events=True)
        events: list[type[FileSystemEvent]] = [FileClosedEvent, FileModifiedEvent, FileMovedEvent]
        # The kernel does not watch a folder through a symbolic link.
        watched = self._folder.resolve()
        handler = _Events(self, watched)
        observer.schedule(handler, str(watched), recursive=True, event_filter=events)

        try:
            observer.start()
            self._observer = observer
        except OSError as error:
            log.warning(
                "inbox: no file events (%s); looking every %g s only",
                error.strerror,
                self._pace.rescan_s,
            )

    def stop(self) -> None:
        """Take nothing more."""
        self._stopping = True
        self._wake.set()
        self._thread.join()
        if self._observer is not None:
            self._observer.stop()
            self._observer.join()
        self._intake.stop()

    def whole(self, name: Path) -> None:
        """An event: the writer of this file below the folder has closed it or moved it in."""
        self._written.discard(self._folder / name)
        self._closed.add(self._folder / name)
        self._wake.set()

    def written(self, name: Path) -> None:
        """An event: this file was written to."""
        self._closed.discard(self._folder / name)
        self._written.add(self._folder / name)

    def left(self, name: Path) -> None:
        """An event: this file was moved away."""
        self._written.discard(self._folder / name)

    def _run(self) -> None:
        outage = Outage(log, "inbox: the folder")
        is_open = False
        while not self._stopping:
            self._stepped_at = time.monotonic()
            try:
                if not is_open:
                    self._open()
                    is_open = True
                    self._first_try.set()
                self._walk()
            except Exception as error:
                # The loop's only catch-all: an unreachable folder comes back.
                outage.failed(error)
                self._folder_trouble = f"the folder, or one below it, cannot be used: {_why(error)}"
                self._first_try.set()
            else:
                outage.over()
                self._folder_trouble = ""
            self._wake.wait(self._pace.rescan_s)
            self._wake.clear()

    def _walk(self) -> None:
        closed, self._closed = self._closed, set()

        found: set[Path] = set()
        # Folders and files that cannot be read now.
        unread: dict[Path, OSError] = {}

        def note_unread(error: OSError) -> None:
            unread[Path(error.filename)] = error

        for folder, subfolders, names in os.walk(self._folder, onerror=note_unread):
            subfolders[:] = [name for name in subfolders if not name.startswith(".")]
            if not names:
                continue
            try:
                with _opened(self._folder, Path(folder)) as directory:
                    for name in filter(_may_be_taken, names):
                        if self._stopping:
                            return
                        path = Path(folder, name)
                        try:
                            if self._look(directory, path, path in closed):
                                found.add(path)
                        except OSError as error:
                            unread[path] = error
            except OSError as error:
                unread[Path(folder)] = error

        # What was taken and cannot be seen now is not taken again when it can.
        self._seen = {
            path: seen
            for path, seen in self._seen.items()
            if path in found or not unread.keys().isdisjoint((path, *path.parents))
        }
        stuck = [seen.why for seen in self._seen.values() if seen.failures >= _STUCK_AFTER]
        self._stuck = (len(stuck), stuck[-1] if stuck else "")
        self._written -= {path for path in tuple(self._written) if not path.exists()}
        # A subfolder may have vanished since it was listed; the inbox itself may not.
        for path, reason in unread.items():
            if not isinstance(reason, FileNotFoundError) or path == self._folder:
                raise reason

    def _look(self, directory: int, path: Path, is_closed: bool) -> bool:
        """Take the file if it is whole and due, and remove it. Returns whether it still stays.

        `directory`: a descriptor of the file's folder. Raises OSError: it cannot be looked at.
        """
        self._stepped_at = time.monotonic()
        try:
            status = os.stat(path.name, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            return False
        if not stat.S_ISREG(status.st_mode):
            return False

        seen = self._seen_as(path, _signature(status))
        seen.is_closed = (seen.is_closed or is_closed) and path not in self._written
        now = time.monotonic()
        if not self._is_whole(path, seen, now) or now < seen.not_before:
            return True

        try:
            if seen.taken_at is None and self._take(directory, path.name, seen.signature):
                seen.taken_at = time.monotonic()
            return not self._remove(directory, path.name, seen)
        except Exception as error:
            # Whatever a file does, as when it is too large for the memory, it keeps no other.
            pace = self._pace
            pause_s = doubled_s(pace.first_pause_s, pace.longest_pause_s, seen.failures)
            seen.failures += 1
            seen.why = _why(error)
            # From the end of the attempt, which may have taken long.
            seen.not_before = time.monotonic() + pause_s
            log.warning("inbox: a file stays (%s); trying again in %g s", _why(error), pause_s)
        return True

    def _seen_as(self, path: Path, signature: tuple[int, int, int]) -> _Seen:
        """What is known of this file, which has this signature now."""
        seen = self._seen.get(path)
        if seen is not None and seen.signature == signature:
            return seen

        if seen is not None and seen.taken_at is not None:
            log.warning("inbox: a file changed after it was taken; it is taken again")
        seen = self._seen[path] = _Seen(signature, time.monotonic())
        return seen

    def _is_whole(self, path: Path, seen: _Seen, now: float) -> bool:
        size_bytes, _, _ = seen.signature
        if seen.is_closed and size_bytes:
            return True
        # A program may make a file, and fill it later.
        is_unfinished = path in self._written or not size_bytes
        quiet_s = self._pace.stalled_s if is_unfinished else self._pace.settled_s
        return now - seen.since >= quiet_s

    def _take(self, directory: int, name: str, signature: tuple[int, int, int]) -> bool:
        """Durable in the spool and committed. False when it has changed or gone meanwhile."""
        try:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            descriptor = os.open(name, flags, dir_fd=directory)
        except FileNotFoundError:
            return False

        with open(descriptor, "rb") as file:  # noqa: PTH123 - no link may be followed
            if os.fstat(descriptor).st_size > _LIMIT_BYTES:
                raise OSError(errno.EFBIG, f"longer than {_LIMIT_BYTES} bytes")
            data = file.read(_LIMIT_BYTES)
            if _signature(os.fstat(descriptor)) != signature:
                return False
        self._keep(data)
        return True

    def _remove(self, directory: int, name: str, seen: _Seen) -> bool:
        """Remove a file that was taken, where its time has come. Returns whether it is gone."""
        if seen.taken_at is None:
            return False
        if not seen.is_closed and time.monotonic() < seen.taken_at + self._pace.kept_s:
            return False

        # Another host may have taken and removed it too.
        with contextlib.suppress(FileNotFoundError):
            # Otherwise another file has come under the same name, to be taken next.
            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
            if _signature(status) != seen.signature:
                return False
            os.unlink(name, dir_fd=directory)
        return True

    def _keep(self, data: bytes) -> None:
        sop_class_uid, sop_instance_uid, syntax = _identity(data)
        file = self._intake.begin()
        file.write(data)

        file.keep(
            Arrival(
                spool_name=file.name,
                sop_class_uid=sop_class_uid,
                sop_instance_uid=sop_instance_uid,
                transfer_syntax_uid=syntax,
                calling_ae_title="",
                origin="inbox",
                priority=_ROUTINE,
                size_bytes=len(data),
            )
        )

        named = sop_instance_uid or "a file without UID"
        log.info("stored %s from the inbox, %d bytes", named, len(data))


class _Events(FileSystemEventHandler):
    """Tells an inbox of events in `watched`, the folder that its path leads to."""

    def __init__(self, inbox: Inbox, watched: Path) -> None:
        self._inbox = inbox
        self._watched = watched

    def on_modified(self, event: FileSystemEvent) -> None:
        self._inbox.written(self._below(event.src_path))

    def on_closed(self, event: FileSystemEvent) -> None:
        self._inbox.whole(self._below(event.src_path))

    def on_moved(self, event: FileSystemEvent) -> None:
        if event.src_path:
            self._inbox.left(self._below(event.src_path))
        if event.dest_path:
            self._inbox.whole(self._below(event.dest_path))

    def _below(self, path: str | bytes) -> Path:
        return Path(os.fsdecode(path)).relative_to(self._watched)


@contextlib.contextmanager
def _opened(inbox: Path, folder: Path) -> Iterator[int]:
    """A descriptor of `folder`, which is reached from the inbox through real folders alone.

    A path would lead elsewhere when a folder in it is replaced by a symbolic link meanwhile, and
    the node would take and remove a file outside. Raises OSError.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    descriptor = os.open(inbox, flags)
    try:
        for part in folder.relative_to(inbox).parts:
            below = os.open(part, flags | os.O_NOFOLLOW, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = below
        yield descriptor
    finally:
        os.close(descriptor)


def _why(error: Exception) -> str:
    """Any other error by its type: its text may quote the file."""
    if isinstance(error, NoRoomError):
        return str(error)
    return getattr(error, "strerror", None) or type(error).__name__


def _may_be_taken(name: str) -> bool:
    return not name.startswith(".") and not name.lower().endswith(_UNFINISHED)


def _signature(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_size, status.st_mtime_ns, status.st_ino


def _identity(data: bytes) -> tuple[str, str, str]:
    """SOP class, SOP instance and transfer syntax UID of the file meta information; empty where
    the file has none.

    Only that group is read: decoding the data set is left to the analyse role, which may crash on
    it.
    """
    # Only an inbox needs pydicom, which is 40 MB.
    from pydicom.filereader import read_dataset, read_preamble

    from daemon.dicom.leniency import lenient_headers

    file = io.BytesIO(data)

    try:
        if not read_preamble(file, force=False):
            return "", "", ""
        with lenient_headers():
            meta = read_dataset(file, False, True, stop_when=lambda tag, *_: tag >> 16 != 0x0002)
            found = [
                str(meta.get(tag, ""))
                for tag in (
                    "MediaStorageSOPClassUID",
                    "MediaStorageSOPInstanceUID",
                    "TransferSyntaxUID",
                )
            ]
    except Exception:  # arbitrary bytes: the file is taken all the same
        return "", "", ""

    sop_class, sop_instance, syntax = (uid if is_uid(uid) else "" for uid in found)
    return sop_class, sop_instance, syntax


def _on_network(folder: Path) -> bool:
    """Whether the folder lies on a file system that other hosts write to (proc_mounts(5))."""
    try:
        mounts = Path("/proc/mounts").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return True  # scanning works anywhere
    here, best, kind = str(folder.resolve()), "", ""
    for line in mounts:
        _, point, file_system, *_ = line.split(" ")
        point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), point)
        if len(point) >= len(best) and (here == point or here.startswith(point.rstrip("/") + "/")):
            best, kind = point, file_system
    return kind.startswith(_NETWORK_FILE_SYSTEMS)
