"""SIIM-ACR run lengths are encoded and decoded; malformed rows are reported with their lines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from training.data import rle


@given(arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12))))
def test_encoding_and_decoding_give_the_same_mask(mask: NDArray[np.bool_]) -> None:
    assert np.array_equal(rle.decode(rle.encode(mask), *mask.shape), mask)


def test_runs_go_down_the_columns_and_are_relative() -> None:
    mask = rle.decode("1 2 3 1", 4, 3)
    assert [tuple(map(int, place)) for place in np.argwhere(mask)] == [(1, 0), (2, 0), (2, 1)]


def test_every_published_mask_encodes_to_its_own_string(data: Path) -> None:
    """All 12,879 rows of the 11,986 images: each row encodes to its own string. Equal rows (mostly
    "-1") are decoded once.

    The union of the rows of an image (614 images have several) is one mask, whose string is no row
    of the file: it holds every pixel of its rows and no other, and also encodes to its own string.
    """
    published = rle.read(data / "siim" / "all-train-rle.csv.gz")
    rows = [text for texts in published.values() for text in texts]
    assert (len(published), len(rows)) == (11_986, 12_879)
    for text in set(rows):
        assert rle.encode(rle.decode(text)) == text

    united = [texts for texts in published.values() if len(texts) > 1]
    assert len(united) == 614
    for texts in united:
        whole = rle.encode(rle.union(texts))
        assert rle.encode(rle.decode(whole)) == whole
        assert _pixels([whole]) == _pixels(texts)


def _pixels(texts: list[str] | tuple[str, ...]) -> set[tuple[int, int]]:
    """The runs as disjoint (start, end) intervals, computed without a mask."""
    intervals = []
    for text in texts:
        edges = np.cumsum(np.array(text.split(), dtype=int)).tolist()
        intervals += zip(edges[::2], edges[1::2], strict=True)
    joined: list[tuple[int, int]] = []
    for start, end in sorted(intervals):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return set(joined)


@pytest.mark.parametrize(
    "row", ["a,1", "a,1 2 3", "a,1 x", "a,-5 2", "a,99999999 1", "a", "a,1 2,3", ",1 2", "a,"]
)
def test_a_malformed_row_is_reported_with_its_line(tmp_path: Path, row: str) -> None:
    path = tmp_path / "train-rle.csv"
    path.write_text(f"ImageId, EncodedPixels\nb,-1\n{row}\nc,-1\nd,5\n")
    with pytest.raises(ValueError, match=r"line 3(.|\n)*line 5"):
        rle.read(path)


def test_a_run_beyond_its_image_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "train-rle.csv"
    path.write_text("ImageId, EncodedPixels\na,10 6\n")
    assert rle.read(path, {"a": (4, 4)}) == {"a": ("10 6",)}
    with pytest.raises(ValueError, match=r"line 2.*ends at pixel 16, the matrix has 15"):
        rle.read(path, {"a": (5, 3)})


def test_another_header_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "train-rle.csv"
    path.write_text("image,mask\na,-1\n")
    with pytest.raises(ValueError, match=r"line 1.*ImageId, EncodedPixels wanted"):
        rle.read(path)


def test_several_rows_of_one_image_are_united(tmp_path: Path) -> None:
    path = tmp_path / "train-rle.csv"
    path.write_text("ImageId, EncodedPixels\na,0 2\nb,-1\na,1 2 1 1\n")
    rows = rle.read(path)
    assert rle.encode(rle.union(rows["a"], 4, 4)) == "0 3 1 1"
    assert not rle.union(rows["b"], 4, 4).any()
