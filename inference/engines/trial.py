"""Tries engines on one network, in steps of one build or one batch each, so that images can be
answered between steps.
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

# The largest difference of logits from torch in float32, as in a package's golden replay.
TOLERANCE = 1e-3
# The largest difference of probabilities. The package validates bf16 on images; this only catches
# nonsense.
BF16_TOLERANCE = 0.05
_ROUNDS = 5
# As a multiple of the fastest engine's time: a slower engine is not timed again.
_HOPELESS = 1.25
# As a share of the other engine's time: a smaller gain is no reason to switch.
_WORTH = 0.97

# (n, 1, side, side)
Batch = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Trial:
    """One network, and the inputs that engines are tried on."""

    role: str
    # torch in float32, the reference.
    plain: Runner
    candidates: tuple[Candidate, ...]
    # The package's golden inputs.
    golden: Batch
    # The batch sizes that it will have to run.
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
                # Whatever breaks in an optional engine, torch goes on.
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
        """The fastest of the runners for each batch size; plain torch is among them.

        The fastest for one image need not be the fastest for eight. A runner that is about as good
        as the fastest at every size is used for all sizes, because each further engine keeps a copy
        of the weights in memory.
        """
        took = {}

        for size in self.sizes:
            took[size] = yield from self._timed(size, runners)
            times = ", ".join(
                f"{name} {seconds / size * 1e3:.1f}" for name, seconds in took[size].items()
            )
            log.info("%s: ms per image at a batch of %d: %s", self.role, size, times)

        as_good = [
            {name for name, seconds in some.items() if seconds * _WORTH <= min(some.values())}
            for some in took.values()
        ]

        # On a tie prefer plain torch, which is known to run.
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
        """Seconds of each runner for a batch of this size.

        In each round every runner is called twice. The second call is timed, because the previous
        engine's threads still spin during the first. The median round counts, because other
        programs add time.
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
