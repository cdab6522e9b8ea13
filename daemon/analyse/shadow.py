"""The shadow role: a second model answers the same images, for comparison alone (docs/shadow.md).

It is a process of its own, so that nothing it does reaches the analyse role: it may raise, hang,
leak or be killed. It looks at an image only while none waits, and writes rows of its own
(ledger/shadow.py). It makes no result objects, so there is nothing that could be delivered.
"""

from __future__ import annotations

import faulthandler
import logging
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Protocol

from daemon.config import Config, Shadow
from daemon.ledger import Ledger, Outage, ShadowJob
from daemon.spool import Spool

if TYPE_CHECKING:
    from collections.abc import Sequence

    from inference.finding import Outcome

log = logging.getLogger("pleura.shadow")

_MOST_OF_REASON = 200
# In which no result is dated: none is made.
_NO_TIME = datetime(2000, 1, 1, tzinfo=UTC)


class Analysis(Protocol):
    """The part of inference.pipeline.Pipeline that the shadow needs."""

    def analyse(self, files: Sequence[bytes], result_time: datetime) -> list[Outcome]:
        """One Outcome per file."""


class UnusableModelError(Exception):
    """The shadow's package cannot be used. The message is for the operator."""


@dataclass(frozen=True)
class Loaded:
    """A shadow that can answer: its name as `instances.model` has it, and its pipeline."""

    name: str
    pipeline: Analysis


@dataclass(frozen=True)
class ShadowLimits:
    """How long the shadow waits."""

    # Between two looks for an image.
    idle_s: float = 1.0
    # Before a package that cannot be used is tried again.
    unusable_s: float = 60.0
    # The longest time of one image. Beyond it the process ends, and goes on after that image.
    image_s: float = 300.0
    # How long the image in hand may take once the role is to stop.
    drain_s: float = 5.0


def load(config: Config, shadow: Shadow) -> Loaded:
    """Load and replay the shadow's package, in plain torch.

    Raises:
        UnusableModelError: the package or the device cannot be used.
    """
    import torch

    from inference import package
    from inference.admission import Rules
    from inference.engine import Engine, choose_device
    from inference.pipeline import AnalysisSettings, Pipeline

    try:
        found = package.load(package.folder_of(shadow.model))
        engine = Engine(found, choose_device(shadow.device), wanted="torch", max_batch=1)
    except (package.PackageError, ValueError) as error:
        raise UnusableModelError(str(error)) from error

    # The other cores are for the images that wait.
    torch.set_num_threads(1)
    identity = engine.identity
    # No kind of result: nothing is encoded.
    rules = Rules(**config.admission.model_dump())
    settings = AnalysisSettings(rules=rules, kinds=frozenset())
    name = f"{identity.id} {identity.version} {identity.digest}"
    return Loaded(name, Pipeline(engine, settings))


class ShadowWorker:
    """Asks the shadow about each analysed image in turn, one at a time."""

    def __init__(
        self,
        make: Callable[[], Loaded],
        ledger: Ledger,
        spool: Spool,
        limits: ShadowLimits | None = None,
    ) -> None:
        """`make` loads the shadow, or raises UnusableModelError."""
        self._make = make
        self._ledger = ledger
        self._spool = spool
        self._limits = limits or ShadowLimits()
        self._loaded: Loaded | None = None
        self._after = 0
        self._outage = Outage(log, "shadow: the ledger or the spool")

    def run(self, stop: threading.Event, ready: Callable[[str], None]) -> None:
        """Work until `stop` is set. `ready` is told the model's name once it can answer.

        An image that takes long once `stop` is set is left behind: a node that ends does not wait
        for its shadow.
        """
        thread = threading.Thread(target=self._work, args=(stop, ready), name="shadow", daemon=True)
        thread.start()
        stop.wait()
        thread.join(self._limits.drain_s)

    def _work(self, stop: threading.Event, ready: Callable[[str], None]) -> None:
        with warnings.catch_warnings():
            # pydicom's warnings quote header values.
            warnings.simplefilter("ignore")
            loaded = self._load(stop)
            if loaded is not None:
                ready(loaded.name)
                self._answer(loaded, stop)

    def _answer(self, loaded: Loaded, stop: threading.Event) -> None:
        while not stop.is_set():
            try:
                has_looked = self.turn(loaded)
            except Exception as error:
                # The loop's one catch-all: a ledger or disk that is away comes back.
                self._outage.failed(error)
                has_looked = False
            else:
                self._outage.over()
            if not has_looked:
                stop.wait(self._limits.idle_s)

    def _load(self, stop: threading.Event) -> Loaded | None:
        """The shadow, once its package can be used; None when `stop` came first."""
        said = ""
        while not stop.is_set():
            try:
                return self._make()
            except UnusableModelError as error:
                if str(error) != said:
                    log.error("shadow.model: %s; nothing is compared until it can be used", error)
                said = str(error)
            except Exception:
                # A package that breaks the library in a new way must not end in a restart loop.
                log.exception("shadow.model: cannot be loaded; nothing is compared until it can")
            stop.wait(self._limits.unusable_s)
        return None

    def turn(self, loaded: Loaded) -> bool:
        """Look at the next image, if none waits for its analysis. Returns whether there was one."""
        view = self._ledger.inspect.shadow
        self._after = self._after or view.last(loaded.name)
        job = view.next(self._after)
        if job is None:
            return False

        # After a promotion the model is its own shadow: there is nothing to compare.
        if job.model != loaded.name and self._ledger.shadow.begin(job, loaded.name):
            self._look(job, loaded)
        self._after = job.instance_id
        return True

    def _look(self, job: ShadowJob, loaded: Loaded) -> None:
        # A C thread: it ends the process even if the networks hang holding the GIL.
        faulthandler.dump_traceback_later(self._limits.image_s, exit=True)
        try:
            (outcome,) = loaded.pipeline.analyse([self._spool.read(job.spool_name)], _NO_TIME)
        except Exception as error:
            log.warning("shadow: image %d: %s", job.instance_id, type(error).__name__)
            probability, positive, why = None, None, type(error).__name__
        else:
            finding = outcome.finding
            probability = finding.probability if finding else None
            positive = finding.positive if finding else None
            why = (outcome.reason or "no finding") if finding is None else ""
        finally:
            faulthandler.cancel_dump_traceback_later()

        self._ledger.shadow.answer(job, loaded.name, probability, positive, why[:_MOST_OF_REASON])
