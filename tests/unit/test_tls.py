"""TLS in memory and over socket pairs: contexts from files, identities, renewal, and error
messages.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from daemon.alerts.watch import Watch
from daemon.config import (
    CertificateIdentity,
    Config,
    ConfigError,
    DicomDestination,
    ServerTls,
    load,
)
from daemon.deliver.deliverer import Deliverer
from daemon.ledger import Ledger
from daemon.live import RefusedError
from daemon.spool import Spool
from daemon.tls import (
    Credentials,
    PeerCertificate,
    Renewed,
    TlsClient,
    TlsError,
    client_context,
    destination_client,
    faults,
    in_words,
    is_wanted,
    node_context,
)
from tools.peers.certificates import Authority, Pair

pytestmark = pytest.mark.xdist_group("certificates")


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def node(ca: Authority) -> Pair:
    return ca.issue("node", "/CN=node/O=Hospital")


@pytest.fixture(scope="module")
def xray(ca: Authority) -> Pair:
    return ca.issue("xray1", "/CN=XRAY1/O=Some, Hospital", "subjectAltName=DNS:xray1.example")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Authority(tmp_path_factory.mktemp("elsewhere"), "Another CA").issue("stranger")


def server(authority: Authority, pair: Pair, **changes: object) -> ssl.SSLContext:
    tls = ServerTls.model_validate({**pair.settings(), "ca": str(authority.certificate), **changes})
    return node_context(tls).current()


def client(ca: Authority, pair: Pair | None, minimum: str = "1.2") -> ssl.SSLContext:
    own = Credentials("x", pair.certificate, pair.key) if pair else None
    return client_context("x", own, ca.certificate, True, "non-downgrading", minimum)


def handshake(
    server: ssl.SSLContext, client: ssl.SSLContext, name: str | None = None
) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """Both ends after a handshake in memory. Raises the SSLError of the end that fails first."""
    upwards, downwards = ssl.MemoryBIO(), ssl.MemoryBIO()
    there = server.wrap_bio(upwards, downwards, server_side=True)
    here = client.wrap_bio(downwards, upwards, server_hostname=name)
    for end in (here, there, here, there, here):
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            continue
    return here, there


def only_fault(config: Config) -> str:
    """The error message of the only unusable file of the settings."""
    ((_, words),) = faults(config)
    return words


def test_both_ends_verify_each_other_in_tls_1_2_and_1_3(
    ca: Authority, node: Pair, xray: Pair
) -> None:
    for minimum, version in (("1.2", "TLSv1.3"), ("1.3", "TLSv1.3")):
        here, there = handshake(server(ca, node), client(ca, xray, minimum))
        assert here.version() == there.version() == version
        assert str(PeerCertificate.of(here)) == "CN=node, O=Hospital"
        assert str(PeerCertificate.of(there)) == "CN=XRAY1, O=Some\\, Hospital"

    old = client(ca, xray)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    here, _ = handshake(server(ca, node), old)
    assert here.version() == "TLSv1.2"
    with pytest.raises(ssl.SSLError):
        handshake(server(ca, node, minimum_version="1.3"), old)


def test_a_profile_selects_the_cipher_suites_of_tls_1_2(
    ca: Authority, node: Pair, xray: Pair
) -> None:
    cbc = client(ca, xray)
    cbc.maximum_version = ssl.TLSVersion.TLSv1_2
    cbc.set_ciphers("ECDHE-ECDSA-AES128-SHA256")
    here, _ = handshake(server(ca, node, profile="bcp195"), cbc)
    assert here.cipher() == ("ECDHE-ECDSA-AES128-SHA256", "TLSv1.2", 128)
    with pytest.raises(ssl.SSLError) as refused:
        handshake(server(ca, node, profile="non-downgrading"), cbc)
    assert "no common TLS version or cipher suite" in in_words(refused.value, "tls", "tls.ca")

    for profile in ("bcp195", "non-downgrading"):
        names = [str(cipher["name"]) for cipher in server(ca, node, profile=profile).get_ciphers()]
        suites = [name for name in names if not name.startswith("TLS_")]
        assert suites
        assert all(name.startswith(("ECDHE-", "DHE-")) for name in suites)
        assert not [name for name in names if "NULL" in name or "RC4" in name or "3DES" in name]


@pytest.mark.parametrize(
    ("who", "words"),
    [
        ("nobody", "it gave no certificate"),
        ("expired", "its certificate has expired"),
        ("stranger", "its certificate is not trusted"),
    ],
)
def test_a_client_that_cannot_be_verified_is_rejected_with_the_reason(
    ca: Authority, node: Pair, stranger: Pair, who: str, words: str
) -> None:
    expired = ca.issue_expired("expired") if who == "expired" else None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(ca.certificate)
    if pair := {"nobody": None, "expired": expired, "stranger": stranger}[who]:
        context.load_cert_chain(pair.certificate, pair.key)
    with pytest.raises(ssl.SSLError) as refused:
        handshake(server(ca, node), context)
    message = in_words(refused.value, "tls", "tls.ca")
    assert message.startswith(words)
    assert ("tls.ca" in message) == (who == "stranger")


def test_the_settings_decide_whether_a_client_needs_a_certificate(
    ca: Authority, node: Pair, stranger: Pair
) -> None:
    for how in ("optional", "none"):
        _, there = handshake(server(ca, node, client=how), client(ca, None))
        assert PeerCertificate.of(there) is None
    foreign = client(ca, None)
    foreign.load_cert_chain(stranger.certificate, stranger.key)
    with pytest.raises(ssl.SSLError):
        handshake(server(ca, node, client="optional"), foreign)


def test_a_listed_certificate_is_trusted_until_it_is_removed(
    ca: Authority, node: Pair, xray: Pair, stranger: Pair, tmp_path: Path
) -> None:
    listed = tmp_path / "peers.pem"
    listed.write_bytes(xray.certificate.read_bytes() + stranger.certificate.read_bytes())
    tls = ServerTls.model_validate({**node.settings(), "ca": str(listed)})
    renewed = node_context(tls)
    for pair in (xray, stranger):
        handshake(renewed.current(), client(ca, pair))
    listed.write_bytes(xray.certificate.read_bytes())
    handshake(renewed.current(), client(ca, xray))
    with pytest.raises(ssl.SSLError) as refused:
        handshake(renewed.current(), client(ca, stranger))
    assert "its certificate is not trusted" in in_words(refused.value, "tls", "tls.ca")


def test_a_renewed_certificate_is_used_for_the_next_connection_unless_broken(
    ca: Authority, node: Pair, xray: Pair, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mine = Pair(tmp_path / "mine.pem", tmp_path / "mine.key")

    def put(pair: Pair, broken: bool = False) -> None:
        for source, target in ((pair.certificate, mine.certificate), (pair.key, mine.key)):
            part = target.with_suffix(".part")
            part.write_bytes(source.read_bytes()[: 40 if broken else None])
            part.chmod(0o600)
            part.rename(target)

    def presented() -> str:
        here, _ = handshake(renewed.current(), client(ca, xray))
        return str(PeerCertificate.of(here))

    put(node)
    tls = ServerTls.model_validate({**mine.settings(), "ca": str(ca.certificate)})
    renewed = node_context(tls)
    before = renewed.current()
    assert renewed.current() is before

    put(ca.issue("second"))
    assert presented() == "CN=second"
    put(node, broken=True)
    with caplog.at_level(logging.INFO, "pleura.tls"):
        assert [presented() for _ in range(3)] == ["CN=second"] * 3
        assert caplog.text.count("the previous certificate stays in use") == 1
        put(ca.issue_expired("late"))
        assert presented() == "CN=second"
        assert "expired" in caplog.text
        put(ca.issue("third"))
        assert presented() == "CN=third"
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 2
    assert "renewed files in use" in caplog.text


def put(pair: Pair, place: Pair, key_mode: int = 0o600) -> None:
    """Install a pair as an administrator does: write it beside, then rename it into place."""
    for source, target, mode in (
        (pair.certificate, place.certificate, 0o644),
        (pair.key, place.key, key_mode),
    ):
        part = target.with_suffix(".part")
        part.write_bytes(source.read_bytes())
        part.chmod(mode)
        part.rename(target)


def test_a_renewed_key_is_used_once_its_mode_is_corrected_as_the_log_advises(
    ca: Authority, node: Pair, xray: Pair, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mine = Pair(tmp_path / "mine.pem", tmp_path / "mine.key")
    put(node, mine)
    tls = ServerTls.model_validate({**mine.settings(), "ca": str(ca.certificate)})
    renewed = node_context(tls)

    put(xray, mine, key_mode=0o644)
    before = renewed.current()
    assert f"chmod 0640 {mine.key}" in caplog.text
    mine.key.chmod(0o640)
    assert renewed.current() is not before
    here, _ = handshake(renewed.current(), client(ca, xray))
    assert str(PeerCertificate.of(here)).startswith("CN=XRAY1")


def test_unusable_files_are_retried_even_if_they_look_unchanged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As with a folder without access, or a file that disappears between two looks."""
    file = tmp_path / "file"
    file.write_text("1")
    faults: list[Exception] = []

    def build(_: Credentials | None) -> ssl.SSLContext:
        if faults:
            raise faults[0]
        return ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)

    renewed = Renewed("x", build, [file], retry_s=0.0)
    first = renewed.current()
    for fault in (TlsError("broken"), FileNotFoundError("gone")):
        faults[:] = [fault]
        file.write_text(file.read_text() + "1")
        assert [renewed.current() for _ in range(3)] == [first] * 3
        assert caplog.text.count(f"cannot be used: {fault}") == 1
        faults.clear()
        second = renewed.current()
        assert second is not first
        assert renewed.current() is second
        first = second


