"""Runs a model package's networks on one device: lists of images in, plain numpy out."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from inference import engines, postprocess, preprocess
from inference.engines import PLAIN, Candidate, Plan, Runner, cores
from inference.engines.faults import is_fatal, is_out_of_memory
from inference.engines.memory import Memory
from inference.engines.memory import folder as cache_folder
from inference.engines.trial import Trial
from inference.exposed_field import exposed
from inference.finding import ModelIdentity
from inference.manifest import Calibration, Manifest, Role
from inference.package import Package
from inference.preprocess import Geometry

__all__ = ["Engine", "EngineBrokenError", "cache_folder", "choose_device"]

log = logging.getLogger("pleura.engine")

# On CPUs a larger batch is no faster per image, and each image in it takes 100 MB.
MAX_BATCH = 4
_NO_MORE = object()
# A probability map at the network's side, and where the image lies in it.
_Fitted = tuple[NDArray[np.float32], Geometry]
# By batch size: 1, and the largest, which serves every other size.
_Choice = dict[int, tuple[Candidate, Runner]]


class EngineBrokenError(Exception):
    """This process has lost the device (a poisoned CUDA context); only a new process can use it."""


def device_memory(device: torch.device) -> tuple[int, int] | None:
    """Free and total memory of a CUDA device in bytes; None without CUDA, or if it is lost."""
    if device.type != "cuda":
        return None
    try:
        free, total = torch.cuda.mem_get_info(device)
    except RuntimeError:
        return None
    return free, total


def choose_device(wanted: str) -> torch.device:
    """The device for "auto" (the first CUDA device, else the CPU), "cpu", "cuda" or "cuda:N".

    "auto" without a GPU is the CPU, with a warning if this torch was built for GPUs.

    Raises:
        ValueError: not the name of a device, or a CUDA device that is absent: a node configured for
            a GPU must not serve, far too slowly, on the CPU.
    """
    if wanted == "cpu":
        return torch.device("cpu")

    try:
        device = torch.device("cuda:0" if wanted in ("auto", "cuda") else wanted)
        if device.type != "cuda":
            raise RuntimeError("not among these")
    except RuntimeError as error:
        raise ValueError(f"device: {wanted!r} found; allowed: auto, cpu, cuda, cuda:N") from error

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0 and wanted != "auto":
        raise ValueError(
            f"device: {wanted} found, but torch {torch.__version__} sees no GPU; allowed here: "
            "auto, cpu (README: CUDA builds of torch; nvidia-smi shows the driver)"
        )
    if count == 0:
        expected = torch.version.cuda is not None
        log.log(
            logging.WARNING if expected else logging.INFO,
            "device: auto: torch %s sees no GPU; on the CPU, much slower (README: CUDA builds; "
            "nvidia-smi: driver)",
            torch.__version__,
        )
        return torch.device("cpu")

    if device.index is not None and device.index >= count:
        raise ValueError(
            f"device: {wanted} found, but torch sees {count} CUDA device(s); allowed: cuda:0 to "
            f"{count - 1}"
        )

    return device


class Engine:
    """One package on one device. Not thread-safe: one owner per device (design, section 1).

    It starts on plain torch, on which the golden inputs have been replayed. `tune_step` then tries
    the engines that `wanted` ("auto", or a name of engines.ENGINES) allows, and switches, one
    network at a time, to a faster engine that agrees. `cache` is the folder for remembered choices
    (`cache_folder`); None: they are not remembered.
    """

    def __init__(
        self,
        package: Package,
        device: torch.device,
        wanted: str = "auto",
        cache: Path | None = None,
        max_batch: int = MAX_BATCH,
    ) -> None:
        self.device = device
        self.manifest: Manifest = package.manifest
        self.identity: ModelIdentity = package.identity
        self.threads = cores.use(device)

        self._wanted = wanted
        self._golden = package.golden
        self._max_batch = max_batch
        self._one_map = package.one_map
        self._maps = _Maps()

        # In a one-map package only the segmenter runs, once for each image.
        networks = {
            role: network
            for role, network in package.networks.items()
            if not (self._one_map and role == "classifier")
        }

        self._limit: dict[Role, int] = dict.fromkeys(networks, max_batch)
        self._modules: dict[Role, nn.Module] = {
            role: nn.Module.to(network, device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            for role, network in networks.items()
        }

        self._plain: dict[Role, Runner] = {role: self._build(role, PLAIN) for role in self._modules}
        self._chosen: dict[Role, _Choice] = {
            role: {1: (PLAIN, one)} for role, one in self._plain.items()
        }
        self._steps = self._tuning(cache)

    @property
    def running(self) -> dict[Role, str]:
        """The engine that each network runs on now, in words."""
        return {role: _in_words(choice) for role, choice in self._chosen.items()}

    def plausible(self, images: Sequence[NDArray[np.float32]]) -> list[float]:
        """Probability of being a frontal chest X-ray, for each image as in `classify`.

        1 for every image if the package has no plausibility network.
        """
        if self.manifest.plausibility is None:
            return [1.0] * len(images)
        return self._probabilities("plausibility", images)

    def classify(self, images: Sequence[NDArray[np.float32]]) -> list[float]:
        """Probability of pneumothorax, 0 to 1, for each image; a score if it is not calibrated.

        Images are (rows, columns) float32 in display polarity.

        Raises, as `plausible` and `segment` do:
            EngineBrokenError: the device is lost; end the process.
            RuntimeError, MemoryError: this batch does not run, not even one image at a time.
        """
        if self._one_map:
            rule = self.manifest.segmenter.rule
            return [postprocess.sure_probability(drawn, *rule) for drawn in self._drawn(images)]
        return self._probabilities("classifier", images, self.manifest.classifier.calibration)

    def segment(self, images: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        """Probability map of pneumothorax, (rows, columns) float32 like each image given.

        It is 0 where the image shows no body (inference/exposed_field.py).
        """
        return list(self._drawn(images))

    def _drawn(self, images: Sequence[NDArray[np.float32]]) -> Iterator[NDArray[np.float32]]:
        """The map of each image; a one-map package's maps are kept until `classify` gets other
        images.
        """
        kept = [self._maps.of(image) for image in images] if self._one_map else []
        fitted = [answer for answer in kept if answer is not None]

        if len(fitted) < len(images):
            logits, geometries = self._run("segmenter", images)
            maps = torch.sigmoid(torch.from_numpy(logits[:, 0])).numpy()
            fitted = list(zip(maps, geometries, strict=True))
            if self._one_map:
                self._maps = _Maps(images, fitted)

        for image, (drawn, geometry) in zip(images, fitted, strict=True):
            yield preprocess.unfit(drawn, geometry) * exposed(image)

    def logits(self, role: Role, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """One network's logits, (n, ...) float32, for a preprocessed batch.

        The batch is (n, 1, side, side) float32; it runs in parts as large as memory allows.
        Raises as `classify`.
        """
        size = self._limit[role]
        if len(batch) > size:
            return np.concatenate(
                [self.logits(role, batch[i : i + size]) for i in range(0, len(batch), size)]
            )

        choice = self._chosen[role]
        candidate, runner = choice[1 if len(batch) == 1 else max(choice)]

        try:
            return _finite(runner(batch))
        except (RuntimeError, MemoryError, ArithmeticError) as error:
            if is_fatal(error):
                raise EngineBrokenError(f"{role}: {error}") from error

            if is_out_of_memory(error) and len(batch) > 1:
                self._limit[role] = len(batch) // 2
                log.warning(
                    "%s: out of memory with %d images; at most %d from now on",
                    role,
                    len(batch),
                    len(batch) // 2,
                )
            elif candidate != PLAIN:
                self._chosen[role] = {1: (PLAIN, self._plain[role])}
                log.warning(
                    "%s: %s broke (%s); on torch from now on", role, candidate, type(error).__name__
                )
            else:
                raise

        # Outside the handler: its error would keep the frames and tensors of the failed attempt
        # alive.
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

        return self.logits(role, batch)

    def tune(self) -> None:
        """Run all of `tune_step`'s steps now."""
        while self.tune_step():
            pass

    def tune_step(self) -> bool:
        """Take one step of choosing engines; returns whether there is more to do.

        A step builds, checks or times one engine; the last step switches to the best. It takes as
        long as a batch or two, or as converting one network. The device's owner calls it between
        batches.

        Raises:
            EngineBrokenError: the device is lost. An engine that fails otherwise is left out, with
                a warning.
        """
        return next(self._steps, _NO_MORE) is not _NO_MORE

    def _tuning(self, cache: Path | None) -> Iterator[None]:
        memory = Memory(cache, self.identity.digest, self.device, self._max_batch)
        known = memory.recall()
        proven: dict[str, list[str]] = {}
        for role in self._modules:
            if trial := self._trial(role):
                chosen = yield from self._try(role, trial, known.get(role, []))
                if chosen is not None:
                    proven[role] = [str(chosen[size]) for size in trial.sizes]
                log.info("%s: on %s", role, self.running[role])
        if self._wanted == "auto" and proven != known:
            memory.keep(proven)

    def _trial(self, role: Role) -> Trial | None:
        golden = self._golden.get(f"{role}.input")
        candidates = engines.candidates(self._wanted, self.device, self.manifest.allows_bf16(role))
        if golden is None or not candidates:
            return None
        sizes = tuple(sorted({1, self._limit[role]}))
        return Trial(
            role, self._plain[role], candidates, golden.numpy(), sizes, partial(self._build, role)
        )

    def _try(
        self, role: Role, trial: Trial, known: list[str]
    ) -> Generator[None, None, Mapping[int, Candidate] | None]:
        """Switch to the best engine that was tried, and return the choice by batch size.

        None if no other engine runs now; the next start tries again. `known` are the names of the
        engines that were the quickest at an earlier start, one for each size.
        """
        names = {str(one): one for one in (PLAIN, *trial.candidates)}
        remembered: dict[int, Candidate] = {}

        if self._wanted == "auto" and len(known) == len(trial.sizes) and names.keys() >= set(known):
            remembered = {size: names[name] for size, name in zip(trial.sizes, known, strict=True)}
            trial = replace(
                trial, candidates=tuple(one for one in trial.candidates if str(one) in known)
            )

        if not trial.candidates:
            return remembered

        try:
            runners = yield from trial.accepted()
            if not runners or not runners.keys() | {PLAIN} >= set(remembered.values()):
                return None

            runners[PLAIN] = trial.plain

            if remembered:
                chosen = remembered
            elif self._wanted == "auto":
                chosen = yield from trial.fastest(runners)
            else:
                chosen = dict.fromkeys(trial.sizes, next(iter(runners)))
        except Exception as error:
            # Whatever breaks here, plain torch goes on.
            if is_fatal(error):
                raise EngineBrokenError(f"{role}: {error}") from error

            log.warning(
                "%s: the choice of an engine broke (%s); on torch", role, type(error).__name__
            )
            return None

        self._chosen[role] = {
            size: (candidate, runners[candidate]) for size, candidate in chosen.items()
        }

        return chosen

    def _build(self, role: Role, candidate: Candidate) -> Runner:
        side = self.manifest.networks[role].side
        return engines.build(
            candidate,
            self._modules[role],
            Plan(self.device, side, candidate.bf16, self._limit[role]),
        )

    def _probabilities(
        self,
        role: Role,
        images: Sequence[NDArray[np.float32]],
        calibration: Calibration | None = None,
    ) -> list[float]:
        logits, _ = self._run(role, images)
        if calibration is not None:
            logits = calibration.scale * logits + calibration.offset
        return [float(p) for p in torch.sigmoid(torch.from_numpy(logits).flatten()).tolist()]

    def _run(
        self, role: Role, images: Sequence[NDArray[np.float32]]
    ) -> tuple[NDArray[np.float32], list[Geometry]]:
        network = self.manifest.networks[role]
        fitted = [preprocess.fit(image, network.side) for image in images]
        arrays = [
            preprocess.normalise(one.pixels, one.geometry, network.normalisation) for one in fitted
        ]
        return self.logits(role, np.stack(arrays)[:, None]), [one.geometry for one in fitted]


class _Maps:
    """The maps of the images seen last, at the network's size.

    It does not keep images alive: the map of an image that is no longer in use is dropped.
    """

    def __init__(
        self, images: Sequence[NDArray[np.float32]] = (), maps: Sequence[_Fitted] = ()
    ) -> None:
        self._maps = [
            (weakref.ref(image), fitted) for image, fitted in zip(images, maps, strict=True)
        ]

    def of(self, image: NDArray[np.float32]) -> _Fitted | None:
        """The map of this array (by identity), if it is there."""
        return next((fitted for known, fitted in self._maps if known() is image), None)


def _in_words(choice: _Choice) -> str:
    names = [str(candidate) for _, (candidate, _) in sorted(choice.items())]
    return names[0] if len(set(names)) == 1 else f"{names[0]} for one image, {names[-1]} for more"


def _finite(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    if not np.isfinite(logits).all():
        # NaN is below every threshold: it would read as "not detected".
        raise ArithmeticError("the network gave NaN or infinity")
    return logits
