"""Accepted input and its outcome: the tables of docs/input.md are generated and checked here.

After an intended change, run: PLEURA_WRITE_DOCS=1 pytest tests/unit/test_input.py
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import Dataset, FileDataset, uid
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels import get_decoder

from daemon.dicom.tables import _IMAGE_SYNTAXES
from inference import radiograph
from inference.pixels import DECODERS, NATIVE_SYNTAXES, stored_values
from inference.radiograph import Radiograph, Unsuitable
from tests.unit.variants import (
    KINDS,
    SYNTAXES,
    Kind,
    Syntax,
    image,
    of_kind,
    picture,
    shades,
    written,
)

pytestmark = pytest.mark.xdist_group("input")

PAGE = Path(__file__).resolve().parents[2] / "docs" / "input.md"
EXACT, CANNOT_BE_MADE = "exact", ""

# ---- transfer syntaxes


def decoded(data: bytes) -> Radiograph:
    return radiograph.decode(radiograph.parse(data)[0])


@pytest.fixture(scope="module")
def files(
    peer: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, Kind], bytes | None]:
    """The picture's bytes by (syntax name, kind); None if no available encoder writes it."""
    folder = tmp_path_factory.mktemp("variants")
    return {
        (syntax.name, kind): syntax.encode(kind, peer, folder)
        for syntax in SYNTAXES
        for kind in KINDS
    }


def outcome(syntax: Syntax, kind: Kind, data: bytes | None) -> str:
    if data is None:
        return CANNOT_BE_MADE
    dataset, _ = radiograph.parse(data)
    assert dataset.file_meta.TransferSyntaxUID == syntax.uid
    try:
        values = stored_values(dataset)
    except Unsuitable as unsuitable:
        return unsuitable.reason
    if np.array_equal(values, picture(kind)):
        return EXACT
    # DCMTK stores 10 bits as 12 when the JPEG process knows only 8 and 12.
    off = np.abs(values / 2.0**dataset.BitsStored - picture(kind) / 2.0**kind.stored).max()
    return "within 1 %" if off < 0.01 else "wrong"


@pytest.fixture(scope="module")
def outcomes(files: dict[tuple[str, Kind], bytes | None]) -> dict[tuple[str, Kind], str]:
    return {
        (syntax.name, kind): outcome(syntax, kind, files[syntax.name, kind])
        for syntax in SYNTAXES
        for kind in KINDS
    }


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda syntax: syntax.name)
def test_each_syntax_decodes_to_its_picture(
    syntax: Syntax, outcomes: dict[tuple[str, Kind], str]
) -> None:
    found = {outcomes[syntax.name, kind] for kind in KINDS} - {CANNOT_BE_MADE}
    assert found == {EXACT} if syntax.lossless else found == {"within 1 %"}


def test_lossless_syntaxes_give_one_content_digest(
    files: dict[tuple[str, Kind], bytes | None],
) -> None:
    for kind in KINDS:
        made = [files[syntax.name, kind] for syntax in SYNTAXES if syntax.lossless]
        images = [decoded(data) for data in made if data is not None]
        assert len(images) > 10
        assert len({one.content_digest for one in images}) == 1
        assert all(np.array_equal(one.pixels, images[0].pixels) for one in images)


def test_the_node_accepts_only_syntaxes_that_it_can_decode() -> None:
    decodable = {str(syntax) for syntax in (*DECODERS, *NATIVE_SYNTAXES)}
    assert set(_IMAGE_SYNTAXES) == decodable == {str(syntax.uid) for syntax in SYNTAXES}
    for syntax, plugin in DECODERS.items():
        assert plugin in get_decoder(syntax).available_plugins


@pytest.mark.parametrize(
    "syntax", [uid.UID("1.2.840.10008.1.2.4.110"), uid.MPEG2MPML, uid.UID("1.2.3")]
)
def test_a_syntax_without_a_decoder_is_undecodable_with_the_reason(syntax: uid.UID) -> None:
    dataset = of_kind(KINDS[3])
    dataset.file_meta.TransferSyntaxUID = syntax
    with pytest.raises(
        Unsuitable, match=r"undecodable: transfer syntax .*: there is no decoder for it"
    ):
        radiograph.decode(dataset)


