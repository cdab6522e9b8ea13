"""DICOM over TLS with DCMTK and Orthanc in both directions: with right and wrong certificates, and
while certificates are renewed.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydicom import dcmwrite
from pydicom.uid import ExplicitVRLittleEndian

from daemon.config import Config, DicomDestination, ServerTls
from daemon.deliver.deliverer import Deliverer
from daemon.deliver.remote import remote_of
from daemon.dicom.acceptor import Limits
from daemon.dicom.link import Link, LinkDownError, proposal
from daemon.dicom.outgoing import describe
from daemon.ledger import Arrival, Completion, Ledger, StoredResult
from daemon.receive.connections import PlainConnection, Served, TlsConnection
from daemon.receive.listener import Listener, Port
from daemon.receive.scp import Receiver
from daemon.spool import Spool
from daemon.tls import node_context
from tests.peers.receiving import SC, Program, associate_rq, image
from tools.peers.certificates import Authority, Pair
from tools.peers.harness import Orthanc
from tools.peers.ports import unused_port
from tools.peers.waiting import wait_until

DEADLINE_S = 30.0
# The type of an A-ASSOCIATE-AC.
ACCEPTED = b"\x02"


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def node_pair(ca: Authority) -> Pair:
    return ca.issue("node")


@pytest.fixture(scope="module")
def xray(ca: Authority) -> Pair:
    return ca.issue("XRAY1")


@pytest.fixture(scope="module")
def untrusted(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A certificate for XRAY1 from an authority that the node does not trust."""
    return Authority(tmp_path_factory.mktemp("elsewhere"), "Another CA").issue("XRAY1")


class Node:
    """A receiver with a TLS port and, unless `port` is None, a plain port."""

    def __init__(
        self,
        folder: Path,
        tls: dict[str, Any],
        limits: Limits | None = None,
        **settings: Any,
    ) -> None:
        self.tls_port = tls.get("port") or unused_port()
        self.config = Config.model_validate(
            {
                "host": "127.0.0.1",
                "port": unused_port(),
                "tls": tls | {"port": self.tls_port},
                "spool": str(folder / "spool"),
                "ledger": f"sqlite:///{folder / 'ledger.db'}",
                "spool_reserve_mb": 0,
            }
            | settings
        )

        self.ledger = Ledger(self.config.ledger)
        self.spool = Spool(self.config.spool)
        self.receiver = Receiver(self.config, self.ledger, self.spool, limits)

    def received(self) -> int:
        return self.ledger.inspect.counts()["instances"]["received"]

    def __enter__(self) -> Node:
        self.receiver.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.receiver.stop()
        self.ledger.close()


@pytest.fixture
def start(tmp_path: Path, ca: Authority, node_pair: Pair) -> Iterator[Callable[..., Node]]:
    """start(tls={...}, key=value...) -> a listening node."""
    with contextlib.ExitStack() as running:

        def begin(
            tls: dict[str, Any] | None = None, limits: Limits | None = None, **settings: Any
        ) -> Node:
            mine = {**node_pair.settings(), "ca": str(ca.certificate)} | (tls or {})
            return running.enter_context(Node(tmp_path, mine, limits, **settings))

        yield begin


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.dcm"
    dataset = image("1.2.3.4.5", SC, 300_000)
    dataset.PatientID = "1"
    dataset.StudyInstanceUID = "1.2.6"
    dataset.SeriesInstanceUID = "1.2.7"
    dcmwrite(path, dataset, enforce_file_format=True)
    return path


def dcmtk(program: str, port: int, ca: Authority, pair: Pair, *more: str) -> int:
    """The exit status of a DCMTK sender that presents a certificate."""
    secure = ["+tls", str(pair.key), str(pair.certificate), "+cf", str(ca.certificate)]
    command = [program, *secure, "-aet", "XRAY1", "-aec", "PLEURA", "127.0.0.1", str(port), *more]
    return subprocess.run(
        command,
        capture_output=True,
        timeout=60,
        env=os.environ | {"TCP_NODELAY": "1"},
        check=False,
    ).returncode


