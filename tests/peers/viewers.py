"""The viewers that must show our results: OHIF and Orthanc's own web viewer, both over one
Orthanc.
"""

from __future__ import annotations

import http.client
import json
import os
import threading
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tests.peers.browser import Browser
from tools.peers.harness import Orthanc
from tools.peers.waiting import wait_until

REPOSITORY = Path(__file__).resolve().parents[2]
# The folder for screenshots.
ARTEFACTS = Path(os.environ.get("PLEURA_ARTEFACTS") or REPOSITORY / "build" / "viewers")
PLUGINS = Path("/usr/share/orthanc/plugins")
MEDIA_TYPES = {
    ".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".json": "application/json",
    ".wasm": "application/wasm", ".svg": "image/svg+xml", ".png": "image/png", ".woff2": "font/woff2",
    ".ico": "image/x-icon",
}  # fmt: skip
# OHIF's app-config.js as a site writes it for an Orthanc.
CONFIGURATION = {
    "routerBasename": "/",
    "extensions": [],
    "modes": [],
    "showStudyList": True,
    "showLoadingIndicator": False,
    "showCPUFallbackMessage": False,
    # No dialog in front of the picture.
    "investigationalUseDialog": {"option": "never"},
    "customizationService": [{"ohif.tours": {"$set": []}}],
    "defaultDataSourceName": "orthanc",
    "dataSources": [
        {
            "namespace": "@ohif/extension-default.dataSourcesModule.dicomweb",
            "sourceName": "orthanc",
            "configuration": {
                "friendlyName": "Orthanc",
                "name": "orthanc",
                "wadoUriRoot": "/wado",
                "qidoRoot": "/dicom-web",
                "wadoRoot": "/dicom-web",
                "qidoSupportsIncludeField": False,
                "imageRendering": "wadors",
                "thumbnailRendering": "wadors",
                "enableStudyLazyLoad": True,
                "supportsFuzzyMatching": False,
                "supportsWildcard": True,
                "omitQuotationForMultipartRequest": True,
                "bulkDataURI": {"enabled": True},
            },
        }
    ],
}


def ohif_folder() -> Path:
    """The folder of OHIF's built pages, below PLEURA_OHIF (default .cache/ohif in the checkout)."""
    return (
        Path(os.environ.get("PLEURA_OHIF") or REPOSITORY / ".cache" / "ohif") / "package" / "dist"
    )


# JavaScript that returns which image the viewport shows, and where in the page the image's pixels
# (0, 0) and (100, 100) lie.
IN_OHIF = """(() => {
    const viewport = window.services?.cornerstoneViewportService?.getCornerstoneViewport(
        services.viewportGridService.getActiveViewportId());
    const image = viewport?.getCurrentImageId?.();
    if (!image) return null;
    const box = viewport.element.getBoundingClientRect();
    const [first, hundredth] = [[0, 0], [100, 100]].map(
        pixel => viewport.worldToCanvas(cornerstone.utilities.imageToWorldCoords(image, pixel)));
    return {image, left: first[0] + box.x, top: first[1] + box.y,
            scale_x: (hundredth[0] - first[0]) / 100, scale_y: (hundredth[1] - first[1]) / 100,
            box: [box.left, box.top, box.right, box.bottom]};
})()"""
IN_WEB_VIEWER = """(() => {
    const element = document.getElementById('dicomImage');
    if (!element || !window.cornerstone || !cornerstone.getEnabledElements().some(one => one.image)) return null;
    const box = element.getBoundingClientRect();
    const [first, hundredth] = [0, 100].map(at => cornerstone.pixelToCanvas(element, {x: at, y: at}));
    return {image: cornerstone.getImage(element).imageId, left: first.x + box.x, top: first.y + box.y,
            scale_x: (hundredth.x - first.x) / 100, scale_y: (hundredth.y - first.y) / 100,
            box: [box.left, box.top, box.right, box.bottom]};
})()"""
# Largest minus smallest of red, green and blue. The viewers' own text over the picture has less.
COLOURED = 60