@pytest.mark.parametrize(
    ("first", "others"),
    [("RG2_UNC", ("RG2_JPLL", "RG2_JLSL", "RG2_J2KR", "RG2_RLE")), ("RG3_JPLL", ("RG3_JLSL",))],
)
def test_a_real_xray_in_several_syntaxes_is_one_image(
    data: Path, first: str, others: tuple[str, ...]
) -> None:
    wanted, _ = radiograph.parse((data / "node" / f"{first}.dcm").read_bytes())
    shown = radiograph.decode(wanted)
    for name in others:
        dataset, _ = radiograph.parse((data / "node" / f"{name}.dcm").read_bytes())
        # RG2_RLE belongs to another study.
        for keyword in (
            "StudyInstanceUID",
            "StudyDate",
            "StudyTime",
        ):
            setattr(dataset, keyword, wanted[keyword].value)
        found = radiograph.decode(dataset)
        assert np.array_equal(found.pixels, shown.pixels), name
        assert found.content_digest == shown.content_digest, name


def test_the_real_jpeg_extended_of_12_bits_decodes(data: Path) -> None:
    lossy, exact = (
        stored_values(radiograph.parse((data / "node" / f"RG2_{kind}.dcm").read_bytes())[0]).astype(
            int
        )
        for kind in ("JPLY", "UNC")
    )
    # BitsStored is 10, and the compression ratio is 36.
    assert np.abs(lossy - exact).mean() < 0.005 * 1024


# ---- what the header says

TWELVE = Kind(16, 12)
VALUES = picture(TWELVE)
FULL: dict[str, Any] = {"WindowCenter": 2048, "WindowWidth": 4096}


def item(**values: Any) -> Dataset:
    made = Dataset()
    for keyword, value in values.items():
        setattr(made, keyword, value)
    return made


def lut(
    table: NDArray[np.integer], first: int, bits: int, entries_said: int | None = None
) -> list[Dataset]:
    entries = item(
        LUTDescriptor=[(entries_said or len(table)) % 65536, first, bits],
        LUTData=table.astype("<u2").tobytes(),
    )
    entries["LUTDescriptor"].VR = "US"
    entries["LUTData"].VR = "OW"
    return [entries]


def with_padding() -> FileDataset:
    values = VALUES.copy()
    values[:4] = 4095
    dataset = image(values, 12, **FULL)
    dataset.add_new("PixelPaddingValue", "US", 4090)
    dataset.add_new("PixelPaddingRangeLimit", "US", 4095)
    return dataset


def with_overlay_bits() -> FileDataset:
    values = VALUES.copy()
    values[::2, ::3] |= 0x8000
    return image(values, 12, **FULL)


def high_aligned() -> FileDataset:
    dataset = image(VALUES << 4, 12, **FULL)
    dataset.HighBit = 15
    return dataset


def with_bytes(pixels: bytes, **changes: Any) -> FileDataset:
    dataset = image(VALUES, 12, **changes)
    dataset.PixelData = pixels
    return dataset


def compressed(syntax: uid.UID, part: float = 1) -> FileDataset:
    """The first `part` of a JPEG 2000 Lossless stream under another transfer syntax UID."""
    dataset = of_kind(TWELVE, **FULL)
    dataset.compress(uid.JPEG2000Lossless, generate_instance_uid=False)
    stream = next(generate_frames(dataset.PixelData, number_of_frames=1))
    dataset.PixelData = encapsulate([stream[: int(len(stream) * part)]])
    # Pad the stream to the length of uncompressed pixels.
    if syntax == uid.ExplicitVRLittleEndian:
        dataset.PixelData += bytes(VALUES.nbytes - len(dataset.PixelData))
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = syntax
    return dataset


def of(kind: Kind, **changes: Any) -> Callable[[], FileDataset]:
    return lambda: of_kind(kind, **changes)


IDENTITY = np.arange(4096)
SQUARED = np.arange(4096) ** 2 // 4095

