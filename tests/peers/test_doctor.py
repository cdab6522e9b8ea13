"""`pleura doctor`: what an administrator is told before and after things go wrong."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from pynetdicom import AE
from pynetdicom.sop_class import SecondaryCaptureImageStorage, Verification

from tools.peers.harness import Node, Orthanc


def doctor(node: Node) -> tuple[int, dict[str, str]]:
    """Exit status, and what was said of each thing."""
    answer = subprocess.run(
        [sys.executable, "-m", "daemon.cli", "doctor", "-c", str(node.path)],
        capture_output=True,
        text=True,
    )
    said = {}
    for line in answer.stdout.splitlines():
        verdict, _, rest = line.partition(" ")
        what, _, text = rest.strip().partition(": ")
        said[what] = f"{verdict} {text}"
    return answer.returncode, said


def test_a_node_that_runs_and_its_archive_are_well(
    peer: Callable[[str], str], tmp_path: Path, free_port: Callable[[], int]
) -> None:
    with Orthanc(peer("Orthanc"), tmp_path / "orthanc", (free_port(), free_port())) as archive:
        places = [archive.destination(commitment=True), {"name": "outbox", "folder": str(tmp_path)}]
        with Node(tmp_path / "node", free_port(), destinations=places) as node:
            status, said = doctor(node)
    assert all(text.startswith("ok") for text in said.values()), said
    assert status == 0
    assert said["destination pacs"].endswith("accepts SEG, SC, storage commitment")
    assert "pleura-default" in said["model"]


def test_each_trouble_is_named_and_nothing_is_made(
    tmp_path: Path, free_port: Callable[[], int]
) -> None:
    entity = AE("ARCHIVE")
    for sop_class in (Verification, SecondaryCaptureImageStorage):
        entity.add_supported_context(sop_class)
    entity.require_called_aet = True
    port, nobody = free_port(), free_port()
    server = entity.start_server(("127.0.0.1", port), block=False)
    here = {"host": "127.0.0.1", "port": port}
    places = [
        {"name": "half", "ae_title": "ARCHIVE", **here},
        {"name": "wrong-name", "ae_title": "OTHER", **here},
        {"name": "away", "ae_title": "ARCHIVE", "host": "127.0.0.1", "port": nobody},
        {"name": "unmounted", "folder": str(tmp_path / "nowhere")},
    ]
    node = Node(
        tmp_path / "node", free_port(), destinations=places, model=str(tmp_path / "no-model")
    )
    node.write_settings()
    try:
        status, said = doctor(node)
    finally:
        server.shutdown()
    assert status == 1
    assert not any(text.startswith("ok") for text in said.values()), said
    assert "does not accept SEG" in said["destination half"]
    assert "its AE title is not OTHER" in said["destination wrong-name"]
    assert "cannot connect" in said["destination away"]
    assert "no such folder" in said["destination unmounted"]
    assert "not run with these settings yet" in said["ledger"]
    assert [path.name for path in (tmp_path / "node").iterdir()] == ["pleura.yaml"]
