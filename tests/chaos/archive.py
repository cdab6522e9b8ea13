"""An archive in a separate process. By default it works well; on command it misbehaves in one of
the known ways.

Its record outlives the process: before it answers 0x0000 it writes a line about the object. Its
folder holds

    mode           one of MODES, read at each request
    record         a JSON line for each answered object: uid, digest of the data set, kept or forgotten
    objects/UID    the data set of each kept object as it came over the wire; as in real archives,
                   the first object of a UID stays
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import io
import json
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, cast

from pydicom import Dataset
from pydicom.uid import (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
)
from pynetdicom import AE, evt
from pynetdicom import build_role as role_of
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.events import Event

from tests.chaos.secure import Secure

AE_TITLE = "ARCHIVE"
# PS3.4 J.3
COMMITMENT = "1.2.840.10008.1.20.1"
COMMITMENT_INSTANCE = "1.2.840.10008.1.20.1.1"
MODES = ("well", "slow", "rejects", "aborts", "full", "forgets")
_SYNTAXES = [JPEGBaseline8Bit, ExplicitVRLittleEndian, ImplicitVRLittleEndian]
# PS3.3 C.14.1.1
_NO_SUCH_INSTANCE = 0x0112
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Answered:
    """One C-STORE that was answered 0x0000."""

    uid: str
    digest: str
    kept: bool


class Archive:
    """The test's side: starts, stops and instructs the archive, and reads its record."""

    def __init__(
        self,
        context: ForkServerContext,
        folder: Path,
        port: int,
        node_port: int,
        commits: bool,
        secure: Secure | None = None,
    ) -> None:
        (folder / "objects").mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.port = port
        self._context = context
        self._arguments = (folder, port, node_port, commits, secure)
        self._commits = commits
        self._is_secure = secure is not None
        self._process: BaseProcess | None = None
        self.behave("well")

    def destination(self, **more: Any) -> dict[str, Any]:
        """This archive as an entry of `destinations`."""
        commitment = {"commitment": True} if self._commits else {}
        return (
            {"name": "archive", "ae_title": AE_TITLE, "host": "127.0.0.1", "port": self.port}
            | commitment
            | ({"tls": True} if self._is_secure else {})
            | more
        )

    def behave(self, mode: str) -> None:
        """Set the mode, from the next request on."""
        assert mode in MODES
        part = self.folder / ".mode"
        part.write_text(mode)
        part.rename(self.folder / "mode")

    def start(self) -> None:
        """Start the process. Returns at once; the archive listens a moment later."""
        self._process = self._context.Process(target=run, args=self._arguments)
        self._process.start()

    def kill(self) -> None:
        """End the process with SIGKILL; from then on the archive is down."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process = None

    def answered(self) -> list[Answered]:
        """Every C-STORE that was ever answered 0x0000, in order."""
        with contextlib.suppress(FileNotFoundError):
            return [
                Answered(**json.loads(line))
                for line in (self.folder / "record").read_text().splitlines()
            ]
        return []

    def held(self) -> dict[str, str]:
        """UID -> digest of each object in the archive's files."""
        return {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in (self.folder / "objects").iterdir()
            if not path.name.startswith(".")
        }


