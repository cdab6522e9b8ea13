"""The analyse role with a real ledger, spool and pipeline (an untrained package): its behaviour
when things fail.
"""

from __future__ import annotations

import errno
import faulthandler
import logging
import re
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydicom import dcmread
from sqlalchemy.exc import DataError

from daemon import watchdog
from daemon.analyse.claimed import ClaimedImage
from daemon.analyse.worker import EngineBrokenError, Worker, WorkerLimits
from daemon.config import Config, FolderDestination
from daemon.ledger import Arrival, Completion, ImageJob, Ledger, accession_digest
from daemon.log import OneLineFormatter
from daemon.spool import Spool
from inference import package, results
from inference.engine import Engine
from inference.finding import Outcome
from inference.pipeline import AnalysisSettings, Answer, Pipeline, Reading
from training import phantom

SECRET = "Doe^Jane"
# The patient ID of the image that breaks the analysis.
POISON = b"PHANTOM-13"


class BreakablePipeline(Pipeline):
    """A pipeline that fails on one image in one step, as a library's bug would, in whatever batch
    the image is.
    """

    breaks_in = "answer"
    # (step, patient ID).
    events: list[tuple[str, str]]

    def read(self, data: bytes) -> Reading:
        if POISON in data:
            self._step("read", POISON.decode())
        reading = super().read(data)
        if POISON not in data:
            self._step("read", _patient(reading))
        return reading

    def answer(
        self, readings: Sequence[Reading], note: results.Note = results.unnoted
    ) -> list[Answer | None]:
        for reading in readings:
            self._step("answer", _patient(reading))
        return super().answer(readings, note)

    def conclude(
        self,
        reading: Reading,
        answer: Answer | None,
        result_time: datetime,
        note: results.Note = results.unnoted,
    ) -> Outcome:
        # Without an answer, the image is being given up.
        if answer is not None:
            self._step("conclude", _patient(reading))
        return super().conclude(reading, answer, result_time, note)

    def _step(self, step: str, patient: str) -> None:
        self.events.append((step, patient))
        if patient == POISON.decode() and step == self.breaks_in:
            raise RuntimeError(f"broken by {SECRET}")


def _patient(reading: Reading) -> str:
    assert reading.header is not None
    return str(reading.header.PatientID)


class Bench:
    def __init__(self, folder: Path, model: Path) -> None:
        self.ledger = Ledger(f"sqlite:///{folder}/ledger.db")
        self.spool = Spool(folder / "spool")
        self.folder = folder
        destinations = (FolderDestination(name="outbox", folder=folder / "outbox"),)
        # Use plain torch: tuning an engine takes longer than everything else in a test.
        config = Config(
            destinations=destinations, spool=folder / "spool", max_batch=8, engine="torch"
        )
        engine = Engine(package.load(model), torch.device("cpu"), config.engine)
        self.pipeline = BreakablePipeline(
            engine, AnalysisSettings(is_ours=self.ledger.inspect.is_own_result)
        )
        self.pipeline.events = []
        self.worker = Worker(self.pipeline, self.ledger, self.spool, config)

    def receive(
        self,
        seed: int,
        inside: str | None = None,
        priority: int = 1,
        accession: str = "",
        data: bytes | None = None,
    ) -> None:
        path = phantom.write(phantom.draw(seed, False, 64), self.folder / "sent.dcm")
        dataset = dcmread(path)
        uid = f"1.2.{seed}"
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = (
            uid if inside is None else inside
        )
        dataset.AccessionNumber = accession
        dataset.save_as(path)
        data = path.read_bytes() if data is None else data
        name = self.spool.write(data)
        arrival = Arrival(
            name, "1.2.840.10008.5.1.4.1.1.1", uid, "1.2.1", "XRAY1", "dimse", priority, len(data)
        )
        self.ledger.receive([arrival])

    def run(self) -> dict[str, int]:
        """Run until no image is waiting."""
        stop = threading.Event()
        thread = threading.Thread(target=self.worker.run, args=(stop,))
        thread.start()
        while self.ledger.inspect.counts()["instances"]["received"]:
            assert thread.is_alive()
            self.ledger.wait(0.1)
        stop.set()
        thread.join()
        return self.ledger.inspect.counts()["instances"]