def archive(port: int, tls: dict[str, Any] | bool, **more: Any) -> Config:
    """Settings with one archive as the destination, for a sender in this process."""
    pacs = {"name": "pacs", "ae_title": "PLEURA", "host": "127.0.0.1", "port": port, "tls": tls}
    return Config.model_validate(
        {"ae_title": "XRAY1", "port": 11112, "destinations": [pacs]} | more
    )


def send(config: Config, *paths: Path) -> list[int]:
    """C-STORE over the same kind of link as a delivery. Returns the statuses."""
    (there,) = config.destinations
    assert isinstance(there, DicomDestination)
    objects = [describe(path) for path in paths]
    contexts = proposal([each.syntaxes for each in objects])
    with Link.open("XRAY1", remote_of(config, there), contexts) as link:
        return [link.store(each).status for each in objects]


def client_settings(ca: Authority, pair: Pair) -> dict[str, str]:
    return {**pair.settings(), "ca": str(ca.certificate)}


# -- receive


def test_dcmtk_echoes_and_stores_over_tls(
    start: Callable[..., Node], peer: Program, ca: Authority, xray: Pair, picture: Path
) -> None:
    node = start()
    assert dcmtk(peer("echoscu"), node.tls_port, ca, xray) == 0
    assert dcmtk(peer("storescu"), node.tls_port, ca, xray, str(picture)) == 0
    # TLS 1.2 with an AES-GCM suite of the non-downgrading profile.
    assert dcmtk(peer("storescu"), node.tls_port, ca, xray, "--profile-bcp195", str(picture)) == 0

    # The plain port still answers.
    assert node.config.port is not None
    plain = [peer("echoscu"), "-aec", "PLEURA", "127.0.0.1", str(node.config.port)]
    assert subprocess.run(plain, timeout=60, check=False).returncode == 0
    assert node.received() == 2


def test_without_a_plain_port_there_is_only_tls(
    start: Callable[..., Node], peer: Program, ca: Authority, xray: Pair, picture: Path
) -> None:
    node = start(port=None)
    assert dcmtk(peer("storescu"), node.tls_port, ca, xray, str(picture)) == 0
    assert node.received() == 1


def test_an_unverified_peer_is_refused_and_logged_once_a_minute(
    start: Callable[..., Node],
    ca: Authority,
    xray: Pair,
    untrusted: Pair,
    picture: Path,
    peer: Program,
    caplog: pytest.LogCaptureFixture,
) -> None:
    node = start()
    for pair in (untrusted, ca.issue_expired("expired")):
        assert dcmtk(peer("echoscu"), node.tls_port, ca, pair) != 0
    anonymous = [peer("echoscu"), "+tla", "+cf", str(ca.certificate), "-aec", "PLEURA"]
    for _ in range(2):
        command = [*anonymous, "127.0.0.1", str(node.tls_port)]
        assert subprocess.run(command, capture_output=True, timeout=60, check=False).returncode
    assert send(archive(node.tls_port, client_settings(ca, xray)), picture) == [0x0000]

    for words in ("is not trusted (", "has expired", "it gave no certificate"):
        assert caplog.text.count(words) == 1
    assert "connection from 127.0.0.1 ended: the TLS handshake failed" in caplog.text


def test_a_certificate_that_is_removed_from_the_list_is_refused_from_then_on(
    start: Callable[..., Node],
    ca: Authority,
    xray: Pair,
    untrusted: Pair,
    picture: Path,
    tmp_path: Path,
) -> None:
    listed = tmp_path / "peers.pem"
    listed.write_bytes(xray.certificate.read_bytes() + untrusted.certificate.read_bytes())
    node = start({"ca": str(listed)})
    theirs = archive(node.tls_port, client_settings(ca, untrusted))
    assert send(theirs, picture) == [0x0000]

    listed.write_bytes(xray.certificate.read_bytes())
    with pytest.raises(LinkDownError, match="refuses this node's certificate"):
        send(theirs, picture)
    assert send(archive(node.tls_port, client_settings(ca, xray)), picture) == [0x0000]


