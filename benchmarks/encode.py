"""What it costs to make each kind of object, beside one highdicom BINARY SEG of the same mask,
built and saved.

One made-up radiograph of 2500 x 2048 with one region, all kinds in turn, in one process, after a
warm-up:

    python -m benchmarks.encode [--rounds N] [--cpu]

Prints medians in milliseconds and the ratios of medians. "made": encoded and written as a file,
from a case that nothing has been worked out for, contours included. "checked": what the gate takes
to read it back. The last line is all four from one case, which share the contours. Absolute times
are of this machine and its noise.
"""

from __future__ import annotations

import argparse
import gc
import io
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime

import highdicom as hd
import numpy as np
from pydicom import Dataset
from pydicom.uid import ComputedRadiographyImageStorage, generate_uid

from inference.finding import Finding, ModelIdentity
from inference.measure import measure
from inference.results import KINDS, Case, build, gate, write
from inference.spacing import Spacing

ROWS, COLUMNS = 2500, 2048


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument(
        "--cpu", action="store_true", help="processor time, where others use the machine too"
    )
    options = parser.parse_args()
    clock = time.process_time if options.cpu else time.perf_counter
    case = made_up()
    source = full_header(case)
    steps: dict[str, Callable[[], object]] = {"highdicom SEG": lambda: baseline(case, source)}
    results = {result.kind: result for result in build(case, KINDS)}
    for kind in KINDS:
        steps[f"{kind} made"] = lambda kind=kind: made(replace(case), kind)
        steps[f"{kind} checked"] = lambda kind=kind: gate.check(results[kind], case)
    steps["all four, made and checked"] = lambda: build(replace(case), KINDS)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for round_number in range(options.rounds + 2):
        for name, step in steps.items():
            gc.collect()
            started = clock()
            step()
            if round_number >= 2:  # the first rounds pay for imports and allocations
                times[name].append(clock() - started)
    base = statistics.median(times["highdicom SEG"])
    print(
        f"{ROWS} x {COLUMNS}, {options.rounds} rounds, {os.cpu_count()} cores, highdicom {hd.__version__}"
    )
    for name, seconds in times.items():
        median = statistics.median(seconds)
        size = (
            f"{len(results[name.split()[0]].data) / 1e6:7.2f} MB" if name.endswith(" made") else ""
        )
        print(f"{name:28} {median * 1e3:8.1f} ms   {median / base:5.2f} x {size}")


def made(case: Case, kind: str) -> bytes:
    dataset = KINDS[kind].encode(case)
    assert dataset is not None
    return write(dataset, KINDS[kind]).data


def baseline(case: Case, source: Dataset) -> bytes:
    """The same mask as highdicom writes it by itself."""
    assert case.segmented is not None
    segment = hd.seg.SegmentDescription(
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
    segmentation = hd.seg.Segmentation(
        source_images=[source],
        pixel_array=case.segmented[None].astype(np.uint8),
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[segment],
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


def made_up() -> Case:
    row, column = np.mgrid[0:ROWS, 0:COLUMNS]
    pixels = 0.2 + 0.3 * np.abs(np.sin(column / 330)) + 0.2 * row / ROWS
    pixels += np.random.default_rng(1).normal(
        0, 0.02, pixels.shape
    )  # a detector's noise: what JPEG works on
    # A crescent along the chest wall, wavy as a network's are: 4 % of the picture.
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
    """A source; for highdicom, with what it asks of one."""
    source = Dataset()
    for keyword, value in {
        "SpecificCharacterSet": "ISO_IR 100", "SOPClassUID": ComputedRadiographyImageStorage,
        "SOPInstanceUID": "2.25.11", "StudyInstanceUID": "2.25.12", "SeriesInstanceUID": "2.25.13",
        "FrameOfReferenceUID": "2.25.14", "PatientName": "Doe^Jane", "PatientID": "P-1", "PatientBirthDate": "19700101",
        "PatientSex": "F", "StudyDate": "20260303", "StudyTime": "101112", "StudyID": "S1", "AccessionNumber": "A1",
        "Modality": "CR", "BodyPartExamined": "CHEST", "PatientOrientation": ["L", "F"],
        "ImagerPixelSpacing": [0.14, 0.14], "WindowCenter": 2048, "WindowWidth": 4096, "Rows": ROWS, "Columns": COLUMNS,
    }.items():  # fmt: skip
        setattr(source, keyword, value)
    if case is not None:
        source.PixelSpacing, source.ImagePositionPatient = [0.14, 0.14], [0, 0, 0]
        source.ImageOrientationPatient, source.SliceThickness = [1, 0, 0, 0, 1, 0], 1
    source.set_original_encoding(False, True, "ISO_IR 100")
    return source


if __name__ == "__main__":
    main()
