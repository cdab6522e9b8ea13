"""Finished runs -> one package, in which each role's networks answer by the mean of their
probabilities.

Made for the folds of one recipe (`pleura train --fold K`). The threshold is chosen again, on each
network's answers for its own validation images, on which it was not trained.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from inference import package
from inference.manifest import Manifest, Role
from inference.networks import build
from inference.package import Package
from inference.postprocess import REFERENCE_MATRIX_PX
from training.measures import thresholds
from training.measures.answers import Answer
from training.measures.answers import read as read_answers
from training.measures.compare import require_finished
from training.recipe import Recipe

# A network's manifest entry without its thresholds
_DESCRIBED = {"architecture", "arguments", "side", "normalisation"}
_RULE = ("bottom", "top", "min_area_at_1024_px", "min_sure_area_at_1024_px")


@dataclass(frozen=True, eq=False)
class _Member:
    folder: Path
    recipe: Recipe
    loaded: Package
    answers: Sequence[Answer]


@dataclass(frozen=True, eq=False)
class _Joined:
    """A role's networks as one: its entry of the manifest, its module, and a golden input."""

    described: dict[str, Any]
    module: nn.Module
    golden: Tensor


def join(folders: Sequence[Path], out: Path) -> Manifest:
    """Write the package of all these runs into `out`, and return its manifest.

    Raises:
        ValueError: fewer than two runs, an unfinished run, a folder that holds something, or
            networks that cannot answer together.
        PackageError: a run's package does not load.
    """
    if len(folders) < 2:
        raise ValueError("ensemble: the folders of two runs or more wanted")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out}: not an empty folder; an ensemble overwrites nothing")

    members = [_read(folder) for folder in folders]
    _require_alike(members)
    rule = {
        name: fmean(getattr(member.loaded.manifest.segmenter, name) for member in members)
        for name in _RULE
    }

    segmenter = _joined("segmenter", members)
    one_map = all(member.loaded.one_map for member in members)
    if one_map:
        classifier = _largest_of(segmenter, rule)
        threshold = rule["top"]
        words = f"enough pixels of the map reach the mean of {len(members)} runs' tops"
    else:
        classifier = _joined("classifier", members)
        threshold, words = _threshold(members)

    chosen = {"threshold": threshold, "operating_point": words}
    return _write(members, out, classifier, segmenter, chosen, rule)


def _read(folder: Path) -> _Member:
    require_finished(folder)
    return _Member(
        folder,
        Recipe.model_validate_json((folder / "recipe.json").read_bytes()),
        package.load(folder / "package", any_task=True),
        read_answers(folder / "answers.csv"),
    )


def _require_alike(members: Sequence[_Member]) -> None:
    """Raise if the members' answers do not mean the same."""
    first = members[0].loaded.manifest

    for member in members[1:]:
        manifest = member.loaded.manifest
        faults: list[tuple[str, object, object]] = [("task", first.task, manifest.task)]
        faults += [
            (f"{role}.normalisation", network.normalisation, manifest.networks[role].normalisation)
            for role, network in first.networks.items()
            if role in manifest.networks
        ]
        faults.append(("one map", members[0].loaded.one_map, member.loaded.one_map))

        for name, wanted, found in faults:
            if found != wanted:
                raise ValueError(
                    f"{member.folder}: {name}: {found} found, {wanted} wanted as in "
                    f"{members[0].folder}: these runs cannot answer together"
                )


def _joined(role: Role, members: Sequence[_Member]) -> _Joined:
    """An ensemble of one role's networks; the largest side is that of the ensemble's input.

    A network that all runs share, such as the default segmenter, is kept as it is.
    """
    if _is_shared(role, members):
        first = members[0].loaded
        entry = first.manifest.networks[role].model_dump(mode="json", include=_DESCRIBED)
        return _Joined(entry, first.networks[role], first.golden[f"{role}.input"])

    networks = [member.loaded.manifest.networks[role] for member in members]
    arguments = {
        "members": [
            network.model_dump(mode="json", include={"architecture", "arguments", "side"})
            for network in networks
        ]
    }
    module = build("ensemble", **arguments)
    parts = module.get_submodule("members").children()
    for part, member in zip(parts, members, strict=True):
        part.load_state_dict(member.loaded.networks[role].state_dict())

    largest = max(range(len(members)), key=lambda number: networks[number].side)
    described = {
        "architecture": "ensemble",
        "arguments": arguments,
        "side": networks[largest].side,
        "normalisation": networks[0].normalisation,
    }
    return _Joined(described, module, members[largest].loaded.golden[f"{role}.input"])


