"""Recipe -> trained networks -> model package.

Read from top to bottom: that is the order in which it runs.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from inference.networks import build
from training import data, preflight, progress
from training.data import cache, checks, split
from training.data.cases import Case
from training.export import Export, Trained
from training.fitting import (
    average,
    find_rate,
    installed,
    pseudo_masks,
    ranks,
    show,
    weights,
)
from training.fitting.batches import Batches, Samples, inputs, with_folds
from training.fitting.crossfit import NO_FOLD, CrossFitted
from training.fitting.fit import fit
from training.fitting.run import Run, RunError, digest
from training.measures import metrics
from training.recipe import Layout, PseudoMasks, Recipe, Stage

# What a run can do in the place of training
Trial = Literal["show-batches", "find-learning-rate"]
_BATCHES_SHOWN = 2
# The first seed of training phantoms; tests and the demo use small seeds
_PHANTOM_SEED = 100_000
# Characters of the command in a package's provenance
_COMMAND_SHOWN = 1000
# Watched images of each network that is cross-fitted: nothing is chosen by them
_GLANCE = 12
# Validation images in one forward pass
_WATCHED = 16


def train(
    recipe: Recipe,
    folder: Path,
    out: Path,
    command: Sequence[str],
    starts: Mapping[int, Path | None] | None = None,
    decoded: Path | None = None,
    instead: Trial | None = None,
) -> Path | None:
    """Train every network of `recipe` on the data in `folder` and write the package.

    Returns the package's folder, or None in the processes of torchrun that write nothing.

    `out` is the run folder: split.csv, the recipe, the environment, each network's curve,
    TensorBoard's files, and package/. The same command again resumes a killed run. `starts` maps a
    network's place in the recipe to a file of weights to start from, or to None: at random,
    although the recipe names published weights. Decoded images are kept in `decoded`, which runs
    may share, or in `out`/cache. `instead` of training, each network's first batches are drawn, or
    a learning rate is looked for.

    Raises:
        ValueError, RunError, WeightsError, TrainingError: what is wrong with the data, the run
            folder, a file of weights, or the training itself.
    """
    with ranks.joined("auto") as device:
        wanted = {**installed.starts(recipe), **(starts or {})}
        preflight.check(recipe, wanted)
        if instead != "show-batches":
            preflight.require_starts(recipe, wanted)
        files = {number: path for number, path in wanted.items() if path is not None}

        with progress.spinner("reading the data's tables and headers"):
            sources = {layout: data.read(layout, folder) for layout in recipe.layouts}
        cases = sources[recipe.layout]
        parts = split.split(cases, recipe.split)
        reports = [
            checks.check(images, parts) if images is cases else checks.check(images, beside=parts)
            for images in sources.values()
        ]
        for report in reports:
            report.raise_errors()

        every_case = [case for images in sources.values() for case in images]
        run = Run(out, recipe, digest(every_case), command)
        for report in reports:
            for warning in report.warnings:
                run.console.print(str(warning))

        # Every process raises: the others would wait for a process that has ended.
        fault = ranks.same(_begin(out, parts, files) if run.first else "")
        if fault:
            raise RunError(fault)

        training = _Training(recipe, sources, run, device, parts, files, decoded or out / "cache")
        if instead is not None:
            training.try_out(instead)
            return None

        trained: list[Trained] = []
        for number, stage in enumerate(recipe.networks):
            trained.append(Trained(stage, training.network(number, stage, trained)))

        if not run.first:
            return None

        provenance = {
            "data": training.described(),
            "date": datetime.now(UTC).date().isoformat(),
            "command": run.command[:_COMMAND_SHOWN],
            "splits": [split.digest(out / "split.csv")],
        }
        export = Export(recipe, out / "package", provenance)
        shipped = [one for one in trained if one.stage.ships]
        return export.write(shipped, parts.train, parts.validate)


def _begin(out: Path, parts: split.Parts, starts: Mapping[int, Path]) -> str:
    """Write split.csv and starts.json; returns the fault, or "".

    A run resumes only from the weights it began with, so that its package's provenance stays true.
    """
    path = out / "starts.json"
    try:
        split.write(parts, out / "split.csv")
        digests = {
            str(number): hashlib.sha256(_identifying(file).read_bytes()).hexdigest()
            for number, file in sorted(starts.items())
        }
        if not path.exists():
            path.write_text(json.dumps(digests, indent=2), encoding="utf-8")
        elif json.loads(path.read_text(encoding="utf-8")) != digests:
            return (
                f"{path}: the run began with other --start files; give another folder, or the "
                "files as they were"
            )
    except (OSError, ValueError) as error:
        return str(error)

    return ""


def _identifying(start: Path) -> Path:
    """The file itself; of a package model.yaml, which lists the digests of its files."""
    return start / "model.yaml" if start.is_dir() else start


@dataclass(frozen=True, eq=False)
class _Training:
    """The parts that all networks of a run share."""

    recipe: Recipe
    sources: Mapping[Layout, Sequence[Case]]
    run: Run
    device: torch.device
    parts: split.Parts
    starts: Mapping[int, Path]
    # Folder of decoded images
    decoded: Path

    def network(self, number: int, stage: Stage, before: Sequence[Trained]) -> nn.Module:
        """Train one network; `before` are the networks before it in the recipe."""
        if (given := self.starts.get(number)) is not None and given.is_dir():
            return weights.network_of_package(given, stage)

        name = _name(number, stage)
        train, watched = self._images(stage)
        torch.manual_seed(self.recipe.seed + number)
        network = build(stage.architecture, **stage.arguments)
        self._start(number, stage, network, before)

        # What was drawn at random would rest, for good where the recipe says so
        if self._lacks_start(number, stage):
            stage = stage.model_copy(update={"freeze": None})
        if stage.cross_fit:
            return self._cross_fitted(name, stage, network, train, watched)

        network = self._fitted(name, stage, network, train, watched)
        network = self._finished(name, stage, network, train, watched)
        return self._self_taught(name, stage, network, train, watched)

    def try_out(self, trial: Trial) -> None:
        """Draw each network's first batches, or look for its learning rate; nothing is trained."""
        for number, stage in enumerate(self.recipe.networks):
            name = _name(number, stage)
            train, _ = self._images(stage)
            batches = self._batches(stage, train, stage.phantoms)

            if trial == "show-batches":
                for order, batch in enumerate(itertools.islice(batches.epoch(0), _BATCHES_SHOWN)):
                    path = self.run.folder / "batches" / f"{name}-{order}.png"
                    show.sheet(batch, path)
                    self.run.console.print(str(path), soft_wrap=True)
                continue

            torch.manual_seed(self.recipe.seed + number)
            network = build(stage.architecture, **stage.arguments)
            if stage.start != "classifier":
                self._start(number, stage, network, ())
            with progress.spinner(f"{name}: raising the learning rate", self.run.console):
                found = find_rate.find(network, batches)

            path = self.run.folder / "learning-rate" / name
            find_rate.write(found, path)
            self.run.console.print(
                f"{name}: networks.{number}.optimiser.learning_rate={found.suggested:.2g} is where "
                f"the loss falls fastest ({path}.png)",
                soft_wrap=True,
            )

    def _fitted(
        self,
        name: str,
        stage: Stage,
        network: nn.Module,
        train: Sequence[Case],
        watched: Sequence[Case],
    ) -> nn.Module:
        """The network after its earlier phases and its own epochs."""
        network = self._earlier(name, stage, network, train, watched)
        watch = _Watch(stage, self._prepared(stage, watched), self.device)
        return fit(network, self._batches(stage, train, stage.phantoms), watch, self.run, name)

    def _earlier(
        self,
        name: str,
        stage: Stage,
        network: nn.Module,
        train: Sequence[Case],
        watched: Sequence[Case],
    ) -> nn.Module:
        """The network after its earlier phases."""
        for order, phase in enumerate(stage.first, 1):
            earlier = stage.earlier(phase)
            watch = _Watch(earlier, self._prepared(earlier, watched), self.device)
            batches = self._batches(earlier, train, stage.phantoms)
            network = fit(network, batches, watch, self.run, f"{name}-first-{order}")

        return network

    def _finished(
        self,
        name: str,
        stage: Stage,
        network: nn.Module,
        train: Sequence[Case],
        watched: Sequence[Case],
    ) -> nn.Module:
        """The network on the way to what a few last epochs make of it."""
        if stage.finish is None:
            return network

        last = stage.finishing(stage.finish)
        batches = self._batches(last, train, last.phantoms)
        return self._going_on(f"{name}-finish", stage.finish.share, network, batches, watched)

    def _self_taught(
        self,
        name: str,
        stage: Stage,
        network: nn.Module,
        train: Sequence[Case],
        watched: Sequence[Case],
    ) -> nn.Module:
        """The network on the way to what its own outlines of further images make of it."""
        wanted = stage.pseudo_masks
        if wanted is None:
            return network

        last = stage.finishing(wanted)
        outlined = self._outlined(name, last, wanted, network)
        batches = self._batches(last, train, last.phantoms, [outlined])
        return self._going_on(f"{name}-pseudo-masks", wanted.share, network, batches, watched)

    def _going_on(
        self,
        name: str,
        share: float,
        network: nn.Module,
        batches: Batches,
        watched: Sequence[Case],
    ) -> nn.Module:
        """The network a share of the way to what these further epochs make of it."""
        watch = _Watch(batches.stage, self._prepared(batches.stage, watched), self.device)
        after = fit(copy.deepcopy(network), batches, watch, self.run, name)
        return average.between(network, after, share)

    def _outlined(
        self, name: str, stage: Stage, wanted: PseudoMasks, network: nn.Module
    ) -> Samples:
        """The images with a label and no mask, outlined by the network itself."""
        cases = [case for case in self.sources[wanted.layout] if case.label >= wanted.label]
        prepared = cache.prepare(cases, stage.side, self.decoded)
        scheme = stage.normalisation
        with progress.spinner(f"{name}: outlining {len(cases)} images", self.run.console):
            masks = pseudo_masks.drawn(
                network, prepared.images, prepared.inside, scheme, wanted.bottom
            )

        kept = np.flatnonzero(masks.any((1, 2)))
        self.run.console.print(f"{name}: {len(kept)} of {len(cases)} images outlined")
        return Samples(
            images=prepared.images[kept],
            targets=masks[kept],
            share=wanted.shown,
            ids=[cases[place].image_id for place in kept],
            positive=np.ones(len(kept), dtype=bool),
            inside=prepared.inside[kept] if _unless_full(prepared) is not None else None,
        )

    def _cross_fitted(
        self,
        name: str,
        stage: Stage,
        network: nn.Module,
        train: Sequence[Case],
        watched: Sequence[Case],
    ) -> nn.Module:
        """The network of all images; those of each fold left out are written beside its weights.

        A network that leaves a fold out is watched by a glance at that fold.
        """
        alone = stage.model_copy(update={"cross_fit": False})
        shared = None
        if stage.shares_encoder:
            shared = self._sharing(name, stage, network, train, watched)

        found = network
        for fold in (*sorted(set(self.parts.folds.values())), None):
            own = name if fold is None else f"{name}-fold-{fold}"
            some, glance = self._without(fold, train, watched)

            if shared is None:
                begun = self._fitted(own, alone, copy.deepcopy(network), some, glance)
            else:
                begun = shared.network_of(stage, fold)
            found = self._finished(own, alone, begun, some, glance)
            found = self._self_taught(own, alone, found, some, glance)

            if fold is not None and self.run.first:
                self.run.keep(f"{name}-without-{fold}", found)

        return found

    def _sharing(
        self,
        name: str,
        stage: Stage,
        network: nn.Module,
        train: Sequence[Case],
        watched: Sequence[Case],
    ) -> CrossFitted:
        """The decoders of all folds, trained at once on one encoder."""
        shared = CrossFitted(network, stage, 1 + max(self.parts.folds.values()))

        some = _glance(watched)
        watch = _Watch(stage, self._prepared(stage, some), self.device, self._folds(some))
        fit(shared, self._batches(stage, train, stage.phantoms), watch, self.run, name)
        return shared

    def _without(
        self, fold: int | None, train: Sequence[Case], watched: Sequence[Case]
    ) -> tuple[list[Case], Sequence[Case]]:
        """(images that train where a fold is left out, a glance at those that do not)"""
        folds = self.parts.folds
        some = [case for case in train if fold is None or folds.get(case.image_id) != fold]
        inside = [case for case in watched if folds.get(case.image_id) == fold]
        return some, _glance(inside or watched)

    def _folds(self, cases: Sequence[Case]) -> NDArray[np.float32]:
        """The number of each image's fold, that of none where it has none."""
        folds = [self.parts.folds.get(case.image_id, NO_FOLD) for case in cases]
        return np.array(folds, dtype=np.float32)

    def described(self) -> list[str]:
        """The data, for the package's provenance."""
        said = []
        for layout, cases in self.sources.items():
            said.append(f"{layout}: {data.LAYOUTS[layout].about}; {len(cases)} images")
        said.append(
            f"{len(self.parts.train)} train, {len(self.parts.validate)} validate, "
            f"{len(self.parts.report)} report"
        )

        if not self.recipe.of("segmenter"):
            said.append("segmenter: that of the default package, with what trained it")
        if any(stage.phantoms or stage.finish for stage in self.recipe.networks):
            said.append("synthetic phantoms")

        started = [
            weights.package_in_words(number, path)
            if path.is_dir()
            else f"network {number} started from {path.name}"
            for number, path in sorted(self.starts.items())
        ]
        wanted = [
            f"network {number} is meant to start from {stage.start} weights; none were given, it "
            f"started at random{' and nothing of it was frozen' if stage.freeze else ''}"
            for number, stage in enumerate(self.recipe.networks)
            if self._lacks_start(number, stage)
        ]

        return said + started + wanted

    def _lacks_start(self, number: int, stage: Stage) -> bool:
        """Whether it is meant to start from published weights, and none were given."""
        return stage.start in preflight.PUBLISHED and number not in self.starts

    def _images(self, stage: Stage) -> tuple[list[Case], list[Case]]:
        """(images that train, images that are watched)"""
        layout = self.recipe.layout_of(stage)
        if layout == self.recipe.layout:
            train, watched = self.parts.train, self.parts.validate
        else:
            cases = self.sources[layout]
            train, watched = split.held_out(cases, stage.held_out, self.recipe.seed)

        if stage.images == "positives":
            train = [case for case in train if case.positive]
        if stage.on_masks:
            train, watched = (
                [case for case in part if case.mask_known] for part in (train, watched)
            )

        if not watched or not any(case.positive for case in train):
            raise ValueError(
                f"layout {layout}: {len(train)} images to train, {len(watched)} to "
                f"watch{', with a known mask' if stage.on_masks else ''}; some of each wanted, "
                "and positive images to train"
            )

        return list(train), list(watched)

    def _start(
        self, number: int, stage: Stage, network: nn.Module, before: Sequence[Trained]
    ) -> None:
        if number in self.starts:
            weights.load_start(network, stage, self.starts[number])
        elif stage.start == "classifier":
            weights.take_encoder(network, before[0].network)
        elif self._lacks_start(number, stage):
            self.run.console.print(
                f"network {number} starts at "
                f"random{', nothing of it frozen' if stage.freeze else ''}, as was said; it is "
                f"meant to start from {stage.start} weights"
            )

    def _batches(
        self, stage: Stage, cases: Sequence[Case], phantoms: int, others: Sequence[Samples] = ()
    ) -> Batches:
        samples = [*self._shown(stage, cases), *others]
        if phantoms:
            drawn = data.phantoms(phantoms, _PHANTOM_SEED, stage.side)
            samples.append(self._samples(stage, drawn))
        return Batches(samples, stage, self.recipe.seed, self.device)

    def _shown(self, stage: Stage, cases: Sequence[Case]) -> list[Samples]:
        """The real images, the negatives apart where an epoch shows a share of them."""
        negatives = [case for case in cases if not case.positive]
        if stage.negatives == 1 or not negatives:
            return [self._samples(stage, cases, stage.repeats)]

        positives = [case for case in cases if case.positive]
        some = replace(self._samples(stage, negatives, stage.repeats), share=stage.negatives)
        return [self._samples(stage, positives, stage.repeats), some]

    def _samples(self, stage: Stage, cases: Sequence[Case], times: int = 1) -> Samples:
        prepared = self._prepared(stage, cases)
        targets = prepared.masks if stage.on_masks else prepared.labels
        # `_images` has left out the images without a known mask.
        assert targets is not None

        ids = [case.image_id for case in cases]
        return Samples(
            images=prepared.images,
            targets=targets,
            times=times,
            ids=ids,
            positive=np.array([case.positive for case in cases]),
            inside=_unless_full(prepared),
            folds=self._folds(cases) if stage.cross_fit else None,
        )

    def _prepared(self, stage: Stage, cases: Sequence[Case]) -> cache.Prepared:
        # All or none: training and validation images are to differ in nothing but the picture.
        # Where some are as published and some are copies, the codec of a copy can tell its label.
        mixed = len({case.as_published for case in self.sources[self.recipe.layout]}) > 1
        equalise = mixed and self.recipe.layout_of(stage) == self.recipe.layout
        with progress.bar(f"decoding to {stage.side} px", self.run.console) as done:
            return cache.prepare(cases, stage.side, self.decoded, equalise, done)