def resumed(
    context: ssl.SSLContext, port: int, session: ssl.SSLSession | None
) -> tuple[bytes, ssl.SSLSession | None, bool]:
    """The type of the answer to an association request, the session to resume next, and whether
    this one was resumed.
    """
    with (
        node_connection(port) as plain,
        context.wrap_socket(plain, server_hostname="localhost", session=session) as secure,
    ):
        secure.sendall(associate_rq(b"XRAY1"))
        return secure.recv(1), secure.session, bool(secure.session_reused)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_session_cannot_be_resumed_once_its_certificate_has_expired(
    start: Callable[..., Node],
    ca: Authority,
    xray: Pair,
    version: ssl.TLSVersion,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    node = start()
    context = ssl.create_default_context(cafile=ca.certificate)
    context.load_cert_chain(xray.certificate, xray.key)
    context.minimum_version = context.maximum_version = version
    answer, session, _ = resumed(context, node.tls_port, None)
    assert answer == ACCEPTED
    assert resumed(context, node.tls_port, session)[::2] == (ACCEPTED, True)

    in_a_week = SimpleNamespace(time=lambda: time.time() + 7 * 86400.0, monotonic=time.monotonic)
    with monkeypatch.context() as patched:
        patched.setattr("daemon.receive.waiting.time", in_a_week)
        with contextlib.suppress(OSError):
            assert resumed(context, node.tls_port, session)[0] == b""
    wait_until("the refusal is logged", lambda: "its certificate has expired" in caplog.text)

    # A peer that has renewed its certificate still offers the old session: it is not taken, and
    # the handshake is a whole one.
    assert resumed(context, node.tls_port, session)[::2] == (ACCEPTED, False)


def test_a_peer_that_is_tied_to_a_certificate_is_accepted_only_with_it(
    start: Callable[..., Node],
    ca: Authority,
    xray: Pair,
    picture: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    tied = {"ae_title": "XRAY1", "host": "127.0.0.1", "certificate": {"subject": "CN=XRAY1"}}
    node = start(peers=[tied])
    assert send(archive(node.tls_port, client_settings(ca, xray)), picture) == [0x0000]

    other = client_settings(ca, ca.issue("other", "/CN=other\\nFAKE/O=x"))
    with pytest.raises(LinkDownError, match="rejected"):
        send(archive(node.tls_port, other), picture)
    assert node.config.port is not None
    with pytest.raises(LinkDownError, match="rejected"):
        send(archive(node.config.port, False), picture)

    # The node writes the line after it has answered the peer.
    wait_until("both are logged", lambda: caplog.text.count("tie this AE") == 2)
    told = caplog.text
    assert "subject 'CN=XRAY1', and 'CN=other" in told
    assert "no certificate was found; let the sender use the TLS port" in told
    assert node.received() == 1


def test_plain_on_the_tls_port_and_tls_on_the_plain_port_say_what_to_do(
    start: Callable[..., Node],
    ca: Authority,
    xray: Pair,
    picture: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    node = start()
    assert node.config.port is not None
    for _ in range(3):
        with pytest.raises(LinkDownError, match="the peer aborted"):
            send(archive(node.tls_port, False), picture)
        with pytest.raises(LinkDownError, match="switch TLS on there, or give the port"):
            send(archive(node.config.port, client_settings(ca, xray)), picture)
    with node_connection(node.tls_port) as browser:
        browser.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert browser.recv(1) in (b"\x07", b"")

    assert caplog.text.count("an association request without TLS came instead of a TLS hello") == 1
    assert caplog.text.count("a TLS hello came") == 1
    assert f"or give it the TLS port {node.tls_port}" in caplog.text
    assert "an HTTP request came" in caplog.text


def node_connection(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), DEADLINE_S)


def client_hello() -> bytes:
    """The first TLS flight of a client."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    outgoing = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing).do_handshake()
    return outgoing.read()


def test_500_half_handshakes_cost_no_thread_and_lock_nobody_out(
    start: Callable[..., Node], ca: Authority, xray: Pair, picture: Path
) -> None:
    node = start(limits=Limits(connections=64))
    config = archive(node.tls_port, client_settings(ca, xray))
    hello = client_hello()
    threads = threading.active_count()
    with contextlib.ExitStack() as crowd:
        for number in range(500):
            each = crowd.enter_context(node_connection(node.tls_port))
            with contextlib.suppress(OSError):
                each.sendall(hello if number % 2 else hello[:40])
        assert send(config, picture) == [0x0000]
        assert node.receiver.waiting_connections <= 64
        assert threading.active_count() <= threads + 1
        assert send(config, picture) == [0x0000]


# SO_LINGER on, for no time: close() resets the connection.
_RESET = struct.pack("ii", 1, 0)


@pytest.mark.parametrize("how", ["end", "reset"])
def test_a_peer_that_breaks_off_its_handshake_is_logged(
    start: Callable[..., Node], how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Some senders close without an alert, for example when they do not trust the node."""
    node = start()
    with node_connection(node.tls_port) as half:
        half.sendall(client_hello())
        assert half.recv(1)
        if how == "reset":
            half.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)

    line = "the TLS handshake failed: it closed the connection during the handshake"
    wait_until("the line is there", lambda: line in caplog.text)
    assert "trust the issuer of tls.certificate" in caplog.text


def test_a_peer_that_closes_before_or_after_its_handshake_is_not_logged(
    start: Callable[..., Node], ca: Authority, xray: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    """Load balancers probe a port so."""
    node = start()
    context = ssl.create_default_context(cafile=ca.certificate)
    context.load_cert_chain(xray.certificate, xray.key)
    node_connection(node.tls_port).close()
    with node_connection(node.tls_port) as plain:
        context.wrap_socket(plain, server_hostname="localhost").close()

    wait_until("no connection waits", lambda: not node.receiver.waiting_connections)
    assert "ended" not in caplog.text


def test_a_half_handshake_and_a_silent_peer_after_it_end_at_the_deadline(
    start: Callable[..., Node], ca: Authority, xray: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    node = start(limits=Limits(request_s=0.2))
    context = ssl.create_default_context(cafile=ca.certificate)
    context.load_cert_chain(xray.certificate, xray.key)
    with node_connection(node.tls_port) as half, node_connection(node.tls_port) as plain:
        half.sendall(client_hello())
        with context.wrap_socket(plain, server_hostname="localhost") as silent:
            while half.recv(4096):
                pass
            assert silent.recv(1) == b""
    wait_until("no connection waits", lambda: not node.receiver.waiting_connections)
    for what in ("TLS handshake", "association request"):
        assert f"no whole {what} in 0.2 s (limits.request_s); look for a stall" in caplog.text


@pytest.fixture
def slow(node_pair: Pair) -> Iterator[SlowHandshakes]:
    """A plain port, and a TLS port whose handshakes block until the test sets `go_on`."""
    listener = SlowHandshakes(node_pair)
    yield listener
    listener.go_on.set()
    if listener.is_alive():
        listener.stop()


class SlowHandshakes(Listener):
    """A listener that keeps in `served` the connections that a node would serve."""

    def __init__(self, pair: Pair) -> None:
        self.begun = threading.Semaphore(0)
        self.go_on = threading.Event()
        self.served: list[Served] = []
        context = node_context(
            ServerTls.model_validate({**pair.settings(), "client": "none", "port": 1})
        )

        def compute_long(*_: object) -> None:
            self.begun.release()
            self.go_on.wait()

        # OpenSSL calls it inside each handshake, after the client's hello.
        context.current().sni_callback = compute_long

        self.plain_port = unused_port()
        self.tls_port = unused_port()
        super().__init__(
            [Port("127.0.0.1", self.plain_port), Port("127.0.0.1", self.tls_port, context)],
            Limits(request_s=0.2, connections=64),
            lambda connection, _: self.served.append(connection),
        )

    def say_hello(self, crowd: contextlib.ExitStack) -> socket.socket:
        """Connect a peer and send its first flight."""
        peer = crowd.enter_context(node_connection(self.tls_port))
        peer.sendall(client_hello())
        return peer


def test_a_slow_handshake_delays_no_other_connection(slow: SlowHandshakes) -> None:
    slow.start()
    with contextlib.ExitStack() as crowd:
        slow.say_hello(crowd)
        assert slow.begun.acquire(timeout=DEADLINE_S)

        plain = crowd.enter_context(node_connection(slow.plain_port))
        plain.sendall(associate_rq(b"XRAY1", SC))
        wait_until("the plain peer is served", lambda: len(slow.served) == 1)
        slow.served[0].close()


def test_a_connection_in_or_before_its_handshake_ends_at_its_deadline(
    slow: SlowHandshakes,
) -> None:
    slow.start()
    with contextlib.ExitStack() as crowd:
        peers = [slow.say_hello(crowd) for _ in range(20)]
        assert slow.begun.acquire(timeout=DEADLINE_S)
        wait_until("no connection waits", lambda: not slow.waiting)

        slow.go_on.set()
        for peer in peers:
            with contextlib.suppress(ConnectionResetError):
                while peer.recv(4096):
                    pass
    assert not slow.served


def test_a_stop_ends_connections_in_or_before_their_handshake(slow: SlowHandshakes) -> None:
    slow.start()
    with contextlib.ExitStack() as crowd:
        peers = [slow.say_hello(crowd) for _ in range(20)]
        assert slow.begun.acquire(timeout=DEADLINE_S)

        stopping = threading.Thread(target=slow.stop)
        stopping.start()
        wait_until("the listener has ended", lambda: not slow.is_alive())
        slow.go_on.set()
        stopping.join(DEADLINE_S)
        assert not stopping.is_alive()
        for peer in peers:
            with contextlib.suppress(ConnectionResetError):
                while peer.recv(4096):
                    pass
        assert not slow.waiting


def test_a_request_after_the_handshake_may_come_in_pieces(
    start: Callable[..., Node], ca: Authority, xray: Pair
) -> None:
    node = start()
    context = ssl.create_default_context(cafile=ca.certificate)
    context.load_cert_chain(xray.certificate, xray.key)
    request = associate_rq(b"XRAY1", SC)
    plain = node_connection(node.tls_port)
    with context.wrap_socket(plain, server_hostname="localhost") as peer:
        for begin in range(0, len(request), 50):
            peer.sendall(request[begin : begin + 50])
        assert peer.recv(1) == b"\x02"


def test_renewal_under_load_drops_nothing(
    start: Callable[..., Node],
    ca: Authority,
    node_pair: Pair,
    xray: Pair,
    picture: Path,
    tmp_path: Path,
) -> None:
    mine = Pair(tmp_path / "node.pem", tmp_path / "node.key")

    def put(pair: Pair) -> None:
        for source, target in ((pair.key, mine.key), (pair.certificate, mine.certificate)):
            part = target.with_suffix(".part")
            part.write_bytes(source.read_bytes())
            part.chmod(0o600)
            part.rename(target)

    put(node_pair)
    node = start(mine.settings())
    config = archive(node.tls_port, client_settings(ca, xray))
    statuses: list[int] = []
    stop = threading.Event()

    def load() -> None:
        while not stop.is_set():
            statuses.extend(send(config, picture, picture))

    (there,) = config.destinations
    assert isinstance(there, DicomDestination)
    objects = [describe(picture)]

    with Link.open("XRAY1", remote_of(config, there), proposal([objects[0].syntaxes])) as open_link:
        senders = [threading.Thread(target=load) for _ in range(2)]
        for each in senders:
            each.start()
        for pair in (ca.issue("second"), node_pair, ca.issue("third"), ca.issue("last")):
            put(pair)
            seen = len(statuses)
            wait_until("associations go on", lambda seen=seen: len(statuses) >= seen + 4)
        # An association that was open before the first renewal still works.
        assert open_link.store(objects[0]).status == 0x0000
        stop.set()
        for each in senders:
            each.join()

    assert statuses

    assert set(statuses) == {0x0000}
    context = ssl.create_default_context(cafile=ca.certificate)
    context.load_cert_chain(xray.certificate, xray.key)
    with (
        node_connection(node.tls_port) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as peer,
    ):
        assert peer.getpeercert()["subject"] == ((("commonName", "last"),),)


def test_objects_larger_than_any_buffer_arrive_byte_for_byte(
    start: Callable[..., Node], ca: Authority, xray: Pair, tmp_path: Path
) -> None:
    node = start()
    dataset = image("1.2.3.9", SC, 0)
    dataset.PixelData = os.urandom(5_000_001) + b"\0"
    path = tmp_path / "large.dcm"
    dcmwrite(path, dataset, enforce_file_format=True)
    assert send(archive(node.tls_port, client_settings(ca, xray)), path) == [0x0000]
    (kept,) = [each for each in node.spool.folder.glob("??/*") if each.is_file()]
    assert kept.read_bytes()[-5_000_002:] == path.read_bytes()[-5_000_002:]


class InPieces(PlainConnection):
    """A connection whose bytes arrive in given pieces. `calls` lists acknowledgements and waits."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.pieces = pieces
        self.calls: list[str] = []

    def acknowledge(self) -> None:
        self.calls.append("acknowledge")

    def recv_some(self, buffer: memoryview, /) -> int:
        self.calls.append("wait")
        piece = self.pieces.pop(0)
        buffer[: len(piece)] = piece
        return len(piece)


def test_received_bytes_are_acknowledged_before_the_next_wait(
    ca: Authority, node_pair: Pair
) -> None:
    """A sender with Nagle's algorithm holds back the end of an object until they are."""
    tls = ServerTls.model_validate({**node_pair.settings(), "client": "none", "port": 1})
    client = ssl.create_default_context(cafile=ca.certificate)
    upwards = ssl.MemoryBIO()
    downwards = ssl.MemoryBIO()
    node = node_context(tls).current().wrap_bio(upwards, downwards, server_side=True)
    peer = client.wrap_bio(downwards, upwards, server_hostname="localhost")
    for end in (peer, node, peer, node):
        with contextlib.suppress(ssl.SSLWantReadError):
            end.do_handshake()
    downwards.read()

    pieces = []
    for part in (b"command", b"object"):
        peer.write(part)
        pieces.append(upwards.read())

    plain = InPieces(pieces)
    received = bytearray(len(b"command" + b"object"))
    connection = TlsConnection(plain, node, (upwards, downwards), b"")
    assert connection.recv_into(memoryview(received)) == len(received)
    assert received == b"commandobject"
    assert plain.calls == ["acknowledge", "wait"] * 2

    peer.write(b"header")
    plain.pieces.append(upwards.read())
    more = bytearray(1024)
    assert connection.recv_some(memoryview(more)) == len(b"header")
    assert more.startswith(b"header")
    assert plain.calls == ["acknowledge", "wait"] * 3


# -- deliver


@contextlib.contextmanager
def storescp(program: str, folder: Path, *options: str) -> Iterator[int]:
    """Run DCMTK's storescp; yields its port."""
    folder.mkdir()
    port = unused_port()
    command = [program, *options, "-od", str(folder), "-aet", "PLEURA", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            wait_until("storescp listens", lambda: _listens(port))
            yield port
        finally:
            process.terminate()


def _listens(port: int) -> bool:
    try:
        node_connection(port).close()
    except OSError:
        return False
    return True


def test_results_go_to_storescp_over_tls_only_if_both_certificates_are_right(
    peer: Program, ca: Authority, node_pair: Pair, xray: Pair, untrusted: Pair,
    picture: Path, tmp_path: Path,
) -> None:  # fmt: skip
    theirs = ["+tls", str(node_pair.key), str(node_pair.certificate), "+cf", str(ca.certificate)]
    program = peer("storescp")
    ours = client_settings(ca, xray)
    pinned = {**xray.settings(), "pinned_certificate": str(node_pair.certificate)}
    other = {**xray.settings(), "pinned_certificate": str(xray.certificate)}
    alone = {"certificate": None, "key": None, "ca": str(ca.certificate)}

    with storescp(program, tmp_path / "scp", *theirs) as port:
        for tls in (ours, ours | {"name": "localhost"}, ours | {"minimum_version": "1.3"}, pinned):
            assert send(archive(port, tls), picture) == [0x0000]
        for tls, why in (
            (ours | {"name": "pacs.example"}, "is for another name"),
            (other, "its certificate is not trusted"),
            (client_settings(ca, untrusted), "refuses this node's certificate|trust the issuer of"),
            (alone, "asks for a certificate of this node|refuses|trust the issuer of"),
            (False, "no answer|the peer closed|aborted|TLS"),
        ):
            with pytest.raises(LinkDownError, match=why):
                send(archive(port, tls), picture)

    with storescp(program, tmp_path / "plain") as port, pytest.raises(LinkDownError, match="TLS"):
        send(archive(port, ours), picture)
    assert len([*(tmp_path / "scp").iterdir()]) == 1


def test_orthanc_stores_commits_and_sends_over_tls(
    peer: Program, ca: Authority, node_pair: Pair, tmp_path: Path, picture: Path
) -> None:
    """Each side verifies the other in both directions. The commitment report comes over TLS too."""
    node_port = unused_port()
    theirs = ca.issue("orthanc")
    with Orthanc(
        peer("Orthanc"),
        tmp_path / "orthanc",
        (unused_port(), unused_port()),
        DicomTlsEnabled=True,
        DicomTlsCertificate=str(theirs.certificate),
        DicomTlsPrivateKey=str(theirs.key),
        DicomTlsTrustedCertificates=str(ca.certificate),
        DicomTlsRemoteCertificateRequired=True,
        DicomModalities={
            "pleura": {
                "AET": "PLEURA",
                "Host": "127.0.0.1",
                "Port": node_port,
                "UseDicomTls": True,
            }
        },
    ) as orthanc:
        pacs = orthanc.destination(tls=True, commitment=True, results=["SC"])
        tied = {"ae_title": "ORTHANC", "certificate": {"subject": "CN=orthanc"}}
        tls = {**node_pair.settings(), "ca": str(ca.certificate), "port": node_port}
        node = Node(tmp_path / "node", tls, port=None, destinations=[pacs], peers=[tied])
        with node:
            _owe(node, picture)
            deliverer = Deliverer(node.config, node.ledger, node.spool)
            deliverer.start()
            try:
                wait_until(
                    "Orthanc has committed",
                    lambda: node.ledger.inspect.counts()["deliveries"]["committed"] == 1,
                )
            finally:
                deliverer.stop()

            (held,) = orthanc.instances().values()
            assert orthanc.send(held["orthanc"])["FailedInstancesCount"] == 0
            assert node.received() == 1


def _owe(node: Node, picture: Path) -> None:
    """Record one result, whose file is `picture`, as owed to every destination."""
    size = picture.stat().st_size
    file = node.spool.begin()
    file.write(picture.read_bytes())
    file.finish()
    node.spool.sync([file.name])
    node.ledger.receive([Arrival("source", SC, "1.2.3", "", "", "dimse", 1, 1)])
    (job,) = node.ledger.claim_images("test", 1)
    made = StoredResult("SC", file.name, SC, "1.2.3.4.5", str(ExplicitVRLittleEndian), size)
    node.ledger.complete(job, Completion("analysed", "d", results=(made,)), node.config.owed())


def test_a_wrong_key_file_fails_the_check_and_does_not_disturb_status(
    ca: Authority, node_pair: Pair, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from daemon.cli import main

    path = tmp_path / "pleura.yaml"
    tls = f"{{certificate: {node_pair.certificate}, key: {tmp_path}/absent.key, client: none}}"
    path.write_text(
        f"tls: {tls}\nspool: {tmp_path}/spool\nledger: sqlite:///{tmp_path}/ledger.db\n"
    )
    assert main(["config", "check", "-c", str(path)]) == 2
    assert "tls.key: found" in capsys.readouterr().err
    assert main(["status", "-c", str(path)]) in (1, 2)
    assert "tls.key" not in capsys.readouterr().err
