"""A package whose classifier is the segmenter's map: one decision, weights stored once, map
computed once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from safetensors import safe_open
from torch import nn

from inference import package, postprocess
from inference.engine import Engine
from inference.networks import build
from tests.models import TINY

_UNET = TINY | {"up_widths": [8, 8, 8, 8]}
_OF = {"architecture": "residual-unet", "arguments": _UNET}
_SIDE = 32
# A few pixels of a map at the network's side may be a fraction of a pixel, or many, in the image's
# matrix.
_SURE_AREA = 3000.0


def networks(same: bool = True) -> dict[str, nn.Module]:
    torch.manual_seed(0)
    segmenter = build("residual-unet", **_UNET)
    if not same:
        torch.manual_seed(1)
    classifier = build("largest-of-map", of=_OF, pixels=3)
    if same:
        classifier.get_submodule("segmenter").load_state_dict(segmenter.state_dict())
    return {"classifier": classifier, "segmenter": segmenter}


def written(folder: Path, top: float = 0.5, same: bool = True) -> Path:
    common: dict[str, Any] = {"side": _SIDE, "normalisation": "image-standard"}
    manifest = {
        "id": "one-map", "version": "1.0.0", "task": "pneumothorax",
        "classifier": common | {
            "architecture": "largest-of-map", "arguments": {"of": _OF, "pixels": 3},
            "threshold": top, "operating_point": "none",
        },
        "segmenter": common | _OF | {
            "bottom": top / 2, "top": top, "min_area_at_1024_px": 0,
            "min_sure_area_at_1024_px": _SURE_AREA,
        },
        "label": {"value": "36118008", "scheme": "SCT", "meaning": "Pneumothorax"},
        "training": {"recipe": "none", "data": [], "date": "2026-01-01", "command": "none"},
        "metrics": {}, "licence": "none", "intended_use": "tests",
    }  # fmt: skip

    made = networks(same)
    package.write(folder, manifest, made, dict.fromkeys(made, torch.rand(2, 1, _SIDE, _SIDE)))
    return folder


def pictures(count: int = 24) -> list[NDArray[np.float32]]:
    rng = np.random.default_rng(0)
    sizes = rng.integers(20, 120, (count, 2))
    return [rng.random(tuple(size), dtype=np.float32) * 0.9 + 0.1 for size in sizes]


def test_a_positive_image_has_a_mask_and_a_negative_image_has_none(tmp_path: Path) -> None:
    # Set the upper threshold in the middle of the scores, so that both decisions occur.
    first = Engine(package.load(written(tmp_path / "first")), torch.device("cpu"), "torch")
    images = pictures()
    top = round(float(np.median(first.classify(images))), 3)

    engine = Engine(package.load(written(tmp_path / "second", top)), torch.device("cpu"), "torch")
    rule = engine.manifest.segmenter.rule
    positive = [score >= top for score in engine.classify(images)]
    masks = [postprocess.segment(drawn, *rule) for drawn in engine.segment(images)]
    assert positive == [bool(mask.any()) for mask in masks]
    assert len(set(positive)) == 2


def test_weights_are_stored_once_and_held_in_memory_once(tmp_path: Path) -> None:
    folder = written(tmp_path)
    with safe_open(folder / "weights.safetensors", "pt") as file:
        names = list(file.keys())
    assert names
    assert all(name.startswith("segmenter.") for name in names)
    loaded = package.load(folder)
    assert loaded.one_map
    assert loaded.classifier.get_submodule("segmenter") is loaded.segmenter


def test_a_classifier_with_other_weights_keeps_them(tmp_path: Path) -> None:
    loaded = package.load(written(tmp_path, same=False))
    assert not loaded.one_map
    with safe_open(tmp_path / "weights.safetensors", "pt") as file:
        names = list(file.keys())
    assert any(name.startswith("classifier.") for name in names)


def test_the_map_is_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(package.load(written(tmp_path)), torch.device("cpu"), "torch")
    asked: list[int] = []
    logits = engine.logits

    def counted(role: Any, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        asked.append(len(batch))
        return logits(role, batch)

    monkeypatch.setattr(engine, "logits", counted)
    images = pictures(4)
    engine.classify(images)
    some = engine.segment(images[1:3])
    assert asked == [4]

    # Equal images in other arrays count as other images.
    again = engine.segment([image.copy() for image in images[1:3]])
    assert asked == [4, 2]
    for drawn, other in zip(some, again, strict=True):
        np.testing.assert_allclose(drawn, other, atol=1e-5)


probabilities = arrays(
    np.float32,
    st.tuples(st.integers(1, 12), st.integers(1, 12)),
    elements=st.floats(0, 1, width=32),
)


@given(
    probabilities,
    st.floats(0.01, 0.99),
    st.floats(0, 1),
    st.floats(0, 200_000),
    st.floats(0, 200_000),
)
def test_the_score_reaches_the_threshold_exactly_if_there_is_a_mask(
    drawn: NDArray[np.float32], top: float, share: float, smallest: float, sure: float
) -> None:
    rule = (max(0.001, top * share), top, smallest, sure)
    found = postprocess.segment(drawn, *rule)
    assert (postprocess.sure_probability(drawn, *rule) >= top) == bool(found.any())
