"""The page about a data set: its numbers match the data, and it is self-contained."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread

from training import phantom
from training.data.explore import explore

pytestmark = pytest.mark.xdist_group("explore")

HOSTILE = "x<script>alert(1)</script>"
SIDE = 64


class Page(HTMLParser):
    """A parsed page: tables as rows of texts, the tags seen, and the sources of images."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: set[str] = set()
        self.sources: list[str] = []
        self._cell = False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self._cell = tag in ("td", "th")
        if tag == "tr":
            self.rows.append([])
        elif self._cell:
            self.rows[-1].append("")
        self.sources += [value or "" for name, value in attributes if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        if self._cell:
            self.rows[-1][-1] += data

    def handle_endtag(self, tag: str) -> None:
        self._cell = False


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("table")
    rows = ["image,label,mask,patient,view,sex,age"]
    for number in range(6):
        name = f"{HOSTILE.replace('/', '')}.png" if number == 0 else f"i{number}.png"
        drawn = phantom.draw(number, number < 3, SIDE)
        Image.fromarray((drawn.pixels * 255).astype(np.uint8)).save(folder / name)
        Image.fromarray(drawn.mask.astype(np.uint8)).save(folder / f"m{number}.png")
        view = "PA" if number % 2 else "AP"
        rows.append(
            f"{name},{int(number < 3)},m{number}.png,Doe^Jane{number // 2},{view},F,{20 + number}"
        )

    rows[-1] = rows[-1].replace(",25", ",413")
    rows.append("gone.png,0,,Doe^Jane9,,,")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    out = folder / "out" / "page.html"
    report = explore(folder, "table", out)
    assert {finding.what for finding in report.errors} == {"missing file", "unusable"}

    return out


def test_the_numbers_match_the_data(page: Path) -> None:
    rows = Page(page).rows
    for row in (
        ["images", "7", ""], ["patients", "4", ""], ["positive", "3", "42.9%"],
        ["negative", "4", "57.1%"],
        ["with a mask that holds something", "3", ""], ["cannot be used (see the checks)", "1", ""],
        ["AP", "3", "42.9%", "2", "66.7%"], ["PA", "3", "42.9%", "1", "33.3%"],
        ["not given", "1", "14.3%", "0", "0.0%"], ["i5", "413"],
        ["F", "6", "85.7%", "3", "50.0%"], ["age known", "6", ""],
        ["outside 0 to 120, not drawn", "1", ""],
    ):  # fmt: skip
        assert row in rows

    (areas,) = (row for row in rows if row[0].startswith("mask, % of the image (n = 3)"))
    shares = sorted(
        float(phantom.draw(number, True, SIDE).mask.mean()) * 100 for number in range(3)
    )
    assert [float(areas[1]), float(areas[4]), float(areas[7])] == pytest.approx(shares, rel=0.01)


def test_the_page_is_self_contained_and_has_no_script(page: Path) -> None:
    seen = Page(page)
    assert "script" not in seen.tags
    assert all(
        source.startswith(("data:image/svg+xml;base64,", "data:image/jpeg;base64,"))
        for source in seen.sources
    )
    # Four plots and six samples: one of the seven files is missing.
    assert len(seen.sources) == 10
    text = page.read_text()
    assert HOSTILE.replace("/", "").replace("<", "&lt;").replace(">", "&gt;") in text
    # Images are named by their ID; patients are not named.
    assert "Doe" not in text
    assert "unusable: gone" in text


def test_no_header_value_appears_on_the_page(tmp_path: Path) -> None:
    rows = ["ImageId, EncodedPixels"]
    for number in range(2):
        path = phantom.write(
            phantom.draw(number, False, SIDE), tmp_path / "dicom" / f"{number}.dcm"
        )
        dataset = dcmread(path)
        dataset.PatientName = "Doe^Jane"
        dataset.PatientID = "MRN-1"
        dataset.StudyDescription = "of Jane"
        dataset.save_as(path)
        rows.append(f"{number},-1")

    (tmp_path / "train-rle.csv").write_text("\n".join(rows))
    explore(tmp_path, "siim", tmp_path / "page.html")
    assert not re.search("Jane|MRN", (tmp_path / "page.html").read_text())


def test_the_page_works_without_masks_ages_or_hard_labels(tmp_path: Path) -> None:
    Image.fromarray(np.eye(32, dtype=np.uint8) * 255).save(tmp_path / "a.png")
    (tmp_path / "labels.csv").write_text("image,label\na.png,0.3\n")
    explore(tmp_path, "table", tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert "No image has a mask" in text
    assert "No image has a plausible age" in text
    assert "label 0.30" in text
