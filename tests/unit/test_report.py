"""The report of a run: one self-contained file, whose content is never interpreted as markup."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from training import recipe
from training.measures import figures, report, thresholds
from training.measures.answers import Answer, write_rows
from training.measures.evaluate import Evaluation, Look

pytestmark = pytest.mark.xdist_group("report")

HOSTILE = "<script>alert($1$)</script>"
REPOSITORY = Path(__file__).resolve().parents[2]


def look(answer: Answer) -> Look:
    true = np.zeros((32, 32), bool)
    true[4:12, 4:12] = bool(answer.true)
    found = np.zeros((32, 32), bool)
    found[6:14, 6:14] = bool(answer.found)
    return Look(np.full((32, 32), 0.5, np.float32), None if answer.true is None else true, found)


def evaluation(count: int = 24, warning: str | None = None) -> Evaluation:
    answers = [
        Answer(
            image_id=f"{HOSTILE}{n}", patient=f"p{n}", label=float(n % 2), part="report",
            as_published=n % 3 > 0,
            view=("PA", "AP")[n % 2], sex=("M", "F", "")[n % 3],
            age_years=(30.0, 70.0, 413.0, None)[n % 4],
            probability=((n * 7) % 24) / 24, pixels=1024,
            true=(64 - n) * (n % 2) // (1 + 9 * (n % 4 == 1)), found=64 * (n % 5 > 0),
            common=(n % 2) * (n % 5 > 0) * (n % 4),
        )
        for n in range(count)
    ]  # fmt: skip

    head = {
        "model": HOSTILE,
        "version": "1.0.0",
        "threshold": 0.4,
        "layout": "siim",
        "labels": "labels",
        "warning": warning,
    }

    return Evaluation(head | figures.figures_of(answers, 0.4, from_run=True), answers, look)


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "DRAWS", 20)
        patch.setattr(report, "_BREAKDOWN_DRAWS", 20)
        patch.setattr(report, "_SHOWN", 1)
        yield


@pytest.fixture(scope="module")
def page(_quick: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The report of a run whose folder is complete."""
    run = tmp_path_factory.mktemp("run")
    rows = [{"epoch": n, "loss": 1 / (1 + n), "auc": 0.5 + n / 10} for n in range(1, 4)]
    (run / "curves").mkdir()
    write_rows(run / "curves" / "0-classifier.csv", [*rows, {"epoch": 3, "loss": "", "auc": 0.9}])
    names = (
        "bottom",
        "top",
        "min_area_at_1024_px",
        "min_sure_area_at_1024_px",
        "competition_score",
    )

    rules = [
        (bottom, bottom, area, 0, bottom + area / 1e5)
        for bottom in (0.3, 0.5)
        for area in (0, 3500)
    ]
    write_rows(run / "search.csv", [dict(zip(names, rule, strict=True)) for rule in rules])

    c1 = recipe.load(REPOSITORY / "config" / "recipes" / "c1-xception.yaml")
    return report.write(evaluation(), c1, run, run / "report.html").read_text()


def test_one_file_has_the_whole_report(page: str) -> None:
    for words in (
        "Research use only", "Published for C1", "0.770", "a difference says nothing",
        "as published alone",
        "ROC and precision-recall curves", "Confusion matrix and calibration",
        "Learning: 0-classifier",
        "4 rules were tried", "bottom 0.5, top 0.5, min_area_at_1024_px 3500", "view AP", "sex F",
        "60 to 79",
        "age unknown", "mask &gt; 2 %", "Failure: positive with an empty mask", "Failure: missed",
        "Failure: false alarm", "Best", "Worst", "every knob",
    ):  # fmt: skip
        assert words in page, words

    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert set(re.findall(r'(?:src|href)="(.{0,5})', page)) == {"data:"}
    assert "SILVER" not in page
    assert "the data name no patients" in page
    for name in figures.measured(evaluation().answers, 0.4, 5):
        assert name.replace(figures.ALONE, " *").replace("_", " ") in page


def test_each_failure_is_shown_in_its_section(page: str) -> None:
    sections = dict(re.findall(r"<h3>(.*?)</h3>(.*?)(?=<h3>|<h2>|</main>)", page, re.S))
    shown = {title: re.findall(r"<br>(.*?)</figcaption>", text) for title, text in sections.items()}
    assert [" 0 px found" in one for one in shown["Failure: positive with an empty mask"]] == [True]
    assert ["negative" in one for one in shown["Failure: false alarm"]] == [True]
    (missed,) = shown["Failure: missed"]
    least = min(answer.probability for answer in evaluation().answers if answer.positive)
    assert f"probability {least:.3f} · positive" in missed
    dice = [float(re.search(r"Dice (\S+)", *shown[title])[1]) for title in ("Best", "Worst")]  # type: ignore[index]
    assert dice[0] > dice[1]


def test_silver_labels_without_masks_are_named(tmp_path: Path) -> None:
    soft = evaluation(warning="SILVER labels, not a reading")
    answers = [
        replace(answer, true=None, common=0, label=0.3, patient="p") for answer in soft.answers
    ]
    head = {
        key: soft.figures[key]
        for key in ("model", "version", "threshold", "layout", "labels", "warning")
    }
    blank = Evaluation(head | figures.figures_of(answers, 0.4, from_run=False), answers, look)
    page = report.write(blank, None, None, tmp_path / "report.html").read_text()
    assert "SILVER labels, not a reading" in page
    assert "dice positives" not in page.split("<h2>Breakdown")[0]
    assert "the data name no patients" not in page


def test_the_report_states_the_rule_that_was_chosen(tmp_path: Path) -> None:
    """Of the many rules with the best score, the middle one is chosen."""
    lesion = np.zeros((64, 64), dtype=np.float32)
    lesion[10:30, 10:30] = 0.9
    search = thresholds.search([(lesion, lesion > 0)], thresholds.TWO_STAGE)
    write_rows(tmp_path / "search.csv", list(search.rows()))
    text = " ".join(report._search(tmp_path))
    assert ", ".join(f"{name} {value:g}" for name, value in search.best.items()) in text
