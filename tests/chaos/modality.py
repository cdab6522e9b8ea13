"""Modalities that send without end, and record the images that the node acknowledged and so must
answer for.
"""

from __future__ import annotations

import json
import os
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.association import Association

from tests.chaos.images import Image, Templates
from tests.chaos.secure import Secure

_SUCCESS = 0x0000
_PAUSE_S = 0.2


class Modality:
    """One sending thread. It sends images again that were not acknowledged, and now and then an
    image that was.
    """

    def __init__(
        self,
        port: int,
        templates: Templates,
        record: Path,
        may_send: Callable[[], bool],
        rng: random.Random,
        secure: Secure | None = None,
    ) -> None:
        self._tls_args = secure.client() if secure else None
        self._port = port
        self._templates = templates
        self._may_send = may_send
        self._rng = rng
        self._record = os.open(record, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._entity = AE("XRAY1")
        self._entity.add_requested_context(ComputedRadiographyImageStorage, ExplicitVRLittleEndian)
        self._entity.acse_timeout = 10
        self._entity.dimse_timeout = 20
        self._entity.network_timeout = 20

        # pynetdicom leaves the socket open if the node is killed.
        self._sockets: list[socket.socket] = []
        # C-STOREs answered 0x0000
        self.acknowledged = 0
        # Images that were sent but not answered 0x0000
        self._waiting: list[Image] = []
        # Acknowledged images (template, UID), of which some are sent again
        self._known: list[tuple[int, str]] = []

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Stop after the object in progress: it is answered, or its association has ended."""
        self._stop.set()
        self._thread.join()
        for each in self._sockets:
            each.close()
        os.close(self._record)

    def _run(self) -> None:
        while not self._stop.is_set():
            if not self._may_send():
                self._stop.wait(_PAUSE_S)
                continue
            association = self._associate()
            if association is None or not association.is_established:
                self._stop.wait(_PAUSE_S)
                continue
            for _ in range(self._rng.randint(1, 8)):
                if self._stop.is_set() or not self._send(association):
                    break
            if association.is_established:
                association.release()

    def _associate(self) -> Association | None:
        # A connect is cheaper than an association that fails.
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", self._port)):
                return None
        return self._entity.associate(
            "127.0.0.1",
            self._port,
            ae_title="PLEURA",
            tls_args=self._tls_args,
            evt_handlers=[(evt.EVT_CONN_OPEN, self._note_socket)],
        )

    def _note_socket(self, event: Any) -> None:
        self._sockets.append(event.assoc.dul.socket.socket)

    def _send(self, association: Association) -> bool:
        image = self._next()
        # Noted before the send, because an image without an answer may have arrived.
        self._note("sent", image)
        try:
            answer = association.send_c_store(image.dataset)
        except (RuntimeError, ValueError, OSError):
            answer = None
        status = answer.Status if answer is not None and "Status" in answer else None
        if status != _SUCCESS:
            self._waiting.append(image)
            if status is not None:
                time.sleep(0.05)
            return status is not None

        self._note("acknowledged", image)
        self.acknowledged += 1
        self._known.append((image.template, image.sop_instance_uid))
        return True

    def _next(self) -> Image:
        if self._waiting:
            return self._waiting.pop(0)
        if self._known and self._rng.random() < 0.07:
            return self._templates.image(*self._rng.choice(self._known))
        return self._templates.draw()

    def _note(self, what: str, image: Image) -> None:
        os.write(
            self._record,
            (json.dumps([what, image.sop_instance_uid, image.template]) + "\n").encode(),
        )


class Record:
    """The records of all modalities of one node."""

    def __init__(self, path: Path) -> None:
        # SOP Instance UID -> how often it was sent, and how often it was answered 0x0000
        self.sent: Counter[str] = Counter()
        self.acknowledged: Counter[str] = Counter()
        # SOP Instance UID -> number of its template
        self.template: dict[str, int] = {}
        counts = {"sent": self.sent, "acknowledged": self.acknowledged}
        for line in path.read_text().splitlines() if path.exists() else ():
            what, uid, template = json.loads(line)
            counts[what][uid] += 1
            self.template[uid] = template