# Each of these files holds the same picture, shades(), stored and described differently.
ALIKE: dict[str, Callable[[], FileDataset]] = {
    "window LINEAR over all values": of(TWELVE, **FULL),
    "window LINEAR_EXACT": of(TWELVE, **FULL, VOILUTFunction="LINEAR_EXACT"),
    "several windows: the first": of(TWELVE, WindowCenter=[2048, 100], WindowWidth=[4096, 50]),
    "MONOCHROME1": lambda: image(4095 - VALUES, 12, PhotometricInterpretation="MONOCHROME1", **FULL),
    "MONOCHROME1, PresentationLUTShape INVERSE": lambda: image(
        4095 - VALUES, 12, PhotometricInterpretation="MONOCHROME1", PresentationLUTShape="INVERSE", **FULL
    ),
    "PresentationLUTShape IDENTITY": of(TWELVE, **FULL, PresentationLUTShape="IDENTITY"),
    "signed": of(Kind(16, 12, True), WindowCenter=0, WindowWidth=4096),
    "16 bits": of(Kind(16, 16), WindowCenter=32768, WindowWidth=65536),
    "8 bits": of(Kind(8, 8), WindowCenter=128, WindowWidth=256),
    "rescale slope and intercept": of(
        TWELVE, RescaleSlope=2, RescaleIntercept=-1000, WindowCenter=3096, WindowWidth=8192
    ),
    "negative slope": lambda: image(
        4095 - VALUES, 12, RescaleSlope=-1, RescaleIntercept=4095, WindowCenter=2048, WindowWidth=4096
    ),
    "Modality LUT Sequence": lambda: image(4095 - VALUES, 12, ModalityLUTSequence=lut(IDENTITY[::-1], 0, 12), **FULL),
    "VOI LUT Sequence": lambda: image(
        np.searchsorted(SQUARED, VALUES).astype("<u2"), 12, VOILUTSequence=lut(SQUARED, 0, 12)
    ),
    "VOI LUT Sequence beside a window: the LUT": of(
        TWELVE, VOILUTSequence=lut(IDENTITY, 0, 12), WindowCenter=1, WindowWidth=2
    ),
    "VOI LUT Sequence of more bits than it says": lambda: image(
        np.searchsorted(SQUARED, VALUES).astype("<u2"), 12, VOILUTSequence=lut(SQUARED, 0, 10)
    ),
    "overlay in unused high bits": with_overlay_bits,
    "all unused high bits set": lambda: image(VALUES | np.uint16(0xF000), 12, **FULL),
    "some bytes behind the pixels": lambda: with_bytes(VALUES.tobytes() + bytes(1024), **FULL),
    "HighBit above BitsStored - 1": high_aligned,
    "NumberOfFrames 1": of(TWELVE, **FULL, NumberOfFrames=1),
}  # fmt: skip
# These files are shown by the central range of their values: 0.5 % at each end is black or white.
CENTRAL: dict[str, Callable[[], FileDataset]] = {
    "no window": of(TWELVE),
    "a window that hides the picture": of(TWELVE, WindowCenter=60000, WindowWidth=100),
    "a window much wider than the data": of(TWELVE, WindowCenter=0, WindowWidth=1_000_000),
    "WindowWidth 0": of(TWELVE, WindowCenter=2048, WindowWidth=0),
    "VOI LUT Sequence of another length than it says": of(
        TWELVE, VOILUTSequence=lut(IDENTITY[:3], 0, 12, entries_said=4096)
    ),
}
REFUSED: dict[str, tuple[Callable[[], FileDataset], str]] = {
    "two frames": (of(TWELVE, NumberOfFrames=2), "multi_frame"),
    "RGB": (of(TWELVE, SamplesPerPixel=3, PhotometricInterpretation="RGB"), "foreign_result"),
    "PALETTE COLOR": (of(TWELVE, PhotometricInterpretation="PALETTE COLOR"), "foreign_result"),
    "PALETTE COLOR whose tables are grey": (
        of(
            TWELVE,
            PhotometricInterpretation="PALETTE COLOR",
            RedPaletteColorLookupTableData=b"\0\1" * 8,
            GreenPaletteColorLookupTableData=b"\0\1" * 8,
            BluePaletteColorLookupTableData=b"\0\1" * 8,
        ),
        "undecodable",
    ),
    "one value everywhere": (lambda: image(np.full_like(VALUES, 77), 12), "blank"),
    "only padding": (lambda: image(np.full_like(VALUES, 77), 12, PixelPaddingValue=77), "blank"),
    "one value beside padding": (
        lambda: image(np.where(VALUES > 2000, 4095, 77).astype("<u2"), 12, PixelPaddingValue=4095),
        "blank",
    ),
    "two values next to each other": (
        lambda: image(np.asarray(VALUES % 2, dtype="<u2"), 12),
        "blank",
    ),
    "0 rows": (of(TWELVE, Rows=0), "undecodable"),
    "65,535 x 65,535 pixels said": (of(TWELVE, Rows=65535, Columns=65535), "undecodable"),
    "Pixel Data shorter than said": (of(TWELVE, Rows=4096), "undecodable"),
    "no Pixel Data": (lambda: _without(of_kind(TWELVE), "PixelData"), "undecodable"),
    "twice as much Pixel Data as said": (lambda: with_bytes(VALUES.tobytes() * 2), "undecodable"),
    "RGB said to be MONOCHROME2": (lambda: with_bytes(VALUES.repeat(3).tobytes()), "undecodable"),
    "pixels of more bits than Bits Stored": (of(TWELVE, BitsStored=10, HighBit=9), "undecodable"),
    "compressed Pixel Data said to be uncompressed": (
        lambda: compressed(uid.ExplicitVRLittleEndian),
        "undecodable",
    ),
    "a JPEG 2000 stream cut off": (
        lambda: compressed(uid.JPEG2000Lossless, part=0.9),
        "undecodable",
    ),
    "no PhotometricInterpretation": (of(TWELVE, PhotometricInterpretation=None), "undecodable"),
    "PhotometricInterpretation in small letters": (
        of(TWELVE, PhotometricInterpretation="monochrome2"),
        "undecodable",
    ),
    "an empty PhotometricInterpretation": (of(TWELVE, PhotometricInterpretation=""), "undecodable"),
    "32 bits": (of(TWELVE, BitsAllocated=32), "undecodable"),
}


