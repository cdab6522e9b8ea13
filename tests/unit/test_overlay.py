"""The overlay: the radiograph with contour and banner as a Secondary Capture."""

from __future__ import annotations

import io
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread

from inference.contours import contours
from inference.finding import Finding, ModelIdentity, State
from inference.results import (
    Case,
    GateError,
    NoFinding,
    RenderSettings,
    banner,
    build,
    overlay,
    typesetting,
)  # fmt: skip
from inference.results.typesetting import typeset
from inference.results.wording import DISCLAIMER
from tests.gallery import KINDS, picture
from tools.cases import blob, header, negative, positive, refused

# These tests share the phantoms that tests/gallery.py draws once per process.
pytestmark = pytest.mark.xdist_group("overlays")


def shown(case: Case) -> np.ndarray:
    """The radiograph decoded from the built object, without margins and banner: (rows, columns,
    RGB).
    """
    panel = overlay.place(case)
    image = np.asarray(picture(build(case, ["SC"])[0]), dtype=int)
    return image[: panel.height, panel.left : panel.left + panel.width]


def words(case: Case, monkeypatch: pytest.MonkeyPatch, width: int = 1024) -> str:
    """All text of the banner, in drawing order."""
    written: list[str] = []
    draw = typesetting._text
    monkeypatch.setattr(
        typesetting,
        "_text",
        lambda pen, at, text, *rest: (written.append(text), draw(pen, at, text, *rest)),
    )
    typeset.cache_clear()
    typeset(banner.message(case), width, width)
    monkeypatch.undo()
    return " ".join(written)


# Leave out the large kinds, which take seconds; tests below cover some of them.
@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if not kind.endswith(("3520", "2048", "2500"))]
)
def test_every_kind_passes_the_gate_and_is_valid(
    kind: str, peer: Callable[[str], str], tmp_path: Path
) -> None:
    # build() has passed the object through the gate.
    result = build(KINDS[kind](), ["SC"])[0]
    file = tmp_path / "overlay.dcm"
    file.write_bytes(result.data)
    found = subprocess.run([peer("dciodvfy"), file], capture_output=True, text=True, check=False)
    assert "Error" not in found.stdout + found.stderr, found.stderr


