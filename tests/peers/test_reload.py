"""SIGHUP to a running node: a changed model package is taken into service, a broken package is not,
and no image waits.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from pydicom import dcmread

from daemon.commands.send import send
from daemon.ledger import Ledger
from tests import models
from tools.peers.harness import Node
from tools.peers.waiting import wait_until
from training import phantom


class Running:
    """A node, its model package, and phantoms sent to it."""

    def __init__(self, folder: Path, port: int) -> None:
        self.package = models.write(folder / "model", models.tiny_networks())
        self.outbox = folder / "outbox"
        self._folder = folder
        outbox = {"name": "outbox", "folder": str(self.outbox), "results": ["SC"]}
        self.node = Node(
            folder / "node", port, model=str(self.package), device="cpu", destinations=[outbox]
        )
        self._sent = 0

    def change(self, version: str) -> None:
        path = self.package / "model.yaml"
        changed = re.sub(r"(?m)^version: .*", f"version: {version}", path.read_text())
        part = path.with_suffix(".part")
        part.write_text(changed)
        part.rename(path)

    def hang_up(self) -> None:
        """Send SIGHUP, as `systemctl reload` does."""
        assert self.node.process is not None
        os.kill(self.node.process.pid, signal.SIGHUP)

    def log(self) -> str:
        return self.node.log.read_text()

    def version_for_a_new_image(self) -> tuple[str, str]:
        """Send an image. Returns the model version in its ledger row, and the versions in its
        overlay.
        """
        self._sent += 1
        path = phantom.write(phantom.draw(self._sent, False, 256), self._folder / "sent.dcm")
        uid = str(dcmread(path, stop_before_pixels=True).SOPInstanceUID)

        (answer,) = send([path], ("127.0.0.1", self.node.port), "PLEURA", "MODALITY")
        assert answer.ok, answer
        self.node.wait_done(self._sent)
        (row,) = Ledger.existing(str(self.node.settings["ledger"])).inspect.history(uid)
        results = [dcmread(path) for path in self.outbox.glob("*.dcm")]
        (overlay,) = [
            result
            for result in results
            if result.SourceImageSequence[0].ReferencedSOPInstanceUID == uid
        ]
        in_overlay = str(overlay.ContributingEquipmentSequence[0].SoftwareVersions)
        return str(row["model"]).split()[1], in_overlay


@pytest.fixture
def running(tmp_path: Path, free_port: Callable[[], int]) -> Running:
    return Running(tmp_path, free_port())


def test_a_changed_package_is_taken_into_service_and_a_broken_one_is_not(running: Running) -> None:
    with running.node as node:
        first, overlay = running.version_for_a_new_image()
        assert first in overlay
        analyse = node.role_pid("analyse")

        running.change("7.0.1")
        running.hang_up()
        wait_until("the new model serves", lambda: "the model in service is now" in running.log())
        second, overlay = running.version_for_a_new_image()
        assert second == "7.0.1" != first
        assert "7.0.1" in overlay

        weights = running.package / "weights.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1])
        running.change("7.0.2")
        running.hang_up()
        wait_until(
            "the new model is refused", lambda: "the new model cannot serve" in running.log()
        )
        assert running.version_for_a_new_image()[0] == "7.0.1"
        (line,) = [
            line for line in running.log().splitlines() if "the new model cannot serve" in line
        ]
        assert " ERROR " in line
        assert "weights.safetensors" in line
        assert "7.0.1" in line

        # The process has not been restarted.
        assert node.role_pid("analyse") == analyse
        assert node.stop() == 0


def test_a_reload_in_the_middle_of_work_loses_nothing(running: Running) -> None:
    with running.node as node:
        path = running.package.parent / "sent.dcm"
        for number in range(12):
            dataset = dcmread(phantom.write(phantom.draw(number, False, 256), path))
            dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = (
                f"1.2.3.{number}"
            )
            dataset.save_as(path)
            (answer,) = send([path], ("127.0.0.1", node.port), "PLEURA", "MODALITY")
            assert answer.ok

            if number == 4:
                running.change("7.0.1")
                running.hang_up()
        counts = node.wait_done(12)
        assert counts["instances"] == {
            "received": 0,
            "analysed": 12,
            "not_analysed": 0,
            "failed": 0,
        }
        wait_until("the new model serves", lambda: "the model in service is now" in running.log())


def test_sighup_does_not_end_the_other_roles(running: Running) -> None:
    roles = ("receive", "deliver")
    with running.node as node:
        pids = [wait_until(role, lambda role=role: node.role_pid(role)) for role in roles]
        for pid in pids:
            os.kill(pid, signal.SIGHUP)
        running.version_for_a_new_image()
        assert [node.role_pid(role) for role in roles] == pids
