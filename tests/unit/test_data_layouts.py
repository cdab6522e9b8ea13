"""Each layout of labelled images is read from files made here; SIIM-ACR and the silver labels also
from the real data.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread

from inference.silence import silenced_warnings
from training import data as labelled
from training import phantom
from training.data import lgg, rle, siim
from training.recipe import Layout

SIDE = 64


def siim_as_published(folder: Path, count: int = 4) -> Path:
    """The published form: nested folders, an image's mask in two rows, and a header name that
    begins with a space. The first, third, ... images are positive.
    """
    rows = []
    for number in range(count):
        drawn = phantom.draw(number, number % 2 == 0, SIDE)
        path = phantom.write(
            drawn, folder / "dicom-images-train" / f"1.{number}" / f"2.{number}" / f"3.{number}.dcm"
        )
        # Ages have no unit in the published files.
        with silenced_warnings():
            dataset = dcmread(path)
            dataset.PatientAge = "413" if number == 1 else "58"
            dataset.PatientSex = "F"
            dataset.PatientID = f"N-{number // 2}"
            dataset.save_as(path)

        upper = drawn.mask & (np.arange(SIDE)[:, None] < SIDE // 2)
        rows += [
            f"3.{number},{rle.encode(half)}" for half in (upper, drawn.mask & ~upper) if half.any()
        ] or [f"3.{number},-1"]

    (folder / "train-rle.csv").write_text("\n".join(["ImageId, EncodedPixels", *rows]) + "\n")
    return folder


def test_siim_is_read_as_published(tmp_path: Path) -> None:
    cases = labelled.read("siim", siim_as_published(tmp_path))
    assert [case.label for case in cases] == [1, 0, 1, 0]
    for number, case in enumerate(cases):
        drawn = phantom.draw(number, number % 2 == 0, SIDE)
        assert np.array_equal(case.mask(), drawn.mask)
        assert np.corrcoef(case.pixels().ravel(), drawn.pixels.ravel())[0, 1] > 0.99

    assert (cases[1].age_years, cases[0].sex, cases[0].view, cases[0].fold) == (
        413,
        "F",
        "PA",
        None,
    )

    # These files are uncompressed; the published files are JPEG Baseline.
    assert not any(case.as_published for case in cases)
    # No file of a run holds a patient's number.
    assert [case.patient for case in cases] == [
        "patient-0001",
        "patient-0001",
        "patient-0002",
        "patient-0002",
    ]

    assert not cases.findings


def test_siim_takes_patients_from_a_table(tmp_path: Path) -> None:
    siim_as_published(tmp_path)
    (tmp_path / "patients.csv").write_text("ImageId,patient\n3.0,Ada\n3.1,Bob\n3.2,Ada\n")
    cases = labelled.read("siim", tmp_path)
    assert [case.patient for case in cases] == [
        "patient-0001",
        "patient-0002",
        "patient-0001",
        "3.3",
    ]

    (finding,) = cases.findings
    assert str(finding) == "warning: image that patients.csv does not name: 3.3"
    (tmp_path / "patients.csv").write_text("ImageId,patient\n3.0,Ada\n3.0,Bob\n")

    with pytest.raises(
        ValueError, match=r"patients.csv: line 3: patient 'Bob' found, one for each ImageId"
    ):
        labelled.read("siim", tmp_path)


def test_siim_warns_when_no_patient_is_named(tmp_path: Path) -> None:
    for path in siim_as_published(tmp_path).rglob("*.dcm"):
        with silenced_warnings():
            dataset = dcmread(path)
            # As published: each image has a PatientID of its own.
            dataset.PatientID = path.stem
            dataset.save_as(path)
    (finding,) = labelled.read("siim", tmp_path).findings
    assert str(finding).startswith(
        "warning: the data name no patients: a split cannot keep a patient's images"
    )
    assert str(finding).endswith("give patients.csv (ImageId,patient)")


def test_siim_reports_the_images_it_left_out(tmp_path: Path) -> None:
    siim_as_published(tmp_path)
    nested = tmp_path / "dicom-images-train"
    phantom.write(phantom.draw(9, False, SIDE), nested / "x" / "without-a-row.dcm")
    phantom.write(phantom.draw(9, False, SIDE), nested / "y" / "3.0.dcm")
    with (tmp_path / "train-rle.csv").open("a") as file:
        file.write("without-an-image,-1\n3.0,-1\n")

    (tmp_path / "folds.csv").write_text(
        "ImageId,fold,patient,pneumothorax\n3.1,0,P1,1\nnowhere,0,P2,0\n"
    )
    cases = labelled.read("siim", tmp_path)
    assert len(cases) == 4
    found = {(finding.level, finding.where[0]) for finding in cases.findings}
    assert found == {
        ("error", "3.0"), ("error", "3.1"), ("warning", "without-a-row"),
        ("warning", "without-an-image"),
        ("warning", "nowhere"), ("warning", "3.0"),
    }  # fmt: skip

    assert (cases[0].image_id, cases[0].patient, cases[0].fold) == ("3.1", "P1", 0)


def test_the_real_siim_files_are_read(data: Path) -> None:
    cases = labelled.read("siim", data)
    assert (
        len(cases),
        sum(case.positive for case in cases),
        sum(case.as_published for case in cases),
    ) == (
        248,
        102,
        199,
    )

    assert not cases.findings
    assert {case.fold for case in cases} == {0, 1, 2, 3}
    case = next(case for case in cases if case.positive)
    assert case.mask().shape == case.pixels().shape == (1024, 1024)


@pytest.mark.parametrize(
    ("text", "years"),
    [
        ("058Y", 58),
        ("58", 58),
        ("413", 413),
        ("018M", 1.5),
        ("026W", 0.5),
        ("", None),
        ("fifty", None),
    ],
)
def test_ages_are_read_in_years(text: str, years: float | None) -> None:
    assert siim.years(text) == years


def test_silver_labels_are_read(data: Path) -> None:
    cases = labelled.read("silver", data)
    assert (len(cases), sum(case.positive for case in cases)) == (3205, 744)
    assert cases[0].mask() is None
    assert cases[0].pixels().shape == (512, 512)
    assert 0 < cases[0].label < 1


def test_silver_reads_no_file_outside_its_folder(tmp_path: Path) -> None:
    (tmp_path / "silver-labels.csv").write_text("ImageId,probability\na,0.5\n../../x,0.5\n")
    with pytest.raises(ValueError, match=r"line 3: .*'../../x.jpg' found, a path inside"):
        labelled.read("silver", tmp_path)


def lgg_folder(folder: Path) -> Path:
    """Three slices of two patients; only the green channel holds a picture."""
    for patient, number in (
        ("TCGA_AA_0001_19990101", 2),
        ("TCGA_AA_0001_19990101", 10),
        ("TCGA_AA_0002_20000101", 1),
    ):
        home = folder / "kaggle_3m" / patient
        home.mkdir(parents=True, exist_ok=True)
        picture = np.zeros((32, 32, 3), np.uint8)
        picture[8:24, 8:24, 1] = 120
        picture[..., 2] = 255
        mask = np.zeros((32, 32), np.uint8)
        mask[10:12, 10 : 10 + number] = 255 if number > 1 else 0
        Image.fromarray(picture).save(home / f"{patient}_{number}.tif")
        Image.fromarray(mask).save(home / f"{patient}_{number}_mask.tif")

    return folder


def test_lgg_is_read(tmp_path: Path) -> None:
    cases = labelled.read("lgg", lgg_folder(tmp_path))
    assert [(case.image_id[-3:], case.patient, case.label) for case in cases] == [
        ("1_2", "TCGA_AA_0001", 1), ("_10", "TCGA_AA_0001", 1), ("1_1", "TCGA_AA_0002", 0),
    ]  # fmt: skip
    assert [int(case.mask().sum()) for case in cases] == [4, 20, 0]
    pixels = cases[0].pixels()

    # The blue channel is ignored.
    assert (pixels.dtype, pixels[0, 0]) == (np.float32, 0)
    assert pixels[16, 16] == pytest.approx(120 / 255)

    # The picture is sharpened, so an edge stands out.
    assert pixels[16, 8] > pixels[16, 16]
    (tmp_path / "kaggle_3m" / "TCGA_AA_0002_20000101" / "TCGA_AA_0002_20000101_1_mask.tif").unlink()
    assert [finding.where for finding in labelled.read("lgg", tmp_path).findings] == [
        ("TCGA_AA_0002_20000101_1",)
    ]


def test_the_clinical_table_is_read(tmp_path: Path) -> None:
    home = lgg_folder(tmp_path) / "kaggle_3m"
    (home / "data.csv").write_text(
        "Patient,gender,age,death01\nTCGA_AA_0001,1,40.5,0\nTCGA_AA_0002,NA,,1\n"
    )
    table = lgg.read_clinical(tmp_path)
    assert table.keys() == {case.patient for case in labelled.read("lgg", tmp_path)}
    assert table["TCGA_AA_0001"] == {"gender": 1, "age": 40.5, "death01": 0}
    assert table["TCGA_AA_0002"] == {"gender": None, "age": None, "death01": 1}
    (home / "data.csv").write_text("Patient,gender\nTCGA_AA_0001,male\n")
    with pytest.raises(ValueError, match=r"line 2.*male"):
        lgg.read_clinical(tmp_path)


def table_folder(folder: Path, rows: str) -> Path:
    """A grey PNG, a colour JPEG, a 16-bit TIFF, a DICOM file and a mask."""
    picture = np.linspace(0, 255, 48 * 32).reshape(48, 32).astype(np.uint8)
    (folder / "in").mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(folder / "in" / "a.png")
    Image.fromarray(np.stack([picture] * 3, -1)).save(folder / "b.jpg", quality=95)
    Image.fromarray(picture.astype(np.uint16) * 200).save(folder / "c.tif")
    phantom.write(phantom.draw(1, True, SIDE), folder / "d.dcm")
    Image.fromarray((picture > 200).astype(np.uint8) * 255).save(folder / "mask.png")
    (folder / "labels.csv").write_text(rows)
    return folder


def test_a_table_of_images_is_read(tmp_path: Path) -> None:
    header = "image,label,mask,patient,view,sex,age,fold,remark\n"
    rows = "in/a.png,1,mask.png,P1,PA,F,60,0,x\nb.jpg,0.25,,P1,,,,,\nc.tif,0,,,AP,m,,,\nd.dcm,1,,,,,,,\n"
    cases = labelled.read("table", table_folder(tmp_path, header + rows))
    assert [(case.image_id, case.patient, case.label) for case in cases] == [
        ("in/a", "patient-0001", 1), ("b", "patient-0001", 0.25), ("c", "c", 0), ("d", "d", 1),
    ]  # fmt: skip
    assert (cases[0].view, cases[0].sex, cases[0].age_years, cases[0].fold) == ("PA", "F", 60, 0)
    assert (cases[2].sex, cases[1].age_years, cases[1].fold) == ("M", None, None)
    for case in cases[:3]:
        assert case.pixels().shape == (48, 32)
        assert np.abs(case.pixels() - cases[0].pixels()).max() < 0.03
    assert cases[0].mask().sum() == (np.linspace(0, 255, 48 * 32).astype(np.uint8) > 200).sum()
    assert cases[1].mask() is None


def test_image_and_mask_are_rotated_together(tmp_path: Path) -> None:
    table_folder(tmp_path, "image,label,mask\nd.dcm,1,d-mask.png\n")
    drawn = phantom.draw(1, True, SIDE)
    Image.fromarray(drawn.mask.astype(np.uint8)).save(tmp_path / "d-mask.png")
    (case,) = labelled.read("table", tmp_path)
    upright = case.pixels()
    mask = case.mask()
    dataset = dcmread(tmp_path / "d.dcm")
    # Mirrored and upside down.
    dataset.PatientOrientation = ["R", "H"]
    dataset.save_as(tmp_path / "d.dcm")
    assert np.array_equal(case.pixels(), upright[::-1, ::-1])
    assert np.array_equal(case.mask(), mask[::-1, ::-1])


def test_non_square_pixels_are_shown_in_true_proportions(tmp_path: Path) -> None:
    table_folder(tmp_path, "image,label,mask\nd.dcm,1,d-mask.png\n")
    drawn = phantom.draw(1, True, SIDE)
    Image.fromarray(drawn.mask.astype(np.uint8)).save(tmp_path / "d-mask.png")
    (square,) = labelled.read("table", tmp_path)
    pixels = square.pixels()
    identity = square.identity()

    dataset = dcmread(tmp_path / "d.dcm")
    dataset.PixelSpacing = [0.2, 0.2]
    dataset.save_as(tmp_path / "d.dcm")
    (square,) = labelled.read("table", tmp_path)
    assert np.array_equal(square.pixels(), pixels)
    assert "aspect" not in identity + square.identity()

    dataset.PixelSpacing = [0.4, 0.2]
    dataset.save_as(tmp_path / "d.dcm")
    (tall,) = labelled.read("table", tmp_path)
    assert tall.pixels().shape == tall.mask().shape == (2 * SIDE, SIDE)
    assert tall.mask()[::2].sum() == pytest.approx(drawn.mask.sum(), rel=0.1)
    assert np.array_equal(tall.stored_mask(), drawn.mask)
    # The identity differs, so a cache of the distorted picture is not used.
    assert "aspect 2" in tall.identity()


def test_a_wrong_table_is_reported_with_its_lines(tmp_path: Path) -> None:
    table_folder(
        tmp_path,
        "image,label,sex,fold\nb.jpg,1,F,0\nb.jpg,yes,,\n../b.jpg,1,,\nb.jpg,1,x,\nb.jpg,1,,-1\n",
    )
    with pytest.raises(
        ValueError, match=r"line 3: label(.|\n)*line 4: '../b(.|\n)*line 5: sex(.|\n)*line 6: fold"
    ):
        labelled.read("table", tmp_path)
    table_folder(tmp_path, "image,label\nb.jpg,1\nnowhere.png,0\n")
    (finding,) = labelled.read("table", tmp_path).findings
    assert (finding.level, finding.where) == ("error", ("nowhere.png",))


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("image,label,patient\nb.jpg,1,Müller\n".encode("latin-1"), "byte 29 is not UTF-8"),
        ("image,label\nb.jpg,1\n".encode("utf-16"), "byte 0 is not UTF-8"),
        (b'image,label\n"' + b"x" * 200_000 + b'",1\n', "not CSV"),
    ],
)
def test_a_file_that_is_not_a_table_is_reported_with_its_path(
    tmp_path: Path, table: bytes, words: str
) -> None:
    table_folder(tmp_path, "").joinpath("labels.csv").write_bytes(table)
    with pytest.raises(ValueError, match=f"labels.csv: .*{words}"):
        labelled.read("table", tmp_path)


def test_the_last_component_of_a_uid_is_not_a_file_extension(tmp_path: Path) -> None:
    rows = "image,label\n1.2.840.1,1\n1.2.840.2,0\n1.2.840.3.dcm,0\n"
    cases = labelled.read("table", table_folder(tmp_path, rows))
    assert [case.image_id for case in cases] == ["1.2.840.1", "1.2.840.2", "1.2.840.3"]


def test_a_picture_with_nan_is_refused(tmp_path: Path) -> None:
    table_folder(tmp_path, "image,label\nc.tif,1\n")
    values = np.linspace(0, 1, 48 * 32, dtype=np.float32).reshape(48, 32)
    values[3, 3] = np.nan
    Image.fromarray(values).save(tmp_path / "c.tif")
    (case,) = labelled.read("table", tmp_path)
    with pytest.raises(ValueError, match=r"c.tif: .*values found that are no numbers"):
        case.pixels()


def test_phantoms_are_read() -> None:
    cases = labelled.phantoms(3, first_seed=5, size=SIDE)
    assert [case.label for case in cases] == [1, 0, 1]
    assert [bool(case.mask().any()) for case in cases] == [True, False, True]
    assert cases[0].pixels().shape == (SIDE, SIDE)
    assert len({case.identity() for case in cases}) == 3


@pytest.mark.parametrize("layout", ["siim", "silver", "lgg", "table"])
def test_a_folder_without_the_layout_is_refused(tmp_path: Path, layout: Layout) -> None:
    with pytest.raises(ValueError, match=f"{tmp_path.name}.*layout {layout}.*"):
        labelled.read(layout, tmp_path)
    with pytest.raises(ValueError, match="no such folder"):
        labelled.read(layout, tmp_path / "nowhere")


def test_a_broken_file_is_reported_with_its_path(tmp_path: Path) -> None:
    cases = labelled.read(
        "table", table_folder(tmp_path, "image,label\nb.jpg,1\nd.dcm,1\nin/a.png,1\n")
    )
    for case in cases:
        case.path.write_bytes(case.path.read_bytes()[:60])
        with pytest.raises(ValueError, match=f"{case.path.name}: cannot be read"):
            case.pixels()
