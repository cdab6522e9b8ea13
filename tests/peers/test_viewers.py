"""Results as a radiologist sees them in OHIF and in Orthanc's web viewer, opened by mouse clicks."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.pixels import pixel_array
from scipy import ndimage

from inference import results
from inference.radiograph import decode, parse
from inference.results import Case
from tests.conftest import missing
from tests.peers.browser import PROGRAMS, Browser
from tests.peers.viewers import (
    ARTEFACTS,
    COLOURED,
    IN_WEB_VIEWER,
    PLUGINS,
    Archive,
    Ohif,
    Shown,
    look,
    ohif_folder,
)
from tools import cases
from tools.peers.ports import unused_port
from training import phantom

# One browser at a time, because a browser uses all cores.
pytestmark = pytest.mark.xdist_group("viewers")
KINDS = ("SEG", "SC", "SR", "PR")
# Pixels of the page.
BLUR_PX = 3.0
# The least correlation between the page and the expected picture. The viewer's own text over the
# picture lowers it.
ALIKE = 0.95


@dataclass(frozen=True, eq=False)
class Study:
    """A case in the archive. `series` is Orthanc's own name for each kind's series."""

    name: str
    case: Case
    objects: dict[str, bytes]
    series: dict[str, str]

    def overlay(self) -> NDArray[np.uint8]:
        """The Secondary Capture's picture, (rows, columns, 3), RGB."""
        return pixel_array(io.BytesIO(self.objects["SC"]))


@pytest.fixture(scope="module")
def archive(
    peer: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Archive]:
    program = peer("Orthanc")
    for plugin in ("libOrthancDicomWeb.so", "libOrthancWebViewer.so"):
        if not (PLUGINS / plugin).is_file():
            missing(f"Orthanc lacks {plugin} (apt-get install orthanc-dicomweb orthanc-webviewer)")
    with Archive(
        program, tmp_path_factory.mktemp("viewers"), (unused_port(), unused_port())
    ) as server:
        yield server


@pytest.fixture(scope="module")
def ohif(archive: Archive) -> Iterator[Ohif]:
    if not (ohif_folder() / "index.html").is_file():
        missing(f"OHIF is not in {ohif_folder()} (make ohif)")
    with Ohif(ohif_folder(), archive, unused_port()) as server:
        yield server


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    program = next((path for name in PROGRAMS if (path := shutil.which(name))), None)
    if program is None:
        missing("no Chromium is installed (apt-get install chromium-headless-shell)")
    assert program is not None
    with Browser(program, tmp_path / "browser") as page:
        yield page


def synthetic(folder: Path) -> tuple[bytes, NDArray[np.bool_]]:
    """A phantom (12 bits, MONOCHROME1, only ImagerPixelSpacing, no Frame of Reference), and the
    largest region of its pneumothorax.
    """
    drawn = phantom.draw(7, pneumothorax=True)
    regions, _ = ndimage.label(drawn.mask)
    path = phantom.write(drawn, folder / "phantom.dcm", "MONOCHROME1")
    return path.read_bytes(), regions == 1 + int(np.argmax(np.bincount(regions.ravel())[1:]))


def store(archive: Archive, name: str, source: bytes, case: Case) -> Study:
    objects = {result.kind: result.data for result in results.build(case, KINDS)}
    archive.store(source)
    return Study(name, case, objects, {kind: archive.store(data) for kind, data in objects.items()})


@pytest.fixture(scope="module", params=["phantom", "real"])
def study(
    request: pytest.FixtureRequest, archive: Archive, tmp_path_factory: pytest.TempPathFactory
) -> Study:
    """A positive case: a phantom, then a real JPEG Baseline chest with a made-up region."""
    if request.param == "phantom":
        source, mask = synthetic(tmp_path_factory.mktemp("phantom"))
    else:
        source, mask = request.getfixturevalue("xrays")[0].read_bytes(), None
    image = decode(parse(source)[0])
    case = cases.positive(
        image.header, mask=mask, pixels=image.pixels, content_digest=image.content_digest
    )
    return store(archive, request.param, source, case)


