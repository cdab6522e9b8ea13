"""Trying engines on one network, in steps of one build or one batch each, so that images can go between them."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from inference.engines import PLAIN, Candidate, Runner, UnavailableError
from inference.engines.faults import is_fatal

log = logging.getLogger("pleura.engine")

TOLERANCE = 1e-3  # of logits against torch in float32: what a package's golden replay is held to
BF16_TOLERANCE = 0.05  # of probabilities: bf16 is validated on images by the package, here only that it is no nonsense
_ROUNDS = 3
_WORTH = 0.97  # of plain torch's time: for less than that, what is known to run goes on running

Batch = NDArray[np.float32]  # (n, 1, side, side)


@dataclass(frozen=True, eq=False)
class Trial:
    """One network and what it is tried on."""

    role: str
    plain: Runner  # torch, float32
    candidates: tuple[Candidate, ...]
    golden: Batch  # the package's golden inputs
    sizes: tuple[int, ...]  # the batches it will have to run
    build: Callable[[Candidate], Runner]

    def accepted(self) -> Generator[None, None, dict[Candidate, Runner]]:
        """Those that can be built and give what plain torch gives, at each size."""
        wanted: dict[int, Batch] = {}
        runners = {}
        for candidate in self.candidates:
            try:
                runner = self.build(candidate)
                yield
                for size in self.sizes:
                    if size not in wanted:
                        wanted[size] = self.plain(self._batch(size))
                        yield
                    off = _difference(candidate, runner(self._batch(size)), wanted[size])
                    yield
                    limit = BF16_TOLERANCE if candidate.bf16 else TOLERANCE
                    if not off <= limit:  # NaN is not either
                        raise ArithmeticError(f"{off:.1e} off torch float32 at batch {size}, at most {limit:g} allowed")
            except UnavailableError as error:
                log.warning("%s: %s is left out: %s", self.role, candidate, error)
            except Exception as error:  # whatever breaks in an optional engine, torch goes on
                if is_fatal(error):
                    raise
                log.warning("%s: %s is left out: %s: %s", self.role, candidate, type(error).__name__, _brief(error))
            else:
                runners[candidate] = runner
        return runners

    def fastest(self, runners: dict[Candidate, Runner]) -> Generator[None, None, Candidate]:
        """The one with the least time per image over all sizes, of runners that hold plain torch too.

        Each round takes all in turn, and the middle one counts: other programs add time, and luck is no speed.
        """
        took: dict[tuple[Candidate, int], list[float]] = {(name, size): [] for name in runners for size in self.sizes}
        for _ in range(_ROUNDS):
            for size in self.sizes:
                batch = self._batch(size)
                for name, runner in runners.items():
                    started = time.perf_counter()
                    runner(batch)
                    took[name, size].append(time.perf_counter() - started)
                    yield
        totals = {name: sum(statistics.median(took[name, size]) / size for size in self.sizes) for name in runners}
        chosen = min(totals, key=totals.__getitem__)
        told = ", ".join(f"{name} {total / len(self.sizes) * 1e3:.1f}" for name, total in totals.items())
        log.info("%s: ms per image at batches of %s: %s", self.role, " and ".join(map(str, self.sizes)), told)
        return chosen if totals[chosen] < _WORTH * totals[PLAIN] else PLAIN

    def _batch(self, size: int) -> Batch:
        return np.ascontiguousarray(self.golden[np.arange(size) % len(self.golden)])


def _difference(candidate: Candidate, found: Batch, wanted: Batch) -> float:
    if found.shape != wanted.shape:
        raise ArithmeticError(f"shape {found.shape} found, {wanted.shape} wanted")
    if candidate.bf16:
        found, wanted = expit(found), expit(wanted)
    return float(np.abs(found - wanted).max())


def _brief(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200]
