"""The analyse role: claim waiting images, read, answer, conclude, commit. It may die at any byte.

Reading and concluding overlap with the networks (flow.py). Each image has its own lease, attempt
and end.
"""

from __future__ import annotations

import errno
import faulthandler
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

from sqlalchemy.exc import DataError, SQLAlchemyError

from daemon import watchdog
from daemon.analyse.claimed import ClaimedImage, completion_of, end_in_words, model_name
from daemon.analyse.flow import Flow, Steps
from daemon.analyse.succession import Succession
from daemon.config import Config
from daemon.heartbeat import Heartbeat
from daemon.ledger import (
    Completion,
    ImageJob,
    ImageState,
    Ledger,
    LedgerError,
    Outage,
    SameReason,
    StoredResult,
    accession_digest,
    describe,
    owner_name,
)
from daemon.live import RefusedError, Take
from daemon.ownership import owner_of
from daemon.spool import Spool, SpoolError
from inference import package
from inference.admission import Rules
from inference.engine import (
    Engine,
    EngineBrokenError,
    cache_folder,
    choose_device,
    device_memory,
)
from inference.engines.faults import is_out_of_memory
from inference.finding import Outcome, Result, State
from inference.package import PackageError
from inference.pipeline import AnalysisSettings, Pipeline
from inference.results.case import RenderSettings

log = logging.getLogger("pleura.analyse")

# The longest side of an overlay with the size of its source: more than any detector has.
_WHOLE_PX = 16384
# Errors that concern one file: the folder can be read, this file cannot.
_SINGLE_FILE_ERRORS = {errno.ENOENT, errno.EIO, errno.EACCES, errno.EISDIR}


@dataclass(frozen=True)
class WorkerLimits:
    """How long the worker waits, how often it tries, and when it warns."""

    # Attempts made alone that never ended. After this many, the image is to blame, not its
    # neighbours or the machine.
    solitary_attempts: int = 3
    # The longest wait for the doorbell. Then the worker looks for leases that have run out.
    idle_s: float = 1.0
    # The pause after a fault that no image caused: a full disk, an unreachable ledger.
    pause_s: float = 5.0
    # The longest time that one image may take. Beyond it, a decoder loops or the device hangs.
    image_s: float = 600.0
    # Threads that read and conclude. More would only wait for each other's GIL.
    helpers: int = 8
    # Warn when this many images in a row were excluded from analysis for the same reason.
    same_reason_images: int = 20
    # How often the worker checks that.
    same_reason_every_s: float = 600.0


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

    return Pipeline(engine, analysis_settings(config, ledger))


