"""The analyse role: claim what waits, run the pipeline, write results, commit. It may die at any byte."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from daemon.config import Config
from daemon.heartbeat import Heartbeat
from daemon.ledger import Completion, ImageJob, Ledger, StoredResult, owner_name
from daemon.spool import Spool
from inference import package
from inference.admission import Rules
from inference.engine import Engine, choose_device
from inference.finding import Outcome, State
from inference.pipeline import Pipeline, Settings
from inference.results.identity import RenderSettings

log = logging.getLogger("pleura.analyse")

MAX_ALONE = 3  # solitary attempts that never ended; then the image, not its neighbours or the machine, is to blame
_WHOLE_PX = 16384  # "longest side" for overlays as large as their source: larger than any detector
_IDLE_S = 1.0  # how long the bell may be waited for before leases of the dead are looked at
_PAUSE_S = 5.0  # after a trouble that is nobody's image (full disk, ledger away)


def build_pipeline(config: Config, ledger: Ledger) -> Pipeline:
    """Load the model package and assemble the pipeline as the site configured it.

    Raises:
        PackageError, ValueError: the model or the device cannot serve.
    """
    engine = Engine(package.load(package.folder_of(config.model)), choose_device(config.device))
    kinds = frozenset(kind for kinds in config.owed().values() for kind in kinds)
    settings = Settings(
        rules=Rules(**config.admission.model_dump()),
        appearance=RenderSettings(config.overlay.longest_side_px or _WHOLE_PX, config.overlay.jpeg_quality),
        kinds=kinds if config.destinations else frozenset({"SEG", "SC"}),
        is_ours=ledger.made,
    )
    return Pipeline(engine, settings)


class _BytesMissingError(Exception):
    """What was accepted cannot be read back; the message says what is left."""


class EngineBrokenError(Exception):
    """The networks no longer run at all; another process may heal that."""


@dataclass(frozen=True, eq=False)
class Worker:
    """One owner of one device."""

    pipeline: Pipeline
    ledger: Ledger
    spool: Spool
    config: Config

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set; what is in hand then is finished first."""
        owner = owner_name()
        while not stop.is_set():
            try:
                jobs = self.ledger.claim_images(owner, self.config.max_batch)
                if jobs:
                    self._work(jobs)
                    continue
            except EngineBrokenError:
                raise  # the process ends, and is started again
            except Exception:  # the loop's one catch-all: a ledger or disk that is away comes back
                log.exception("the ledger or the spool is in trouble; trying again in %g s", _PAUSE_S)
                stop.wait(_PAUSE_S)
                continue
            self.ledger.wait(_IDLE_S)

    def _work(self, jobs: Sequence[ImageJob]) -> None:
        try:
            with Heartbeat(self.ledger, jobs):
                self._analyse(jobs)
        except BaseException:
            # The disk's or the ledger's fault, not the images': what is not finished waits again, uncounted.
            for job in jobs:
                self.ledger.give_back(job)
            raise

    def _analyse(self, jobs: Sequence[ImageJob]) -> None:
        worn_out = [job for job in jobs if job.unfinished_alone >= MAX_ALONE]
        for job in worn_out:
            self._give_up(job)
        jobs = [job for job in jobs if job not in worn_out]
        files: list[tuple[ImageJob, bytes]] = []
        for job in jobs:
            try:
                files.append((job, self._read(job)))
            except _BytesMissingError as error:
                log.error("image %d: %s", job.id, error)
                self.ledger.complete(job, Completion("failed", "", reason="bytes_missing", detail=str(error)), {})
        if not files:
            return
        try:
            outcomes = self.pipeline.analyse([data for _, data in files], _local(files[0][0].result_time))
        except Exception:
            # Nobody knows yet which image it was: each comes back alone, and only a solitary failure counts.
            log.exception("analysis of %d image(s) broke; each is tried alone", len(files))
            self._check_engine()
            for job, _ in files:
                self.ledger.abandon(job)
            return
        for (job, _), outcome in zip(files, outcomes, strict=True):
            self._finish(job, outcome)

    def _read(self, job: ImageJob) -> bytes:
        """All that was accepted. A disk that lied about its fsync may have lost the end of it, or all of it."""
        try:
            data = self.spool.read(job.spool_name)
        except FileNotFoundError as error:
            self.spool.require()
            raise _BytesMissingError("the spool no longer holds it") from error
        if len(data) != job.size_bytes:
            raise _BytesMissingError(f"the spool holds {len(data)} of its {job.size_bytes} bytes")
        return data

    def _check_engine(self) -> None:
        """Is it the device? Then no image is to blame, and only a new process can heal it (a poisoned CUDA context)."""
        try:
            self.pipeline.warm_up()
        except Exception as error:
            raise EngineBrokenError("the analysis breaks on its own sample too: the device or the model") from error

    def _give_up(self, job: ImageJob) -> None:
        """The image has broken the analysis each time it was alone: end it visibly."""
        reason, outcome = "analysis_error", None
        if job.unfinished_alone == MAX_ALONE:  # beyond, even saying so has killed: say it in the ledger alone
            try:
                outcome = self.pipeline.fail(self._read(job), reason, _local(job.result_time))
            except Exception:
                log.exception("image %d: not even its failure can be told to the archive", job.id)
        if outcome is not None:
            self._finish(job, outcome)
            return
        self.ledger.complete(job, Completion("failed", "", reason=reason, detail="no result could be made"), {})

    def _finish(self, job: ImageJob, outcome: Outcome) -> None:
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
        state = self.ledger.complete(job, self._completion(outcome, tuple(stored)), self.config.owed())
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

    def _completion(self, outcome: Outcome, written: tuple[StoredResult, ...]) -> Completion:
        finding = outcome.finding
        identity = self.pipeline.engine.identity
        return Completion(
            state=outcome.state.value,
            content_digest=outcome.content_digest,
            study_instance_uid=outcome.study_instance_uid,
            reason=outcome.reason,
            detail="; ".join(part for part in (outcome.detail, *outcome.notes) if part),
            probability=finding.probability if finding else None,
            positive=finding.positive if finding else None,
            model=f"{identity.id} {identity.version} {identity.digest}",
            results=written,
        )


def _local(seconds: float) -> datetime:
    """The ledger's clock as the site's local time, which DICOM dates are in unless they say otherwise."""
    return datetime.fromtimestamp(seconds).astimezone()
