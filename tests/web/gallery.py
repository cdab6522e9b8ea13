"""Makes the pictures of the operator's page in docs/page/: `python -m tests.web.gallery docs/page`.

It fills a ledger for each situation, and takes screenshots with a headless Chromium. All data are
synthetic: no patient and no hospital.
"""

from __future__ import annotations

import contextlib
import io
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import torch
import uvicorn
from PIL import Image
from pydicom.uid import generate_uid

from benchmarks.page import fill
from daemon.ledger import Alarm
from daemon.ledger.view import Search
from inference import package
from inference.engine import Engine
from inference.pipeline import AnalysisSettings, Pipeline
from tests.peers.browser import PROGRAMS, Browser
from tests.web.site import Site, Visitor, users
from tools.peers.ports import unused_port
from training import phantom

WIDE = (1280, 900)
NARROW = (360, 780)


@dataclass
class Look:
    """One picture: the page's path, the window, and whether it is dark."""

    name: str
    path: str
    size: tuple[int, int] = WIDE
    is_dark: bool = False


def main() -> None:
    """Write every picture."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    program = next(path for name in PROGRAMS if (path := shutil.which(name)))

    with tempfile.TemporaryDirectory() as name:
        places = Path(name)
        chest = _chest(places)
        for what, looks in _SITUATIONS.items():
            place = places / what
            place.mkdir()
            with _served(place, what, chest) as (site, url):
                cookies = _logged_in(site)
                for look in looks:
                    if what != "failures":
                        _roles(site)
                    _shoot(program, place, url, cookies, look, folder)


_SITUATIONS = {
    "empty": [Look("empty", "/")],
    "busy": [
        Look("busy", "/"),
        Look("images", "/images"),
        Look("image", "/images/{positive}"),
        Look("model", "/model"),
        Look("try", "/try"),
        Look("narrow", "/", NARROW),
        Look("narrow-images", "/images", NARROW),
        Look("dark", "/", is_dark=True),
        Look("dark-image", "/images/{positive}", is_dark=True),
    ],
    "outage": [Look("outage", "/")],
    "failures": [Look("failures", "/")],
    "full": [Look("100000-images", "/images?sender=XRAY2&state=not_analysed")],
}


@dataclass
class Chest:
    """A phantom as a node receives it, and the shipped model's answer."""

    source: bytes
    # Kind of result -> its file
    results: dict[str, bytes]
    probability: float
    positive: bool
    # The model's id, version and digest
    model: str


def _chest(folder: Path) -> Chest:
    path = phantom.write(phantom.draw(7, pneumothorax=True), folder / "phantom.dcm")
    source = path.read_bytes()
    shipped = package.load(package.default_folder())
    pipeline = Pipeline(Engine(shipped, torch.device("cpu")), AnalysisSettings())

    (outcome,) = pipeline.analyse([source], datetime.now())
    finding = outcome.finding
    assert finding is not None
    results = {result.kind: result.data for result in outcome.results}
    model = f"{shipped.manifest.id} {shipped.manifest.version} {shipped.identity.digest}"
    return Chest(source, results, finding.probability, finding.positive, model)


@contextlib.contextmanager
def _served(place: Path, what: str, chest: Chest) -> Iterator[tuple[Site, str]]:
    site = Site(
        place, users=users(), viewer_url="https://viewer.example/v?study={study_instance_uid}"
    )
    _MAKE[what](site, chest)

    port = unused_port()
    config = uvicorn.Config(
        site.app, port=port, lifespan="off", log_config=None, access_log=False, ws="none"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)

    yield site, f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(10)
    site.close()


def _logged_in(site: Site) -> dict[str, str]:
    visitor = Visitor(site)
    visitor.log_in("actor")
    return dict(visitor.cookies)


def _shoot(
    program: str, place: Path, url: str, cookies: dict[str, str], look: Look, folder: Path
) -> None:
    with Browser(program, place / f"browser-{look.name}", look.size) as page:
        scheme = "dark" if look.is_dark else "light"
        page.call(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": scheme}],
        )
        for name, value in cookies.items():
            page.call("Network.setCookie", name=name, value=value, url=url)

        path = look.path.format(positive=_POSITIVE.get("number", 1))
        page.open(url + path)
        time.sleep(1.0)
        height = page.value("document.documentElement.scrollHeight")
        width = page.value("document.documentElement.scrollWidth")
        assert width <= look.size[0], f"{look.name}: {width} pixels wide, {look.size[0]} wanted"
        page.call(
            "Emulation.setDeviceMetricsOverride",
            width=look.size[0],
            height=min(int(height), 1900),
            deviceScaleFactor=1,
            mobile=False,
        )
        time.sleep(0.3)
        target = folder / f"{look.name}.png"
        picture = Image.fromarray(page.screenshot())
        _save(picture, target)
        sys.stdout.write(f"{target} {target.stat().st_size // 1000} kB {page.problems}\n")


