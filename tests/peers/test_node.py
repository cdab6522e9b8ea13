"""The main job between real peers: DCMTK as modality, Orthanc as archive, real X-rays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.uid import JPEGBaseline8Bit

from tests.peers.harness import Node, Orthanc, dicom_errors, storescu, wait_until

PEERS = [{"ae_title": "XRAY1", "host": "127.0.0.1"}]


def sent(peer: Callable[[str], str], node: Node, files: list[Path]) -> None:
    """Send as a modality does, each file in the transfer syntax it has."""
    for option, wanted in (("-xy", True), ("-xt", False)):
        part = [path for path in files if (transfer_syntax(path) == JPEGBaseline8Bit) == wanted]
        if part:
            answer = storescu(peer("storescu"), node, part, option)
            assert answer.returncode == 0, answer.stderr


def transfer_syntax(path: Path) -> str:
    return str(dcmread(path, stop_before_pixels=True).file_meta.TransferSyntaxUID)


def results(archive: Orthanc) -> Counter[str]:
    """Modality -> number of our results in the archive."""
    return Counter(tags["Modality"] for tags in archive.instances().values() if tags["Manufacturer"] == "Pleura")


def test_xrays_in_results_out_once(
    peer: Callable[[str], str], orthanc: Orthanc, xrays: list[Path], tmp_path: Path, free_port: Callable[[], int]
) -> None:
    files = xrays[:12]
    assert len({transfer_syntax(path) for path in files}) == 2
    sources = {str(header.SOPInstanceUID): header for header in (dcmread(p, stop_before_pixels=True) for p in files)}
    with Node(tmp_path / "node", free_port(), peers=PEERS, destinations=[orthanc.destination()]) as node:
        sent(peer, node, files)
        counts = node.wait_done(12)
        assert counts["instances"] == {"received": 0, "analysed": 12, "not_analysed": 0, "failed": 0}
        held = orthanc.instances()
        positives = len(held) - 12
        assert 0 < positives < 12  # else this shows nothing about either kind
        assert results(orthanc) == {"OT": 12, "SEG": positives}
        for modality, expected in (("OT", 12), ("SEG", positives)):
            told_of = set()
            for tags in held.values():
                if tags["Modality"] == modality:
                    series = tags["ReferencedSeriesSequence"][0]
                    told_of.add(series["ReferencedInstanceSequence"][0]["ReferencedSOPInstanceUID"])
                    source = sources[series["ReferencedInstanceSequence"][0]["ReferencedSOPInstanceUID"]]
                    assert tags["StudyInstanceUID"] == source.StudyInstanceUID
                    assert tags["PatientID"] == source.PatientID
            assert len(told_of) == expected

        objects = []
        for uid, tags in held.items():
            path = tmp_path / f"{uid}.dcm"
            path.write_bytes(orthanc.file(tags["orthanc"]))
            objects.append(path)
        assert dicom_errors(peer("dciodvfy"), objects) == []

        # The same images again: nothing new. The results themselves: accepted, recorded, and nothing leaves.
        sent(peer, node, files)
        storescu_any = storescu(peer("storescu"), node, objects, "-xy", "+C")
        assert storescu_any.returncode == 0, storescu_any.stderr
        counts = node.wait_done(12 + len(objects))
        assert counts["instances"] == {"received": 0, "analysed": 12, "not_analysed": len(objects), "failed": 0}
        assert counts["deliveries"] == {"owed": 0, "stored": len(objects), "committed": 0, "refused": 0}
        assert orthanc.instances().keys() == held.keys()


def test_kills_lose_nothing_and_double_nothing(
    peer: Callable[[str], str], orthanc: Orthanc, xrays: list[Path], tmp_path: Path, free_port: Callable[[], int]
) -> None:
    files = xrays[:50]
    node = Node(tmp_path / "node", free_port(), peers=PEERS, destinations=[orthanc.destination()])
    node.start()
    for number, batch in enumerate(files[i : i + 10] for i in range(0, 50, 10)):
        pending = batch
        if number < 3:
            role = ("receive", "analyse", "deliver")[number]
            pid = wait_until(f"a {role} process", lambda role=role: node.role_pid(role))
            os.kill(pid, signal.SIGKILL)
        elif number == 3:
            pids = [
                wait_until("a role", lambda role=role: node.role_pid(role))
                for role in ("receive", "analyse", "deliver")
            ]
            node.stop(signal.SIGKILL)
            wait_until("the children die with serve", lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
            node.start()
        # A modality repeats what was not acknowledged, one association per image.
        for path in pending:
            option = "-xy" if transfer_syntax(path) == JPEGBaseline8Bit else "-xt"
            wait_until(
                "the node accepts",
                lambda path=path, option=option: storescu(peer("storescu"), node, [path], option).returncode == 0,
            )
    counts = node.wait_done(50)
    assert counts["instances"] == {"received": 0, "analysed": 50, "not_analysed": 0, "failed": 0}
    assert counts["deliveries"]["refused"] == 0
    found = results(orthanc)
    assert found["OT"] == 50
    assert found["SEG"] == counts["deliveries"]["stored"] - 50
    assert node.stop() == 0


def test_an_archive_that_is_down_gets_everything_when_it_is_back(
    peer: Callable[[str], str], xrays: list[Path], tmp_path: Path, free_port: Callable[[], int]
) -> None:
    archive = Orthanc(peer("Orthanc"), tmp_path / "orthanc", (free_port(), free_port()))
    with Node(tmp_path / "node", free_port(), peers=PEERS, destinations=[archive.destination(results=["SC"])]) as node:
        sent(peer, node, xrays[:2])
        wait_until("both are analysed", lambda: node.status()["instances"]["analysed"] == 2)
        assert node.status()["deliveries"]["owed"] == 2
        with archive:
            node.wait_done(2)
            assert results(archive) == {"OT": 2}


@pytest.mark.parametrize("role", ["receive", "analyse", "deliver"])
def test_sigterm_ends_a_role_alone_cleanly(role: str, tmp_path: Path, free_port: Callable[[], int]) -> None:
    node = Node(tmp_path / "node", free_port())
    node.write_settings()
    process = subprocess.Popen(
        [sys.executable, "-m", "daemon.cli", role, "-c", str(node.path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "READY\n"
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
