"""The gate by mutation, SEG and SC: each case breaks one thing in bytes that still parse, and the
gate must refuse each.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.encaps import encapsulate, generate_frames

from inference.finding import Finding, Result
from inference.results import Case, GateError, build, gate
from tools.cases import header, negative, positive

CASE = positive(
    header(LossyImageCompression="01", LossyImageCompressionRatio="8", FrameOfReferenceUID="1.2.3")
)
GOOD = {result.kind: result for result in build(CASE, ["SEG", "SC"])}


def broken(kind: str, change: Callable[[Any], object]) -> Result:
    """The valid object after one change, rewritten so that everything else stays consistent."""
    dataset = dcmread(io.BytesIO(GOOD[kind].data))
    change(dataset)
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return replace(GOOD[kind], data=file.getvalue(), sop_instance_uid=str(dataset.SOPInstanceUID))


def put(**values: object) -> Callable[[Any], object]:
    return lambda dataset: [setattr(dataset, keyword, value) for keyword, value in values.items()]


def drop(*keywords: str) -> Callable[[Any], object]:
    return lambda dataset: [delattr(dataset, keyword) for keyword in keywords]


def within(path: str, change: Callable[[Any], object]) -> Callable[[Any], object]:
    """Apply the change to the first item down a path of sequences."""

    def apply(dataset: Any) -> object:
        for keyword in path.split("."):
            dataset = dataset[keyword].value[0]
        return change(dataset)

    return apply


def flip_one_pixel(dataset: Any) -> None:
    data = bytearray(dataset.PixelData)
    data[60] ^= 1
    dataset.PixelData = bytes(data)


def transpose(dataset: Any) -> None:
    dataset.Rows, dataset.Columns = dataset.Columns, dataset.Rows


def repaint(change: Callable[[Image.Image], Image.Image]) -> Callable[[Any], None]:
    """Replace the JPEG with that of a changed picture."""

    def apply(dataset: Any) -> None:
        jpeg = Image.open(io.BytesIO(next(generate_frames(dataset.PixelData, number_of_frames=1))))
        file = io.BytesIO()
        change(jpeg).save(file, "JPEG", quality=90, subsampling=0)
        dataset.PixelData = encapsulate([file.getvalue()])

    return apply


def turned(picture: Image.Image) -> Image.Image:
    """The radiograph upside down, the banner as it was."""
    panel = picture.crop((0, 0, picture.width, picture.height * 2 // 3)).transpose(
        Image.Transpose.FLIP_TOP_BOTTOM
    )
    picture.paste(panel, (0, 0))
    return picture


def without_words(picture: Image.Image) -> Image.Image:
    picture.paste((16, 18, 21), (0, picture.height - 190, picture.width, picture.height))
    return picture


def cut_jpeg(dataset: Any) -> None:
    jpeg = next(generate_frames(dataset.PixelData, number_of_frames=1))
    dataset.PixelData = encapsulate([jpeg[: len(jpeg) // 2]])


def refer_to_another_image(dataset: Any) -> None:
    item = Dataset()
    item.ReferencedSOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
    item.ReferencedSOPInstanceUID = "2.25.666"
    dataset.SourceImageSequence = [*dataset.SourceImageSequence, item]


NAME = Dataset()
NAME.CodeMeaning = "DOE JOHN"
SEGMENT, SHARED = "SegmentSequence", "SharedFunctionalGroupsSequence"
FRAME = "PerFrameFunctionalGroupsSequence"
BOTH: dict[str, Callable[[Any], object]] = {
    "another patient's ID": put(PatientID="P-2"),
    "another patient's name": put(PatientName="Grün^Eva"),
    "no patient ID": put(PatientID=None),
    "no patient name at all": drop("PatientName"),
    "an invented birth date": put(PatientBirthDate="19800101"),
    "a lost accession number": put(AccessionNumber=None),
    "another study": put(StudyInstanceUID="2.25.999"),
    "another charset": put(SpecificCharacterSet="ISO_IR 192"),
    "other patient IDs": put(OtherPatientIDs="X"),
    "a UID that is not derived": put(SOPInstanceUID="2.25.5"),
    "no UID": put(SOPInstanceUID="1.2.x"),
    "the source's series": put(SeriesInstanceUID="2.25.13"),
    "another modality": put(Modality="CR"),
    "a reference to another image": refer_to_another_image,
    "a reference to another class": within(
        "ReferencedSeriesSequence.ReferencedInstanceSequence",
        put(ReferencedSOPClassUID="1.2.840.10008.5.1.4.1.1.2"),
    ),
    "no reference": drop("ReferencedSeriesSequence"),
    "a reference to another series": within(
        "ReferencedSeriesSequence", put(SeriesInstanceUID="2.25.14")
    ),
    "no source image": lambda d: put(ReferencedSeriesSequence=[])(d),
    "the scanner's name": put(Manufacturer="Scanner"),
    "no device UID": within("ContributingEquipmentSequence", drop("DeviceUID")),
    "another device UID": within("ContributingEquipmentSequence", put(DeviceUID="2.25.3")),
    "no contributing equipment": drop("ContributingEquipmentSequence"),
    "another time": put(ContentTime="050608.000000"),
    "the clock's creation date": put(InstanceCreationDate="20260305"),
    "no disclaimer": put(SeriesDescription="Pneumothorax"),
    "a value that its VR forbids": put(SeriesNumber=None),
    "a private attribute": lambda d: d.add_new(0x00111001, "LO", "x"),
    "another orientation": put(PatientOrientation=["R", "F"]),
    "no orientation of the patient": put(PatientOrientation=None),
    "a name as the software": put(SoftwareVersions=["DOE JOHN", "model 1.2.3"]),
    "a name as the equipment's software": within(
        "ContributingEquipmentSequence", put(SoftwareVersions="DOE JOHN")
    ),
    "a name as the contribution": within(
        "ContributingEquipmentSequence", put(ContributionDescription="DOE JOHN")
    ),
    "a name as the serial number": put(DeviceSerialNumber="DOE JOHN"),
    "a name as a report's text": put(TextValue="DOE JOHN"),
    "a name as a graphic's text": put(UnformattedTextValue="DOE JOHN"),
    "a name as a private code": put(CodeMeaning="DOE JOHN"),
    "a name in a meaning without a code": within(
        "ContributingEquipmentSequence", lambda d: put(InstitutionCodeSequence=[NAME])(d)
    ),
    "a name as the study, deep down": within(
        "ContributingEquipmentSequence", put(StudyDescription="DOE JOHN")
    ),
    "an element of file meta information, deep down": within(
        "ContributingEquipmentSequence", put(TransferSyntaxUID="1.2.840.10008.1.2.1")
    ),
    "a command's element, deep down": within(
        "ContributingEquipmentSequence", lambda d: d.add_new(0x00000900, "US", 0)
    ),
    "a lost lossy history": drop("LossyImageCompressionRatio"),
    "stated as lossless": put(LossyImageCompression="00"),
}
SEG_ONLY: dict[str, Callable[[Any], object]] = {
    "one pixel": flip_one_pixel,
    "an empty mask": lambda d: put(PixelData=bytes(len(d.PixelData)))(d),
    "extra bytes after the mask": lambda d: put(PixelData=d.PixelData + b"\0\0")(d),
    "transposed": transpose,
    "another matrix": put(Rows=40),
    "eight bits": put(BitsAllocated=8),
    "fractional": put(SegmentationType="FRACTIONAL"),
    "no frame of reference": drop("FrameOfReferenceUID"),
    "another frame of reference": put(FrameOfReferenceUID="1.2.4"),
    "no orientation": within(SHARED, drop("PlaneOrientationSequence")),
    "no position": within(FRAME, drop("PlanePositionSequence")),
    "no derivation": within(FRAME, drop("DerivationImageSequence")),
    "another spacing": within(f"{SHARED}.PixelMeasuresSequence", put(PixelSpacing=[0.1, 0.1])),
    "no frame content": within(FRAME, drop("FrameContentSequence")),
    "no indices": within(f"{FRAME}.FrameContentSequence", drop("DimensionIndexValues")),
    "a missing index": within(f"{FRAME}.FrameContentSequence", put(DimensionIndexValues=[1])),
    "an additional index": within(
        f"{FRAME}.FrameContentSequence", put(DimensionIndexValues=[1, 1, 1])
    ),
    "a missing dimension": lambda d: d.DimensionIndexSequence.pop(),
    "a dimension of another attribute": within(
        "DimensionIndexSequence", put(DimensionIndexPointer=0x00209056)
    ),
    "a name as a dimension": within(
        "DimensionIndexSequence", put(DimensionDescriptionLabel="DOE JOHN")
    ),
    "a name as the segment": within(SEGMENT, put(SegmentAlgorithmName="DOE JOHN")),
    "no algorithm": within(SEGMENT, drop("SegmentationAlgorithmIdentificationSequence")),
    "an empty algorithm name": within(SEGMENT, put(SegmentAlgorithmName="")),
    "another algorithm version": within(
        f"{SEGMENT}.SegmentationAlgorithmIdentificationSequence", put(AlgorithmVersion="9")
    ),
    "another finding": within(
        f"{SEGMENT}.SegmentedPropertyTypeCodeSequence", put(CodeValue="36118009")
    ),
    "the wrong side": within(
        f"{SEGMENT}.AnatomicRegionSequence.AnatomicRegionModifierSequence", put(CodeValue="7771000")
    ),
    "no tracking": within(SEGMENT, drop("TrackingUID")),
    "two segments": lambda d: put(SegmentSequence=[d.SegmentSequence[0], d.SegmentSequence[0]])(d),
}
SC_ONLY: dict[str, Callable[[Any], object]] = {
    "another picture": repaint(turned),
    "a banner without words": repaint(without_words),
    "no banner": repaint(lambda picture: picture.crop((0, 0, picture.width, 660))),
    "another size than stated": put(Rows=900),
    "half a JPEG": cut_jpeg,
    "no JPEG": put(PixelData=encapsulate([b"nothing of the kind"])),
    "grey": repaint(lambda picture: picture.convert("L")),
    "stated as RGB": put(PhotometricInterpretation="RGB"),
    "a spacing": put(PixelSpacing=[0.1, 0.1]),
    "a promise of no burnt-in text": put(BurnedInAnnotation="NO"),
    "no derivation": drop("DerivationCodeSequence"),
    "a name as the derivation": put(DerivationDescription="DOE JOHN"),
    "a name as the capture's software": put(SecondaryCaptureDeviceSoftwareVersions="DOE JOHN"),
    "the source's lossy step only": put(
        LossyImageCompressionRatio="8", LossyImageCompressionMethod="ISO_10918_1"
    ),
}
MUTATIONS = [
    *((kind, name, change) for kind in ("SEG", "SC") for name, change in BOTH.items()),
    *(("SEG", name, change) for name, change in SEG_ONLY.items()),
    *(("SC", name, change) for name, change in SC_ONLY.items()),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("kind", "name", "change"), MUTATIONS, ids=[f"{kind}: {name}" for kind, name, _ in MUTATIONS]
)
def test_a_broken_object_is_refused(kind: str, name: str, change: Callable[[Any], object]) -> None:
    result = broken(kind, change)
    assert result.data != GOOD[kind].data
    with pytest.raises(GateError) as refused:
        gate.check(result, CASE)
    assert refused.value.kind == kind
    assert "Grün" not in str(refused.value)
    assert "P-1" not in str(refused.value)


@pytest.mark.parametrize("kind", ["SEG", "SC"])
def test_a_good_object_passes_also_when_rewritten(kind: str) -> None:
    gate.check(GOOD[kind], CASE)
    gate.check(broken(kind, lambda dataset: None), CASE)


@pytest.mark.parametrize("kind", ["SEG", "SC"])
def test_an_incomplete_file_is_refused(kind: str) -> None:
    data = GOOD[kind].data
    for wrong in (b"", data[:1000], data[:-10], data + b"\0\0", data[132:], b"\1" * len(data)):
        with pytest.raises(GateError):
            gate.check(replace(GOOD[kind], data=wrong), CASE)


@pytest.mark.parametrize("kind", ["SEG", "SC"])
@pytest.mark.parametrize(
    ("ours", "other"),
    [
        pytest.param(b"DCM ", b"DCM\0", id="padding in a code"),
        pytest.param(b"Pleura", b"Pleur\0", id="padding in a name"),
    ],
)
def test_bytes_that_rewriting_would_change_are_refused(
    kind: str, ours: bytes, other: bytes
) -> None:
    # After this check the gate has cached the elements of this object.
    gate.check(GOOD[kind], CASE)
    data = GOOD[kind].data
    assert ours in data
    with pytest.raises(GateError, match="other bytes"):
        gate.check(replace(GOOD[kind], data=data.replace(ours, other)), CASE)


@pytest.mark.parametrize("kind", ["SEG", "SC"])
@pytest.mark.parametrize(
    "element",
    [
        pytest.param(b"\x00\x00\x00\x09US\x02\x00\x00\x00", id="a command's status"),
        pytest.param(b"\x04\x00\x30\x11CS\x02\x00A ", id="a directory's file-set"),
        pytest.param(b"\x08\x00\x00\x00UL\x04\x00\x01\x00\x00\x00", id="a group's length"),
    ],
)
def test_an_element_that_must_not_be_in_a_data_set_is_refused(kind: str, element: bytes) -> None:
    data = GOOD[kind].data
    # The group of the file meta information states its length (PS3.10 7.1).
    begin = 144 + int.from_bytes(data[140:144], "little")
    with pytest.raises(GateError):
        gate.check(replace(GOOD[kind], data=data[:begin] + element + data[begin:]), CASE)


@pytest.mark.parametrize("kind", ["SEG", "SC"])
def test_the_fields_of_a_result_must_match_its_bytes(kind: str) -> None:
    for wrong in (
        {"sop_instance_uid": "2.25.1"},
        {"sop_class_uid": "1.2.840.10008.5.1.4.1.1.2"},
        {"transfer_syntax_uid": "1.2.840.10008.1.2"},
        {"kind": "SR"},
        {"kind": "SC" if kind == "SEG" else "SEG"},
    ):
        with pytest.raises(GateError):
            gate.check(replace(GOOD[kind], **wrong), CASE)  # type: ignore[arg-type]


def test_a_good_object_of_another_case_is_refused() -> None:
    assert CASE.finding is not None
    moved = np.roll(CASE.finding.mask, 3, axis=1)
    others: list[Case] = [
        positive(header(PatientID="P-2")),
        replace(CASE, finding=replace(CASE.finding, mask=moved)),
        replace(CASE, finding=Finding(0.1, 0.42, False)),
        negative(),
    ]

    for other in others:
        with pytest.raises(GateError):
            gate.check(GOOD["SEG"], other)

    assert CASE.finding.measurement is not None
    others[1] = replace(CASE, finding=replace(CASE.finding, probability=0.89))
    other_side = replace(CASE.finding.measurement, laterality="L")
    others.append(replace(CASE, finding=replace(CASE.finding, measurement=other_side)))

    for other in others:
        with pytest.raises(GateError):
            gate.check(GOOD["SC"], other)
