"""A hostile network around a real `pleura receive`: mutated conversations, crowds of connections,
and honest senders beside them.
"""

from __future__ import annotations

import contextlib
import hashlib
import signal
import socket
import sqlite3
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import yaml

from daemon.commands.send import send
from daemon.spool import Spool
from tests.peers.footprint import Footprint, footprint
from tests.peers.mutations import CR, EXPLICIT, Case, Rng, acknowledged, case, data_set, offered
from tools.peers.waiting import DEADLINE_S, wait_until

# A valid association request is answered within this time.
_ASSOCIATED_S = 1.0
# How long to wait for more answers. A shorter wait only sees fewer of them.
_ANSWERED_S = 0.1
# Between two writes of a crowd's connection.
_DRIP_S = 0.2
# The files that SQLite may keep open: database and WAL for each of the pool's five connections and
# for the group commit's, the shared memory, and the log.
_LEDGER_FILES = 2 * (5 + 1) + 2
# Twice the time that the node gives to messages in progress when it stops.
_STOPS_S = 60.0


class Receive:
    """`pleura receive` as a separate process."""

    def __init__(self, folder: Path, port: int, limits: Mapping[str, float] | None = None) -> None:
        """`limits`: the settings' `limits`, shortened so that no test waits half a minute."""
        folder.mkdir(parents=True, exist_ok=True)
        self.port = port
        self.log = folder / "log.txt"
        self._ledger = folder / "ledger.db"

        settings = {
            "host": "127.0.0.1",
            "port": port,
            "spool": str(folder / "spool"),
            "ledger": f"sqlite:///{self._ledger}",
            "spool_reserve_mb": 1,
            "retention": {"free_mb": 0},
            "limits": dict(limits or {}),
        }

        (folder / "pleura.yaml").write_text(yaml.safe_dump(settings))
        program = (
            "import faulthandler, signal, sys; faulthandler.register(signal.SIGUSR1)\n"
            "from daemon.cli import main; sys.exit(main(sys.argv[1:]))"
        )
        self._command = [
            *(sys.executable, "-c", program),
            *("receive", "-c", str(folder / "pleura.yaml")),
        ]

    def __enter__(self) -> Receive:
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                self._command, stdout=subprocess.PIPE, stderr=log, text=True
            )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "READY\n", self.log.read_text()

        self.spool = Spool(self.log.parent / "spool")
        self._at_ready = self.footprint()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(_STOPS_S)
        except subprocess.TimeoutExpired:
            # faulthandler writes the stack of each thread into the log.
            self.process.send_signal(signal.SIGUSR1)
            time.sleep(1)
            raise
        finally:
            self.process.kill()
            self.process.wait()
            assert self.process.stdout is not None
            self.process.stdout.close()

        assert status == 0 or error is not None, self.log.read_text()[-2000:]

    def connect(self, address: str = "127.0.0.1") -> socket.socket:
        return socket.create_connection(
            ("127.0.0.1", self.port), timeout=DEADLINE_S, source_address=(address, 0)
        )

    def footprint(self) -> Footprint:
        assert self.process.poll() is None, self.log.read_text()[-2000:]
        return footprint(self.process.pid)

    def at_rest(self) -> Footprint:
        """Wait until no association is left; returns what the node then holds.

        At rest it has as many threads as at READY, as many descriptors that are not files, and no
        more files than the ledger's connection pool may keep open. The pool opens as many as there
        were threads at the same time.
        """

        def resting() -> Footprint | None:
            now = self.footprint()
            is_back = (
                now.threads <= self._at_ready.threads
                and now.descriptors - now.of_files <= no_files
                and now.of_files <= _LEDGER_FILES
            )
            return now if is_back else None

        no_files = self._at_ready.descriptors - self._at_ready.of_files
        found: Footprint = wait_until(
            f"{self._at_ready.threads} threads, {no_files} descriptors and at most "
            f"{_LEDGER_FILES} files again",
            resting,
        )
        return found

    def rows(self) -> list[tuple[str, str]]:
        """(SOP Instance UID, spool name) of every accepted object."""
        with contextlib.closing(sqlite3.connect(self._ledger)) as connection:
            return connection.execute(
                "SELECT sop_instance_uid, spool_name FROM instances"
            ).fetchall()


def data_set_of(part10: bytes) -> bytes:
    """The bytes after the file meta information, whose first element gives its length (PS3.10 7.1)."""
    return part10[144 + int.from_bytes(part10[140:144], "little") :]