@dataclass(frozen=True, eq=False)
class _Watch:
    """The figures of the validation images after an epoch, at the network's own size."""

    stage: Stage
    prepared: cache.Prepared
    device: torch.device
    folds: NDArray[np.float32] | None = None  # of a network that is cross-fitted

    def __call__(self, network: nn.Module) -> dict[str, float]:
        if self.stage.role == "classifier":
            scores = np.concatenate(list(self._found(network)))
            return metrics.label_figures(scores, self.prepared.labels > 0.5, 0.5)
        # Else there would be nothing to train on
        assert self.prepared.masks is not None
        found = (mask for some in self._found(network) for mask in some >= 0.5)
        return metrics.mask_figures(found, (mask >= 128 for mask in self.prepared.masks))

    def _found(self, network: nn.Module) -> Iterator[NDArray[np.float64]]:
        """Probabilities of some images after the other: (images,) or (images, side, side)."""
        for start in range(0, len(self.prepared.images), _WATCHED):
            some = slice(start, start + _WATCHED)
            images = inputs(
                self.prepared.images[some], self.stage.normalisation, self.prepared.inside[some]
            )
            if self.folds is not None:
                images = with_folds(images, self.folds[some])
            logits = network(images.to(self.device))
            yield torch.sigmoid(logits.float())[:, 0].cpu().numpy().astype(np.float64)


def _name(number: int, stage: Stage) -> str:
    """The name of a network's files."""
    return f"{number}-{stage.role}-{stage.architecture}"


def _glance(cases: Sequence[Case]) -> Sequence[Case]:
    """Some of the images: all of them, after each epoch, would take a third of the time."""
    return cases[:: max(1, len(cases) // _GLANCE)]


def _unless_full(prepared: cache.Prepared) -> NDArray[np.int32] | None:
    """Where the images lie in their letterboxes; None where none has one."""
    side = prepared.images.shape[1]
    return None if (prepared.inside == (0, 0, side, side)).all() else prepared.inside