# -- what the page must show


def as_expected(picture: NDArray[np.floating | np.integer], shown: Shown) -> str | None:
    """None if the page shows this (rows, columns[, 3]) picture, else what is wrong.

    Both are blurred before they are compared, because each viewer scales fine detail differently.
    """
    rows, columns = (
        grid.ravel() for grid in np.mgrid[0 : picture.shape[0] : 7, 0 : picture.shape[1] : 7]
    )
    seen, visible = shown.at(rows, columns, BLUR_PX)
    if visible.mean() < 0.7:
        return f"the viewport shows {visible.mean():.2f} of the image"

    blur_px = BLUR_PX / shown.scale_y
    sigma = (blur_px, blur_px, 0)[: picture.ndim]
    wanted = ndimage.gaussian_filter(picture.astype(np.float64), sigma)[rows, columns]
    if wanted.ndim == 1:
        seen = seen.mean(axis=1)
    if seen[visible].std() < 5:
        return "the viewport is of one colour"
    alike = np.corrcoef(seen[visible].ravel(), wanted[visible].ravel())[0, 1]
    return None if alike >= ALIKE else f"correlation {alike:.3f} with the image"


def shares(mask: NDArray[np.bool_], shown: Shown, away_px: float) -> tuple[float, float]:
    """The coloured fractions of a mask's inside and outside, each measured more than `away_px`
    pixels of the page from the mask's edge.
    """
    far_px = away_px / min(shown.scale_x, shown.scale_y)
    inside = ndimage.distance_transform_edt(mask) > far_px
    outside = ndimage.distance_transform_edt(~mask) > far_px
    parts = []
    for region in (inside, outside):
        seen, visible = shown.at(*np.nonzero(region))
        parts.append(float((np.ptp(seen[visible], axis=1) > COLOURED).mean()))
    return parts[0], parts[1]


def filled(mask: NDArray[np.bool_], shown: Shown) -> str | None:
    """None if the region, and nothing else, is coloured; else what is wrong."""
    inside, outside = shares(mask, shown, 4)
    return (
        None
        if inside > 0.99 and outside < 0.01
        else f"coloured: {inside:.3f} inside, {outside:.3f} outside"
    )


def outlined(mask: NDArray[np.bool_], shown: Shown) -> str | None:
    """None if a coloured line, which may be dashed, follows the region's edge and nothing else is
    coloured; else what is wrong.
    """
    inside, outside = shares(mask, shown, 8)
    if inside > 0.05 or outside > 0.05:
        return f"coloured: {inside:.3f} inside, {outside:.3f} outside"
    rows, columns = np.nonzero(mask & ~ndimage.binary_erosion(mask))
    x = np.round(shown.left + columns * shown.scale_x)
    y = np.round(shown.top + rows * shown.scale_y)
    to_line_px = ndimage.distance_transform_edt(~shown.coloured())[y.astype(int), x.astype(int)]
    near = float((to_line_px <= 6).mean())
    return None if near > 0.95 else f"{near:.3f} of the edge is outlined"


def thumbnail(modality: str) -> str:
    return f"""[...document.querySelectorAll('[data-cy^=study-browser-thumbnail]')].find(one =>
        one.querySelector('[data-cy=series-modality-label]')?.innerText.trim() === '{modality}')"""


def button(label: str) -> str:
    return (
        f"[...document.querySelectorAll('button')].find(one => one.innerText.trim() === '{label}')"
    )


def open_study(browser: Browser, ohif: Ohif, case: Case, name: str) -> None:
    """Open the study and wait until its X-ray is visible: OHIF may lose earlier clicks."""
    pixels = case.pixels
    assert pixels is not None
    ohif.refused.clear()
    browser.open(f"{ohif.url}/viewer?StudyInstanceUIDs={case.header.StudyInstanceUID}")
    picture = ARTEFACTS / f"{name}-1-source.png"
    look(
        browser, str(case.header.SOPInstanceUID), picture, lambda shown: as_expected(pixels, shown)
    )


