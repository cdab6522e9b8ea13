"""The analyse role over a real ledger, spool and pipeline (an untrained package): what it does when things break."""

from __future__ import annotations

import errno
import threading
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import pytest
import torch
from pydicom import dcmread

from daemon.config import Config, FolderDestination
from daemon.ledger import Arrival, Ledger
from daemon.log import OneLineFormatter
from daemon.spool import Spool
from daemon.worker import EngineBrokenError, Worker
from inference import package
from inference.engine import Engine
from inference.finding import Outcome
from inference.pipeline import Pipeline, Settings
from training import phantom

SECRET = "Doe^Jane"
POISON = b"PHANTOM-13"  # the patient ID of the image that breaks the analysis


class BreakablePipeline(Pipeline):
    """Breaks on one image, as a decoder's bug would, whatever batch it comes in."""

    batches: list[int]

    def analyse(self, files: Sequence[bytes], result_time: datetime) -> list[Outcome]:
        self.batches.append(len(files))
        if any(POISON in data for data in files):
            raise RuntimeError(f"broken by {SECRET}")
        return super().analyse(files, result_time)


class Bench:
    def __init__(self, folder: Path, model: Path) -> None:
        self.ledger, self.spool, self.folder = Ledger(f"sqlite:///{folder}/ledger.db"), Spool(folder / "spool"), folder
        destinations = (FolderDestination(name="outbox", folder=folder / "outbox"),)
        config = Config(destinations=destinations, spool=folder / "spool", max_batch=8)
        engine = Engine(package.load(model), torch.device("cpu"))
        self.pipeline = BreakablePipeline(engine, Settings(is_ours=self.ledger.made))
        self.pipeline.batches = []
        self.worker = Worker(self.pipeline, self.ledger, self.spool, config)

    def receive(self, seed: int, inside: str | None = None) -> None:
        path = phantom.write(phantom.draw(seed, False, 64), self.folder / "sent.dcm")
        dataset, uid = dcmread(path), f"1.2.{seed}"
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = uid if inside is None else inside
        dataset.save_as(path)
        data = path.read_bytes()
        name = self.spool.write(data)
        self.ledger.receive([Arrival(name, "1.2.840.10008.5.1.4.1.1.1", uid, "1.2.1", "XRAY1", "dimse", 1, len(data))])

    def run(self) -> dict[str, int]:
        """Until nothing is received any more."""
        stop = threading.Event()
        thread = threading.Thread(target=self.worker.run, args=(stop,))
        thread.start()
        while self.ledger.counts()["instances"]["received"]:
            assert thread.is_alive()
            stop.wait(0.02)
        stop.set()
        thread.join()
        return self.ledger.counts()["instances"]


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