@dataclass(frozen=True, eq=False)
class Shown:
    """A screenshot, and the image's place in it as the viewer reports it."""

    # (rows, columns, 3)
    page: NDArray[np.uint8]
    # The viewer's name for the image
    image: str
    left: float
    top: float
    scale_x: float
    scale_y: float
    # The viewport: left, top, right, bottom
    box: tuple[float, float, float, float]

    def at(
        self, rows: NDArray[np.int_], columns: NDArray[np.int_], blur_px: float = 0.0
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """The page's colours (n, 3) at image pixels, and which of these lie inside the viewport."""
        x = np.round(self.left + columns * self.scale_x).astype(int)
        y = np.round(self.top + rows * self.scale_y).astype(int)
        left, top, right, bottom = self.box
        visible = (x > left + 2) & (x < right - 3) & (y > top + 2) & (y < bottom - 3)
        page = self.page.astype(np.float64)
        if blur_px:
            page = ndimage.gaussian_filter(page, (blur_px, blur_px, 0))
        height, width = page.shape[:2]
        return page[y.clip(0, height - 1), x.clip(0, width - 1)], visible

    def coloured(self) -> NDArray[np.bool_]:
        """(rows, columns): which of the page's pixels are coloured, not grey."""
        page = self.page.astype(np.int16)
        return np.asarray(page.max(axis=2) - page.min(axis=2) > COLOURED)


def look(
    browser: Browser,
    where: str,
    picture: Path,
    complaint: Callable[[Shown], str | None],
    viewer: str = IN_OHIF,
) -> Shown:
    """Wait until the viewer shows the image whose name contains `where` and `complaint` returns
    None. Writes the last screenshot to `picture`.
    """
    said: list[str | None] = [None]

    def right() -> Shown | None:
        try:
            place = browser.value(viewer)
            page = browser.screenshot(picture)
        except AssertionError as error:
            # The page or the viewer is still loading.
            said[0] = str(error)
            return None
        if place is None or where not in place["image"]:
            said[0] = f"the viewport shows {place and place['image']}, wanted {where}"
            return None
        shown = Shown(page, **place)
        said[0] = complaint(shown)
        return shown if said[0] is None else None

    try:
        shown: Shown = wait_until(f"{picture.stem} looks right", right, every_s=0.5)
    except AssertionError as error:
        raise AssertionError(
            f"{error}: {said[0]}; see {picture}\nproblems: {browser.problems[-5:]}\nconsole: {browser.console[-10:]}"
        ) from None
    return shown


class Archive(Orthanc):
    """An Orthanc with DICOMweb and its web viewer."""

    def __init__(self, program: str, folder: Path, ports: tuple[int, int]) -> None:
        super().__init__(program, folder, ports)
        configuration = json.loads(self._path.read_text())
        configuration["Plugins"] = [
            str(PLUGINS / name) for name in ("libOrthancDicomWeb.so", "libOrthancWebViewer.so")
        ]
        self._path.write_text(json.dumps(configuration))

    def store(self, data: bytes) -> str:
        """Store one file. Returns Orthanc's own name for its series."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.http_port}/instances", data, method="POST"
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            name: str = json.loads(answer.read())["ParentSeries"]
        return name


class Ohif(ThreadingHTTPServer):
    """OHIF and the archive's DICOMweb behind one address, as the browser's same-origin policy
    requires.
    """

    daemon_threads = True

    def __init__(self, pages: Path, archive: Orthanc, port: int) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.pages = pages
        self.archive_port = archive.http_port
        # Requests that the archive answered with an error
        self.refused: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> Ohif:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Ohif

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if path.startswith(("/dicom-web", "/wado")):
            self._ask_archive()
        elif path == "/app-config.js":
            self._answer(
                200, "text/javascript", f"window.config = {json.dumps(CONFIGURATION)}".encode()
            )
        else:
            file = (self.server.pages / path.lstrip("/")).resolve()
            if not file.is_relative_to(self.server.pages.resolve()) or not file.is_file():
                if file.suffix:
                    return self._answer(404, "text/plain", b"")
                # A route of the application
                file = self.server.pages / "index.html"
            self._answer(
                200, MEDIA_TYPES.get(file.suffix, "application/octet-stream"), file.read_bytes()
            )

    def do_POST(self) -> None:
        self._ask_archive()

    def _ask_archive(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length) if length else None
        connection = http.client.HTTPConnection("127.0.0.1", self.server.archive_port, timeout=120)

        # Keep this server's Host header: Orthanc writes it into the addresses of bulk data.
        headers = {
            name: self.headers[name]
            for name in ("Accept", "Content-Type", "Host")
            if name in self.headers
        }
        connection.request(self.command, self.path, body, headers)
        answer = connection.getresponse()
        data = answer.read()
        connection.close()

        if answer.status >= 400:
            self.server.refused.append(f"{answer.status} {self.command} {self.path}")
        self._answer(
            answer.status, answer.getheader("Content-Type") or "application/octet-stream", data
        )

    def _answer(self, status: int, media_type: str, data: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(len(data)))
        # OHIF's workers use SharedArrayBuffer, which needs a cross-origin isolated page.
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass
