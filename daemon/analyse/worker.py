"""The analyse role: claim what waits, read, answer, conclude, commit. It may die at any byte.

Reading and concluding overlap with the networks (flow.py); every image has a lease, an attempt and an end of its own.
"""

from __future__ import annotations

import errno
import faulthandler
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy.exc import DataError, SQLAlchemyError

from daemon.analyse.flow import Flow, Steps
from daemon.analyse.succession import Succession
from daemon.config import Config
from daemon.heartbeat import Heartbeat
from daemon.ledger import Completion, ImageJob, Ledger, StoredResult, owner_name
from daemon.spool import Spool
from inference import package
from inference.admission import Rules
from inference.engine import Engine, EngineBrokenError, cache_folder, choose_device
from inference.engines.faults import is_out_of_memory
from inference.finding import Outcome, State
from inference.package import PackageError
from inference.pipeline import AnalysisSettings, Answer, Pipeline, Reading
from inference.results.identity import RenderSettings

log = logging.getLogger("pleura.analyse")

MAX_ALONE = 3  # solitary attempts that never ended; then the image, not its neighbours or the machine, is to blame
_WHOLE_PX = 16384  # "longest side" for overlays as large as their source: larger than any detector
_IDLE_S = 1.0  # how long the bell may be waited for before leases of the dead are looked at
_PAUSE_S = 5.0  # after a trouble that is nobody's image (full disk, ledger away)
_LONGEST_S = 600.0  # what one image may take; beyond, a decoder loops or the device hangs, and nothing comes back
_OF_ONE_FILE = {
    errno.ENOENT,
    errno.EIO,
    errno.EACCES,
    errno.EISDIR,
}  # the folder answers, this file does not
_MOST_HANDS = 8  # of Python's threads more do not run side by side


def build_pipeline(config: Config, ledger: Ledger) -> Pipeline:
    """Load the model package and assemble the pipeline as the site configured it.

    Raises:
        PackageError, ValueError: the model or the device cannot serve.
    """
    engine = Engine(
        package.load(package.folder_of(config.model)),
        choose_device(config.device),
        wanted=config.engine,
        cache=cache_folder(),
        max_batch=config.max_batch,
    )
    kinds = frozenset(kind for kinds in config.owed().values() for kind in kinds)
    settings = AnalysisSettings(
        rules=Rules(**config.admission.model_dump()),
        appearance=RenderSettings(
            longest_side=config.overlay.longest_side_px or _WHOLE_PX,
            jpeg_quality=config.overlay.jpeg_quality,
            report_absent=config.report_absent,
            refer_to_segmentation=config.refers_to_segmentation(),
        ),
        kinds=kinds if config.destinations else frozenset({"SEG", "SC"}),
        is_ours=ledger.inspect.is_own_result,
    )
    return Pipeline(engine, settings)


def ready_pipeline(config: Config, ledger: Ledger) -> Pipeline:
    """As `build_pipeline`, and warm: no patient waits for first imports, lookups and allocations."""
    pipeline = build_pipeline(config, ledger)
    pipeline.warm_up()
    return pipeline


class _BytesMissingError(Exception):
    """What was accepted cannot be read back; the message says what is left."""


@dataclass(eq=False)
class _Image:
    """One claimed image on its way. The model that answers it is fixed by the claim."""

    job: ImageJob
    pipeline: Pipeline
    reading: Reading | None = None
    answer: Answer | None = None
    since: float = field(default_factory=time.monotonic)


class Worker:
    """One owner of one device."""

    def __init__(self, pipeline: Pipeline, ledger: Ledger, spool: Spool, config: Config) -> None:
        self.pipeline, self.ledger, self.spool, self.config = pipeline, ledger, spool, config
        self.succession = Succession(
            lambda: ready_pipeline(config, ledger), _name, (PackageError, ValueError)
        )
        self._device = threading.RLock()  # who holds it may run the networks
        self._trouble = threading.Event()  # of the disk or the ledger, seen by one of the hands

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set; what is in hand then is finished first."""
        owner = owner_name()
        steps = Steps(self._begin, self._answer, self._end, self._idle)
        flow = Flow(steps, self.config.max_batch, max(2, min(_MOST_HANDS, os.cpu_count() or 1)))
        try:
            with Heartbeat(self.ledger, lambda: self._held(flow)), flow:
                while not stop.is_set():
                    self._take_successor(flow)
                    try:
                        if self._work(flow, owner):
                            continue
                    except (
                        Exception
                    ):  # the loop's one catch-all: a ledger or disk that is away comes back
                        if flow.broken:
                            raise
                        log.exception(
                            "the ledger or the spool is in trouble; trying again in %g s", _PAUSE_S
                        )
                        self._trouble.set()
                    if self._trouble.is_set():
                        stop.wait(_PAUSE_S)
                        self._trouble.clear()
                    else:
                        self.ledger.wait(_IDLE_S)
                flow.drain()
        finally:
            faulthandler.cancel_dump_traceback_later()
            for image in flow.in_hand:  # only where the flow broke
                self._give_back(image.job)
            self.succession.close()

    def _held(self, flow: Flow[_Image]) -> list[ImageJob]:
        """Whose leases are to be renewed. Asked at each beat, it also winds up what ends a process that is stuck.

        That is a thread without Python: it works where a decoder never lets go of the interpreter. The attempt counts,
        and the process is started again.
        """
        held = flow.in_hand
        if all(time.monotonic() - image.since < _LONGEST_S for image in held):
            faulthandler.dump_traceback_later(_LONGEST_S, exit=True)
        return [image.job for image in held]

    def _work(self, flow: Flow[_Image], owner: str) -> bool:
        """Claim and hand on; False where there is nothing to do, or the disk or the ledger is in trouble."""
        room = flow.wait_for_room(_IDLE_S)
        if self._trouble.is_set():
            return False
        if not room:
            return True
        jobs = self.ledger.claim_images(owner, room)
        if not jobs:
            return False
        # The ledger claims by itself what has an unfinished attempt, which is then not its first.
        alone = len(jobs) == 1 and jobs[0].attempt > 1
        if alone and flow.in_hand:
            # Beside neighbours that might die with it, it would not be alone: it is claimed again when they are done.
            self.ledger.give_back(jobs[0])
            flow.drain()
            return True
        flow.put([_Image(job, self.pipeline) for job in jobs])
        if alone:
            flow.drain()
        return True

    def _take_successor(self, flow: Flow[_Image]) -> None:
        """A new model takes what is claimed from now on; what is in hand stays with the one that it was claimed for."""
        new = self.succession.take(self.pipeline)
        if new is not None:
            self.pipeline = new
            flow.wake()  # its engine may have to be tuned

    # -- the steps of one image -----------------------------------------------------------------------------------

    def _begin(self, image: _Image) -> bool:
        job = image.job
        try:
            if job.unfinished_alone >= MAX_ALONE:
                self._give_up(image)
                return False
            data = self._read(job)
        except _BytesMissingError as error:
            log.error("image %d: %s", job.id, error)
            missing = Completion("failed", "", reason="bytes_missing", detail=str(error))
            self._or_give_back(job, lambda: self.ledger.complete(job, missing, {}))
            return False
        except Exception:
            self._in_trouble(job)
            return False
        try:
            image.reading = image.pipeline.read(data)
        except (
            SQLAlchemyError
        ) as error:  # the ledger is asked whether the image is a result of ours
            if isinstance(error, DataError):  # by a name that it cannot hold
                self._broken([image])
            else:
                self._in_trouble(job)
            return False
        except Exception:
            self._broken([image])
            return False
        return True

    def _answer(self, images: Sequence[_Image]) -> Sequence[_Image]:
        """Of images of one model, those that were answered; the others follow in a batch of their own."""
        done: list[_Image] = []
        for pipeline in {id(image.pipeline): image.pipeline for image in images}.values():
            batch = [image for image in images if image.pipeline is pipeline]
            try:
                with self._device:
                    answers = pipeline.answer(
                        [image.reading for image in batch if image.reading is not None]
                    )
            except EngineBrokenError:
                self._abandon(batch)  # one of them may be what breaks it, each time
                raise  # the process ends, and is started again
            except Exception:
                # Nobody knows yet which image it was: each comes back alone, and only a solitary failure counts.
                self._broken(batch)
                continue
            for image, answer in zip(batch, answers, strict=True):
                image.answer = answer
            done += batch
        return done

    def _end(self, image: _Image) -> None:
        assert image.reading is not None
        try:
            outcome = image.pipeline.conclude(
                image.reading, image.answer, _local(image.job.result_time)
            )
        except Exception:
            self._broken([image])
            return
        self._or_give_back(image.job, lambda: self._finish(image, outcome))

    def _idle(self) -> bool:
        """One step towards a quicker engine, where there is one to be found; whether there are more."""
        with self._device:
            return self.pipeline.engine.tune_step()

    # -- what can go wrong ------------------------------------------------------------------------------------------

    def _or_give_back(self, job: ImageJob, act: Callable[[], object]) -> None:
        try:
            act()
        except DataError:  # the ledger is well: it cannot hold what it is told of this image
            log.exception("image %d: what is known of it cannot be recorded", job.id)
            self.ledger.abandon(job)
        except Exception:
            self._in_trouble(job)

    def _in_trouble(self, job: ImageJob) -> None:
        """The disk's or the ledger's fault, not the image's: it waits again, uncounted."""
        log.exception("image %d: the ledger or the spool is in trouble", job.id)
        self._trouble.set()
        self._give_back(job)

    def _give_back(self, job: ImageJob) -> None:
        try:
            self.ledger.give_back(job)
        except Exception:  # its lease runs out, and it is claimed again
            log.exception("image %d could not be given back", job.id)

    def _broken(self, images: Sequence[_Image]) -> None:
        log.exception("analysis of %d image(s) broke; each is tried alone", len(images))
        try:
            self._check_engine(images[0].pipeline)
        finally:
            self._abandon(images)

    def _abandon(self, images: Sequence[_Image]) -> None:
        for image in images:
            try:
                self.ledger.abandon(image.job)
            except Exception:
                self._in_trouble(image.job)

    def _check_engine(self, pipeline: Pipeline) -> None:
        """Is it the device? Then only a new process can heal it (a poisoned CUDA context)."""
        try:
            with self._device:
                pipeline.warm_up()
        except Exception as error:
            if is_out_of_memory(error):
                return  # what is in hand fills it: the images come again one by one
            raise EngineBrokenError(
                "the analysis breaks on its own sample too: the device or the model"
            ) from error

    def _read(self, job: ImageJob) -> bytes:
        """All that was accepted. A disk that lied about its fsync may have lost the end of it, or all of it."""
        try:
            data = self.spool.read(job.spool_name)
        except OSError as error:
            self.spool.require()  # the folder answers: it is this file
            if error.errno not in _OF_ONE_FILE:
                raise
            raise _BytesMissingError(f"the spool cannot give it back ({error.strerror})") from error
        if len(data) != job.size_bytes:
            raise _BytesMissingError(f"the spool holds {len(data)} of its {job.size_bytes} bytes")
        return data

    def _give_up(self, image: _Image) -> None:
        """The image has broken the analysis each time it was alone: end it visibly."""
        job, reason, outcome = image.job, "analysis_error", None
        if (
            job.unfinished_alone == MAX_ALONE
        ):  # beyond, even saying so has killed: say it in the ledger alone
            try:
                outcome = image.pipeline.fail(self._read(job), reason, _local(job.result_time))
            except Exception:
                log.exception("image %d: not even its failure can be told to the archive", job.id)
        if outcome is not None:
            self._finish(image, outcome)
            return
        self.ledger.complete(
            job, Completion("failed", "", reason=reason, detail="no result could be made"), {}
        )

    # -- the end of one image ---------------------------------------------------------------------------------------

    def _finish(self, image: _Image, outcome: Outcome) -> None:
        job = image.job
        if outcome.sop_instance_uid and job.sop_instance_uid not in ("", outcome.sop_instance_uid):
            # Design, "Refusal": whose image this is cannot be told.
            outcome = Outcome(
                State.FAILED, outcome.content_digest, outcome.sop_instance_uid, outcome.study_instance_uid,
                reason="uid_mismatch", detail=f"the data set says {outcome.sop_instance_uid}",
            )  # fmt: skip
        stored = []
        for result in outcome.results:
            name = self.spool.write(result.data)
            stored.append(
                StoredResult(
                    result.kind, name, result.sop_class_uid, result.sop_instance_uid, result.transfer_syntax_uid,
                    len(result.data),
                )
            )  # fmt: skip
        # Whether a commit that raised took place is unknown, so its files stay; the spool's sweep knows the orphans.
        completion = _completion(outcome, image.pipeline, tuple(stored))
        state = self.ledger.complete(job, completion, self.config.owed())
        if state in (None, "duplicate"):
            for one in stored:
                self.spool.remove(one.spool_name)
        log.info(
            "image %d %s: %s%s",
            job.id,
            outcome.sop_instance_uid or "without a usable UID",
            state or "left to a later owner",
            f" ({outcome.reason}: {outcome.detail})" if outcome.reason else "",
        )


def _completion(
    outcome: Outcome, pipeline: Pipeline, written: tuple[StoredResult, ...]
) -> Completion:
    finding = outcome.finding
    return Completion(
        state=outcome.state.value,
        content_digest=outcome.content_digest,
        study_instance_uid=outcome.study_instance_uid,
        reason=outcome.reason,
        detail="; ".join(part for part in (outcome.detail, *outcome.notes) if part),
        probability=finding.probability if finding else None,
        positive=finding.positive if finding else None,
        model=_name(pipeline),
        results=written,
    )


def _name(pipeline: Pipeline) -> str:
    identity = pipeline.engine.identity
    return f"{identity.id} {identity.version} {identity.digest}"


def _local(seconds: float) -> datetime:
    """The ledger's clock as the site's local time, which DICOM dates are in unless they say otherwise."""
    return datetime.fromtimestamp(seconds).astimezone()