def test_a_poison_image_fails_alone_and_its_neighbours_are_analysed(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    for seed in (11, 12, 13, 14):
        bench.receive(seed)
    assert bench.run() == {"received": 0, "analysed": 3, "not_analysed": 0, "failed": 1}
    (ending,) = bench.ledger.history("1.2.13")
    assert (ending["state"], ending["reason"]) == ("failed", "analysis_error")
    assert [result["kind"] for result in ending["results"]] == ["SC"]  # the archive is told
    assert bench.pipeline.batches == [4, 1, 1, 1, 1, 1, 1]  # once together, then alone: three times the poison
    assert caplog.records
    assert not any(SECRET in OneLineFormatter().format(record) for record in caplog.records)


def test_a_failed_image_is_analysed_when_it_is_retried_and_mended(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.receive(13)
    assert bench.run()["failed"] == 1
    monkeypatch.setattr(BreakablePipeline, "analyse", Pipeline.analyse)
    assert bench.ledger.rearm(["failed"], []) == 1
    assert bench.run() == {"received": 0, "analysed": 1, "not_analysed": 0, "failed": 0}
    (ending,) = bench.ledger.history("1.2.13")
    results = [result["sop_instance_uid"] for result in ending["results"] if result["kind"] == "SC"]
    assert len(set(results)) == 2  # "failed" and the answer are two objects: an archive keeps the first of a UID


def test_a_full_disk_is_no_images_fault(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daemon.worker._PAUSE_S", 0.01)
    full = 10
    write = Spool.write

    def no_room(spool: Spool, *chunks: bytes) -> str:
        nonlocal full
        full -= 1
        if full > 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(spool, *chunks)

    bench.receive(1)
    monkeypatch.setattr(Spool, "write", no_room)
    assert bench.run() == {"received": 0, "analysed": 1, "not_analysed": 0, "failed": 0}
    assert full <= 0


def test_an_image_whose_bytes_are_gone_ends_visibly(bench: Bench) -> None:
    bench.receive(1)
    (name,) = bench.spool.names()
    bench.spool.remove(name)
    assert bench.run()["failed"] == 1
    assert bench.ledger.history("1.2.1")[0]["reason"] == "bytes_missing"


def test_images_whose_spool_is_not_mounted_wait(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daemon.worker._PAUSE_S", 0.01)
    bench.spool.claim(bench.ledger.spool_identity)
    bench.receive(1)
    away = bench.spool.folder.with_name("away")
    bench.spool.folder.rename(away)
    stop = threading.Event()
    thread = threading.Thread(target=bench.worker.run, args=(stop,))
    thread.start()
    stop.wait(0.5)
    assert bench.ledger.counts()["instances"]["received"] == 1
    away.rename(bench.spool.folder)
    stop.set()
    thread.join()
    assert bench.run()["analysed"] == 1


def test_an_image_whose_end_a_lying_disk_has_lost_ends_visibly(bench: Bench) -> None:
    bench.receive(1)
    (name,) = bench.spool.names()
    whole = bench.spool.read(name)
    bench.spool.path(name).write_bytes(whole[:-100])
    assert bench.run()["failed"] == 1
    ending = bench.ledger.history("1.2.1")[0]
    assert ending["reason"] == "bytes_missing"
    assert f"{len(whole) - 100} of its {len(whole)} bytes" in ending["detail"]


def test_a_result_whose_file_is_lost_is_made_again_to_the_byte(bench: Bench) -> None:
    bench.receive(1)
    bench.run()
    jobs = bench.ledger.claim_deliveries("outbox", "me", 99)
    before = {job.result.sop_instance_uid: bench.spool.read(job.result.spool_name) for job in jobs}
    for job in jobs:
        bench.spool.remove(job.result.spool_name)
        assert bench.ledger.remake(job, "its file is gone")
    assert bench.ledger.counts()["instances"]["received"] == 1
    bench.run()
    again = bench.ledger.claim_deliveries("outbox", "me", 99)
    assert {job.result.sop_instance_uid: bench.spool.read(job.result.spool_name) for job in again} == before
    assert {job.id for job in again} == {job.id for job in jobs}


def test_a_result_that_is_lost_again_and_again_is_refused_in_the_end(bench: Bench) -> None:
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


def test_an_image_that_is_another_than_announced_is_told_of_by_nobody(bench: Bench) -> None:
    bench.receive(1, inside="1.2.999")
    assert bench.run()["failed"] == 1
    (ending,) = bench.ledger.history("1.2.1")
    assert (ending["reason"], ending["results"]) == ("uid_mismatch", [])


def test_a_broken_device_fails_no_image_and_ends_the_process(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> list[float]:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    for seed in (1, 2):
        bench.receive(seed)
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "classify", broken)
        with pytest.raises(EngineBrokenError):
            bench.worker.run(threading.Event())
    assert bench.ledger.counts()["instances"] == {"received": 2, "analysed": 0, "not_analysed": 0, "failed": 0}
    assert bench.run()["analysed"] == 2


def test_an_image_whose_failure_cannot_be_told_blocks_nobody(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> Outcome:
        raise TypeError("an encoder's bug")

    monkeypatch.setattr(Pipeline, "fail", broken)
    for seed in (13, 14):
        bench.receive(seed)
    assert bench.run() == {"received": 0, "analysed": 1, "not_analysed": 0, "failed": 1}


def test_the_same_image_again_makes_nothing(bench: Bench) -> None:
    bench.receive(1)
    bench.receive(1)
    assert bench.run() == {"received": 0, "analysed": 1, "not_analysed": 0, "failed": 0}
    owed = len(bench.ledger.claim_deliveries("outbox", "me", 99))
    bench.receive(1)
    assert bench.run()["analysed"] == 1
    assert len(bench.ledger.claim_deliveries("outbox", "me", 99)) == 0
    assert len(list(bench.spool.names())) == 3 + owed  # three receptions; no result file of a duplicate stays