def run(
    folder: Path, port: int, node_port: int, commits: bool, secure: Secure | None = None
) -> None:
    """The archive's process."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    with (folder / "log").open("ab") as log:
        os.dup2(log.fileno(), 2)
    _Server(folder, node_port, secure).run(port, commits)


class _Server:
    def __init__(self, folder: Path, node_port: int, secure: Secure | None) -> None:
        self._folder = folder
        self._node_port = node_port
        self._secure = secure
        self._record = os.open(folder / "record", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._parts: Counter[int] = Counter()
        self._lock = threading.Lock()

    def run(self, port: int, commits: bool) -> None:
        entity = AE(AE_TITLE)
        entity.maximum_associations = 50
        for sop_class in (SecondaryCaptureImageStorage, SegmentationStorage):
            entity.add_supported_context(sop_class, _SYNTAXES)
        if commits:
            entity.add_supported_context(
                COMMITMENT, [ExplicitVRLittleEndian, ImplicitVRLittleEndian]
            )

        handlers: list[Any] = [
            (evt.EVT_REQUESTED, self._on_requested),
            (evt.EVT_PDU_RECV, self._on_pdu),
            (evt.EVT_C_STORE, self._on_store),
            (evt.EVT_C_ECHO, lambda _: 0),
            (evt.EVT_N_ACTION, self._on_action),
        ]
        entity.add_supported_context("1.2.840.10008.1.1")
        while True:
            # A killed predecessor may hold the port for a moment.
            with contextlib.suppress(OSError):
                entity.start_server(
                    ("127.0.0.1", port),
                    block=True,
                    evt_handlers=handlers,
                    ssl_context=self._secure.server() if self._secure else None,
                )
            time.sleep(0.05)

    def _mode(self) -> str:
        return (self._folder / "mode").read_text()

    def _on_requested(self, event: Event) -> None:
        if self._mode() == "rejects":
            event.assoc.acse.send_reject(0x01, 0x01, 0x03)
            event.assoc.kill()

    def _on_pdu(self, event: Event) -> None:
        """Abort in the middle of an object: at every fifth P-DATA of an association."""
        if type(event.pdu).__name__ != "P_DATA_TF" or self._mode() != "aborts":
            return
        self._parts[id(event.assoc)] += 1
        if self._parts[id(event.assoc)] % 5 == 4:
            event.assoc.abort(block=False)

    def _on_store(self, event: Event) -> int:
        mode = self._mode()
        if mode == "full":
            return 0xA700
        if mode == "slow":
            time.sleep(0.3)
        request = cast(C_STORE, event.request)
        data = cast(io.BytesIO, request.DataSet).getvalue()
        uid = str(request.AffectedSOPInstanceUID)
        kept = not (mode == "forgets" and random.random() < 0.5)
        digest = hashlib.sha256(data).hexdigest()

        path = self._folder / "objects" / uid
        with self._lock:
            if kept and not path.exists():
                part = path.with_name(f".{uid}")
                part.write_bytes(data)
                part.rename(path)
            line = json.dumps({"uid": uid, "digest": digest, "kept": kept}) + "\n"
            os.write(self._record, line.encode())
        return 0x0000

    def _on_action(self, event: Event) -> tuple[int, None]:
        """Accept a storage commitment request (PS3.4 J.3.2); report on a separate association."""
        asked = event.action_information
        threading.Thread(target=self._report, args=(asked,), daemon=True).start()
        return 0x0000, None

    def _report(self, asked: Dataset) -> None:
        held: list[Dataset] = []
        failed: list[Dataset] = []
        for item in asked.ReferencedSOPSequence:
            reference = Dataset()
            reference.ReferencedSOPClassUID = item.ReferencedSOPClassUID
            reference.ReferencedSOPInstanceUID = item.ReferencedSOPInstanceUID
            if (self._folder / "objects" / item.ReferencedSOPInstanceUID).exists():
                held.append(reference)
            else:
                reference.FailureReason = _NO_SUCH_INSTANCE
                failed.append(reference)

        report = Dataset()
        report.TransactionUID = asked.TransactionUID
        report.ReferencedSOPSequence = held
        if failed:
            report.FailedSOPSequence = failed

        entity = AE(AE_TITLE)
        entity.add_requested_context(COMMITMENT, [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
        # The node may be dead at the moment. After 20 tries the node asks again by itself.
        for _ in range(20):
            association = entity.associate(
                "127.0.0.1",
                self._node_port,
                ae_title="PLEURA",
                ext_neg=_as_scp([COMMITMENT]),
                tls_args=self._secure.client() if self._secure else None,
            )
            if association.is_established:
                try:
                    status, _ = association.send_n_event_report(
                        report, 2 if failed else 1, COMMITMENT, COMMITMENT_INSTANCE
                    )
                except (RuntimeError, ValueError):
                    status = Dataset()
                if association.is_established:
                    association.release()
                if "Status" in status and status.Status == 0x0000:
                    return
            time.sleep(0.3)


def _as_scp(sop_classes: Sequence[str]) -> list[Any]:
    """The reporting archive is the SCP although it opens the association (PS3.7 D.3.3.4)."""
    return [role_of(sop_class, scp_role=True) for sop_class in sop_classes]
