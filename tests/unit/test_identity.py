"""Identifying attributes of patient and study leave the node with exactly the bytes that were
received.
"""

from __future__ import annotations

import io
import struct
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from pydicom import FileDataset, dcmread

from inference import package, radiograph
from inference.engine import Engine
from inference.finding import Outcome, State
from inference.pipeline import AnalysisSettings, Pipeline
from inference.results import Case, GateError, build, derived_uid, gate
from inference.silence import silenced_warnings
from tests.conftest import missing
from tools.cases import positive
from tools.images import image, written

KINDS = ("SEG", "SC", "SR", "PR")
AT = datetime(2026, 11, 28, 12)
CYRILLIC = "Иванов^Иван"

# The bytes in the file: SpecificCharacterSet, PatientName, PatientID.
SENT = {
    "a hyphen in the term": (b"ISO-IR 192", CYRILLIC.encode(), b"P-1 "),
    "the name of a codec": (b"utf-8 ", CYRILLIC.encode(), "Ж-1".encode()),
    "lower case": (b"iso_ir 100", "Grün^Ada".encode("latin-1"), b"P-1 "),
    "an unknown number": (b"ISO_IR 999", "Grün^Ada".encode("latin-1"), b"P-1 "),
    "no character set": (None, "Grün^Ada".encode("latin-1"), "Ü-1 ".encode("latin-1")),
    "an empty character set": (b"", "Grün^Ada".encode("latin-1"), b"P-1 "),
    "bytes that are not UTF-8": (b"ISO_IR 192", "Grün^Ada".encode("latin-1"), b"P\xff\xfe1"),
    "another encoding than stated": (b"ISO_IR 100", CYRILLIC.encode(), "Ж-1".encode()),
    "code extensions": (
        b"\\ISO 2022 IR 87", b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B ", b"P-1 ",
    ),
    "code extensions of wrong terms": (b"\\ISO-2022-IR-87 ", b"Yamada^Tarou", b"P-1 "),
    "two bytes, one of them a backslash": (b"GB18030 ", "王\u8a89^小东".encode("gb18030"), b"P-1 "),
    "a name in several parts": (b"ISO_IR 100", b"A\\B\\C ", b"P-1\\P-2 "),
    "padded with NUL": (b"ISO_IR 100\0\0", b"DOE^J\0", b"P-1\0"),
    "longer than their VR": (b"ISO_IR 100", b"D" * 80 + b"^" + b"J" * 81, b"P" * 90),
    "control characters": (b"ISO_IR 100", b"DOE\t^J\x07", b"P\n-1"),
}  # fmt: skip


def sent_file(character_set: bytes | None, name: bytes, patient_id: bytes) -> bytes:
    """A radiograph with these bytes in its header. They replace ASCII placeholders of the same
    length.
    """
    stand_ins = {
        "PatientName": "N" * len(name),
        "PatientID": "I" * len(patient_id),
        "SpecificCharacterSet": None if character_set is None else "C" * len(character_set),
    }
    values = np.arange(41 * 37, dtype=np.uint16).reshape(41, 37) % 4000
    with silenced_warnings():
        made = written(image(values, 12, **stand_ins))

    for stand_in, value in (
        ("N" * len(name), name),
        ("I" * len(patient_id), patient_id),
        ("C" * len(character_set or b""), character_set),
    ):
        if value:
            made = made.replace(stand_in.encode(), value, 1)
    return made


def case_of(data: bytes) -> Case:
    decoded = radiograph.decode(radiograph.parse(data)[0])
    return positive(decoded.header, pixels=decoded.pixels, content_digest=decoded.content_digest)


def element(tag: int, vr: bytes, value: bytes) -> bytes:
    """An element in Explicit VR Little Endian, padded to an even length."""
    value += b" " * (len(value) % 2)
    return struct.pack("<HH", tag >> 16, tag & 0xFFFF) + vr + struct.pack("<H", len(value)) + value


@pytest.mark.parametrize("sent", SENT.values(), ids=SENT.keys())
def test_identity_and_character_set_keep_the_received_bytes(
    sent: tuple[bytes | None, bytes, bytes],
) -> None:
    character_set, name, patient_id = sent
    results = build(case_of(sent_file(*sent)), KINDS)

    assert [result.kind for result in results] == list(KINDS)
    for result in results:
        assert element(0x00100010, b"PN", name) in result.data
        assert element(0x00100020, b"LO", patient_id) in result.data
        if character_set:
            assert element(0x00080005, b"CS", character_set) in result.data
        else:
            assert b"\x08\x00\x05\x00CS" not in result.data