def sample(folder: Path, size: int = 30_000) -> Path:
    """Write the file that `Honest` sends copies of; its UID is TEMPLATE_UID."""
    from daemon.dicom.part10 import write_file_meta

    meta = write_file_meta((CR, TEMPLATE_UID, EXPLICIT), ("1.2.3", "TEST"), "TESTER")
    path = folder / "template.dcm"
    path.write_bytes(meta + data_set(TEMPLATE_UID, size))
    return path


TEMPLATE_UID = "1.2.826.0.1.1000000000"


def copy(template: bytes, path: Path, number: int) -> Path:
    """Write `template` to `path` with the UID of `number` in place of TEMPLATE_UID."""
    path.write_bytes(template.replace(TEMPLATE_UID.encode(), uid_of(number).encode()))
    return path


def uid_of(number: int) -> str:
    return f"1.2.826.0.1.{2_000_000_000 + number}"


@dataclass
class Account:
    """The data sets sent to the node (digests), and the UIDs that it acknowledged."""

    offered: set[bytes] = field(default_factory=set)
    acknowledged: Counter[str] = field(default_factory=Counter)
    cases: int = 0

    def violations(self, node: Receive) -> list[str]:
        """Objects in the spool that nobody sent completely, and acknowledged objects that are
        missing.
        """
        rows = node.rows()
        names = set(node.spool.names())
        known = {name for _, name in rows}

        bad = [f"file without a row: {name}" for name in names - known]
        bad += [f"row without a file: {name}" for name in known - names]
        bad += [f"left over: {path.name}" for path in node.spool.folder.rglob("*.part")]

        by_uid = Counter(uid for uid, _ in rows)
        bad += [
            f"acknowledged but missing: {uid!r}"
            for uid, times in self.acknowledged.items()
            if by_uid[uid] < times
        ]

        for uid, name in rows:
            if (
                name in names
                and hashlib.sha256(data_set_of(node.spool.read(name))).digest() not in self.offered
            ):
                bad.append(f"stored with bytes that nobody sent: {uid}")
        return bad


@dataclass
class Honest:
    """A sender that conforms to the standard, and tries again when the node rejects it."""

    node: Receive
    account: Account
    template: bytes
    folder: Path
    stored: int = 0
    tried: int = 0

    def store(self) -> str:
        """Send one object until the node answers 0x0000, and check that the spool holds it.

        Returns its UID.
        """
        self.stored += 1
        path = copy(self.template, self.folder / "honest.dcm", self.stored)
        self.account.offered.add(hashlib.sha256(data_set_of(path.read_bytes())).digest())

        def accepted() -> bool:
            self.tried += 1
            (sent,) = send([path], ("127.0.0.1", self.node.port), "PLEURA", "HONEST")
            assert sent.status in (0, None), f"0x{sent.status:04X}"
            return sent.ok

        wait_until("an honest sender gets through", accepted, every_s=0.2)

        uid = uid_of(self.stored)
        self.account.acknowledged[uid] += 1
        kept = [name for known, name in self.node.rows() if known == uid]
        assert kept
        assert all(
            data_set_of(self.node.spool.read(name)) == data_set_of(path.read_bytes())
            for name in kept
        )
        return uid

    @contextlib.contextmanager
    def meanwhile(self) -> Iterator[None]:
        """Send objects one after another inside the `with` block, at least one."""
        over = threading.Event()

        def run() -> None:
            while True:
                self.store()
                if over.wait(0.1):
                    return

        with ThreadPoolExecutor(1) as thread:
            running = thread.submit(run)
            try:
                yield
            finally:
                over.set()
            running.result()


def converse(node: Receive, pdus: Sequence[bytes], rng: Rng) -> bytes:
    """Send the PDUs in pieces of random size, then close, reset, or close only the sending half.

    Returns the answers. Most conversations wait for the answer to the association request (PS3.8
    Table 9-10); otherwise the node would reject everything after it.
    """
    heard = b""
    # The node may end the association before we have sent everything.
    with node.connect() as connection, contextlib.suppress(OSError):
        for number, pdu_bytes in enumerate(pdus):
            _say(connection, pdu_bytes, rng)
            if rng.random() < (0.95 if number == 0 else 0.2):
                heard += _hear(connection, _ASSOCIATED_S if number == 0 else _ANSWERED_S)

        if rng.random() < 0.2:
            connection.shutdown(socket.SHUT_WR)
        while part := _hear(connection, _ANSWERED_S):
            heard += part

        if rng.random() < 0.3:
            reset_on_close(connection)
    return heard


