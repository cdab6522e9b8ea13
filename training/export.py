"""Trained networks -> model package: thresholds are chosen on the validation images, with the code
that serves.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from inference import package
from inference.engine import Engine, choose_device
from inference.networks import build
from inference.postprocess import REFERENCE_MATRIX_PX
from inference.preprocess import fit, normalise
from training import phantom
from training.data.cases import Case
from training.measures import answers, thresholds
from training.recipe import Recipe, Role, Stage

_BATCH = 8
_INTENDED_USE = "Research use only, not for diagnosis."
_LICENCE = "research use, non-commercial: the weights come from the data named under training"
_LABELS = {
    "pneumothorax": {"value": "36118008", "scheme": "SCT", "meaning": "Pneumothorax"},
    "lower-grade-glioma": {"value": "393564001", "scheme": "SCT", "meaning": "Glioma"},
}


@dataclass(frozen=True, eq=False)
class Trained:
    """A network after its training, and the stage that trained it."""

    stage: Stage
    network: nn.Module


@dataclass(frozen=True, eq=False)
class _Network:
    """A manifest's entry for one role, and its module."""

    architecture: str
    arguments: dict[str, Any]
    side: int
    normalisation: str
    module: nn.Module

    def described(self) -> dict[str, Any]:
        return {
            "architecture": self.architecture, "arguments": self.arguments,
            "side": self.side, "normalisation": self.normalisation,
        }  # fmt: skip


@dataclass(frozen=True, eq=False)
class Export:
    """Writes the package of one run into `folder`."""

    recipe: Recipe
    folder: Path
    # The fields of Manifest.training, without the recipe's id
    provenance: dict[str, Any]

    def write(
        self, trained: Sequence[Trained], train: Sequence[Case], validate: Sequence[Case]
    ) -> Path:
        """Choose the operating point and the rule on `validate`, and write the package.

        A recipe without a classifier gets one made of its segmenter: an image is positive where
        enough pixels of its map reach `top` (the SIIM-ACR winner's rule). A recipe without a
        segmenter gets the default package's.
        """
        rule: dict[str, float] = self._stated_rule(train)
        segmenter = self._combined("segmenter", trained)
        classifier = self._combined("classifier", trained)
        if segmenter is None:
            segmenter, rule = _default_segmenter()

        if classifier is None:
            alone = _largest(segmenter, _sure_pixels(segmenter, rule))
            self._put(alone, segmenter, rule, rule["top"], "to be searched")
            rule = self._searched(rule, thresholds.TRIPLET, _maps(self._engine(), validate))
            words = "enough pixels of the map reach the rule's top (SIIM-ACR winner's rule)"
            alone = _largest(segmenter, _sure_pixels(segmenter, rule))
            self._put(alone, segmenter, rule, rule["top"], words)
            return self.folder

        assert self.recipe.operating_point is not None
        self._put(classifier, segmenter, rule, 0.5, "to be chosen")
        engine = self._engine()
        scores = _scores(engine, validate)
        labels = np.array([case.positive for case in validate])
        threshold, words = thresholds.operating_point(scores, labels, self.recipe.operating_point)
        rule = self._searched(
            rule, thresholds.TWO_STAGE, _maps(engine, validate, scores >= threshold)
        )
        package.amend(self.folder, _stages(classifier, segmenter, rule, threshold, words))

        return self.folder

    def _combined(self, role: Role, trained: Sequence[Trained]) -> _Network | None:
        """The network of one role: its only member, or an ensemble."""
        members = [_network(one) for one in trained if one.stage.role == role]
        if not members:
            return None
        if role == "classifier" and self.recipe.map_vote is not None:
            segmenters = [_network(one) for one in trained if one.stage.role == "segmenter"]
            share = self.recipe.map_vote
            members += [_largest(one, round(share * one.side**2)) for one in segmenters]
        if len(members) == 1 and role not in self.recipe.flip:
            return members[0]

        arguments = {
            "members": [
                {"architecture": one.architecture, "arguments": one.arguments, "side": one.side}
                for one in members
            ],
            "flip": role in self.recipe.flip,
        }
        ensemble = build("ensemble", **arguments)
        parts = ensemble.get_submodule("members").children()
        for part, member in zip(parts, members, strict=True):
            part.load_state_dict(member.module.state_dict())

        side = max(member.side for member in members)
        return _Network("ensemble", arguments, side, members[0].normalisation, ensemble)

    def _stated_rule(self, train: Sequence[Case]) -> dict[str, float]:
        stated = self.recipe.rule
        smallest = stated.min_area_at_1024_px
        if stated.smallest:
            smallest = _smallest_area(train, stated.smallest)
        return {
            "bottom": stated.bottom,
            "top": stated.top or stated.bottom,
            "min_area_at_1024_px": smallest,
            "min_sure_area_at_1024_px": stated.min_sure_area_at_1024_px,
        }

    def _put(
        self,
        classifier: _Network,
        segmenter: _Network,
        rule: dict[str, float],
        threshold: float,
        words: str,
    ) -> None:
        manifest = {
            "id": self.recipe.id,
            "version": self.recipe.version,
            "task": self.recipe.task,
            **_stages(classifier, segmenter, rule, threshold, words),
            "label": _LABELS[self.recipe.task],
            "training": {"recipe": self.recipe.id} | self.provenance,
            "metrics": {},
            "licence": _LICENCE,
            "intended_use": _INTENDED_USE,
        }

        networks = {"classifier": classifier, "segmenter": segmenter}
        modules = {role: _laid_out(network.module) for role, network in networks.items()}
        package.write(
            self.folder,
            manifest,
            modules,
            {role: _golden(network) for role, network in networks.items()},
            exact=not all(_fits_half(module) for module in modules.values()),
        )

    def _engine(self) -> Engine:
        return Engine(package.load(self.folder, any_task=True), choose_device("auto"))

    def _searched(
        self, rule: dict[str, float], grid: thresholds.Grid, maps: Iterable[thresholds.Map]
    ) -> dict[str, float]:
        """The best rule of the grid, if the recipe wants a search.

        Every rule that was tried goes into search.csv.
        """
        if not self.recipe.rule.search:
            return rule
        search = thresholds.search(maps, grid)
        answers.write_rows(self.folder.parent / "search.csv", list(search.rows()))
        return search.best