def test_the_gate_compares_bytes_even_if_the_decoded_text_is_equal() -> None:
    """Different undecodable bytes are the same text (U+FFFD) but different patients."""
    character_set = b"ISO_IR 192"
    name = b"DOE^J "
    case = case_of(sent_file(character_set, name, b"P\xff\xff1"))
    (result,) = build(case, ["SC"])
    changed = result.data.replace(b"P\xff\xff1", b"P\xfe\xff1")
    with silenced_warnings():
        texts = {dcmread(io.BytesIO(data)).PatientID for data in (result.data, changed)}
    assert len(texts) == 1

    with silenced_warnings(), pytest.raises(GateError, match="PatientID is not the source's"):
        gate.check(replace(result, data=changed), case)


def test_other_bytes_give_another_object() -> None:
    cases = [
        case_of(sent_file(b"ISO_IR 192", b"DOE^J ", patient_id))
        for patient_id in (b"P\xff\xff1", b"P\xfe\xff1", b"P-1 ", b"P-1\0")
    ]
    assert len({derived_uid(case, "SC") for case in cases}) == 4
    # Padding is not content: a file that differs only in it counts as the same image sent again.
    assert len({case.content_digest for case in cases}) == 3


def test_our_own_text_fits_every_character_set() -> None:
    case = case_of(sent_file(None, b"DOE^J ", b"P-1 "))
    model = replace(case.model, id="modèle")
    with pytest.raises(GateError, match="ASCII"):
        build(replace(case, model=model), ["SC"])


@pytest.fixture
def pipeline(tiny_package: Path) -> Pipeline:
    engine = Engine(package.load(tiny_package), torch.device("cpu"))
    return Pipeline(engine, AnalysisSettings(kinds=frozenset(KINDS)))


def analysed(pipeline: Pipeline, data: bytes) -> Outcome:
    (outcome,) = pipeline.analyse([data], AT)
    return outcome


def read(data: bytes) -> FileDataset:
    with silenced_warnings():
        return dcmread(io.BytesIO(data))


def test_an_attribute_that_cannot_be_carried_on_does_not_keep_the_archive_from_being_told(
    pipeline: Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    """The fallback: an overlay without that attribute and with every attribute that passes."""
    data = sent_file(b"ISO-IR 192", CYRILLIC.encode(), b"77")
    as_number = data.replace(b"\x10\x00\x20\x00LO", b"\x10\x00\x20\x00US", 1)
    outcome = analysed(pipeline, as_number)

    assert (outcome.state, outcome.reason) == (State.FAILED, "result_invalid")
    (result,) = outcome.results
    assert result.kind == "SC"
    overlay = read(result.data)
    assert element(0x00100010, b"PN", CYRILLIC.encode()) in result.data
    assert overlay["PatientID"].is_empty
    assert overlay.StudyInstanceUID == "2.25.32"
    assert "overlay without PatientID" in caplog.text


def test_a_name_longer_than_an_element_can_hold_is_left_out(pipeline: Pipeline) -> None:
    """A VR with a 16-bit length holds 65,534 bytes (PS3.5 7.1.2); Implicit VR has no such limit."""
    values = np.arange(41 * 37, dtype=np.uint16).reshape(41, 37) % 4000
    dataset = image(values, 12, PatientName="N" * 70_000)
    buffer = io.BytesIO()
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2"
    dataset.save_as(buffer, implicit_vr=True, little_endian=True)
    outcome = analysed(pipeline, buffer.getvalue())

    assert outcome.reason == "result_invalid"
    (result,) = outcome.results
    overlay = read(result.data)
    assert overlay["PatientName"].is_empty
    assert overlay.PatientID == "M-1"


@pytest.mark.parametrize(
    "name", ["charset-hyphen-cyrillic", "charset-hyphen-umlaut", "charset-utf-8"]
)
def test_reported_files_keep_their_names(pipeline: Pipeline, data: Path, name: str) -> None:
    path = data / "reports" / f"{name}.dcm"
    if not path.is_file():
        missing(f"no file of bug reports: {path}")
    source = read(path.read_bytes())
    wanted = {
        keyword: source.get_item(keyword).value  # type: ignore[union-attr]
        for keyword in ("SpecificCharacterSet", "PatientName", "PatientID")
    }
    outcome = analysed(pipeline, path.read_bytes())

    assert outcome.state is State.ANALYSED
    assert outcome.results
    for result in outcome.results:
        made = read(result.data)
        for keyword, value in wanted.items():
            assert made.get_item(keyword).value == value  # type: ignore[union-attr]
