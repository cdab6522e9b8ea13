"""Removal of the package: which debts (work and files that must not be lost) keep the spool from
being removed.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from daemon.commands.debts import debts
from daemon.config import Config, DicomDestination
from daemon.ledger import Arrival, Completion, Ledger, StoredResult
from daemon.spool import Spool


class Node:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = Config(spool=folder / "spool", ledger=f"sqlite:///{folder}/ledger.db")
        self.ledger = Ledger(self.config.ledger)
        self.spool = Spool(self.config.spool)
        self.spool.claim(self.ledger.spool_identity)

    def receive(self, uid: str) -> None:
        data = uid.encode()
        arrival = Arrival(
            self.spool.write(data), "1.2", uid, "1.2.1", "XRAY1", "dimse", 1, len(data)
        )
        self.ledger.receive([arrival])

    def analyse(self) -> None:
        (job,) = self.ledger.claim_images("me", 1)
        data = b"result"
        result = StoredResult("SC", self.spool.write(data), "1.2", "9.1", "1.2.1", len(data))
        completion = Completion("analysed", "digest", results=(result,))
        self.ledger.complete(job, completion, {"pacs": ["SC"]})

    def deliver(self) -> None:
        (job,) = self.ledger.claim_deliveries("pacs", "me", 1)
        self.ledger.mark_stored(job, 0, False)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    made = Node(tmp_path)
    made.ledger.close()
    return made


def test_each_debt_is_listed_until_it_is_settled(node: Node) -> None:
    assert debts(node.config, node.folder) == []

    node.receive("1.2.1")
    assert debts(node.config, node.folder) == ["1 images wait to be analysed"]
    node.analyse()
    assert debts(node.config, node.folder) == ["1 deliveries are owed"]
    node.deliver()
    assert debts(node.config, node.folder) == []
    node.ledger.close()


def test_a_ledger_or_spool_outside_the_folder_is_listed(node: Node, tmp_path: Path) -> None:
    assert debts(node.config, tmp_path / "another") == [
        f"ledger: {node.folder}/ledger.db lies outside {tmp_path}/another",
        f"spool: {node.folder}/spool lies outside {tmp_path}/another",
    ]


def test_a_spool_without_its_ledger_is_a_debt(node: Node) -> None:
    (node.folder / "ledger.db").unlink()
    assert debts(node.config, node.folder) == [f"spool {node.folder}/spool: without its ledger"]


def test_a_shared_database_makes_the_spool_a_debt(node: Node) -> None:
    shared = node.config.model_copy(update={"ledger": "postgresql+psycopg://db/pleura"})
    assert "other machines" in debts(shared, node.folder)[0]


def test_a_ledger_that_cannot_be_read_is_a_debt(node: Node) -> None:
    (node.folder / "ledger.db").write_bytes(b"no database" * 1000)
    assert debts(node.config, node.folder)[0].startswith("ledger: ")


@pytest.mark.parametrize("name", ["outbox", "model", "ledger.db.keep", "copies/of/yesterday"])
def test_a_persons_file_beside_the_spool_is_a_debt(node: Node, name: str) -> None:
    folder = node.folder / name
    folder.mkdir(parents=True)
    (folder / ".pleura").mkdir()
    assert debts(node.config, node.folder) == []

    (folder / "result.dcm").write_bytes(b"result")
    kept = [f"{node.folder / name.partition('/')[0]} is not the node's to remove"]
    assert debts(node.config, node.folder) == kept

    for path in node.folder.glob("ledger.db*"):
        if path.is_file():
            path.unlink()
    assert debts(node.config, node.folder)[1:] == kept


def test_upgrade_copies_and_library_caches_are_not_debts(node: Node) -> None:
    (node.folder / "ledger.db.version-7").write_bytes(b"as it was")
    (node.folder / ".nv").mkdir()
    (node.folder / ".nv" / "index").write_bytes(b"kernels")
    assert debts(node.config, node.folder) == []


def test_files_beside_a_spool_in_a_folder_of_its_own_are_found(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    node = Node(tmp_path / "deep")
    node.ledger.close()
    (node.folder / "notes.txt").write_text("whom to call")
    assert debts(node.config, tmp_path) == [f"{node.folder}/notes.txt is not the node's to remove"]


def test_a_stored_result_without_storage_commitment_is_a_debt(node: Node) -> None:
    pacs = DicomDestination(
        name="pacs", ae_title="PACS", host="127.0.0.1", port=104, commitment=True
    )
    config = node.config.model_copy(update={"destinations": (pacs,)})
    node.receive("1.2.1")
    node.analyse()
    (job,) = node.ledger.claim_deliveries("pacs", "me", 1)
    node.ledger.mark_stored(job, 0, True)

    found = debts(config, node.folder)
    assert found == ["destination pacs has not committed to all that it stored"]