def test_ohif_shows_segmentation_contour_and_overlay(
    study: Study, browser: Browser, ohif: Ohif
) -> None:
    case = study.case
    source = str(case.header.SOPInstanceUID)
    mask = case.segmented
    assert mask is not None
    open_study(browser, ohif, case, study.name)

    browser.click("the SEG's entry", thumbnail("SEG"), times=2)
    browser.click("Yes, open the segmentation", button("Yes"))
    browser.click(
        "the panel of segmentations", "document.querySelector('[data-cy=panelSegmentation-btn]')"
    )
    look(browser, source, ARTEFACTS / f"{study.name}-2-seg.png", lambda shown: filled(mask, shown))
    assert "Pneumothorax" in browser.value("document.querySelector('[data-cy=data-row]').innerText")

    open_study(browser, ohif, case, study.name)
    browser.click("the SR's entry", thumbnail("SR"), times=2)

    def outlined_once_touched(shown: Shown) -> str | None:
        # OHIF may load the contour after it has drawn the image. Then it shows the contour only
        # when it draws the image again.
        said = outlined(mask, shown)
        if said is not None:
            browser.drag(shown.box[0] + 20, (shown.box[1] + shown.box[3]) / 2)
        return said

    look(browser, source, ARTEFACTS / f"{study.name}-3-sr.png", outlined_once_touched)

    overlay = study.overlay()
    uid = dcmread(io.BytesIO(study.objects["SC"]), stop_before_pixels=True).SOPInstanceUID
    browser.click("the SC's entry", thumbnail("OT"), times=2)
    look(
        browser,
        uid,
        ARTEFACTS / f"{study.name}-4-sc.png",
        lambda shown: as_expected(overlay, shown),
    )
    assert browser.problems == []
    assert ohif.refused == []


def test_orthanc_web_viewer_shows_the_overlay(
    study: Study, browser: Browser, archive: Archive
) -> None:
    overlay = study.overlay()
    browser.open(
        f"http://127.0.0.1:{archive.http_port}/web-viewer/app/viewer.html?series={study.series['SC']}"
    )
    picture = ARTEFACTS / f"{study.name}-5-web-viewer.png"
    look(browser, "", picture, lambda shown: as_expected(overlay, shown), IN_WEB_VIEWER)
    assert browser.problems == []


# Each case has its own phantom: of two reports on one image, the older would be shown first.
@pytest.mark.parametrize(
    ("of", "seed", "said"),
    [
        (cases.negative, 19, "Pneumothorax not detected by the algorithm"),
        (cases.refused, 20, "Not analysed"),
    ],
)
def test_ohif_shows_the_text_of_a_report_without_a_contour(
    of: Callable[..., Case],
    seed: int,
    said: str,
    browser: Browser,
    archive: Archive,
    ohif: Ohif,
    tmp_path: Path,
) -> None:
    path = phantom.write(phantom.draw(seed, pneumothorax=False, size=512), tmp_path / "phantom.dcm")
    image = decode(parse(path.read_bytes())[0])
    case = of(image.header, pixels=image.pixels, content_digest=image.content_digest)
    store(archive, of.__name__, path.read_bytes(), case)
    open_study(browser, ohif, case, of.__name__)

    browser.click("the SR's entry", thumbnail("SR"), times=2)
    shown = browser.wait(
        "the report's words, or OHIF's own",
        f"document.body.innerText.match(/{said}|Something went wrong/)?.[0]",
    )
    browser.screenshot(ARTEFACTS / f"{of.__name__}-3-sr.png")

    assert shown == said
    assert browser.problems == []
    assert ohif.refused == []