def _save(picture: Image.Image, path: Path) -> None:
    """Write the picture with so few colours that the file stays below 145 kB.

    Maximum coverage keeps the colour of thin outlines; k-means keeps the greys grey.
    """
    for colours in (128, 64, 32):
        written = io.BytesIO()
        fewer = picture.quantize(
            colours, Image.Quantize.MAXCOVERAGE, kmeans=2, dither=Image.Dither.NONE
        )
        fewer.save(written, "PNG", optimize=True)
        if written.tell() < 145_000:
            break
    path.write_bytes(written.getvalue())


# -- situations ------------------------------------------------------------------------------------

_POSITIVE: dict[str, int] = {}


def _empty(site: Site, chest: Chest) -> None:
    _roles(site)


def _roles(site: Site, *names: str) -> None:
    for number, name in enumerate(names or ("receive", "analyse", "deliver", "web")):
        site.ledger.beat(name, f"node-1:{4100 + number}")


def _day(site: Site, chest: Chest, number: int = 160) -> None:
    """A day of images; one of the last is a positive with its files."""
    fill(site.settings.ledger, number, over_s=86_000.0, seed=3)
    _shadow(site)
    for _ in range(3):
        site.receive(generate_uid(), "XRAY1", chest.source)
    common = {"model": chest.model, "device": "cpu"}

    site.end(
        "analysed",
        chest.results,
        probability=chest.probability,
        positive=chest.positive,
        study_instance_uid=generate_uid(),
        **common,
    )

    _POSITIVE["number"] = site.view.images(Search(), limit=3).rows[-1]["id"]
    site.end("not_analysed", reason="view", **common)


def _shadow(site: Site) -> None:
    """Answers of a second model, of which some differ."""
    after = 0
    name = f"pleura-candidate 2.0.0 {'b' * 64}"
    while (job := site.view.shadow.next(after)) is not None:
        after = job.instance_id
        row = site.view.image(after)
        assert row is not None
        is_other = after % 29 == 0
        site.ledger.shadow.begin(job, name)
        positive = bool(row["positive"]) != is_other
        site.ledger.shadow.answer(job, name, 0.9 if positive else 0.1, positive, "")


def _busy(site: Site, chest: Chest) -> None:
    _roles(site)
    _day(site, chest)
    for job in site.ledger.claim_deliveries("pacs", "courier:1", 10):
        site.ledger.mark_stored(job, 0)
    for _ in range(7):
        site.receive(generate_uid(), "XRAY2", chest.source)


def _outage(site: Site, chest: Chest) -> None:
    _roles(site)
    _day(site, chest)
    site.ledger.note_destination(
        "pacs", "no association: connection refused (pacs.example:104)", 48.0
    )
    silent = Alarm(
        "silence:XRAY3",
        "silence",
        "XRAY3",
        "no image since 2026-11-27 16:02:11 +0000; by its last weeks about 14 images are missing",
    )
    site.ledger.alarms.note([silent], [], "node-1", 60)


def _failures(site: Site, chest: Chest) -> None:
    _roles(site, "receive", "deliver", "web")
    _day(site, chest)
    for job in site.ledger.claim_deliveries("pacs", "courier:1", 10):
        site.ledger.mark_refused(job, "answered 0xA900: data set does not match SOP class", 0xA900)
    site.end("failed", reason="analysis_error", detail="RuntimeError, 3 attempts")
    site.receive(generate_uid(), "XRAY2", chest.source)


def _full(site: Site, chest: Chest) -> None:
    _roles(site)
    fill(site.settings.ledger, 100_000)


_MAKE = {
    "empty": _empty,
    "busy": _busy,
    "outage": _outage,
    "failures": _failures,
    "full": _full,
}


if __name__ == "__main__":
    main()
