"""Checks of a data set: faults are reported before training begins."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training import data as labelled
from training.data import PhantomCase, checks, split
from training.data.findings import Finding


def folder_of(path: Path, rows: list[str], **pictures: np.ndarray) -> Path:
    for name, picture in pictures.items():
        Image.fromarray(picture).save(path / f"{name}.png")
    (path / "labels.csv").write_text("\n".join(["image,label,mask,patient,age,fold", *rows]) + "\n")
    return path


def found_in(path: Path) -> dict[str, Finding]:
    cases = labelled.read("table", path)
    report = checks.check(cases, None, checks.examine(cases))
    return {finding.what: finding for finding in (*report.errors, *report.warnings)}


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (24, 16), np.uint8)


SOME = np.full((24, 16), 255, np.uint8) * (np.arange(16) < 4).astype(np.uint8)
NONE = np.zeros((24, 16), np.uint8)


def test_sound_images_have_no_findings(tmp_path: Path) -> None:
    rows = ["a.png,1,some.png,A,50,0", "b.png,0,none.png,B,60,1"]
    assert not found_in(folder_of(tmp_path, rows, a=noise(1), b=noise(2), some=SOME, none=NONE))


def test_every_kind_of_fault_is_reported(tmp_path: Path) -> None:
    rows = [
        "a.png,1,some.png,A,50,0",
        "a.png,1,some.png,A,50,0",
        # Also patient A, with a mask although the label is negative.
        "b.png,0,some.png,A,413,1",
        "c.png,1,none.png,C,-3,1",
        "d.png,1,small.png,D,,1",
        "e.png,1,,E,,1",
        "f.png,1.5,some.png,F,,1",
        "gone.png,0,none.png,G,,1",
        "text.png,0,none.png,H,,1",
        "same.png,0,none.png,I,,1",
        "g.png,1,most.png,J,,1",
    ]
    folder_of(
        tmp_path,
        rows,
        **{name: noise(number) for number, name in enumerate("abcdefg")},
        same=noise(1),
    )

    folder_of(tmp_path, rows, some=SOME, none=NONE, small=SOME[:10], most=255 - SOME)
    (tmp_path / "text.png").write_text("no picture")
    found = {what: (finding.level, finding.where) for what, finding in found_in(tmp_path).items()}
    unusable = found.pop("unusable")
    assert unusable[0] == "error"
    assert [one.split(":")[0] for one in unusable[1]] == ["d", "gone", "text"]

    assert found == {
        "missing file": ("error", ("gone.png",)),
        "repeated id": ("error", ("a 2 times",)),
        "label outside 0 to 1": ("error", ("f: 1.5",)),
        "patient in several published folds": ("error", ("patient-0001: a in 0, b in 1",)),
        "negative with a mask": ("error", ("b",)),
        "positive with an empty mask": ("warning", ("c",)),
        "positive without a mask where others have one": ("warning", ("e",)),
        "age outside 0 to 120 years": ("warning", ("b: 413", "c: -3")),
        "mask over more than half of the image": ("warning", ("g",)),
        "identical pixels": ("warning", ("a = a", "b = same")),
    }


def phantom_of(number: int, patient: str, label: float = 1, published: bool = True) -> PhantomCase:
    return PhantomCase(
        image_id=f"i{number}",
        patient=patient,
        label=label,
        as_published=published,
        seed=number,
        size=32,
    )


def test_a_patient_on_both_sides_of_a_split_is_an_error() -> None:
    a, b, c, d = (phantom_of(number, patient, number % 2) for number, patient in enumerate("ABCA"))

    def errors(*sides: list[PhantomCase]) -> list[str]:
        parts = split.Parts(sides[0], sides[1], sides[2], {})  # type: ignore[arg-type]
        return [finding.what for finding in checks.check([a, b, c, d], parts).errors]

    assert errors([a, d], [b], [c]) == []
    # A recipe may share whole parts.
    assert errors([a, b], [a, b], [c]) == []
    assert errors([a, b], [c], [d]) == ["patient in report and in training or validation"]
    assert errors([a, b], [d], [c]) == ["patient in training and in validation"]


def test_provenance_that_reveals_the_label_is_reported() -> None:
    cases = [
        phantom_of(number, f"{number}", float(number < 10), number >= 8) for number in range(40)
    ]
    (finding,) = checks.check(cases).warnings
    assert (
        str(finding)
        == "warning: provenance tells the label: as published 2 of 32 positive, copies 8 of 8 positive"
    )


def test_errors_stop_a_run_and_warnings_do_not() -> None:
    # Only a warning: all images have the same label.
    checks.check([phantom_of(1, "a"), phantom_of(2, "b")]).raise_errors()
    twice = checks.check([phantom_of(1, "a"), phantom_of(1, "a", 0)])
    with pytest.raises(ValueError, match=r"^error: repeated id: i1 2 times$"):
        twice.raise_errors()
    assert "errors 1, warnings 0" in str(twice)


def test_images_shared_with_a_measuring_part_of_another_layout_are_an_error(tmp_path: Path) -> None:
    own = tmp_path / "a"
    same_image = tmp_path / "b"
    same_patient = tmp_path / "c"
    other = tmp_path
    for folder, name, patient in (
        (own, "one.png", "MRS DOE"),
        (same_image, "in/one.png", ""),
        (same_patient, "two.png", "MRS DOE"),
        (other, "three.png", "MR ROE"),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(SOME).save(folder / name)
        (folder / "labels.csv").write_text(f"image,label,patient\n{name},1,{patient}\n")

    (case,) = labelled.read("table", own)
    for side in ("report", "validate"):
        parts = split.Parts(
            **{"train": [], "validate": [], "report": [], "folds": {}, side: [case]}
        )
        what = f"images or patients that {side} in the recipe's own layout"
        for folder, found in ((same_image, [what]), (same_patient, [what]), (other, [])):
            report = checks.check(labelled.read("table", folder), beside=parts)
            assert [finding.what for finding in report.errors] == found
    assert "DOE" not in repr(case)
