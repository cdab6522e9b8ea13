"""One node on two hosts that share one PostgreSQL and one spool: a host dies under load, and the
other finishes its work.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.uid import JPEGBaseline8Bit

from daemon.commands.verify import verify
from daemon.config import load
from daemon.ledger import Ledger
from daemon.spool import Spool
from tests.conftest import missing
from tools.peers.harness import Node, Orthanc
from tools.peers.postgres import Postgres, binaries
from tools.peers.waiting import wait_until

PORT = 11112
IMAGES = 24


@dataclass
class Network:
    """A bridge with an address of this machine; network namespaces on it are the hosts."""

    name: str
    subnet: str

    @property
    def address(self) -> str:
        return f"{self.subnet}.1"

    def add_host(self, number: int) -> Host:
        host = Host(f"{self.name}{number}", f"{self.subnet}.{number + 1}")
        ip("netns", "add", host.name)
        ip("link", "add", host.name, "type", "veth", "peer", "name", "eth0", "netns", host.name)
        ip("link", "set", host.name, "master", self.name, "up")
        for command in (
            "link set lo up",
            f"address add {host.address}/24 dev eth0",
            "link set eth0 up",
        ):
            ip("-n", host.name, *command.split())
        return host


@dataclass
class Host:
    name: str
    address: str

    @property
    def prefix(self) -> list[str]:
        return ["ip", "netns", "exec", self.name]

    def processes(self) -> list[int]:
        return [int(pid) for pid in ip("netns", "pids", self.name).split()]

    def die(self) -> None:
        """Fail as without power: the link goes down first, then every process is killed."""
        ip("link", "set", self.name, "down")
        while pids := self.processes():
            for pid in pids:
                os.kill(pid, signal.SIGKILL)

    def remove(self) -> None:
        for pid in self.processes():
            os.kill(pid, signal.SIGKILL)
        subprocess.run(["ip", "netns", "delete", self.name])


def ip(*arguments: str) -> str:
    answer = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if answer.returncode:
        raise OSError(answer.stderr)
    return answer.stdout


@pytest.fixture
def network() -> Iterator[Network]:
    network = Network(
        f"pl{secrets.token_hex(3)}", f"10.{secrets.randbelow(200) + 20}.{secrets.randbelow(250)}"
    )
    try:
        ip("link", "add", network.name, "type", "bridge")
        ip("address", "add", f"{network.address}/24", "dev", network.name)
        ip("link", "set", network.name, "up")
    except OSError as error:
        missing(f"no network of our own can be made (needs root and iproute2): {error}")
    yield network
    subprocess.run(["ip", "link", "delete", network.name])


@pytest.fixture
def hosts(network: Network) -> Iterator[list[Host]]:
    hosts = [network.add_host(1), network.add_host(2)]
    yield hosts
    for host in hosts:
        host.remove()


def test_a_host_dies_under_load_and_the_other_finishes_everything(
    peer: Callable[[str], str],
    xrays: list[Path],
    quick: str,
    tmp_path: Path,
    free_port: Callable[[], int],
    network: Network,
    hosts: list[Host],
) -> None:
    if binaries() is None:
        missing("PostgreSQL's server is not installed (apt-get install postgresql)")
    archive = Orthanc(peer("Orthanc"), tmp_path / "orthanc", (free_port(), free_port()))
    with Postgres(tmp_path / "postgres", free_port(), address=network.address) as postgres, archive:
        nodes = [
            Node(
                tmp_path / host.name,
                PORT,
                prefix=host.prefix,
                host=host.address,
                model=quick,
                peers=[{"ae_title": "XRAY1"}],
                destinations=[archive.destination(host=network.address, results=["SC"])],
                ledger=postgres.url(),
                spool=str(tmp_path / "spool"),
            )
            for host in hosts
        ]
        for node in nodes:
            node.start()

        acknowledged: list[Path] = []
        on_the_second: list[Path] = []

        def modality(files: list[Path], order: list[int]) -> None:
            for path in files:
                # If neither host stores it, try again, as a modality does.
                while not any(sent(peer("storescu"), hosts[number], path) for number in order):
                    time.sleep(0.2)
                acknowledged.append(path)

        def sent(program: str, host: Host, path: Path) -> bool:
            baseline = (
                dcmread(path, stop_before_pixels=True).file_meta.TransferSyntaxUID
                == JPEGBaseline8Bit
            )
            options = ["-to", "3", "-xy" if baseline else "-xt", "-aec", "PLEURA", "-aet", "XRAY1"]
            command = [program, *options, host.address, str(PORT), str(path)]
            environment = os.environ | {"TCP_NODELAY": "1"}
            answer = subprocess.run(command, capture_output=True, env=environment)
            is_stored = answer.returncode == 0
            if is_stored and host is hosts[1]:
                on_the_second.append(path)
            return is_stored

        half = IMAGES // 2
        senders = [
            threading.Thread(target=modality, args=(xrays[:half], [0, 1]), daemon=True),
            threading.Thread(target=modality, args=(xrays[half:IMAGES], [1, 0]), daemon=True),
        ]
        for sender in senders:
            sender.start()

        wait_until("both hosts receive", lambda: len(acknowledged) >= 8 and on_the_second)
        hosts[0].die()
        nodes[0].stop(signal.SIGKILL)

        for sender in senders:
            sender.join()

        counts = nodes[1].wait_done(IMAGES)
        assert counts["instances"] == {
            "received": 0,
            "analysed": IMAGES,
            "not_analysed": 0,
            "failed": 0,
        }
        assert counts["deliveries"] == {"owed": 0, "stored": IMAGES, "committed": 0, "refused": 0}

        told_of = Counter(
            tags["ReferencedSeriesSequence"][0]["ReferencedInstanceSequence"][0][
                "ReferencedSOPInstanceUID"
            ]
            for tags in archive.instances().values()
        )
        assert len(told_of) == IMAGES
        assert set(told_of.values()) == {1}

        assert nodes[1].stop() == 0

        config = load(nodes[1].path)
        ledger = Ledger(config.ledger)
        assert verify(ledger.inspect, Spool(config.spool)).faults == []
        ledger.close()
