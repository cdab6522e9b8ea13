"""The main job between real peers: DCMTK as modality, Orthanc as archive, real X-rays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.uid import JPEGBaseline8Bit

from tools.peers.harness import Node, Orthanc, dicom_errors, storescu
from tools.peers.waiting import wait_until

PEERS = [{"ae_title": "XRAY1", "host": "127.0.0.1"}]


def sent(peer: Callable[[str], str], node: Node, files: list[Path]) -> None:
    """Send as a modality does, each file in its own transfer syntax."""
    for option, wanted in (("-xy", True), ("-xt", False)):
        part = [path for path in files if (transfer_syntax(path) == JPEGBaseline8Bit) == wanted]
        if part:
            answer = storescu(peer("storescu"), node, part, option, "-R")
            assert answer.returncode == 0, answer.stderr


def transfer_syntax(path: Path) -> str:
    return str(dcmread(path, stop_before_pixels=True).file_meta.TransferSyntaxUID)


def results(archive: Orthanc) -> Counter[str]:
    """Modality -> number of our results in the archive."""
    return Counter(
        tags["Modality"]
        for tags in archive.instances().values()
        if tags["Manufacturer"] == "Pleura"
    )


def test_xrays_in_results_out_once(
    peer: Callable[[str], str],
    orthanc: Orthanc,
    xrays: list[Path],
    tmp_path: Path,
    free_port: Callable[[], int],
) -> None:
    files = xrays[:12]
    assert len({transfer_syntax(path) for path in files}) == 2
    sources = {
        str(header.SOPInstanceUID): header
        for header in (dcmread(p, stop_before_pixels=True) for p in files)
    }
    destinations = [orthanc.destination()]
    with Node(tmp_path / "node", free_port(), peers=PEERS, destinations=destinations) as node:
        sent(peer, node, files)
        counts = node.wait_done(12)
        assert counts["instances"] == {
            "received": 0,
            "analysed": 12,
            "not_analysed": 0,
            "failed": 0,
        }

        held = orthanc.instances()
        positives = len(held) - 12
        # Both kinds of answer must occur.
        assert 0 < positives < 12
        assert results(orthanc) == {"OT": 12, "SEG": positives}

        for modality, expected in (("OT", 12), ("SEG", positives)):
            told_of = set()
            for tags in held.values():
                if tags["Modality"] == modality:
                    series = tags["ReferencedSeriesSequence"][0]
                    told_of.add(series["ReferencedInstanceSequence"][0]["ReferencedSOPInstanceUID"])
                    source = sources[
                        series["ReferencedInstanceSequence"][0]["ReferencedSOPInstanceUID"]
                    ]
                    assert tags["StudyInstanceUID"] == source.StudyInstanceUID
                    assert tags["PatientID"] == source.PatientID
            assert len(told_of) == expected

        objects = []
        for uid, tags in held.items():
            path = tmp_path / f"{uid}.dcm"
            path.write_bytes(orthanc.file(tags["orthanc"]))
            objects.append(path)
        assert dicom_errors(peer("dciodvfy"), objects) == []

        # The same images again make nothing new. Our own results are accepted and recorded, and
        # nothing is sent.
        sent(peer, node, files)
        sent(peer, node, objects)
        counts = node.wait_done(12 + len(objects))
        assert counts["instances"] == {
            "received": 0,
            "analysed": 12,
            "not_analysed": len(objects),
            "failed": 0,
        }
        assert counts["deliveries"] == {
            "owed": 0,
            "stored": len(objects),
            "committed": 0,
            "refused": 0,
        }
        assert orthanc.instances().keys() == held.keys()


def test_kills_lose_nothing_and_double_nothing(
    peer: Callable[[str], str],
    orthanc: Orthanc,
    xrays: list[Path],
    quick: str,
    tmp_path: Path,
    free_port: Callable[[], int],
) -> None:
    """SIGKILL for each role in turn and for serve itself, while 30 images flow."""
    node = Node(
        tmp_path / "node",
        free_port(),
        model=quick,
        peers=PEERS,
        destinations=[orthanc.destination()],
    )
    node.start()
    acknowledged: list[Path] = []

    def modality() -> None:
        # One association for each image; an image that was not acknowledged is sent again.
        for path in xrays[:30]:
            option = "-xy" if transfer_syntax(path) == JPEGBaseline8Bit else "-xt"
            while storescu(peer("storescu"), node, [path], option).returncode:
                time.sleep(0.2)
            acknowledged.append(path)

    sender = threading.Thread(target=modality)

    sender.start()
    for number, role in enumerate(("receive", "analyse", "deliver"), start=1):
        wait_until("images flow", lambda wanted=6 * number: len(acknowledged) >= wanted)
        os.kill(
            wait_until(f"a {role} process", lambda role=role: node.role_pid(role)), signal.SIGKILL
        )
    wait_until("images flow", lambda: len(acknowledged) >= 24)

    roles = [
        Path(f"/proc/{pid}") for pid in map(node.role_pid, ("receive", "analyse", "deliver")) if pid
    ]
    node.stop(signal.SIGKILL)
    wait_until("the roles die with serve", lambda: not any(role.exists() for role in roles))

    node.start()
    sender.join()

    counts = node.wait_done(30)
    assert counts["instances"] == {"received": 0, "analysed": 30, "not_analysed": 0, "failed": 0}
    assert counts["deliveries"]["refused"] == 0

    found = results(orthanc)
    assert found["OT"] == 30
    assert found["SEG"] == counts["deliveries"]["stored"] - 30
    told_of = Counter(
        (
            tags["Modality"],
            tags["ReferencedSeriesSequence"][0]["ReferencedInstanceSequence"][0][
                "ReferencedSOPInstanceUID"
            ],
        )
        for tags in orthanc.instances().values()
    )
    assert set(told_of.values()) == {1}
    assert node.stop() == 0


def test_an_archive_that_is_down_gets_everything_when_it_is_back(
    peer: Callable[[str], str],
    xrays: list[Path],
    quick: str,
    tmp_path: Path,
    free_port: Callable[[], int],
) -> None:
    archive = Orthanc(peer("Orthanc"), tmp_path / "orthanc", (free_port(), free_port()))
    with Node(
        tmp_path / "node",
        free_port(),
        model=quick,
        peers=PEERS,
        destinations=[archive.destination(results=["SC"])],
    ) as node:
        sent(peer, node, xrays[:2])
        wait_until("both are analysed", lambda: node.counts()["instances"]["analysed"] == 2)
        assert node.status()["deliveries"]["owed"] == 2
        with archive:
            node.wait_done(2)
            assert results(archive) == {"OT": 2}


@pytest.mark.parametrize("role", ["receive", "analyse", "deliver"])
def test_sigterm_ends_a_role_cleanly_without_serve(
    role: str, quick: str, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    node = Node(tmp_path / "node", free_port(), model=quick)
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


HOSTILE = "ZZTOPSECRET^JOHN\nForged log line"


def test_no_patients_string_reaches_a_log(
    peer: Callable[[str], str],
    xrays: list[Path],
    quick: str,
    tmp_path: Path,
    free_port: Callable[[], int],
) -> None:
    """The node gets a good image, one with a broken header, a truncated one, and bytes that are not
    DICOM. Each text in them is a secret.
    """
    files = []
    for number, cut in enumerate((None, None, 40_000)):
        dataset = dcmread(xrays[0])
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{number}"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for keyword in (
                "PatientName",
                "PatientID",
                "StudyDescription",
                "PatientComments",
                "InstitutionName",
            ):
                setattr(dataset, keyword, HOSTILE)
            # Values that violate their VR: parsers quote such values in their errors.
            if number == 1:
                for keyword in (
                    "BodyPartExamined",
                    "PatientSex",
                    "PatientBirthDate",
                    "StudyTime",
                    "ViewPosition",
                ):
                    setattr(dataset, keyword, HOSTILE)
            path = tmp_path / f"{number}.dcm"
            dataset.save_as(path)

        if cut:
            path.write_bytes(path.read_bytes()[:cut])
        files.append(path)

    inbox = tmp_path / "inbox"
    with Node(
        tmp_path / "node", free_port(), model=quick, inbox=str(inbox), destinations=[]
    ) as node:
        sent_over_network = storescu(peer("storescu"), node, files[:2], "-xy")
        assert sent_over_network.returncode == 0, sent_over_network.stderr
        (inbox / "truncated.dcm").write_bytes(files[2].read_bytes())
        (inbox / f"{HOSTILE[:12]}.dcm").write_bytes(HOSTILE.encode() * 100)
        counts = node.wait_done(4)
        assert node.stop() == 0
    # The file that is not DICOM
    assert counts["instances"]["failed"] == 1

    assert counts["instances"]["received"] == 0
    log = node.log.read_text()
    assert "1.2.3.0" in log
    for secret in ("ZZTOPSECRET", "JOHN", "Forged"):
        assert secret not in log


def test_a_full_disk_is_answered_and_survived(
    peer: Callable[[str], str],
    xrays: list[Path],
    quick: str,
    tmp_path: Path,
    free_port: Callable[[], int],
    small_disk: Path,
) -> None:
    """The node answers 0xA700 while the disk is full, and stores again when there is room. Every
    acknowledged image arrives.
    """
    outbox = tmp_path / "outbox"
    node = Node(
        tmp_path / "node",
        free_port(),
        model=quick,
        spool=str(small_disk / "spool"),
        spool_reserve_mb=0,
        destinations=[{"name": "outbox", "folder": str(outbox), "results": ["SC"]}],
    )
    with node:
        ballast = small_disk / "ballast"
        with ballast.open("wb") as file:
            file.write(bytes(free_bytes(small_disk) - 60_000))
        option = "-xy"
        jpegs = [path for path in xrays if transfer_syntax(path) == JPEGBaseline8Bit][:2]
        refused = storescu(peer("storescu"), node, jpegs[:1], option, "-v")
        # DCMTK's name for 0xA7xx
        assert "OutOfResources" in refused.stdout + refused.stderr

        ballast.unlink()
        assert storescu(peer("storescu"), node, jpegs, option).returncode == 0
        node.wait_done(2)
    assert len(list(outbox.glob("*.dcm"))) == 2


def free_bytes(folder: Path) -> int:
    room = os.statvfs(folder)
    return room.f_bavail * room.f_frsize