def _without(dataset: FileDataset, keyword: str) -> FileDataset:
    delattr(dataset, keyword)
    return dataset


@pytest.mark.parametrize("make", ALIKE.values(), ids=ALIKE)
def test_one_picture_is_shown_identically_however_it_is_described(
    make: Callable[[], FileDataset],
) -> None:
    shown = decoded(written(make()))
    assert shown.pixels.dtype == np.float32
    assert np.abs(shown.pixels - shades()).max() < 1 / 255
    assert shown.notes == ()


@pytest.mark.parametrize("make", CENTRAL.values(), ids=CENTRAL)
def test_without_a_usable_window_the_central_range_is_shown(
    make: Callable[[], FileDataset],
) -> None:
    shown = decoded(written(make()))
    low, high = np.percentile(shades(), (0.5, 99.5))
    assert np.abs(shown.pixels - np.clip((shades() - low) / (high - low), 0, 1)).max() < 0.02
    assert bool(shown.notes) == ("WindowCenter" in make() or "VOILUTSequence" in make())


@pytest.mark.parametrize(("make", "reason"), REFUSED.values(), ids=REFUSED)
def test_a_file_that_is_not_a_radiograph_has_its_reason(
    make: Callable[[], FileDataset], reason: str
) -> None:
    with pytest.raises(Unsuitable) as caught:
        radiograph.decode(make())
    assert caught.value.reason == reason


def test_padding_is_black_and_changes_nothing_else() -> None:
    shown = decoded(written(with_padding())).pixels
    assert (shown[:4] == 0).all()
    rest = shades()[4:] < 4090 / 4095
    assert np.abs(shown[4:] - shades()[4:])[rest].max() < 1 / 255


# ---- the page


def _tables(outcomes: dict[tuple[str, Kind], str]) -> Iterator[str]:
    yield "| transfer syntax | " + " | ".join(kind.name for kind in KINDS) + " |"
    yield "|---|" + "---|" * len(KINDS)
    for syntax in SYNTAXES:
        yield (
            f"| {syntax.name} | " + " | ".join(outcomes[syntax.name, kind] for kind in KINDS) + " |"
        )

    yield ""
    yield "| stored or described with | shown |"
    yield "|---|---|"
    for name in ALIKE:
        yield f"| {name} | the same picture |"
    yield "| PixelPaddingValue, PixelPaddingRangeLimit | padding black, the rest the same |"
    for name, make in CENTRAL.items():
        yield f"| {name} | the central 99 % of its values{', noted' if decoded(written(make())).notes else ''} |"
    for name, (_, reason) in REFUSED.items():
        yield f"| {name} | not: `{reason}` |"


def test_the_page_has_these_tables(outcomes: dict[tuple[str, Kind], str]) -> None:
    begin, end = "<!-- made by tests/unit/test_input.py -->\n", "<!-- end -->\n"
    before, rest = PAGE.read_text().split(begin)
    was, after = rest.split(end)
    tables = "\n".join(_tables(outcomes)) + "\n"
    if os.environ.get("PLEURA_WRITE_DOCS"):
        PAGE.write_text(before + begin + tables + end + after)
    else:
        assert was == tables, "docs/input.md is not what the code does; see this file's first lines"
