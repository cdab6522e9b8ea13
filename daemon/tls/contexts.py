"""SSL contexts of the profiles of PS3.15 Annex B, built from files that are checked first.

B.9 (BCP 195) and B.10 (non-downgrading BCP 195) both ask for BCP 195, which since RFC 8996 forbids
everything before TLS 1.2. The profiles differ in the cipher suites of TLS 1.2 alone; those of
TLS 1.3 are all authenticated encryption with forward secrecy.
"""

from __future__ import annotations

import re
import ssl
import stat
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from daemon.tls.identity import PeerCertificate

# B.10: forward secrecy and authenticated encryption.
_AUTHENTICATED = "ECDHE+AESGCM:ECDHE+CHACHA20:DHE+AESGCM:DHE+CHACHA20"
_CIPHERS = {
    "non-downgrading": f"{_AUTHENTICATED}:!aNULL:!PSK",
    # B.9: for peers without authenticated encryption also CBC with SHA-2, but always with forward
    # secrecy (RFC 9325 4.1).
    "bcp195": f"{_AUTHENTICATED}:ECDHE+AES+SHA256:ECDHE+AES+SHA384:DHE+AES+SHA256:!aNULL:!PSK",
}
_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
_CLIENT = {
    "required": ssl.CERT_REQUIRED,
    "optional": ssl.CERT_OPTIONAL,
    "none": ssl.CERT_NONE,
}

# X509_V_FLAG_NO_CHECK_TIME of OpenSSL: the dates of an expired certificate can still be read.
_NO_CHECK_TIME = ssl.VerifyFlags(0x200000)
_EVERYONE = stat.S_IRWXO

# A certificate in a PEM file: its first line, and the whole.
_BEGIN = re.compile(r"-----BEGIN [A-Z0-9 ]*CERTIFICATE-----")
_WHOLE = re.compile(r"-----BEGIN ([A-Z0-9 ]*CERTIFICATE)-----[^-]*-----END \1-----")


class TlsError(Exception):
    """A certificate or key cannot be used. The message: settings' key, found, allowed, advice."""


@dataclass(frozen=True)
class Credentials:
    """A certificate (with its chain) and its key, in PEM files.

    `where`: the key of the settings that holds them.
    """

    where: str
    certificate: Path
    key: Path
    passphrase_file: Path | None = None

    @property
    def files(self) -> list[Path]:
        return [each for each in (self.certificate, self.key, self.passphrase_file) if each]

    def load_into(self, context: ssl.SSLContext) -> None:
        """Check the files, and make `context` present the certificate.

        Raises:
            TlsError: absent, unreadable, readable by every user, not PEM, or not a pair.
        """
        require_file(f"{self.where}.certificate", self.certificate)
        require_secret(f"{self.where}.key", self.key)
        passphrase = self._passphrase()

        try:
            # Without a password OpenSSL would ask the terminal for one.
            context.load_cert_chain(self.certificate, self.key, password=passphrase)
        except ssl.SSLError as error:
            raise TlsError(self._in_words(error, passphrase)) from error
        except ValueError as error:
            # The passphrase is longer than OpenSSL allows.
            raise TlsError(f"{self.where}.key_passphrase_file: {error}") from error

    def own(self) -> PeerCertificate:
        """The certificate's contents, and proof that the pair works: a handshake with ourselves.

        Raises:
            TlsError: as load_into(), or the certificate has expired or is not valid yet.
        """
        found = self.told()
        now = time.time()
        if found.valid_until < now:
            trouble = f"which expired on {_day(found.valid_until)}"
        elif found.valid_from > now:
            trouble = f"which is not valid before {_day(found.valid_from)}"
        else:
            return found

        raise TlsError(
            f"{self.where}.certificate: found {self.certificate}, {trouble}; allowed: a valid "
            "certificate; renew it and put it in its place"
        )

    def told(self) -> PeerCertificate:
        """The certificate's contents, valid or not. Raises TlsError as load_into()."""
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)

        self.load_into(server)
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        client.check_hostname = False
        client.verify_flags |= _NO_CHECK_TIME | ssl.VERIFY_X509_PARTIAL_CHAIN
        client.load_verify_locations(self.certificate)

        try:
            found = _handshake(server, client)
        except ssl.SSLError as error:
            why = getattr(error, "verify_message", "") or error.reason
            raise TlsError(
                f"{self.where}.certificate: found {self.certificate}, which cannot be used "
                f"({why}); "
                "allowed: a certificate for TLS servers and clients"
            ) from error

        return found

    def _passphrase(self) -> bytes:
        if self.passphrase_file is None:
            return b""
        require_secret(f"{self.where}.key_passphrase_file", self.passphrase_file)
        return self.passphrase_file.read_bytes().rstrip(b"\r\n")

    def _in_words(self, error: ssl.SSLError, passphrase: bytes) -> str:
        if error.reason == "KEY_VALUES_MISMATCH":
            return (
                f"{self.where}.key: found {self.key}, which is not the key of {self.certificate}; "
                "give the key that the certificate was issued for"
            )

        text = self.key.read_text(errors="replace")
        if "ENCRYPTED" in text:
            what = "which the passphrase does not open" if passphrase else "which is encrypted"
            return (
                f"{self.where}.key: found {self.key}, {what}; give the file that holds its "
                "passphrase as key_passphrase_file"
            )
        return (
            f"{self.where}: found {self.certificate} and {self.key}, which are not a certificate "
            f"and a key in PEM ({error.reason or 'no PEM lines'})"
        )


