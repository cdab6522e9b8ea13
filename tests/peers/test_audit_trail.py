"""The audit trail from the event to the repository: through the real roles, and across kill -9."""

from __future__ import annotations

import base64
import contextlib
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

from daemon.audit import AuditSender
from daemon.config import Config, load
from daemon.deliver.remote import remote_of
from daemon.dicom.link import Link, LinkDownError, proposal
from daemon.ledger import Ledger
from daemon.receive.scp import Receiver
from daemon.spool import Spool
from tests.unit.audit_schema import faults
from tools.peers.audit_repository import Repository, numbers
from tools.peers.certificates import Authority
from tools.peers.ports import unused_port
from tools.peers.waiting import wait_until

MESSAGES = 1000


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture
def repository(ca: Authority) -> Iterator[Repository]:
    repository = Repository(ca.issue("repository"), ca)
    yield repository
    repository.close()


def settings(folder: Path, ca: Authority, repository: Repository, **more: Any) -> Path:
    """The settings file of a node that sends its audit trail to `repository`."""
    to = {"repository": f"tls://127.0.0.1:{repository.port}", "ca": str(ca.certificate)}
    values = {
        "host": "127.0.0.1",
        "port": unused_port(),
        "spool": str(folder / "spool"),
        "ledger": f"sqlite:///{folder / 'ledger.db'}",
        "audit": to | ca.issue("audit-sender").settings(),
    }
    path = folder / "pleura.yaml"
    path.write_text(yaml.safe_dump(values | more))
    return path


def alerts(messages: list[bytes]) -> list[tuple[str, str]]:
    """The address and the text of each security alert."""
    told = []
    for message in messages:
        xml = message.decode().partition("\ufeff")[2]
        assert faults(xml) == []
        (subject,) = ElementTree.fromstring(xml).findall("ParticipantObjectIdentification")
        (detail,) = subject.findall("ParticipantObjectDetail")
        words = base64.b64decode(detail.attrib["value"]).decode()
        told.append((subject.attrib["ParticipantObjectID"], words))
    return told


def test_a_refused_handshake_and_a_refused_association_reach_the_repository(
    tmp_path: Path, ca: Authority, repository: Repository
) -> None:
    tls = ca.issue("node").settings() | {"ca": str(ca.certificate), "port": unused_port()}
    config = load(settings(tmp_path, ca, repository, tls=tls))
    ledger, spool = Ledger(config.ledger), Spool(config.spool)
    ledger.is_audited = True
    stop = threading.Event()
    sender = threading.Thread(target=AuditSender(config, ledger, spool).run, args=(stop,))
    receiver = Receiver(config, ledger, spool)
    receiver.start()
    sender.start()
    try:
        untrusted = Authority(tmp_path / "elsewhere", "Another CA").issue("XRAY1")
        theirs = untrusted.settings() | {"ca": str(ca.certificate)}
        call(tls["port"], "PLEURA", theirs)
        call(config.port, "OTHER", False)
        wait_until("both messages arrive", lambda: len(repository.messages) == 2)
    finally:
        stop.set()
        receiver.stop()
        sender.join()
        ledger.close()

    handshake, association = alerts(repository.messages)
    assert handshake[0] == association[0] == "127.0.0.1"
    assert handshake[1].startswith("the TLS handshake failed: ")
    assert association[1].startswith("rejected with 1/1/7")


def call(port: int | None, called: str, tls: dict[str, str] | bool) -> None:
    """Request an association, which must fail."""
    there = {"name": "node", "ae_title": called, "host": "127.0.0.1", "port": port, "tls": tls}
    config = Config.model_validate({"ae_title": "XRAY1", "port": 11112, "destinations": [there]})
    remote = remote_of(config, config.destinations[0])  # type: ignore[arg-type]
    with pytest.raises(LinkDownError), Link.open("XRAY1", remote, proposal([])):
        pass


class Role:
    """The deliver role as a process."""

    def __init__(self, settings_file: Path, log: Path) -> None:
        command = [sys.executable, "-P", "-m", "daemon.cli", "deliver", "-c", str(settings_file)]
        with log.open("a") as stderr:
            self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=stderr)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def test_a_kill_of_the_deliver_role_loses_no_message_and_keeps_their_order(
    tmp_path: Path, ca: Authority, repository: Repository
) -> None:
    path, log = settings(tmp_path, ca, repository), tmp_path / "log.txt"
    ledger = Ledger(load(path).ledger)
    ledger.is_audited = True
    for number in range(MESSAGES):
        ledger.record_audit("start", {"role": "test", "pid": str(number)})

    repository.is_away = True
    with contextlib.ExitStack() as running:
        role = Role(path, log)
        running.callback(role.kill)
        wait_until("the outage is logged", lambda: "cannot be reached" in log.read_text())

        # Kill the role as messages arrive, until a kill falls between a message's arrival and its
        # removal from the ledger. The next process then repeats the message.
        repository.is_away = False
        starts = 1
        seen = 0
        while True:
            wait_until(
                "more messages arrive", lambda seen=seen: len(repository.messages) > seen, 0.001
            )
            if repeated(repository.messages):
                break

            role.kill()
            assert ledger.inspect.audit_waiting()
            seen = len(repository.messages)
            role = Role(path, log)
            running.callback(role.kill)
            starts += 1

        wait_until("all are sent", lambda: not ledger.inspect.audit_waiting())
    ledger.close()

    sent = numbers(repository.messages)
    # Each start of the role also sends a message.
    assert list(dict.fromkeys(sent)) == [*range(1, MESSAGES + starts + 1)]
    # A repeated message is the same byte for byte.
    assert len(set(repository.messages)) == len(set(sent))


def repeated(messages: list[bytes]) -> bool:
    """True if a message has come twice."""
    return len(set(messages)) < len(messages)
