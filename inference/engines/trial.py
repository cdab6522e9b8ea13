"""Trying engines on one network, in steps of one build or one batch each, so that images can go
between them.
"""

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

# Of logits against torch in float32, as in a package's golden replay.
TOLERANCE = 1e-3
# Of probabilities. The package validates bf16 on images; this only catches nonsense.
BF16_TOLERANCE = 0.05
_ROUNDS = 5
# Of the quickest engine's time: a slower engine is not timed again.
_HOPELESS = 1.25
# Of another engine's time: a smaller gain is no reason to change.
_WORTH = 0.97

# (n, 1, side, side)
Batch = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Trial:
    """One network and what it is tried on."""

    role: str
    # torch in float32, the reference.
    plain: Runner
    candidates: tuple[Candidate, ...]
    # The package's golden inputs.
    golden: Batch
    # The sizes of the batches that it will have to run.
    sizes: tuple[int, ...]
    build: Callable[[Candidate], Runner]

    def accepted(self) -> Generator[None, None, dict[Candidate, Runner]]:
        """The engines that can be built and agree with plain torch at each size."""
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
                    # Written so that NaN is refused too.
                    if not off <= limit:
                        raise ArithmeticError(
                            f"{off:.1e} off torch float32 at batch {size}, at most {limit:g} "
                            "allowed"
                        )
            except UnavailableError as error:
                log.warning("%s: %s is left out: %s", self.role, candidate, error)
            except Exception as error:
                # torch goes on, whatever breaks in an optional engine.
                if is_fatal(error):
                    raise

                log.warning(
                    "%s: %s is left out: %s: %s",
                    self.role,
                    candidate,
                    type(error).__name__,
                    _brief(error),
                )
            else:
                runners[candidate] = runner

        return runners

    def fastest(
        self, runners: dict[Candidate, Runner]
    ) -> Generator[None, None, dict[int, Candidate]]:
        """For each size the one with the least time, of runners that hold plain torch too.

        What is quickest for one image need not be for eight. One that is as good as the quickest at
        each size is taken for all: another one's weights lie in memory again.
        """
        took = {}

        for size in self.sizes:
            took[size] = yield from self._timed(size, runners)
            told = ", ".join(
                f"{name} {seconds / size * 1e3:.1f}" for name, seconds in took[size].items()
            )
            log.info("%s: ms per image at a batch of %d: %s", self.role, size, told)

        as_good = [
            {name for name, seconds in some.items() if seconds * _WORTH <= min(some.values())}
            for some in took.values()
        ]

        # Prefer plain torch: it is known to run.
        for name in (PLAIN, *runners):
            if all(name in some for some in as_good):
                return dict.fromkeys(took, name)

        return {
            size: PLAIN if PLAIN in good else min(took[size], key=took[size].__getitem__)
            for size, good in zip(took, as_good, strict=True)
        }

    def _timed(
        self, size: int, runners: dict[Candidate, Runner]
    ) -> Generator[None, None, dict[Candidate, float]]:
        """Seconds of each for a batch of this size.

        Rounds take all in turn, two calls each. The second call is timed: the previous engine's
        threads still spin during the first. The median round counts, since other programs add time.
        """
        batch = self._batch(size)
        rounds: dict[Candidate, list[float]] = {name: [] for name in runners}
        middle: dict[Candidate, float] = {}
        contenders = list(runners)

        for _ in range(_ROUNDS):
            for name in contenders:
                runners[name](batch)
                yield
                started = time.perf_counter()
                runners[name](batch)
                rounds[name].append(time.perf_counter() - started)
                yield

            middle |= {name: statistics.median(rounds[name]) for name in contenders}
            contenders = [
                name for name in contenders if middle[name] <= _HOPELESS * min(middle.values())
            ]

        return middle

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