def test_an_expired_certificate_is_presented_also_after_a_restart(
    ca: Authority, xray: Pair, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mine = Pair(tmp_path / "mine.pem", tmp_path / "mine.key")
    put(ca.issue_expired("late"), mine)
    tls = ServerTls.model_validate({**mine.settings(), "ca": str(ca.certificate)})
    renewed = node_context(tls)
    assert "which expired on" in caplog.text
    with pytest.raises(ssl.SSLError) as refused:
        handshake(renewed.current(), client(ca, xray))
    assert "its certificate has expired" in in_words(refused.value, "x", "x.ca")

    put(ca.issue("fresh"), mine)
    handshake(renewed.current(), client(ca, xray))


@pytest.mark.parametrize("fault", ["expired", "another key", "mode", "an expired pair"])
def test_a_peer_removed_from_the_list_is_rejected_while_our_own_pair_is_unusable(
    ca: Authority, node: Pair, xray: Pair, stranger: Pair, tmp_path: Path, fault: str
) -> None:
    mine = Pair(tmp_path / "mine.pem", tmp_path / "mine.key")
    listed = tmp_path / "peers.pem"
    put(ca.issue_expired("late") if fault == "expired" else node, mine)
    listed.write_bytes(xray.certificate.read_bytes() + stranger.certificate.read_bytes())
    renewed = node_context(ServerTls.model_validate({**mine.settings(), "ca": str(listed)}))
    before = renewed.current()

    if fault == "another key":
        mine.key.write_bytes(xray.key.read_bytes())
    elif fault == "mode":
        mine.key.chmod(0o644)
    elif fault == "an expired pair":
        put(ca.issue_expired("late"), mine)
    listed.write_bytes(xray.certificate.read_bytes())

    after = renewed.current()
    assert before.cert_store_stats()["x509"] == 2
    assert after.cert_store_stats()["x509"] == 1
    # The presented certificate stays the same.
    (here, _), (there, _) = (handshake(context, client_of(xray)) for context in (before, after))
    assert here.getpeercert(binary_form=True) == there.getpeercert(binary_form=True)
    with pytest.raises(ssl.SSLError):
        handshake(after, client_of(stranger))


def test_an_unusable_list_is_reported_together_with_an_unusable_pair(
    ca: Authority, node: Pair, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mine = Pair(tmp_path / "mine.pem", tmp_path / "mine.key")
    listed = tmp_path / "peers.pem"
    put(node, mine)
    listed.write_bytes(ca.certificate.read_bytes())
    renewed = node_context(ServerTls.model_validate({**mine.settings(), "ca": str(listed)}))
    before = renewed.current()

    mine.key.chmod(0o644)
    listed.unlink()
    assert renewed.current() is before
    for words in (f"chmod 0640 {mine.key}; tls.ca: found {listed}", "peers are trusted as before"):
        assert words in caplog.text


def client_of(pair: Pair) -> ssl.SSLContext:
    """A client that accepts any server."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.load_cert_chain(pair.certificate, pair.key)
    return context


def test_an_empty_list_trusts_nobody(ca: Authority, node: Pair, xray: Pair, tmp_path: Path) -> None:
    listed = tmp_path / "peers.pem"
    listed.write_bytes(xray.certificate.read_bytes())
    tls = ServerTls.model_validate({**node.settings(), "ca": str(listed)})
    renewed = node_context(tls)
    handshake(renewed.current(), client(ca, xray))

    listed.write_text("# nobody\n")
    # This also holds at the next start.
    for context in (renewed.current(), node_context(tls).current()):
        with pytest.raises(ssl.SSLError) as refused:
            handshake(context, client(ca, xray))
        assert "its certificate is not trusted" in in_words(refused.value, "tls", "tls.ca")
    fault = only_fault(Config.model_validate({"tls": tls.model_dump(mode="json")}))
    assert fault.startswith(f"tls.ca: found {listed}, which holds no certificate in PEM")


@pytest.mark.parametrize("broken", ["cut off", "not base64", "no certificate"])
def test_a_broken_list_entry_neither_keeps_a_removed_peer_nor_rejects_a_listed_peer(
    ca: Authority, node: Pair, xray: Pair, stranger: Pair, tmp_path: Path, broken: str
) -> None:
    whole = node.certificate.read_text()
    entry = {
        "cut off": whole[:200] + "\n",
        "not base64": whole.replace("MII", "!!!"),
        "no certificate": whole[:28] + "AAAA\n" + whole[whole.index("-----END") :],
    }[broken]
    listed = tmp_path / "peers.pem"
    listed.write_bytes(stranger.certificate.read_bytes() + xray.certificate.read_bytes())
    tls = ServerTls.model_validate({**node.settings(), "ca": str(listed)})
    renewed = node_context(tls)
    handshake(renewed.current(), client(ca, stranger))

    listed.write_text(entry + xray.certificate.read_text())
    handshake(renewed.current(), client(ca, xray))
    with pytest.raises(ssl.SSLError):
        handshake(renewed.current(), client(ca, stranger))
    fault = only_fault(Config.model_validate({"tls": tls.model_dump(mode="json")}))
    assert "in which 1 certificate(s) are broken; the others are trusted" in fault


@pytest.mark.parametrize("fault", ["absent", "expired", "no list"])
def test_unusable_files_of_one_destination_affect_only_that_destination(
    ca: Authority, xray: Pair, tmp_path: Path, fault: str
) -> None:
    """After a reboot, one archive's certificate must not stop the role and with it `pleura serve`."""
    mine = Pair(tmp_path / "mine.pem", tmp_path / "mine.key")
    trusted = tmp_path / "ca.pem"
    trusted.write_bytes(b"" if fault == "no list" else ca.certificate.read_bytes())
    if fault != "absent":
        put(ca.issue_expired("late") if fault == "expired" else xray, mine)
    pacs = {"name": "pacs", "ae_title": "PACS", "host": "127.0.0.1", "port": 104}
    audit = {"repository": "tls://127.0.0.1:6514", "ca": str(trusted), **mine.settings()}
    config = Config.model_validate(
        {
            "destinations": [pacs | {"tls": {**mine.settings(), "ca": str(trusted)}}],
            "audit": audit,
            "spool": str(tmp_path / "spool"),
        }
    )
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db")
    deliverer = Deliverer(config, ledger, Spool(config.spool))

    # The watch reports each fault, and a reload with such a destination is refused.
    Watch(config, ledger).look()
    key = "ca" if fault == "no list" else "certificate"
    assert {f"destinations[pacs].tls.{key}", f"audit.{key}"} <= {
        row["subject"] for row in ledger.alarms.lasting()
    }
    renamed = config.model_dump(mode="json")
    renamed["destinations"][0]["name"] = "other"
    with pytest.raises(RefusedError, match=r"destinations\[other\].tls"):
        deliverer.check(Config.model_validate(renamed))
    ledger.close()


@pytest.mark.parametrize("archive", ["closes", "is silent"])
def test_an_archive_that_does_not_speak_tls_is_told_with_advice(
    ca: Authority, node: Pair, archive: str
) -> None:
    """An archive without TLS resets the connection, or waits for the rest of a PDU."""
    secure = inheriting(ca, node)
    near, far = socket.socketpair()
    near.settimeout(0.1)
    if archive == "closes":
        far.close()
    with far, pytest.raises(OSError, match="does it speak TLS at this port") as failed:
        secure.wrap(near, "127.0.0.1")
    assert secure.in_words(failed.value) == str(failed.value)


def test_an_inherited_file_is_named_by_the_key_that_holds_it(
    ca: Authority, node: Pair, stranger: Pair
) -> None:
    """`tls: true` takes certificate and list from the node's own settings."""
    secure = inheriting(ca, node)
    near, far = socket.socketpair()
    archive = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    archive.load_cert_chain(stranger.certificate, stranger.key)
    thread = threading.Thread(target=lambda: refused_by(archive, far))
    thread.start()
    with pytest.raises(ssl.SSLError) as refused:
        secure.wrap(near, "127.0.0.1")
    thread.join()
    assert secure.in_words(refused.value).endswith("add it or its issuer to tls.ca")

    alert = ssl.SSLError()
    alert.reason = "TLSV1_ALERT_UNKNOWN_CA"
    assert "trust the issuer of tls.certificate" in secure.in_words(alert)


def inheriting(ca: Authority, node: Pair) -> TlsClient:
    """TLS toward an archive whose settings say only `tls: true`."""
    ours = {**node.settings(), "ca": str(ca.certificate)}
    pacs = {"name": "pacs", "ae_title": "PACS", "host": "127.0.0.1", "port": 104, "tls": True}
    config = Config.model_validate({"tls": ours, "destinations": [pacs]})
    (there,) = config.destinations
    assert isinstance(there, DicomDestination)
    secure = destination_client(config, there)
    assert secure is not None
    return secure


def refused_by(context: ssl.SSLContext, connection: socket.socket) -> None:
    """Serve a handshake that the other side refuses."""
    with connection, contextlib.suppress(OSError):
        context.wrap_socket(connection, server_side=True)


def test_a_certificate_for_another_use_is_refused_with_the_use(ca: Authority, node: Pair) -> None:
    """Web servers' certificates often allow servers only, and some senders present one."""
    pair = ca.issue("web", extensions=("extendedKeyUsage=serverAuth",))
    with pytest.raises(ssl.SSLError) as refused:
        handshake(server(ca, node), client(ca, pair))
    message = in_words(refused.value, "tls", "tls.ca")
    assert "not for this use" in message
    assert "serverAuth and clientAuth" in message


def test_a_destination_is_reachable_once_its_files_exist(
    ca: Authority, node: Pair, xray: Pair, tmp_path: Path
) -> None:
    mine = Pair(tmp_path / "mine.pem", tmp_path / "mine.key")
    theirs = {**mine.settings(), "ca": str(ca.certificate)}
    pacs = {"name": "pacs", "ae_title": "PACS", "host": "127.0.0.1", "port": 104, "tls": theirs}
    config = Config.model_validate({"destinations": [pacs]})
    (there,) = config.destinations
    assert isinstance(there, DicomDestination)
    secure = destination_client(config, there)
    assert secure is not None

    near, far = socket.socketpair()
    with far, pytest.raises(OSError, match=r"destinations\[pacs\]\.tls\.certificate: found"):
        secure.wrap(near, "127.0.0.1")

    put(xray, mine)
    near, far = socket.socketpair()
    archive = server(ca, node)
    thread = threading.Thread(target=lambda: archive.wrap_socket(far, server_side=True).close())
    thread.start()
    with secure.wrap(near, "127.0.0.1") as secured:
        assert secured.version() == "TLSv1.3"
    thread.join()


def test_a_peer_is_bound_to_the_identity_in_its_certificate(
    ca: Authority, node: Pair, xray: Pair
) -> None:
    _, there = handshake(server(ca, node), client(ca, xray))
    found = PeerCertificate.of(there)
    assert found is not None
    printed = subprocess.run(
        ["openssl", "x509", "-in", str(xray.certificate), "-noout", "-fingerprint", "-sha256"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    fingerprint = printed.partition("=")[2]

    def tied(**keys: str) -> bool:
        return is_wanted(CertificateIdentity(**keys), found)

    assert tied(subject="CN=XRAY1")
    assert tied(subject="cn=XRAY1 , O=Some\\, Hospital")
    assert not tied(subject="CN=XRAY2")
    assert not tied(subject="CN=XRAY1, O=Other")
    assert not tied(subject="CN=xray1")
    assert tied(san="XRAY1.example")
    assert not tied(san="xray1")
    assert tied(fingerprint=fingerprint)
    assert tied(fingerprint=fingerprint.replace(":", "").lower())
    assert not tied(fingerprint="00" * 32)
    assert not tied(subject="CN=XRAY1", san="elsewhere.example")
    assert not is_wanted(CertificateIdentity(subject="CN=XRAY1"), None)


@pytest.mark.parametrize(
    "keys",
    [{}, {"subject": "XRAY1"}, {"subject": "CN=A,B"}, {"fingerprint": "abc"}, {"issuer": "CN=A"}],
)
def test_an_invalid_identity_is_refused(keys: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        CertificateIdentity.model_validate(keys)


def test_a_subject_in_the_log_is_escaped_and_bounded() -> None:
    found = PeerCertificate((("CN", "a\nFAKE LINE\x1b[31m"), ("O", "é" * 500)))
    assert str(found).isprintable()
    assert str(found).isascii()
    assert len(str(found)) == 200


# -- settings and files


Break = Callable[[Pair, Path], None]


def _encrypt(pair: Pair, _: Path) -> None:
    whole = pair.key.with_suffix(".encrypted")
    command = ["openssl", "pkey", "-in", str(pair.key), "-out", str(whole)]
    secret = ["-aes128", "-passout", "pass:secret"]
    subprocess.run([*command, *secret], check=True, capture_output=True)
    whole.chmod(0o600)
    whole.rename(pair.key)


_BROKEN: dict[str, tuple[Break, str]] = {
    "absent": (lambda pair, _: pair.certificate.unlink(), "cannot be read (No such file"),
    "key absent": (lambda pair, _: pair.key.unlink(), "cannot be read (No such file"),
    "open key": (lambda pair, _: pair.key.chmod(0o644), "mode 0644, open to every user"),
    "another key": (
        lambda pair, other: pair.key.write_bytes(other.read_bytes()) and None,
        "is not the key of",
    ),
    "no PEM": (lambda pair, _: pair.certificate.write_text("x") and None, "not a certificate"),
    "encrypted": (_encrypt, "is encrypted; give the file that holds its passphrase"),
}


@pytest.mark.parametrize("fault", _BROKEN)
def test_an_unusable_file_is_reported_with_advice(
    ca: Authority, node: Pair, xray: Pair, tmp_path: Path, fault: str
) -> None:
    pair = Pair(tmp_path / "node.pem", tmp_path / "node.key")
    pair.certificate.write_bytes(node.certificate.read_bytes())
    pair.key.write_bytes(node.key.read_bytes())
    pair.key.chmod(0o600)
    spoil, words = _BROKEN[fault]
    spoil(pair, xray.key)

    config = Config.model_validate({"tls": {**pair.settings(), "ca": str(ca.certificate)}})
    trouble = only_fault(config)
    assert words in trouble
    assert trouble.startswith("tls")
    assert str(tmp_path) in trouble


def test_an_expired_certificate_is_reported(ca: Authority) -> None:
    pair = ca.issue_expired("old")
    config = Config.model_validate({"tls": {**pair.settings(), "client": "none"}})
    trouble = only_fault(config)
    assert "which expired on " in trouble
    facts = Credentials("tls", pair.certificate, pair.key).told()
    assert facts.subject == (("CN", "old"),)


def test_a_passphrase_is_read_from_a_file(ca: Authority, node: Pair, tmp_path: Path) -> None:
    pair = Pair(node.certificate, tmp_path / "node.key")
    pair.key.write_bytes(node.key.read_bytes())
    _encrypt(pair, tmp_path)
    pair.key.chmod(0o640)
    secret = tmp_path / "passphrase"
    secret.write_text("secret\n")
    secret.chmod(0o600)
    tls = {**pair.settings(), "client": "none", "key_passphrase_file": str(secret)}
    assert not list(faults(Config.model_validate({"tls": tls})))

    secret.write_text("wrong")
    trouble = only_fault(Config.model_validate({"tls": tls}))
    assert "which the passphrase does not open" in trouble
    assert "wrong" not in trouble
    secret.chmod(0o604)
    trouble = only_fault(Config.model_validate({"tls": tls}))
    assert "key_passphrase_file" in trouble


def test_a_destination_inherits_the_nodes_tls_settings(
    ca: Authority, node: Pair, xray: Pair, tmp_path: Path
) -> None:
    pacs = {"name": "pacs", "ae_title": "PACS", "host": "127.0.0.1", "port": 104}
    ours = {**node.settings(), "ca": str(ca.certificate)}
    config = Config.model_validate({"tls": ours, "destinations": [pacs | {"tls": True}]})
    (there,) = config.destinations
    assert isinstance(there, DicomDestination)
    assert there.tls is not None
    assert not list(faults(config))

    theirs = {"certificate": str(xray.certificate), "key": str(tmp_path / "absent.key")}
    config = Config.model_validate({"destinations": [pacs | {"tls": theirs}]})
    trouble = only_fault(config)
    assert trouble.startswith("destinations[pacs].tls.key")
    off = Config.model_validate({"destinations": [pacs | {"tls": False}]})
    assert off.destinations[0] == Config.model_validate({"destinations": [pacs]}).destinations[0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("port: null\n", "port: found null; allowed: a port, or null where `tls` names one"),
        ("tls: {certificate: /a, key: /b}\n", "`ca`"),
        ("tls: {certificate: a, key: /b, client: none}\n", "tls.certificate: found 'a'"),
        ("tls: {certificate: /a, key: /b, client: none, port: 11112}\n", "tls.port: found 11112"),
        ("tls: {certificat: /a}\n", "did you mean 'certificate'"),
        (
            "peers: [{ae_title: A, certificate: {subject: CN=A}}]\n",
            "peers: found A tied to a certificate, and no peer is asked for one",
        ),
        (
            "tls: {certificate: /a, key: /b, client: none}\n"
            "destinations: [{name: a, ae_title: A, host: 127.0.0.1, port: 2762}]\n",
            "which is this node",
        ),
        (
            "destinations: [{name: a, ae_title: A, host: h, port: 1, tls: {certificate: /a}}]\n",
            "`certificate` and `key` together",
        ),
        (
            "destinations: [{name: a, ae_title: A, host: h, port: 1,"
            " tls: {ca: /a, pinned_certificate: /b}}]\n",
            "not both",
        ),
    ],
)
def test_invalid_tls_settings_are_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "pleura.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as refused:
        load(path)
    assert words in str(refused.value)


def test_a_tls_version_may_be_written_as_a_number(tmp_path: Path) -> None:
    path = tmp_path / "pleura.yaml"
    path.write_text("tls: {certificate: /a, key: /b, client: none, minimum_version: 1.3}\n")
    tls = load(path).tls
    assert tls is not None
    assert tls.minimum_version == "1.3"


def test_only_the_roles_and_config_check_read_a_key(
    node: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`pleura status` must work for a user without permission to read the key."""
    path = tmp_path / "pleura.yaml"
    path.write_text("tls: {certificate: /absent/a.pem, key: /absent/a.key, client: none}\n")
    monkeypatch.setattr(os, "open", lambda *_, **__: pytest.fail("a file was opened"))
    assert load(path).tls is not None
