"""Pictures and objects of one image: the overlay, the radiograph, files to download.

This process decodes no pixels. The overlay is the JPEG stream inside our own Secondary Capture,
passed on unchanged. The radiograph is an untrusted file: a process with resource limits decodes it.
"""

from __future__ import annotations

import io
import json
import logging
import threading
from collections import OrderedDict
from typing import Any

from pydicom import dcmread
from pydicom.encaps import get_frame
from starlette.exceptions import HTTPException
from starlette.responses import Response

from daemon.spool import Spool, SpoolError
from daemon.web.bounded import BoundedRunError, Bounds, run
from daemon.web.turn import BusyError, Turn
from daemon.web.visit import Visit

# The longer side of the radiograph's picture.
_SIDE_PX = "1280"
_BOUNDS = Bounds(memory_bytes=4 * 1024**3, cpu_s=60, wall_s=60.0)
# How many pictures are cached, and their total size.
_MOST_KEPT = 200
_MOST_KEPT_BYTES = 64 * 1024 * 1024
# How many pictures may wait for the decoder: those of a few pages.
_MOST_WAITING = 8
_JPEG = "image/jpeg"

log = logging.getLogger("pleura.web")


class Pictures:
    """The files behind the pages of images."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._lock = threading.Lock()
        # One decoder at a time, because the analysis needs the cores.
        self._turn = Turn(_MOST_WAITING)
        self._kept: OrderedDict[str, bytes] = OrderedDict()

    def overlay(self, visit: Visit) -> Response:
        """The picture in a Secondary Capture."""
        result = self._result(visit)
        if result["kind"] != "SC":
            raise HTTPException(404)
        _tell(visit, result, result["sop_class_uid"])
        data = self._kept_or(result["spool_name"], lambda name: jpeg_of(self._read(name)))
        return Response(data, media_type=_JPEG)

    def radiograph(self, visit: Visit) -> Response:
        """The image itself, without marks."""
        image = visit.node.view.image(visit.request.path_params["number"])
        if image is None or image["removed_at"] is not None:
            raise HTTPException(404)

        _tell(visit, image, image["sop_class_uid"])
        data = self._kept_or(image["spool_name"], self._drawn)
        if not data:
            raise HTTPException(404)
        return Response(data, media_type=_JPEG)

    def download(self, visit: Visit) -> Response:
        """One result object as a DICOM file."""
        result = self._result(visit)
        _tell(visit, result, result["sop_class_uid"])
        name = f"{result['kind']}-{result['sop_instance_uid']}.dcm"
        headers = {"content-disposition": f'attachment; filename="{name}"'}
        return Response(
            self._read(result["spool_name"]), headers=headers, media_type="application/dicom"
        )

    def patient(self, image: dict[str, Any]) -> dict[str, str]:
        """Name and ID from the image's file; empty if it is gone or cannot be read."""
        if image["removed_at"] is not None:
            return {}
        try:
            output = run("inference.preview", ["patient"], self._read(image["spool_name"]), _BOUNDS)
            found: dict[str, str] = json.loads(output or b"{}")
        except (BoundedRunError, HTTPException, ValueError):
            return {}
        return found

    def _result(self, visit: Visit) -> dict[str, Any]:
        result = visit.node.view.result(visit.request.path_params["number"])
        if result is None or result["removed_at"] is not None:
            raise HTTPException(404)
        return result

    def _read(self, name: str) -> bytes:
        try:
            return self._spool.read(name)
        except (OSError, ValueError):
            raise HTTPException(404) from None
        except SpoolError:
            raise HTTPException(503) from None

    def _drawn(self, name: str) -> bytes:
        """The radiograph as JPEG; b"" where it cannot be decoded.

        A decoder that failed or was too slow says nothing about the file. Then nothing is cached,
        and the next visit tries again.
        """
        data = self._read(name)

        try:
            with self._turn:
                return run("inference.preview", ["picture", _SIDE_PX], data, _BOUNDS)
        except BoundedRunError as error:
            log.warning("the picture of spool file %s: its decoder %s", name, error)
            raise HTTPException(503) from error
        except BusyError as error:
            raise HTTPException(503) from error

    def _kept_or(self, name: str, make: Any) -> bytes:
        with self._lock:
            data: bytes | None = self._kept.get(name)
            if data is not None:
                self._kept.move_to_end(name)
                return data

        data = make(name)
        assert data is not None
        with self._lock:
            self._kept[name] = data
            while len(self._kept) > _MOST_KEPT or self._kept_bytes() > _MOST_KEPT_BYTES:
                self._kept.popitem(last=False)
        return data

    def _kept_bytes(self) -> int:
        return sum(len(data) for data in self._kept.values())


def jpeg_of(data: bytes) -> bytes:
    """The JPEG stream in a Secondary Capture of ours (JPEG Baseline, one frame)."""
    dataset = dcmread(io.BytesIO(data))
    return get_frame(dataset.PixelData, 0, number_of_frames=1)


def _tell(visit: Visit, row: dict[str, Any], sop_class_uid: str) -> None:
    """Record in the audit trail who saw which instance (PS3.15 A.5.3.6)."""
    facts = {
        "by": visit.user,
        "study_instance_uid": row["study_instance_uid"] or "",
        "sop_class_uid": sop_class_uid,
        "sop_instance_uid": row["sop_instance_uid"],
    }
    visit.node.ledger.record_audit("accessed", facts)