@pytest.fixture
def bench(tmp_path: Path, tiny_package: Path) -> Bench:
    return Bench(tmp_path / "node", tiny_package)


def test_images_end_with_results_owed(bench: Bench) -> None:
    for seed in range(3):
        bench.receive(seed)
    assert bench.run() == {"received": 0, "analysed": 3, "not_analysed": 0, "failed": 0}
    owed = bench.ledger.claim_deliveries("outbox", "me", 99)
    assert len({job.result.sop_instance_uid for job in owed}) == len(owed) >= 3
    assert all(bench.spool.read(job.result.spool_name)[128:132] == b"DICM" for job in owed)


def test_each_image_ends_with_one_complete_log_line(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "pleura.analyse")
    bench.receive(1)
    bench.receive(2, inside="9.9")
    bench.run()

    lines = [record for record in caplog.records if hasattr(record, "facts")]
    ended = {vars(line)["facts"]["sop_instance_uid"]: line for line in lines}
    assert ended.keys() == {"1.2.1", "1.2.2"}

    assert re.fullmatch(
        r"image 1 1\.2\.1: analysed, (positive|not detected), score 0\.\d{3}, \d+ ms, to outbox",
        ended["1.2.1"].getMessage(),
    )

    failed = ended["1.2.2"].getMessage()
    assert failed.startswith("image 2 1.2.2: failed (uid_mismatch: the data set says 9.9)")
    assert vars(ended["1.2.1"])["facts"]["destinations"] == ["outbox"]
    assert vars(ended["1.2.2"])["facts"]["state"] == "failed"


@pytest.mark.parametrize("data", [b"", b"no DICOM at all"])
def test_the_line_of_an_image_without_a_readable_header_has_the_uid_it_was_sent_under(
    bench: Bench, caplog: pytest.LogCaptureFixture, data: bytes
) -> None:
    caplog.set_level("INFO", "pleura.analyse")
    bench.receive(1, data=data)
    bench.run()
    (line,) = (record for record in caplog.records if hasattr(record, "facts"))
    assert line.getMessage().startswith("image 1 1.2.1: failed (not_dicom: ")
    assert vars(line)["facts"]["sop_instance_uid"] == "1.2.1"


def test_an_image_is_found_by_an_accession_number_that_no_row_holds(bench: Bench) -> None:
    bench.receive(1, accession="ACC-4711")
    bench.receive(2)
    bench.run()
    assert bench.ledger.inspect.images_of_accession(accession_digest("ACC-4711", "")) == ["1.2.1"]
    (ending,) = bench.ledger.inspect.history("1.2.1")
    assert ending["device"] == "cpu"
    bench.ledger.close()
    stored = b"".join(path.read_bytes() for path in bench.folder.glob("ledger.db*"))
    assert b"ACC-4711" not in stored


