"""`pleura reload` under load: three roles in one process receive images while their settings
change.

PLEURA_RELOADS sets the number of changes; 200 makes a long run.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import yaml
from pydicom import dcmread

from daemon import config as settings
from daemon.analyse.worker import Worker, build_pipeline
from daemon.commands.reload import Outcome, reload
from daemon.commands.send import send
from daemon.commands.status import settings_lines
from daemon.config import ConfigError
from daemon.deliver.deliverer import Deliverer
from daemon.dicom.link import Link, Remote, proposal
from daemon.dicom.outgoing import describe
from daemon.ledger import Ledger
from daemon.live import Check, LiveSettings, Take
from daemon.receive.scp import Receiver
from daemon.spool import Spool
from tools.peers.waiting import wait_until
from training import phantom

RELOADS = int(os.environ.get("PLEURA_RELOADS", "8"))


class House:
    """A node whose roles are threads; `change(n)` gives it the n-th settings."""

    def __init__(self, folder: Path, port: int, model: Path) -> None:
        self.folder = folder
        self.port = port
        self.file = folder / "pleura.yaml"

        self._fixed: dict[str, Any] = {
            "host": "127.0.0.1",
            "port": port,
            "spool": str(folder / "spool"),
            "ledger": f"sqlite:///{folder}/ledger.db",
            "spool_reserve_mb": 1,
            "engine": "torch",
            "model": str(model),
        }

        self.write({})
        self.config = settings.load(self.file)
        self.ledger = Ledger(self.config.ledger)
        self.spool = Spool(self.config.spool)
        self.receiver = Receiver(self.config, self.ledger, self.spool)
        self.worker = Worker(
            build_pipeline(self.config, self.ledger), self.ledger, self.spool, self.config
        )
        self.deliverer = Deliverer(self.config, self.ledger, self.spool)

    def write(self, changed: dict[str, Any]) -> None:
        outbox = {"name": "outbox", "folder": str(self.folder / "outbox"), "results": ["SC"]}
        destinations = [outbox, *changed.pop("more", [])]
        text = yaml.safe_dump(self._fixed | {"destinations": destinations} | changed)
        self.file.write_text(text)

    def running(self) -> ExitStack:
        """Start the roles; they run until the stack is closed."""
        stack = ExitStack()
        stop = threading.Event()
        work = threading.Thread(target=self.worker.run, args=(stop,))
        self.receiver.start()
        work.start()
        self.deliverer.start()

        stack.callback(self.ledger.close)
        stack.callback(self.deliverer.stop)
        stack.callback(work.join)
        stack.callback(stop.set)
        stack.callback(self.receiver.stop)
        self._live(stack, "receive", self._check_receiver)
        self._live(stack, "analyse", self.worker.check)
        self._live(stack, "deliver", self.deliverer.check)
        return stack

    def _check_receiver(self, config: settings.Config) -> Take:
        return lambda: self.receiver.take(config)

    def _live(self, stack: ExitStack, role: str, check: Check) -> None:
        live = LiveSettings(
            role, self.config, lambda: settings.load(self.file), self.ledger, every_s=0.02
        )
        stack.enter_context(live)
        live.serve(check)

    def change(self, number: int) -> Outcome | ConfigError:
        """Peers and limits change each time, destinations every second time. Every fourth change is
        invalid or needs a restart.
        """
        changed: dict[str, Any] = {
            "peers": [
                {"ae_title": name, "host": "127.0.0.1"} for name in ("LONG", "SHORT", f"P{number}")
            ],
            "limits": {"associations": 20 + number % 7, "idle_s": 60 + number},
            "admission": {"minimum_age_years": number % 18},
            "retention": {"keep_days": 1 + number},
        }
        if number % 2:
            more = str(self.folder / "more")
            changed["more"] = [{"name": f"more-{number % 3}", "folder": more, "results": ["SC"]}]
        if number % 8 == 3:
            changed["limits"]["associations"] = "many"
        if number % 8 == 7:
            changed["port"] = self.port + 1

        self.write(changed)
        try:
            return reload(self.ledger, settings.load(self.file), "the test")
        except ConfigError as error:
            return error


class Modality:
    """Sends images over one association that stays open, and over short associations beside it."""

    def __init__(self, house: House) -> None:
        self._house = house
        self.sent: list[str] = []
        self.troubles: list[str] = []
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(work,))
            for work in (self._one_association, self._many_associations)
        ]

    def __enter__(self) -> Modality:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            self.troubles.append(repr(error))

    def _one_association(self) -> None:
        paths = self._images("long")
        first = describe(next(paths))
        remote = Remote("PLEURA", "127.0.0.1", self._house.port)
        with Link.open("LONG", remote, proposal([first.syntaxes])) as link:
            while not self._stop.is_set():
                outgoing = describe(next(paths))
                answer = link.store(outgoing)
                self._note(outgoing.sop_instance_uid, answer.status)

    def _many_associations(self) -> None:
        paths = self._images("short")
        while not self._stop.is_set():
            address = ("127.0.0.1", self._house.port)
            (answer,) = send([next(paths)], address, "PLEURA", "SHORT")
            self._note(answer.sop_instance_uid, -1 if answer.status is None else answer.status)

    def _note(self, uid: str, status: int) -> None:
        self.sent.append(uid)
        if status != 0:
            self.troubles.append(f"{uid}: {status}")
        # The rate of a busy department, not of the disk.
        self._stop.wait(0.25)

    def _images(self, name: str) -> Iterator[Path]:
        path = self._house.folder / f"{name}.dcm"
        dataset = dcmread(phantom.write(phantom.draw(1, False, 64), path))
        number = 0
        while True:
            number += 1
            uid = f"1.2.{len(name)}.{number}"
            dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = uid
            dataset.save_as(path)
            yield path


def test_settings_change_under_load_and_nothing_is_lost(
    tmp_path: Path, tiny_package: Path, free_port: Callable[[], int]
) -> None:
    house = House(tmp_path, free_port(), tiny_package)
    with house.running():
        with Modality(house) as modality:
            for number in range(RELOADS):
                before = _generations(house)
                told = house.change(number)
                if number % 8 == 3:
                    assert isinstance(told, ConfigError)
                    assert "limits.associations: found 'many'" in str(told)
                elif number % 8 == 7:
                    assert isinstance(told, Outcome)
                    assert "port: changed, and only a restart takes it" in told.words
                else:
                    assert isinstance(told, Outcome)
                    assert told.is_taken, told.words
                    assert house.receiver.limits.associations == 20 + number % 7
                    continue
                assert _generations(house) == before

        assert modality.troubles == []
        wait_until("every image has ended", lambda: not _waiting(house))
        counts = house.ledger.inspect.counts()
        assert sum(counts["instances"].values()) == len(modality.sent) == len(set(modality.sent))
        assert counts["instances"]["failed"] == 0
        (line,) = settings_lines(house.ledger.inspect)
        assert line.endswith("in every role")

        files = house.folder / "outbox"
        wait_until(
            "all results are sent", lambda: len([*files.glob("*.dcm")]) == len(modality.sent)
        )
        assert _sources(files) == set(modality.sent)


def _generations(house: House) -> set[int]:
    return {each.generation for each in house.ledger.inspect.settings.takers()}


def _waiting(house: House) -> int:
    return house.ledger.inspect.counts()["instances"]["received"]


def _sources(folder: Path) -> set[str]:
    """The UIDs of the source images of the results in a folder."""
    results = [dcmread(path, stop_before_pixels=True) for path in folder.glob("*.dcm")]
    return {str(each.SourceImageSequence[0].ReferencedSOPInstanceUID) for each in results}