def _stages(
    classifier: _Network, segmenter: _Network, rule: dict[str, float], threshold: float, words: str
) -> dict[str, Any]:
    """The two networks' entries of a manifest."""
    return {
        "classifier": classifier.described() | {"threshold": threshold, "operating_point": words},
        "segmenter": segmenter.described() | rule,
    }


def _scores(engine: Engine, cases: Sequence[Case]) -> NDArray[np.float64]:
    return np.array(
        [
            score
            for part in _parts(cases)
            for score in engine.classify([case.pixels() for case in part])
        ]
    )


def _maps(
    engine: Engine, cases: Sequence[Case], called: NDArray[np.bool_] | None = None
) -> Iterator[thresholds.Map]:
    """Probabilities and true mask of each image whose mask is known, in the matrix of its file.

    Probabilities are zero if the image is not `called` positive.
    """
    for number, case in enumerate(cases):
        true = case.stored_mask()
        # Only its label is known.
        if true is None:
            continue

        if called is None or called[number]:
            picture = case.picture()
            (drawn,) = engine.segment([picture.pixels])
            found = picture.in_file(drawn)
        else:
            found = np.zeros(true.shape, dtype=np.float32)

        yield found, true


def _parts(cases: Sequence[Case]) -> Iterator[Sequence[Case]]:
    for start in range(0, len(cases), _BATCH):
        yield cases[start : start + _BATCH]


def _network(trained: Trained) -> _Network:
    stage = trained.stage
    return _Network(
        stage.architecture, stage.arguments, stage.side, stage.normalisation, trained.network
    )


def _sure_pixels(segmenter: _Network, rule: dict[str, float]) -> int:
    """The rule's sure area in pixels of the network."""
    return round(rule["min_sure_area_at_1024_px"] * segmenter.side**2 / REFERENCE_MATRIX_PX)


def _largest(segmenter: _Network, pixels: int) -> _Network:
    """A classifier that reaches a threshold if this many pixels of the map do (at least one)."""
    of = {"architecture": segmenter.architecture, "arguments": segmenter.arguments}
    arguments = {"of": of, "pixels": max(1, pixels)}
    module = build("largest-of-map", **arguments)
    module.get_submodule("segmenter").load_state_dict(segmenter.module.state_dict())
    return _Network("largest-of-map", arguments, segmenter.side, segmenter.normalisation, module)


def _default_segmenter() -> tuple[_Network, dict[str, float]]:
    default = package.load(package.default_folder())
    stated = default.manifest.segmenter
    network = _Network(
        stated.architecture,
        dict(stated.arguments),
        stated.side,
        stated.normalisation,
        default.segmenter,
    )
    return network, stated.model_dump(
        include={"bottom", "top", "min_area_at_1024_px", "min_sure_area_at_1024_px"}
    )


def _fits_half(module: nn.Module) -> bool:
    """Whether float16, in which packages store weights, holds these.

    The variance of a batch norm may be too large.
    """
    tensors = [
        tensor
        for tensor in module.state_dict().values()
        if tensor.is_floating_point() and tensor.numel()
    ]
    return all(float(tensor.abs().max()) < torch.finfo(torch.float16).max for tensor in tensors)


def _laid_out(module: nn.Module) -> nn.Module:
    """The module as in the golden replay, on the CPU: equal to the last bit."""
    module = module.cpu()
    module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return module


def _golden(network: _Network) -> Tensor:
    fitted = fit(phantom.draw(0, pneumothorax=True, size=network.side).pixels, network.side)
    return torch.from_numpy(normalise(fitted.pixels, fitted.geometry, network.normalisation))[
        None, None
    ]


def _smallest_area(cases: Sequence[Case], quantile: float) -> float:
    """The quantile of the annotated areas; a smaller region counts as noise."""
    masks = (case.stored_mask() for case in cases if case.positive)
    areas = [
        mask.sum() * REFERENCE_MATRIX_PX / mask.size
        for mask in masks
        if mask is not None and mask.any()
    ]
    return float(np.round(np.quantile(areas, quantile))) if areas else 0.0