def test_a_node_that_excludes_every_image_for_one_reason_logs_it_once(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.worker.limits = WorkerLimits(same_reason_images=3, same_reason_every_s=0.0)
    for number in range(5):
        uid = f"1.9.{number}"
        bench.ledger.receive([Arrival(uid, "1.2", uid, "1.2.1", "XRAY1", "dimse", 1, 9)])
        (job,) = bench.ledger.claim_images("me", 1)
        bench.ledger.complete(job, Completion("not_analysed", uid, reason="body_part"), {})
    for _ in range(3):
        bench.worker._warn_of_same_reason()
    warnings = [record.getMessage() for record in caplog.records]
    assert warnings == [
        "the newest 3 images were all excluded for the same reason: body_part; check `admission`"
    ]


@pytest.mark.parametrize("step", ["read", "answer", "conclude"])
def test_a_poison_image_fails_alone_and_its_neighbours_are_analysed(
    step: str, bench: Bench, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BreakablePipeline, "breaks_in", step)
    for seed in (11, 12, 13, 14):
        bench.receive(seed)

    assert bench.run() == {"received": 0, "analysed": 3, "not_analysed": 0, "failed": 1}
    (ending,) = bench.ledger.inspect.history("1.2.13")
    assert (ending["state"], ending["reason"]) == ("failed", "analysis_error")
    # The archive gets an overlay with the reason.
    assert [result["kind"] for result in ending["results"]] == ["SC"]

    events = bench.pipeline.events
    tried = [number for number, event in enumerate(events) if event == ("read", POISON.decode())]
    # Once together with its neighbours, then three times alone.
    assert len(tried) == 4

    steps_to_its_end = 1 + ["read", "answer", "conclude"].index(step)
    for first in tried[1:]:
        assert {patient for _, patient in events[first : first + steps_to_its_end]} == {
            POISON.decode()
        }

    assert caplog.records
    assert not any(SECRET in OneLineFormatter().format(record) for record in caplog.records)


def test_an_image_to_be_analysed_alone_waits_for_the_images_in_hand(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it ran beside another image that kills the process, the attempt would count against the
    wrong image.
    """
    bench.receive(1)
    (suspect,) = bench.ledger.claim_images("a worker that died", 1)
    bench.ledger.abandon(suspect)
    # The new image has the higher priority.
    bench.receive(2, priority=0)
    conclude = BreakablePipeline.conclude

    def slowly(self: BreakablePipeline, *arguments: Any) -> Outcome:
        # Give the suspect time to overtake.
        time.sleep(0.3)
        return conclude(self, *arguments)

    monkeypatch.setattr(BreakablePipeline, "conclude", slowly)
    assert bench.run()["analysed"] == 2
    order = [
        bench.pipeline.events.index(event)
        for event in (("conclude", "PHANTOM-2"), ("read", "PHANTOM-1"))
    ]
    assert order == sorted(order)
    assert bench.ledger.inspect.history("1.2.1")[0]["state"] == "analysed"


def test_images_that_arrive_while_the_networks_run_are_read_meanwhile(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = BreakablePipeline.answer
    one_more = threading.Event()

    def waits_for_another(
        self: BreakablePipeline, readings: Sequence[Reading], note: results.Note
    ) -> list[Answer | None]:
        if not one_more.is_set():
            one_more.set()
            bench.receive(2)
            while ("read", "PHANTOM-2") not in self.events:
                time.sleep(0.01)
        return answer(self, readings, note)

    monkeypatch.setattr(BreakablePipeline, "answer", waits_for_another)
    bench.receive(1)
    assert bench.run()["analysed"] == 2


def test_images_do_not_wait_until_the_engine_is_tuned(bench: Bench) -> None:
    """With endless tuning steps, an image is still answered between two of them."""
    steps = 0

    def tune_step() -> bool:
        nonlocal steps
        steps += 1
        return True

    bench.pipeline.engine.tune_step = tune_step  # type: ignore[method-assign]
    bench.receive(1)
    assert bench.run()["analysed"] == 1
    assert steps > 0


class Changed:
    """A model package that changes, and the reload that SIGHUP asks for."""

    def __init__(self, bench: Bench, folder: Path) -> None:
        self.bench = bench
        self.folder = folder
        config = bench.worker.config.model_copy(update={"model": str(folder)})
        bench.worker = Worker(bench.pipeline, bench.ledger, bench.spool, config)

    def version(self, version: str) -> None:
        path = self.folder / "model.yaml"
        path.write_text(re.sub("version: .*", f"version: {version}", path.read_text()))

    def ask(self) -> None:
        """Reload as by SIGHUP and wait for its end, with an image before it and an image after it."""
        succession = self.bench.worker.succession
        succession.ask()
        stop = threading.Event()
        thread = threading.Thread(target=self.bench.worker.run, args=(stop,))
        thread.start()
        while succession.pending:
            stop.wait(0.02)
        stop.set()
        thread.join()

    def model_of(self, seed: int) -> str:
        self.bench.receive(seed)
        assert self.bench.run()["received"] == 0
        return str(self.bench.ledger.inspect.history(f"1.2.{seed}")[0]["model"]).split()[1]


def test_a_changed_model_takes_over_and_a_broken_one_does_not(
    bench: Bench, tiny_package: Path, caplog: pytest.LogCaptureFixture
) -> None:
    changed = Changed(bench, tiny_package)
    assert changed.model_of(1) == "1.0.0"
    changed.version("1.0.1")
    # No reload was requested.
    assert changed.model_of(2) == "1.0.0"
    changed.ask()
    assert changed.model_of(3) == "1.0.1"
    # Earlier records keep their model.
    assert bench.ledger.inspect.history("1.2.1")[0]["model"].split()[1] == "1.0.0"

    assert bench.worker.facts()["model_trouble"] == ""
    whole = (tiny_package / "weights.safetensors").read_bytes()
    (tiny_package / "weights.safetensors").write_bytes(b"half a file")
    changed.version("1.0.2")
    caplog.clear()
    changed.ask()
    assert changed.model_of(4) == "1.0.1"
    (error,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert "weights.safetensors" in error.getMessage()
    assert "1.0.1" in error.getMessage()
    assert "weights.safetensors" in bench.worker.facts()["model_trouble"]

    # The package that serves is put back.
    (tiny_package / "weights.safetensors").write_bytes(whole)
    changed.version("1.0.1")
    bench.worker.check(bench.worker.config)()
    assert bench.worker.facts()["model_trouble"] == ""
    assert not bench.worker.succession.pending


def test_a_package_that_has_not_changed_changes_nothing(bench: Bench, tiny_package: Path) -> None:
    changed = Changed(bench, tiny_package)
    before = bench.worker.pipeline
    changed.ask()
    assert bench.worker.pipeline is before


def test_images_in_hand_keep_the_model_of_their_claim(
    bench: Bench, tiny_package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = Changed(bench, tiny_package)
    changed.version("1.0.1")
    conclude = BreakablePipeline.conclude

    def after_the_change(self: BreakablePipeline, *arguments: Any) -> Outcome:
        bench.worker.succession.ask()
        while bench.worker.pipeline is self:
            time.sleep(0.01)
        return conclude(self, *arguments)

    monkeypatch.setattr(BreakablePipeline, "conclude", after_the_change)
    assert changed.model_of(1) == "1.0.0"
    assert changed.model_of(2) == "1.0.1"


def test_the_line_of_an_image_names_the_destinations_of_its_claim(
    bench: Bench,
    tiny_package: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    Changed(bench, tiny_package)
    conclude = BreakablePipeline.conclude

    def after_a_reload(self: BreakablePipeline, *arguments: Any) -> Outcome:
        config = bench.worker.config
        renamed = tuple(each.model_copy(update={"name": "new"}) for each in config.destinations)
        bench.worker.check(config.model_copy(update={"destinations": renamed}))()
        return conclude(self, *arguments)

    monkeypatch.setattr(BreakablePipeline, "conclude", after_a_reload)
    bench.receive(1)
    with caplog.at_level(logging.INFO, "pleura.analyse"):
        assert bench.run()["analysed"] == 1
    assert bench.ledger.claim_deliveries("outbox", "me", 99)
    (line,) = [text for text in caplog.messages if text.startswith("image 1 ")]
    assert line.endswith("to outbox")


def test_a_failed_image_is_analysed_when_retried_after_a_correction(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.receive(13)
    assert bench.run()["failed"] == 1
    monkeypatch.setattr(BreakablePipeline, "breaks_in", "nothing")
    assert bench.ledger.rearm(["failed"], []) == 1
    assert bench.run() == {"received": 0, "analysed": 1, "not_analysed": 0, "failed": 0}
    (ending,) = bench.ledger.inspect.history("1.2.13")
    results = [result["sop_instance_uid"] for result in ending["results"] if result["kind"] == "SC"]
    # The failure and the answer need two UIDs, because an archive keeps the first object of a UID.
    assert len(set(results)) == 2


def test_a_full_disk_counts_against_no_image(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.worker.limits = WorkerLimits(pause_s=0.01)
    full = 10
    write_all = Spool.write_all

    def no_room(spool: Spool, files: Iterable[Sequence[bytes]]) -> list[str]:
        nonlocal full
        full -= 1
        if full > 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_all(spool, files)

    bench.receive(1)
    monkeypatch.setattr(Spool, "write_all", no_room)
    assert bench.run() == {"received": 0, "analysed": 1, "not_analysed": 0, "failed": 0}
    assert full <= 0


def test_an_image_whose_bytes_are_missing_fails_visibly(bench: Bench) -> None:
    bench.receive(1)
    (name,) = bench.spool.names()
    bench.spool.remove(name)
    assert bench.run()["failed"] == 1
    assert bench.ledger.inspect.history("1.2.1")[0]["reason"] == "bytes_missing"


def test_images_wait_while_the_spool_is_not_mounted(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.worker.limits = WorkerLimits(pause_s=0.01)
    bench.spool.claim(bench.ledger.spool_identity)
    bench.receive(1)
    away = bench.spool.folder.with_name("away")
    bench.spool.folder.rename(away)
    stop = threading.Event()
    thread = threading.Thread(target=bench.worker.run, args=(stop,))
    thread.start()
    stop.wait(0.5)
    assert bench.ledger.inspect.counts()["instances"]["received"] == 1
    away.rename(bench.spool.folder)
    stop.set()
    thread.join()
    assert bench.run()["analysed"] == 1


def test_an_unreadable_file_fails_visibly_and_delays_no_other(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(3):
        bench.receive(seed)
    read = Spool.read
    bad = next(iter(bench.spool.names()))

    def unreadable(spool: Spool, name: str) -> bytes:
        if name == bad:
            raise OSError(errno.EIO, "Input/output error")
        return read(spool, name)

    monkeypatch.setattr(Spool, "read", unreadable)
    counts = bench.run()
    assert (counts["failed"], counts["received"]) == (1, 0)


def test_a_process_whose_image_hangs_is_left_to_its_watchdog(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    armed: list[float] = []
    monkeypatch.setattr(
        faulthandler, "dump_traceback_later", lambda seconds, exit: armed.append(seconds)
    )

    worker = bench.worker
    bench.receive(1)
    (job,) = bench.ledger.claim_images("test", 1)
    image = ClaimedImage(job, bench.pipeline)
    flow = SimpleNamespace(in_hand=[image])

    assert worker._beat(flow) == [job]  # type: ignore[arg-type]
    assert len(armed) == 1
    image.watch.since -= 3600
    assert worker._beat(flow) == [job]  # type: ignore[arg-type]
    # The watchdog is no longer re-armed.
    assert len(armed) == 1


def test_an_image_truncated_by_the_disk_fails_visibly(bench: Bench) -> None:
    bench.receive(1)
    (name,) = bench.spool.names()
    whole = bench.spool.read(name)
    bench.spool.path(name).write_bytes(whole[:-100])
    assert bench.run()["failed"] == 1
    ending = bench.ledger.inspect.history("1.2.1")[0]
    assert ending["reason"] == "bytes_missing"
    assert f"{len(whole) - 100} of its {len(whole)} bytes" in ending["detail"]


def test_a_result_whose_file_is_lost_is_remade_with_identical_bytes(bench: Bench) -> None:
    bench.receive(1)
    bench.run()
    jobs = bench.ledger.claim_deliveries("outbox", "me", 99)
    before = {job.result.sop_instance_uid: bench.spool.read(job.result.spool_name) for job in jobs}
    for job in jobs:
        bench.spool.remove(job.result.spool_name)
        assert bench.ledger.remake(job, "its file is gone")
    assert bench.ledger.inspect.counts()["instances"]["received"] == 1
    bench.run()
    again = bench.ledger.claim_deliveries("outbox", "me", 99)
    assert {
        job.result.sop_instance_uid: bench.spool.read(job.result.spool_name) for job in again
    } == before
    assert {job.id for job in again} == {job.id for job in jobs}


def test_a_result_that_is_repeatedly_lost_is_finally_refused(bench: Bench) -> None:
    bench.receive(1)
    made_again = 0
    while True:
        bench.run()
        (job,) = bench.ledger.claim_deliveries("outbox", "me", 1)
        bench.spool.remove(job.result.spool_name)
        if not bench.ledger.remake(job, "its file is gone"):
            break
        made_again += 1
    assert made_again == 3


def test_an_image_with_another_uid_than_announced_gets_no_result(bench: Bench) -> None:
    bench.receive(1, inside="1.2.999")
    assert bench.run()["failed"] == 1
    (ending,) = bench.ledger.inspect.history("1.2.1")
    assert (ending["reason"], ending["results"]) == ("uid_mismatch", [])


def test_a_broken_device_fails_no_image_and_ends_the_process(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> list[float]:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    for seed in (1, 2):
        bench.receive(seed)
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "classify", broken)
        with pytest.raises(EngineBrokenError):
            bench.worker.run(threading.Event())
    assert bench.ledger.inspect.counts()["instances"] == {
        "received": 2,
        "analysed": 0,
        "not_analysed": 0,
        "failed": 0,
    }
    assert bench.run()["analysed"] == 2


def test_an_image_that_breaks_the_device_each_time_fails_and_its_neighbours_do_not(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = BreakablePipeline._step

    def lost(self: BreakablePipeline, name: str, patient: str) -> None:
        try:
            step(self, name, patient)
        except RuntimeError as error:
            raise EngineBrokenError("an illegal memory access") from error

    monkeypatch.setattr(BreakablePipeline, "_step", lost)
    for seed in (12, 13, 14):
        bench.receive(seed)
    ends = 0
    while bench.ledger.inspect.counts()["instances"]["received"]:
        stop = threading.Event()
        thread = threading.Thread(target=lambda stop=stop: until_nothing_waits(bench.ledger, stop))
        thread.start()
        try:
            bench.worker.run(stop)
        except EngineBrokenError:
            ends += 1
            assert ends < 10
        stop.set()
        thread.join()
    assert bench.ledger.inspect.counts()["instances"] == {
        "received": 0,
        "analysed": 2,
        "not_analysed": 0,
        "failed": 1,
    }
    # Once together with its neighbours, then three times alone.
    assert ends == 4


def until_nothing_waits(ledger: Ledger, stop: threading.Event) -> None:
    while not stop.wait(0.02):
        if not ledger.inspect.counts()["instances"]["received"]:
            stop.set()


def test_an_image_that_the_ledger_cannot_store_fails_alone(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete = bench.ledger.complete

    def refusing(
        job: ImageJob, completion: Completion, owed: Mapping[str, Sequence[str]]
    ) -> str | None:
        if job.sop_instance_uid == "1.2.13" and completion.reason is None:
            raise DataError("UPDATE", None, ValueError("PostgreSQL text fields cannot contain NUL"))
        return complete(job, completion, owed)

    monkeypatch.setattr(bench.ledger, "complete", refusing)
    for seed in (13, 14):
        bench.receive(seed)
    monkeypatch.setattr(BreakablePipeline, "breaks_in", "nowhere")
    assert bench.run() == {"received": 0, "analysed": 1, "not_analysed": 0, "failed": 1}


def test_an_image_whose_failure_gives_no_object_blocks_no_other(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> Outcome:
        raise TypeError("an encoder's bug")

    monkeypatch.setattr(Pipeline, "fail", broken)
    for seed in (13, 14):
        bench.receive(seed)
    assert bench.run() == {"received": 0, "analysed": 1, "not_analysed": 0, "failed": 1}


def test_the_same_image_sent_again_makes_no_result(bench: Bench) -> None:
    bench.receive(1)
    bench.receive(1)
    assert bench.run() == {"received": 0, "analysed": 1, "not_analysed": 0, "failed": 0}
    owed = len(bench.ledger.claim_deliveries("outbox", "me", 99))
    bench.receive(1)
    assert bench.run()["analysed"] == 1
    assert len(bench.ledger.claim_deliveries("outbox", "me", 99)) == 0
    # The files of three receptions; no result file of a duplicate stays.
    assert len(list(bench.spool.names())) == 3 + owed


def test_a_queue_stuck_behind_an_image_counts_as_silent_for_the_watchdog(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The main loop still runs, but the watchdog depends on the progress of images."""
    hanging, release = threading.Event(), threading.Event()

    def hang(*_: object) -> list[Answer | None]:
        hanging.set()
        release.wait()
        return [None]

    # The role's own timer would end this process.
    monkeypatch.setattr(faulthandler, "dump_traceback_later", lambda *_, **__: None)
    monkeypatch.setattr(bench.pipeline, "answer", hang)
    bench.worker.limits = WorkerLimits(image_s=0.05, idle_s=0.01)
    bench.receive(1)

    stop = threading.Event()
    thread = threading.Thread(target=bench.worker.run, args=(stop,))
    thread.start()
    try:
        assert hanging.wait(60)
        while not watchdog.silent(0.2):
            assert thread.is_alive()
            stop.wait(0.01)
        assert watchdog.silent(0.2)[0].startswith("queue of images")
    finally:
        release.set()
        stop.set()
        thread.join()
    assert watchdog.silent(0.0) == []
