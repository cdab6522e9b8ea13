"""The page *Try it*: analyse one file, show its answer, and keep nothing.

The file is analysed by `pleura predict`, in a process with resource limits and on the CPU.
"""

from __future__ import annotations

import base64
import io
import json
import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom import dcmread
from starlette.datastructures import UploadFile
from starlette.responses import Response

from daemon.web.bounded import BoundedRunError, Bounds, run
from daemon.web.guard import UPLOAD_BYTES
from daemon.web.model import card_of
from daemon.web.pictures import jpeg_of
from daemon.web.turn import BusyError, Turn
from daemon.web.visit import Visit

log = logging.getLogger("pleura.web")

# torch's libraries alone map several GiB of address space.
_BOUNDS = Bounds(memory_bytes=16 * 1024**3, cpu_s=300, wall_s=180.0)
# Larger objects are listed, but not embedded in the page.
_MOST_OBJECT_BYTES = 8 * 1024 * 1024
# The file's ending says how to read a picture that is not DICOM.
_ENDINGS = {".dcm", ".png", ".jpg", ".jpeg", ".tif", ".tiff"}


@dataclass(frozen=True)
class Made:
    """One result object, as a data URI; "": it is too large."""

    kind: str
    name: str
    size_bytes: int
    link: str


class Trials:
    """One trial at a time, because the analysis needs the cores."""

    def __init__(self) -> None:
        self._turn = Turn(most_waiting=0)

    def form(self, visit: Visit) -> Response:
        """The page with the upload form."""
        return _page(visit)

    def answer(self, visit: Visit) -> Response:
        """The answer to one file."""
        file = visit.form.get("file")
        if not isinstance(file, UploadFile) or not file.size:
            return _page(visit, 400, trouble="try_no_file")

        try:
            with self._turn:
                visit.audit("command", "a file is tried on the page")
                return self._tried(visit, file)
        except BusyError:
            response = _page(visit, 503, trouble="try_busy")
            response.headers["retry-after"] = "30"
            return response

    def _tried(self, visit: Visit, file: UploadFile) -> Response:
        # The file name is untrusted: only a known ending of it is used.
        ending = Path(file.filename or "").suffix.lower()
        with tempfile.TemporaryDirectory(prefix="pleura-try-") as name:
            folder = Path(name)
            path = folder / f"file{ending if ending in _ENDINGS else '.dcm'}"
            path.write_bytes(file.file.read(UPLOAD_BYTES + 1))
            arguments = [
                "predict", str(path), "--device", "cpu", "--out", str(folder / "out"),
                "--model", visit.node.settings.model,
            ]  # fmt: skip
            try:
                output = run("daemon.cli", arguments, b"", _BOUNDS)
                answer = json.loads(output.splitlines()[0])
            except (BoundedRunError, IndexError, ValueError) as error:
                log.warning("a tried file got no answer (%s)", type(error).__name__)
                return _page(visit, 422, trouble="try_broken")

            made = _objects(folder / "out")
            return _page(visit, answer=answer, made=made, picture=_picture(folder / "out"))


def _page(visit: Visit, status: int = 200, **values: Any) -> Response:
    common = {
        "title": visit.texts.say("try_it"),
        "limit_bytes": UPLOAD_BYTES,
        "card": card_of(visit.node.settings.model),
        "answer": None,
        "made": (),
        "picture": "",
        "trouble": "",
    }
    return visit.page("try.html", status, **(common | values))


def _objects(folder: Path) -> list[Made]:
    made = []
    for path in sorted(folder.glob("*.dcm")):
        data = path.read_bytes()
        is_small = len(data) <= _MOST_OBJECT_BYTES
        link = _data_link("application/dicom", data) if is_small else ""
        made.append(Made(_kind_of(data), path.name, len(data), link))
    return made


def _picture(folder: Path) -> str:
    """The overlay as a data URI; "" without one."""
    for path in sorted(folder.glob("*.dcm")):
        data = path.read_bytes()
        if _kind_of(data) == "SC":
            return _data_link("image/jpeg", jpeg_of(data))
    return ""


def _kind_of(data: bytes) -> str:
    modality = str(dcmread(io.BytesIO(data), stop_before_pixels=True).get("Modality", ""))
    return "SC" if modality == "OT" else modality


def _data_link(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
