"""The time to encode each kind of object, beside highdicom's BINARY SEG of the same mask.

    python -m benchmarks.encode [--rounds N] [--cpu]

The case is a made-up radiograph of 2500 x 2048 with one region. All kinds take turns in one
process, after a warm-up. Prints medians in milliseconds and ratios of medians. "made": encoded and
written as a file, from a case in which nothing is computed yet, so with contours. "checked": the
gate's time to read it back. The last line is all four kinds from one case, which share the
contours. Absolute times hold only for this machine and its other load.

The process keeps freed memory, as the analyse role does. Otherwise it depends on chance which step
requests pages from the kernel again.
"""

from __future__ import annotations

import gc
import io
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from functools import partial

import highdicom as hd
import numpy as np
from pydicom import Dataset
from pydicom.uid import ComputedRadiographyImageStorage, generate_uid

from benchmarks.measurement import by_turns, command_line, machine, median_ms, seconds_of
from daemon import torch_process
from inference.finding import Finding, ModelIdentity, Result
from inference.measure import measure
from inference.results import KINDS, Case, build, gate, write
from inference.spacing import Spacing

torch_process.prepare()

ROWS, COLUMNS = 2500, 2048
_HIGHDICOM = "highdicom SEG"


def main() -> None:
    """Print the median time of each step, its ratio to highdicom's, and the objects' sizes."""
    parser = command_line(__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument(
        "--cpu", action="store_true", help="measure processor time, for a machine with other load"
    )
    options = parser.parse_args()

    clock = time.process_time if options.cpu else time.perf_counter
    case = made_up()
    results = {result.kind: result for result in build(case, KINDS)}
    steps = _steps(case, results)
    measures = {name: partial(_seconds, step, clock) for name, step in steps.items()}
    # The first rounds include imports and allocations.
    times = by_turns(measures, options.rounds, warm_ups=2)

    shape = f"{ROWS} x {COLUMNS}"
    print(f"{shape}, {options.rounds} rounds, {machine(f'highdicom {hd.__version__}')}")
    highdicom_ms = median_ms(times[_HIGHDICOM])
    for name, seconds in times.items():
        kind = name.removesuffix(" made")
        size = f"{len(results[kind].data) / 1e6:7.2f} MB" if kind in results else ""
        ms = median_ms(seconds)
        print(f"{name:28} {ms:8.1f} ms   {ms / highdicom_ms:5.2f} x {size}")


def _steps(case: Case, results: Mapping[str, Result]) -> dict[str, Callable[[], object]]:
    """The steps: highdicom's object, making and checking each kind, and all kinds together."""
    source = full_header(case)
    steps: dict[str, Callable[[], object]] = {_HIGHDICOM: partial(baseline, case, source)}

    for kind in KINDS:
        steps[f"{kind} made"] = partial(made, case, kind)
        steps[f"{kind} checked"] = partial(gate.check, results[kind], case)

    steps["all four, made and checked"] = lambda: build(replace(case), KINDS)
    return steps


def _seconds(step: Callable[[], object], clock: Callable[[], float]) -> float:
    gc.collect()
    return seconds_of(step, clock)


def made(case: Case, kind: str) -> bytes:
    """An object of this kind as a file, from a case in which nothing is computed yet."""
    dataset = KINDS[kind].encode(replace(case))
    assert dataset is not None
    return write(dataset, KINDS[kind]).data


def baseline(case: Case, source: Dataset) -> bytes:
    """The file of highdicom's own SEG of the same mask."""
    assert case.segmented is not None
    segmentation = hd.seg.Segmentation(
        source_images=[source],
        pixel_array=case.segmented[None].astype(np.uint8),
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[_segment()],
        series_instance_uid=generate_uid(),
        series_number=1,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="x",
        manufacturer_model_name="x",
        software_versions="1",
        device_serial_number="1",
    )

    file = io.BytesIO()
    segmentation.save_as(file)
    return file.getvalue()


def _segment() -> hd.seg.SegmentDescription:
    """The description of the segment that highdicom requires."""
    return hd.seg.SegmentDescription(
        segment_number=1,
        segment_label="Pneumothorax",
        segmented_property_category=hd.sr.CodedConcept(
            "49755003", "SCT", "Morphologically Abnormal Structure"
        ),
        segmented_property_type=hd.sr.CodedConcept("36118008", "SCT", "Pneumothorax"),
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name="x",
            family=hd.sr.CodedConcept("123110", "DCM", "Artificial Intelligence"),
            version="1",
        ),
    )


def made_up() -> Case:
    """A radiograph with a crescent along the chest wall, 4 % of it, with a wavy edge as networks
    draw it.
    """
    row, column = np.mgrid[0:ROWS, 0:COLUMNS]
    pixels = 0.2 + 0.3 * np.abs(np.sin(column / 330)) + 0.2 * row / ROWS
    # A detector's noise, which determines JPEG's work.
    pixels += np.random.default_rng(1).normal(0, 0.02, pixels.shape)

    angle = np.arctan2(row - 900, column - 560)
    radius = np.hypot((row - 900) / 620, (column - 560) / 420) + 0.015 * np.sin(23 * angle)
    mask = (radius < 1) & (radius > 0.72) & (column < 560)

    spacing = Spacing(0.14, 0.14, True)
    return Case(
        header=full_header(None),
        content_digest="c0" * 32,
        model=ModelIdentity("pleura-default", "1.2.3", "ab" * 32, "2.25.20260304"),
        result_time=datetime(2026, 3, 4, 5, 6, 7),
        finding=Finding(0.87, 0.42, True, mask, measure(mask, spacing, ["L", "F"])),
        pixels=np.clip(pixels, 0, 1).astype(np.float32),
        spacing=spacing,
    )


def full_header(case: Case | None) -> Dataset:
    """A source header; with a case, also the attributes that highdicom requires of a source."""
    source = Dataset()
    values = {
        "SpecificCharacterSet": "ISO_IR 100", "SOPClassUID": ComputedRadiographyImageStorage,
        "SOPInstanceUID": "2.25.11", "StudyInstanceUID": "2.25.12",
        "SeriesInstanceUID": "2.25.13", "FrameOfReferenceUID": "2.25.14",
        "PatientName": "Doe^Jane", "PatientID": "P-1", "PatientBirthDate": "19700101",
        "PatientSex": "F", "StudyDate": "20260303", "StudyTime": "101112", "StudyID": "S1",
        "AccessionNumber": "A1", "Modality": "CR", "BodyPartExamined": "CHEST",
        "PatientOrientation": ["L", "F"], "ImagerPixelSpacing": [0.14, 0.14],
        "WindowCenter": 2048, "WindowWidth": 4096, "Rows": ROWS, "Columns": COLUMNS,
    }  # fmt: skip
    for keyword, value in values.items():
        setattr(source, keyword, value)

    if case is not None:
        source.PixelSpacing = [0.14, 0.14]
        source.ImagePositionPatient = [0, 0, 0]
        source.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        source.SliceThickness = 1
    source.set_original_encoding(False, True, "ISO_IR 100")
    return source


if __name__ == "__main__":
    main()