def analysis_settings(config: Config, ledger: Ledger) -> AnalysisSettings:
    """The site's decisions about the analysis."""
    kinds = frozenset(kind for kinds in config.owed().values() for kind in kinds)
    return AnalysisSettings(
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


def ready_pipeline(config: Config, ledger: Ledger) -> Pipeline:
    """`build_pipeline`, warmed up: no image pays for the first imports, lookups and allocations.

    Raises:
        PackageError, ValueError: the model or the device cannot serve.
    """
    pipeline = build_pipeline(config, ledger)
    pipeline.warm_up()
    return pipeline


class _BytesMissingError(Exception):
    """The accepted bytes cannot be read back. The message says what the spool still holds."""


class Worker:
    """Claims images for one device, and takes each of them to its end in the ledger."""

    def __init__(
        self,
        pipeline: Pipeline,
        ledger: Ledger,
        spool: Spool,
        config: Config,
        limits: WorkerLimits | None = None,
    ) -> None:
        self.pipeline = pipeline
        self.ledger = ledger
        self.spool = spool
        self.config = config
        self.limits = limits or WorkerLimits()
        self.succession = Succession(
            lambda: ready_pipeline(self.config, ledger), model_name, (PackageError, ValueError)
        )
        # Pipeline and settings change together.
        self._changing = threading.Lock()

        # Held by the thread that runs the networks.
        self._device = threading.RLock()
        # Set when the disk or the ledger failed, perhaps on a helper thread.
        self._trouble = threading.Event()
        self._outage = Outage(log, "the ledger or the spool")
        self._spool_identity: str | None = None
        self._same_reason: SameReason | None = None
        self._same_reason_due = 0.0

    def facts(self) -> dict[str, Any]:
        """The model and the device, for the metrics; on CUDA also the device memory in bytes."""
        engine = self.pipeline.engine
        identity = engine.identity
        facts: dict[str, Any] = {
            "model": identity.id,
            "version": identity.version,
            "digest": identity.digest,
            "device": str(engine.device),
            "model_trouble": self.succession.trouble,
        }

        memory = device_memory(engine.device)
        if memory is not None:
            free, total = memory
            facts |= {"gpu_used_bytes": total - free, "gpu_total_bytes": total}
        return facts

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set, and then finish the images in hand."""
        owner = owner_name()
        steps = Steps(self._begin, self._answer, self._end, self._idle)
        helpers = max(2, min(self.limits.helpers, os.cpu_count() or 1))
        flow = Flow(steps, self.config.max_batch, helpers)

        try:
            with (
                watchdog.watched("queue of images"),
                Heartbeat(self.ledger, lambda: self._beat(flow)),
                flow,
            ):
                while not stop.is_set():
                    if self._is_in_time(flow.in_hand):
                        watchdog.beat()
                    self._turn(flow, owner, stop)
                flow.drain()
        finally:
            faulthandler.cancel_dump_traceback_later()
            # Images are still in hand only if the flow broke.
            for image in flow.in_hand:
                self._give_back(image.job)
            self.succession.close()

    def _turn(self, flow: Flow[ClaimedImage], owner: str, stop: threading.Event) -> None:
        """Claim once. Pause if nothing waits, and longer if the disk or the ledger fails."""
        self._take_successor(flow)
        try:
            self._warn_of_same_reason()
            if self._work(flow, owner):
                self._outage.over()
                return
        except Exception as error:
            # The loop's only catch-all: an unreachable ledger or disk comes back.
            if flow.broken:
                raise
            self._log_trouble(error)
            self._trouble.set()

        if self._trouble.is_set():
            stop.wait(self.limits.pause_s)
            self._trouble.clear()
        else:
            self._outage.over()
            self.ledger.wait(self.limits.idle_s)

    def _beat(self, flow: Flow[ClaimedImage]) -> list[ImageJob]:
        """At each heartbeat: re-arm the watchdog, and name the leases to renew."""
        held = flow.in_hand
        self._rearm_watchdog(held)
        return [image.job for image in held]

    def _is_in_time(self, held: Sequence[ClaimedImage]) -> bool:
        """Whether no image has taken longer than `image_s`."""
        now = time.monotonic()
        return all(now - image.watch.since < self.limits.image_s for image in held)

    def _rearm_watchdog(self, held: Sequence[ClaimedImage]) -> None:
        """Postpone the end of the process, unless an image takes too long.

        faulthandler's timer is a C thread, so it fires even if a decoder hangs holding the GIL. The
        attempt counts, and the supervisor restarts the process.
        """
        if self._is_in_time(held):
            faulthandler.dump_traceback_later(self.limits.image_s, exit=True)

    def _warn_of_same_reason(self) -> None:
        """Warn if all recent images were excluded for one reason: perhaps a typo in `admission`."""
        if time.monotonic() < self._same_reason_due:
            return
        self._same_reason_due = time.monotonic() + self.limits.same_reason_every_s

        same = self.ledger.inspect.same_reason(self.limits.same_reason_images)
        if same is not None and same != self._same_reason:
            log.warning(
                "the newest %d images were all excluded for the same reason: %s; check `admission`",
                same.images,
                same.reason,
            )
        self._same_reason = same

    def _work(self, flow: Flow[ClaimedImage], owner: str) -> bool:
        """Claim images and put them into the flow.

        Returns False if nothing waits, or if the disk or the ledger fails.
        """
        room = flow.wait_for_room(self.limits.idle_s)
        if self._trouble.is_set():
            return False
        if not room:
            return True

        jobs = self.ledger.claim_images(owner, room)
        if not jobs:
            return False

        # The ledger hands out an image with an unfinished attempt as a claim of one.
        alone = len(jobs) == 1 and jobs[0].attempt > 1
        if alone and flow.in_hand:
            # It might take its neighbours down with it: claim it again when they have ended.
            self.ledger.give_back(jobs[0])
            flow.drain()
            return True

        with self._changing:
            pipeline, owed = self.pipeline, self.config.owed()
        flow.put([ClaimedImage(job, pipeline, owed) for job in jobs])
        if alone:
            flow.drain()
        return True

    def _take_successor(self, flow: Flow[ClaimedImage]) -> None:
        """Use a new model for later claims. Images in hand keep the model of their claim."""
        new = self.succession.take(self.pipeline)
        if new is None:
            return

        with self._changing:
            # The settings may have changed while the engine was built.
            self.pipeline = self._pipeline_of(new.engine, self.config)

        # The engine may still have to be tuned.
        flow.wake()

    # -- live settings --------------------------------------------------------------------------

    def check(self, config: Config) -> Take:
        """Check new settings, on any thread. Images in hand keep the settings of their claim.

        Raises:
            RefusedError: the settings name another model, and there is no such package.
        """
        path = package.folder_of(config.model)
        try:
            is_other_model = package.digest_of(path) != self.pipeline.engine.identity.digest
        except PackageError as error:
            if config.model != self.config.model:
                raise RefusedError(f"model: {error}") from error
            # The model goes on serving. Its succession logs what is wrong with the package.
            is_other_model = True

        def take() -> None:
            with self._changing:
                self.config = config
                self.pipeline = self._pipeline_of(self.pipeline.engine, config)
            if is_other_model:
                self.succession.ask()
            else:
                self.succession.confirm()

        return take

    def _pipeline_of(self, engine: Engine, config: Config) -> Pipeline:
        return Pipeline(engine, analysis_settings(config, self.ledger))

    # -- the steps of one image -----------------------------------------------------------------

    def _begin(self, image: ClaimedImage) -> bool:
        """Read and decode an image. Returns whether it goes on to the networks."""
        image.watch.note("begun")

        data = self._bytes_of(image)
        return data is not None and self._decode(image, data)

    def _bytes_of(self, image: ClaimedImage) -> bytes | None:
        """The image's bytes; None if it has ended, or waits again."""
        job = image.job
        try:
            if job.unfinished_alone >= self.limits.solitary_attempts:
                self._give_up(image)
                return None
            data = self._read(job)
        except _BytesMissingError as error:
            log.error("image %d: %s", job.id, error)
            missing = Completion("failed", "", reason="bytes_missing", detail=str(error))
            self._or_give_back(job, lambda: self._end_without_result(image, missing))
            return None
        except Exception as error:
            self._in_trouble(job, error)
            return None

        image.watch.note("read")
        return data

    def _decode(self, image: ClaimedImage, data: bytes) -> bool:
        """Decode the image. False if it waits again."""
        try:
            image.reading = image.pipeline.read(data)
        except DataError:
            # The pipeline asked the ledger about a UID that the database cannot hold.
            self._retry_alone([image])
            return False
        except SQLAlchemyError as error:
            # The pipeline asked the ledger whether the image is a result of ours.
            self._in_trouble(image.job, error)
            return False
        except Exception:
            self._retry_alone([image])
            return False

        image.watch.note("decoded")
        return True

    def _answer(self, images: Sequence[ClaimedImage]) -> Sequence[ClaimedImage]:
        """Answer a batch, model by model. Returns the images that were answered."""
        done: list[ClaimedImage] = []
        _note(images, "batched")

        for pipeline in {id(image.pipeline): image.pipeline for image in images}.values():
            batch = [image for image in images if image.pipeline is pipeline]
            try:
                with self._device:
                    answers = pipeline.answer(
                        [image.reading for image in batch if image.reading is not None],
                        partial(_note, batch),
                    )
            except EngineBrokenError:
                # One of these images may break every engine. The supervisor restarts the process.
                self._abandon(batch)
                raise
            except Exception:
                # The culprit is unknown: each image comes back alone, and only a failure alone
                # counts.
                self._retry_alone(batch)
                continue

            for image, answer in zip(batch, answers, strict=True):
                image.answer = answer
            _note(batch, "answered")
            done += batch
        return done

    def _end(self, image: ClaimedImage) -> None:
        """Make the image's results and complete it in the ledger."""
        assert image.reading is not None
        image.watch.note("resumed")
        try:
            outcome = image.pipeline.conclude(
                image.reading, image.answer, _local(image.job.result_time), image.watch.note
            )
        except Exception:
            self._retry_alone([image])
            return

        image.watch.note("made")
        self._or_give_back(image.job, lambda: self._finish(image, outcome))

    def _idle(self) -> bool:
        """Take one step of tuning the engine. Returns whether more steps remain."""
        with self._device:
            return self.pipeline.engine.tune_step()

    # -- faults ---------------------------------------------------------------------------------

    def _or_give_back(self, job: ImageJob, complete: Callable[[], object]) -> None:
        """Complete the image, or give it back if the disk or the ledger fails."""
        try:
            complete()
        except DataError:
            # The ledger works, but it cannot hold a value of this image.
            log.exception("image %d: its answer cannot be recorded", job.id)
            self.ledger.abandon(job)
        except Exception as error:
            self._in_trouble(job, error)

    def _in_trouble(self, job: ImageJob, error: Exception) -> None:
        """The disk or the ledger failed, not the image: it waits again and the attempt is free."""
        self._log_trouble(error)
        self._trouble.set()
        self._give_back(job)

    def _log_trouble(self, error: Exception) -> None:
        """One line for each outage. Any error but the ledger's and the disk's is a bug."""
        if isinstance(error, (SQLAlchemyError, LedgerError, SpoolError, OSError)):
            self._outage.failed(error)
        else:
            log.exception("the worker broke; trying again in %g s", self.limits.pause_s)

    def _give_back(self, job: ImageJob) -> None:
        try:
            self.ledger.give_back(job)
        except Exception as error:
            # When its lease runs out, it is claimed again.
            log.warning("image %d could not be given back (%s)", job.id, describe(error))

    def _retry_alone(self, images: Sequence[ClaimedImage]) -> None:
        """After an error in the analysis: check the engine, then let each image come back alone."""
        log.exception("analysis of %d image(s) broke; each is tried alone", len(images))
        try:
            self._check_engine(images[0].pipeline)
        finally:
            self._abandon(images)

    def _abandon(self, images: Sequence[ClaimedImage]) -> None:
        for image in images:
            try:
                self.ledger.abandon(image.job)
            except Exception as error:
                self._in_trouble(image.job, error)

    def _check_engine(self, pipeline: Pipeline) -> None:
        """Try the engine's own sample. Only a new process can heal a poisoned CUDA context."""
        try:
            with self._device:
                pipeline.warm_up()
        except Exception as error:
            if is_out_of_memory(error):
                # The images in hand fill the memory. They come back one by one.
                return
            raise EngineBrokenError(
                "the analysis breaks on its own sample too: the device or the model"
            ) from error

    def _read(self, job: ImageJob) -> bytes:
        """The accepted bytes.

        Raises:
            _BytesMissingError: not all are there, as after a disk that ignored an fsync.
        """
        try:
            data = self.spool.read(job.spool_name)
        except OSError as error:
            if error.errno not in _SINGLE_FILE_ERRORS:
                raise
            why = error.strerror
            if error.errno == errno.EACCES:
                why = f"{why}; it belongs to {owner_of(self.spool.path(job.spool_name))}"
            raise _BytesMissingError(f"the spool cannot give it back ({why})") from error

        if len(data) != job.size_bytes:
            raise _BytesMissingError(f"the spool holds {len(data)} of its {job.size_bytes} bytes")

        return data

    def _give_up(self, image: ClaimedImage) -> None:
        """End an image that broke the analysis each time it was alone. The end is visible."""
        job = image.job
        reason = "analysis_error"
        outcome = None

        # One attempt later, making the failure report has killed the process too: then only the
        # ledger shows the failure.
        if job.unfinished_alone == self.limits.solitary_attempts:
            try:
                outcome = image.pipeline.fail(self._read(job), reason, _local(job.result_time))
            except Exception:
                log.exception(
                    "image %d: even its failure cannot be reported to the archive", job.id
                )

        if outcome is not None:
            self._finish(image, outcome)
            return

        failed = Completion("failed", "", reason=reason, detail="no result could be made")
        self._end_without_result(image, failed)

    # -- the end of one image -------------------------------------------------------------------

    def _finish(self, image: ClaimedImage, outcome: Outcome) -> None:
        """Store the results, complete the image, and log its end."""
        job = image.job
        if outcome.sop_instance_uid and job.sop_instance_uid not in ("", outcome.sop_instance_uid):
            # C-STORE and data set name different images (docs/rules.md, "Refusal").
            outcome = Outcome(
                State.FAILED,
                outcome.content_digest,
                outcome.sop_instance_uid,
                outcome.study_instance_uid,
                reason="uid_mismatch",
                detail=f"the data set says {outcome.sop_instance_uid}",
            )

        stored = self._write(outcome.results)
        image.watch.note("written")

        completion = completion_of(image, outcome, stored, self._accession_digest(image))
        # If this raises, the commit may still have happened. So the files stay; the sweep of strays
        # finds those without a row.
        state = self.ledger.complete(job, completion, image.owed)
        if state in (None, ImageState.DUPLICATE):
            for result in stored:
                self.spool.remove(result.spool_name)

        self._log_end(image, outcome.sop_instance_uid, state, completion)

    def _end_without_result(self, image: ClaimedImage, completion: Completion) -> None:
        state = self.ledger.complete(image.job, completion, {})
        self._log_end(image, image.job.sop_instance_uid, state, completion)

    def _log_end(
        self, image: ClaimedImage, uid: str | None, state: str | None, completion: Completion
    ) -> None:
        """One line for the end of each image, for people and for machines.

        It has the UID that the ledger finds the image by: the data set may state another or none.
        """
        uid = image.job.sop_instance_uid or uid
        kinds = {result.kind for result in completion.results}
        is_answer = state not in (None, ImageState.DUPLICATE)
        owed = image.owed if is_answer else {}
        facts = {
            "image": image.job.id,
            "sop_instance_uid": uid,
            "state": state,
            "reason": completion.reason,
            "positive": completion.positive,
            "score": completion.probability,
            "milliseconds": round((time.monotonic() - image.watch.since) * 1000),
            "destinations": [name for name, wanted in owed.items() if kinds & set(wanted)],
        }

        shown = uid or "without a usable UID"
        words = end_in_words(facts, completion.detail)
        log.info("image %d %s: %s", image.job.id, shown, words, extra={"facts": facts})

    def _accession_digest(self, image: ClaimedImage) -> str | None:
        """Finds the image by its Accession Number, which itself is in no row and no log line."""
        number = image.accession_number()
        if not number:
            return None

        if self._spool_identity is None:
            self._spool_identity = self.ledger.inspect.spool_identity()
        return accession_digest(number, self._spool_identity or "") or None

    def _write(self, results: Sequence[Result]) -> tuple[StoredResult, ...]:
        """Make the results durable, all at once."""
        names = self.spool.write_all([result.data] for result in results)
        return tuple(
            StoredResult(
                kind=result.kind,
                spool_name=name,
                sop_class_uid=result.sop_class_uid,
                sop_instance_uid=result.sop_instance_uid,
                transfer_syntax_uid=result.transfer_syntax_uid,
                size_bytes=len(result.data),
            )
            for name, result in zip(names, results, strict=True)
        )


def _note(images: Sequence[ClaimedImage], step: str) -> None:
    """Note the step for every image of a batch."""
    for image in images:
        image.watch.note(step)


def _local(seconds: float) -> datetime:
    """The ledger's clock as local time, which DICOM dates are in (PS3.3 C.12.1.1.8)."""
    return datetime.fromtimestamp(seconds).astimezone()