def server_context(
    credentials: Credentials, ca: Path | None, client: str, profile: str, minimum: str
) -> ssl.SSLContext:
    """The context for accepted connections.

    An expired certificate is presented: the peers decide.

    Raises:
        TlsError: a file cannot be used.
    """
    credentials.told()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _apply(context, profile, minimum)
    credentials.load_into(context)
    context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE
    # A sender resumes with its newest ticket, so one is enough. OpenSSL's second ticket, which
    # contains the sender's whole certificate, costs a fifth of an association's CPU time.
    context.num_tickets = 1

    context.verify_mode = _CLIENT[client]
    if ca is not None and client != "none":
        _trust(context, f"{credentials.where}.ca", ca)
    return context


def client_context(
    trusted_key: str,
    credentials: Credentials | None,
    trusted: Path | None,
    is_pinned: bool,
    profile: str,
    minimum: str,
) -> ssl.SSLContext:
    """The context for connections that this node opens.

    `trusted`: a file of certificates, or None for the system's; `trusted_key`: the key of the
    settings that names it. `is_pinned`: it holds the peer's own certificate, so the name in it is
    not compared. An expired certificate of ours is presented: the peer decides.

    Raises:
        TlsError: a file cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _apply(context, profile, minimum)
    if credentials is not None:
        credentials.told()
        credentials.load_into(context)

    context.check_hostname = not is_pinned
    if trusted is None:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    else:
        _trust(context, trusted_key, trusted)
    return context


def require_file(where: str, path: Path) -> None:
    """Raises TlsError if `path` is not a file that this user may read."""
    try:
        with path.open("rb") as file:
            file.read(1)
    except OSError as error:
        raise TlsError(
            f"{where}: found {path}, which cannot be read ({error.strerror}); allowed: a PEM file "
            "that the user of the node may read"
        ) from error


def require_secret(where: str, path: Path) -> None:
    """Raises TlsError if `path` cannot be read, or can be read by every user."""
    require_file(where, path)
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & _EVERYONE:
        raise TlsError(
            f"{where}: found {path} with mode {mode:04o}, open to every user; allowed: 0640 or "
            f"stricter; chmod 0640 {path}"
        )


def _apply(context: ssl.SSLContext, profile: str, minimum: str) -> None:
    context.minimum_version = _VERSIONS[minimum]
    context.set_ciphers(_CIPHERS[profile])
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    # A listed certificate is trusted by itself, without its issuer. So a site can list each peer,
    # and exclude a peer by removing its certificate from the list.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN


def require_trusted(where: str, path: Path) -> None:
    """Raises TlsError unless every certificate in a file of trusted certificates can be read."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    unusable = _trust(context, where, path)

    if not context.cert_store_stats()["x509"]:
        raise TlsError(
            f"{where}: found {path}, which holds no certificate in PEM, so every peer is refused; "
            "allowed: one or more certificates, one after another"
        )
    if unusable:
        raise TlsError(
            f"{where}: found {path}, in which {unusable} certificate(s) are broken; the others are "
            "trusted, and no other peer is; allowed: whole certificates in PEM, one after another"
        )


def _trust(context: ssl.SSLContext, where: str, path: Path) -> int:
    """Trust each readable certificate of a file.

    Returns how many unreadable ones it holds. A file without a certificate trusts no peer:
    yesterday's list must not admit a peer that was removed from it.

    Raises:
        TlsError: the file cannot be read.
    """
    require_file(where, path)
    with suppress(ssl.SSLError):
        context.load_verify_locations(path)
        return 0

    # OpenSSL loads no certificate of a file in which one is broken.
    text = path.read_text(encoding="ascii", errors="replace")
    taken = 0
    for whole in _WHOLE.finditer(text):
        with suppress(ssl.SSLError):
            context.load_verify_locations(cadata=whole[0])
            taken += 1
    return len(_BEGIN.findall(text)) - taken


def _day(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))


def _handshake(server: ssl.SSLContext, client: ssl.SSLContext) -> PeerCertificate:
    """A handshake in memory; the server's certificate as the client sees it. Raises SSLError."""
    upwards, downwards = ssl.MemoryBIO(), ssl.MemoryBIO()
    there = server.wrap_bio(upwards, downwards, server_side=True)
    here = client.wrap_bio(downwards, upwards)
    for end in (here, there, here, there, here):
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            continue

    found = PeerCertificate.of(here)
    assert found is not None
    return found