def _say(connection: socket.socket, data: bytes, rng: Rng) -> None:
    connection.settimeout(_ASSOCIATED_S)
    while data:
        data = data[connection.send(data[: rng.choice((1, 5, 100, 5000, len(data)))]) :]


def _hear(connection: socket.socket, within_s: float) -> bytes:
    connection.settimeout(within_s)
    try:
        return connection.recv(65536)
    except TimeoutError:
        return b""


def reset_on_close(connection: socket.socket) -> None:
    """Make close() send a TCP reset."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def fuzz(
    node: Receive, seed: int, numbers: Sequence[int], account: Account, at_once: int = 8
) -> None:
    """Send the cases of these numbers, `at_once` at a time."""

    def play(number: int) -> tuple[Case, bytes]:
        mutated = case(seed, number)
        return mutated, converse(node, mutated.pdus, Rng(f"{seed}:{number}:conduct"))

    with ThreadPoolExecutor(at_once) as threads:
        for mutated, heard in threads.map(play, numbers):
            account.offered |= offered(mutated.stream)
            account.acknowledged.update(acknowledged(heard))
            account.cases += 1


def connects(node: Receive, number: int, at_once: int = 4) -> None:
    """Connect at full speed and send nothing, as load balancers and port scanners do. Half of the
    connections end with a reset.
    """

    def probe(which: int) -> None:
        # Fifty loopback addresses: closed connections would use up the ports of one address.
        with (
            contextlib.suppress(ConnectionError),
            node.connect(f"127.0.0.{2 + which % 50}") as connection,
        ):
            if which % 2:
                reset_on_close(connection)

    def probes(first: int) -> None:
        for which in range(first, number, at_once):
            probe(which)

    with ThreadPoolExecutor(at_once) as threads:
        list(threads.map(probes, range(at_once)))


class Crowd:
    """`number` connections that each send the same bytes, a few at a time and without end.

    A connection that the node ends is opened again.
    """

    def __init__(
        self,
        node: Receive,
        number: int,
        said: tuple[bytes, bytes, bytes],
        at_once: int = 1,
        reads: bool = True,
    ) -> None:
        """Each connection sends the first part of `said`; after the answer the second; then the
        third over and over, `at_once` bytes at a time.

        Without `reads` it never reads answers and has a small receive window, so that the node's
        answers soon stay in the node.
        """
        self.ended = 0
        self._node = node
        self._number = number
        self._first, self._next, self._then = said
        self._at_once = at_once
        self._reads = reads
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Crowd:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        sent_bytes: dict[socket.socket, int] = {}
        while not self._over.is_set():
            # Open the connections that are missing, also those that the node has ended.
            while len(sent_bytes) < self._number and not self._over.is_set():
                connection = socket.socket()
                try:
                    if not self._reads:
                        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
                    connection.connect(("127.0.0.1", self._node.port))
                    connection.settimeout(_ASSOCIATED_S)
                    connection.sendall(self._first)
                    if self._first:
                        # At most the answer to the association request
                        connection.recv(500)
                        connection.sendall(self._next)
                    connection.setblocking(False)
                    sent_bytes[connection] = 0
                except OSError:
                    connection.close()

            for connection in [*sent_bytes]:
                try:
                    self._go_on(connection, sent_bytes)
                except OSError:
                    self.ended += 1
                    del sent_bytes[connection]
                    connection.close()
            self._over.wait(_DRIP_S)

        for connection in sent_bytes:
            connection.close()

    def _go_on(self, connection: socket.socket, sent_bytes: dict[socket.socket, int]) -> None:
        with contextlib.suppress(BlockingIOError):
            if self._reads and not connection.recv(65536):
                raise ConnectionResetError
        with contextlib.suppress(BlockingIOError):
            if self._then:
                at = sent_bytes[connection] % len(self._then)
                sent_bytes[connection] += connection.send(self._then[at : at + self._at_once])


def bad_log_lines(log: Path) -> list[str]:
    """The lines of a node's log that break its one-line format, as a traceback does, or that hold
    a patient's name that a peer sent.
    """
    import re

    form = re.compile(
        r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (INFO|WARNING|ERROR) pleura\.\w+ [ -~]+"
    )
    return [
        line
        for line in log.read_text(errors="replace").splitlines()
        if not form.fullmatch(line) or "Geheim" in line or "could not be" in line
    ]