def _is_shared(role: Role, members: Sequence[_Member]) -> bool:
    """Whether every run has the same network in this role."""
    first = members[0].loaded
    entry = first.manifest.networks[role].model_dump(include=_DESCRIBED)
    weights = first.networks[role].state_dict()
    for member in members[1:]:
        others = member.loaded.networks[role].state_dict()
        if member.loaded.manifest.networks[role].model_dump(include=_DESCRIBED) != entry:
            return False
        if not all(torch.equal(weight, others[name]) for name, weight in weights.items()):
            return False
    return True


def _largest_of(segmenter: _Joined, rule: dict[str, float]) -> _Joined:
    """The classifier of a one-map package: whether enough pixels of the ensemble's map reach the
    threshold.
    """
    area = segmenter.described["side"] ** 2
    pixels = max(1, round(rule["min_sure_area_at_1024_px"] * area / REFERENCE_MATRIX_PX))
    of = {name: segmenter.described[name] for name in ("architecture", "arguments")}
    module = build("largest-of-map", of=of, pixels=pixels)
    module.get_submodule("segmenter").load_state_dict(segmenter.module.state_dict())

    described = segmenter.described | {
        "architecture": "largest-of-map",
        "arguments": {"of": of, "pixels": pixels},
    }
    return _Joined(described, module, segmenter.golden)


def _threshold(members: Sequence[_Member]) -> tuple[float, str]:
    """The score from which an image is positive, chosen on each run's own validation images.

    These are answers of single members; the ensemble's answers are spread a little less.
    """
    point = members[0].recipe.operating_point
    validated = [answer for member in members for answer in _held_out(member)]
    labels = np.array([answer.positive for answer in validated])
    if point is None or not len(labels) or labels.all() or not labels.any():
        mean = fmean(member.loaded.manifest.classifier.threshold for member in members)
        mean = float(thresholds.rounded_down(np.array([mean]))[0])
        return mean, f"mean of {len(members)} runs' thresholds"

    scores = np.array([answer.probability for answer in validated])
    threshold, words = thresholds.operating_point(scores, labels, point)
    return threshold, f"{words}, each answered by the run that validated on it"


def _held_out(member: _Member) -> list[Answer]:
    """The answers for validation images by networks that were not trained on them."""
    recipe = member.recipe
    # A voting map comes from the segmenter, which learns from the recipe's own layout.
    scoring = recipe.networks if recipe.map_vote is not None else recipe.of("classifier")
    taught = any(recipe.layout_of(one) == recipe.layout for one in scoring)
    return [
        answer
        for answer in member.answers
        if answer.of("validate") and not (taught and answer.of("train"))
    ]


def _write(
    members: Sequence[_Member],
    out: Path,
    classifier: _Joined,
    segmenter: _Joined,
    chosen: dict[str, Any],
    rule: dict[str, float],
) -> Manifest:
    first = members[0].loaded.manifest
    ids = ", ".join(
        f"{each.loaded.manifest.id} {each.loaded.identity.digest[:12]}" for each in members
    )
    # Runs of several recipes may have learned from several data sets.
    data = itertools.chain(*(member.loaded.manifest.training.data for member in members))
    training = {
        "recipe": members[0].recipe.id,
        "data": [f"ensemble of {len(members)} runs: {ids}"[:1000], *dict.fromkeys(data)],
        "date": datetime.now(UTC).date().isoformat(),
        "command": "pleura ensemble",
        "splits": _splits(members),
    }
    manifest = {
        "id": f"{first.id[:22]}-ensemble",
        "version": first.version,
        "task": first.task,
        "classifier": classifier.described | chosen,
        "segmenter": segmenter.described | rule,
        "label": first.label.model_dump(),
        "training": training,
        "metrics": {},
        "licence": first.licence,
        "intended_use": first.intended_use,
    }

    modules = {"classifier": classifier.module, "segmenter": segmenter.module}
    golden = {"classifier": classifier.golden, "segmenter": segmenter.golden}
    exact = not all(_is_half(module) for module in modules.values())
    return package.write(out, manifest, modules, golden, exact)


def _splits(members: Sequence[_Member]) -> list[str]:
    """Every split that trained a member; none if a member does not state its own."""
    each = [member.loaded.manifest.training.splits for member in members]
    return list(dict.fromkeys(itertools.chain(*each))) if all(each) else []


def _is_half(module: nn.Module) -> bool:
    """Whether float16 holds every weight as it is, as packages of `pleura train` store them."""
    weights = [weight for weight in module.state_dict().values() if weight.is_floating_point()]
    return all(torch.equal(weight.half().float(), weight) for weight in weights)