@pytest.mark.parametrize("grey", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("size", [(41, 37), (700, 600), (2100, 900)])
def test_the_picture_keeps_the_sources_grey_away_from_the_contour(
    size: tuple[int, int], grey: float
) -> None:
    source = header(Rows=size[0], Columns=size[1])
    case = positive(source, pixels=np.full(size, grey, dtype=np.float32))
    panel = overlay.place(case)
    drawn = np.asarray(overlay.draw(case), dtype=int)[
        : panel.height, panel.left : panel.left + panel.width
    ]

    far = np.ones((panel.height, panel.width), dtype=bool)
    reach = int(panel.line_px + panel.halo_px + panel.scale) + 3
    for row, column in (np.concatenate(contours(blob(source))) + 0.5) * panel.scale:
        far[
            max(0, int(row) - reach) : int(row) + reach,
            max(0, int(column) - reach) : int(column) + reach,
        ] = False

    # Exclude the line segments between vertices, too.
    top, left = (np.argwhere(blob(source)).min(axis=0) * panel.scale).astype(int) - reach
    bottom, right = ((np.argwhere(blob(source)).max(axis=0) + 1) * panel.scale).astype(int) + reach
    far[max(0, top) : bottom, max(0, left) : right] = False

    assert far.any()
    assert np.all(drawn[far] == round(grey * 255))


@pytest.mark.parametrize("grey", [0.0, 0.5, 1.0])
def test_the_contour_stands_out_from_black_and_from_white(grey: float) -> None:
    source = header(Rows=700, Columns=600)
    case = positive(source, pixels=np.full((700, 600), grey, dtype=np.float32))
    near = shown(case)[100:300, 40:220]
    luminance = near @ np.array([0.299, 0.587, 0.114])
    assert np.ptp(luminance) > 100
    assert (near[..., 0] - near[..., 2]).max() > 150


@pytest.mark.parametrize("size", [(700, 600), (2100, 900), (64, 64)])
def test_the_contour_follows_the_masks_edge(size: tuple[int, int]) -> None:
    source = header(Rows=size[0], Columns=size[1])
    mask = blob(source)
    case = positive(source, mask)
    scale = overlay.place(case).scale

    image = shown(case)
    coloured = np.argwhere(image[..., 0] - image[..., 2] > 110)
    edge = np.concatenate(contours(mask))
    top = edge[:, 0].min()
    left = edge[:, 1].min()
    bottom = edge[:, 0].max()
    right = edge[:, 1].max()

    # The coloured pixels must span the mask's bounding box to within a line's width.
    low, high = ((np.array([[top, left], [bottom, right]]) + 0.5) * scale - 0.5).tolist()
    assert np.abs(coloured.min(axis=0) - low).max() <= 3 + 0.25 * scale
    assert np.abs(coloured.max(axis=0) - high).max() <= 3 + 0.25 * scale


def test_the_line_of_a_region_at_the_border_stays_inside_the_picture() -> None:
    source = header(Rows=640, Columns=640)
    mask = np.zeros((640, 640), dtype=bool)
    mask[500:, 100:300] = True
    image = shown(positive(source, mask, pixels=np.full((640, 640), 0.5, dtype=np.float32)))
    assert (image[638:640, 150:250, 0] - image[638:640, 150:250, 2]).max(axis=0).min() > 60


def test_the_banner_states_the_answer_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    text = words(positive(), monkeypatch)
    for part in (
        "Pneumothorax suspected",
        "Patient's right. 1 region",
        "0.87 (positive from 0.42)",
        "pleura-default",
    ):
        assert part in text

    for part in ("1.2.3", "2026-03-03 10:11", "mm^2", "2026-03-04 05:06"):
        assert part in text

    estimated = header(PixelSpacing=None, ImagerPixelSpacing=[0.1, 0.1])
    assert "estimated at detector plane" in words(positive(estimated), monkeypatch, 3000)
    text = words(positive(header(PixelSpacing=None)), monkeypatch, 3000)
    assert "mm" not in text
    assert "px (pixel spacing not known)" in text

    assert "no region could be outlined" in words(
        positive(mask=np.zeros((41, 37), dtype=bool)), monkeypatch
    )

    text = words(negative(), monkeypatch)
    assert "Pneumothorax not detected" in text
    assert "does not exclude pneumothorax" in text

    text = words(refused(notes=("PatientAge implausible",)), monkeypatch)
    assert "Not analysed The patient is younger than the minimum age." in text
    assert "PatientAge implausible" in text

    near = replace(negative(), finding=Finding(0.41999, 0.42, False))
    assert "0.41999" in words(near, monkeypatch)

    for case in (positive(), negative(), refused(pixels=None)):
        text = words(case, monkeypatch)
        assert "Gr" not in text
        assert "P-1" not in text


def test_answers_differ_in_shape_and_word_not_only_in_colour() -> None:
    failed = refused(no_finding=NoFinding(State.FAILED, "analysis_error", "it broke"))
    answers = {banner._answer(case)[:3] for case in (positive(), negative(), refused(), failed)}
    assert len({shape for _, shape, _ in answers}) == len({word for _, _, word in answers}) == 4


@pytest.mark.parametrize(
    "name", ["", "a" * 5000, "胸部モデル", "x\n\r\t\0\x1b[31m", "wide words " * 300, "‮abc", "^2^2"]
)
def test_hostile_names_and_notes_do_not_break_the_banner(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ModelIdentity(name, name, "ab" * 32, "2.25.1")
    case = positive(model=model, notes=(name,) * 3)
    text = words(case, monkeypatch)
    assert text.isascii()
    assert text.isprintable()
    plain, hostile = (typeset(banner.message(each), 1024, 1024) for each in (positive(), case))
    assert hostile.height <= plain.height * 1.6
    assert words(case, monkeypatch).startswith("Pneumothorax suspected Patient's right.")


@pytest.mark.parametrize("size", [(1024, 1024), (2500, 2048), (2048, 2500), (500, 1900), (64, 64)])
def test_the_finding_word_is_ten_pixels_high_in_a_thumbnail(size: tuple[int, int]) -> None:
    case = negative(header(Rows=size[0], Columns=size[1]))
    panel = overlay.place(case)
    height = (
        panel.banner_top + typeset(banner.message(case), panel.canvas_width, panel.height).height
    )
    letters = typesetting._Sizes.of(panel.canvas_width, panel.height).title
    assert letters * 256 / max(panel.canvas_width, height) >= 10


def test_every_banner_has_the_same_disclaimer_in_the_same_place() -> None:
    size = {"Rows": 1024, "Columns": 1024}
    banners = [
        typeset(banner.message(make(header(**size))), 1024, 1024)
        for make in (positive, negative, refused)
    ]
    strips = [np.asarray(each.crop((0, each.height - 40, 1024, each.height))) for each in banners]
    assert np.array_equal(strips[0], strips[1])
    assert np.array_equal(strips[0], strips[2])
    assert DISCLAIMER == "Research use only - not for diagnosis"


def test_a_setting_that_changes_the_picture_changes_its_uid() -> None:
    results = [
        build(negative(appearance=RenderSettings(side, 90)), ["SC"])[0] for side in (512, 1024)
    ]
    assert results[0].sop_instance_uid != results[1].sop_instance_uid


def test_the_picture_is_baseline_jpeg() -> None:
    assert isinstance(picture(build(negative(), ["SC"])[0]), Image.Image)


@pytest.mark.parametrize(
    ("shape", "changes"),
    [
        ((400, 800), {"PixelSpacing": [0.4, 0.2]}),
        ((800, 400), {"PixelSpacing": None, "PixelAspectRatio": [1, 2]}),
        ((300, 800), {"PixelSpacing": None, "ImagerPixelSpacing": [0.5, 0.25]}),
        ((1100, 2200), {"PixelSpacing": [0.4, 0.2]}),
        # An image so small that it is enlarged.
        ((40, 60), {"PixelSpacing": [0.3, 0.2]}),
    ],
)
def test_the_picture_of_non_square_pixels_has_true_proportions(
    shape: tuple[int, int], changes: dict[str, object]
) -> None:
    source = header(Rows=shape[0], Columns=shape[1], **changes)
    case = positive(source)
    # build() has passed the object through the gate.
    (result,) = build(case, ["SC"])
    panel = overlay.place(case)
    aspect = 0.5 if shape == (800, 400) else 1.5 if shape == (40, 60) else 2
    assert panel.width / panel.height == pytest.approx(shape[1] / (shape[0] * aspect), rel=0.01)

    # The contour lies around the region, in both directions.
    drawn = np.asarray(picture(result), dtype=int)[: panel.height]
    coloured = np.argwhere(drawn[..., 0] - drawn[..., 2] > 80) - (0, panel.left)
    region = np.argwhere(blob(source))
    first, last = region.min(axis=0) * panel.scales, (region.max(axis=0) + 1) * panel.scales
    assert np.abs(coloured.min(axis=0) - first).max() <= 4
    assert np.abs(coloured.max(axis=0) - last).max() <= 4


def test_the_gate_refuses_a_squashed_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    case = positive(header(Rows=400, Columns=800, PixelSpacing=[0.4, 0.2]))
    square = replace(case, header=header(Rows=400, Columns=800))
    squashed = overlay.draw(square)
    monkeypatch.setattr(overlay, "draw", lambda _: squashed)
    with pytest.raises(GateError):
        build(case, ["SC"])


@pytest.mark.parametrize(
    ("columns", "place"),
    [
        (slice(2, 10), "At the left of the picture (patient's side not known). 1 region"),
        (slice(28, 36), "At the right of the picture (patient's side not known). 1 region"),
        (slice(14, 24), "On both sides of the picture (patient's side not known). 1 region"),
    ],
)
def test_the_banner_says_where_to_look_if_the_patients_side_is_unknown(
    columns: slice, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mask = np.zeros((41, 37), dtype=bool)
    mask[10:20, columns] = True
    case = positive(header(PatientOrientation=None), mask)
    assert place in words(case, monkeypatch)
    # The gate must accept these words.
    assert build(case, ["SC"])


@pytest.mark.parametrize(
    "given",
    [["L", "F"], ["R", "F"], ["RA", " F "], ["R", "RL"], ["ROW", "HEIGHT"], ["r", "f"], ["P", "F"]],
    ids="-".join,
)
def test_banner_and_segmentation_name_the_same_side(
    given: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = positive(header(PatientOrientation=given))
    banner = words(case, monkeypatch)
    seg, _ = build(case, ["SEG", "SC"])

    segment = dcmread(io.BytesIO(seg.data)).SegmentSequence[0]
    (region,) = segment.AnatomicRegionSequence
    modifiers = region.get("AnatomicRegionModifierSequence") or []
    meanings = [item.CodeMeaning for item in modifiers]
    named = {"Right": "Patient's right", "Left": "Patient's left"}
    expected = named[meanings[0]] if meanings else "At the left of the picture"
    assert expected in banner
