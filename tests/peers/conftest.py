"""Fixtures of tests with real servers and real X-rays."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.uid import JPEGBaseline8Bit, JPEGLSLossless

from tests.chaos.images import quick_model
from tests.peers.receiving import FreePort, Node
from tools.peers.harness import Orthanc


@pytest.fixture
def orthanc(
    peer: Callable[[str], str], tmp_path: Path, free_port: Callable[[], int]
) -> Iterator[Orthanc]:
    with Orthanc(peer("Orthanc"), tmp_path / "orthanc", (free_port(), free_port())) as server:
        yield server


@pytest.fixture(scope="session")
def xrays(data: Path) -> list[Path]:
    """X-rays of adults from siim/: JPEG Baseline and JPEG-LS in turn, positives and negatives in
    turn.
    """
    by_syntax: dict[str, list[Path]] = {JPEGBaseline8Bit: [], JPEGLSLossless: []}
    with (data / "siim" / "folds.csv").open(newline="") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: -int(row["pneumothorax"]))
    for row in rows:
        path = data / "siim" / "dicom" / f"{row['ImageId']}.dcm"
        header = dcmread(path, stop_before_pixels=True)
        age = header.get("PatientAge", "")
        if not age or int("".join(c for c in age if c.isdigit())) >= 18:
            by_syntax[header.file_meta.TransferSyntaxUID].append(path)

    # Positives are at the front of each list, negatives at the back: take from both ends in turn.
    mixed = []
    for files in by_syntax.values():
        files[1::2] = reversed(files[1::2])
    for pair in zip(*by_syntax.values(), strict=False):
        mixed += pair
    return mixed + by_syntax[JPEGBaseline8Bit][len(by_syntax[JPEGLSLossless]) :]


@pytest.fixture(scope="session")
def quick(xrays: list[Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model that answers in milliseconds, for tests whose subject is not the model. It finds half
    of six X-rays positive.
    """
    return str(quick_model(tmp_path_factory.mktemp("quick"), xrays[:6]))


@pytest.fixture
def start(tmp_path: Path, free_port: FreePort) -> Iterator[Callable[..., Node]]:
    """start(key=value...) -> a listening node with these settings."""
    nodes: list[Node] = []

    def begin(**settings: Any) -> Node:
        node = Node(tmp_path, free_port(), **settings)
        node.start()
        nodes.append(node)
        return node

    yield begin
    for node in nodes:
        node.stop()
        node.ledger.close()
