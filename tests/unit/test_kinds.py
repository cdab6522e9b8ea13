"""A kind of result is one record; everything else about the kind derives from it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
from pydicom import Dataset
from pydicom.uid import SecondaryCaptureImageStorage

import inference.results
from daemon.config.schema import ResultKind
from daemon.dicom import tables
from inference.results import KINDS, Case, GateError, build, sc
from inference.results.gate import sc as gate_sc
from inference.results.gate.expected import Expected, Rule
from tools.cases import negative

RESULTS = Path(inference.results.__file__).parent
ENCODING = {
    "seg", "sc", "sr", "pr", "content", "identity", "lesions", "banner", "overlay", "source",
}  # fmt: skip


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{name.name}" for name in node.names)
            yield str(node.module)


def test_the_settings_accept_exactly_the_known_kinds() -> None:
    assert get_args(ResultKind) == tuple(KINDS)


def test_file_meta_and_associations_name_the_same_implementation() -> None:
    assert inference.results.IMPLEMENTATION_CLASS_UID == tables.IMPLEMENTATION_CLASS_UID
    assert inference.results.IMPLEMENTATION_VERSION_NAME == tables.IMPLEMENTATION_VERSION_NAME


def test_every_record_names_an_encoder_and_rules() -> None:
    for kind in KINDS.values():
        assert kind.gate_rules
        assert kind.encode(negative()) is None or kind.name in ("SC", "SR")


def test_each_kind_has_its_own_series() -> None:
    assert len({kind.series_number for kind in KINDS.values()}) == len(KINDS)
    assert len({kind.noun for kind in KINDS.values()}) == len(KINDS)


@pytest.mark.parametrize(
    "path", sorted((RESULTS / "gate").glob("*.py")), ids=lambda path: path.name
)
def test_the_gate_imports_neither_encoders_nor_their_computations(path: Path) -> None:
    encoding = {f"inference.results.{name}" for name in ENCODING}
    found = {
        name
        for name in imports(path)
        if ".".join(name.split(".")[:3]) in encoding
        or name in ("inference.measure.laterality", "inference.measure.measure")
        or name in ("inference.contours.contours", "inference.postprocess.label_regions")
    }
    assert not found
    assert ".measurement." not in path.read_text().replace("case.finding.measurement is", "")


def encode_summary(case: Case) -> Dataset:
    """Encode the overlay as a kind that the code does not know."""
    dataset = sc.encode(case)
    dataset.update(inference.results.identity.identify(case, "SUMMARY"))
    return dataset


def _says_summary(dataset: Dataset, _: Expected) -> Iterator[str]:
    if "summary" not in dataset.SeriesDescription:
        yield "no summary"


SUMMARY_RULES: tuple[Rule, ...] = (*gate_sc.RULES, _says_summary)


def test_a_new_kind_needs_only_a_record_with_an_encoder_and_rules(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    summary = replace(
        KINDS["SC"],
        name="SUMMARY",
        series_number=9099,
        noun="summary",
        encoder=f"{__name__}:encode_summary",
        rules=f"{__name__}:SUMMARY_RULES",
    )
    monkeypatch.setitem(KINDS, "SUMMARY", summary)
    case = negative()
    overlay, made = build(case, ["SC", "SUMMARY"])
    assert (made.kind, made.sop_class_uid) == ("SUMMARY", SecondaryCaptureImageStorage)
    assert made.sop_instance_uid != overlay.sop_instance_uid
    assert b"Pneumothorax summary. " in made.data

    wrong = replace(made, kind="SC")
    with pytest.raises(GateError):
        inference.results.gate.check(wrong, case)


def test_a_setting_changes_the_uids_of_only_the_kinds_it_affects() -> None:
    case = negative()
    smaller = replace(case, appearance=replace(case.appearance, jpeg_quality=80))
    before, after = build(case, ["SC", "SR"]), build(smaller, ["SC", "SR"])
    assert before[0].sop_instance_uid != after[0].sop_instance_uid
    assert before[1].sop_instance_uid == after[1].sop_instance_uid
