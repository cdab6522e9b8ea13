"""The identity in a peer's certificate, and whether the settings tie an AE title to it."""

from __future__ import annotations

import hashlib
import re
import ssl
from dataclasses import dataclass
from typing import Any

from daemon.config import CertificateIdentity

# The short names of RFC 4514 and OpenSSL; any other attribute keeps its long name.
_SHORT_NAMES = {
    "commonName": "CN",
    "countryName": "C",
    "domainComponent": "DC",
    "localityName": "L",
    "organizationName": "O",
    "organizationalUnitName": "OU",
    "stateOrProvinceName": "ST",
    "userId": "UID",
}
_SHOWN_CHARACTERS = 200


@dataclass(frozen=True)
class PeerCertificate:
    """A certificate that was verified in a handshake. Its strings come from the peer, unescaped."""

    # Pairs of short attribute name and value, in the certificate's order.
    subject: tuple[tuple[str, str], ...] = ()
    # The subject alternative names without their types.
    names: tuple[str, ...] = ()
    # SHA-256 of the certificate, as lower-case hexadecimal digits.
    fingerprint: str = ""
    # Seconds since 1970; 0: unknown.
    valid_until: float = 0.0
    valid_from: float = 0.0

    @classmethod
    def of(cls, connection: ssl.SSLObject | ssl.SSLSocket) -> PeerCertificate | None:
        """The peer's certificate once the handshake is done; None: the peer presented none."""
        encoded = connection.getpeercert(binary_form=True)
        decoded = connection.getpeercert()
        if not encoded or not decoded:
            return None

        subject = [
            (_SHORT_NAMES.get(str(key), str(key)), str(value))
            for relative_name in _pairs(decoded.get("subject"))
            for key, value in _pairs(relative_name)
        ]
        names = [str(value) for _, value in _pairs(decoded.get("subjectAltName"))]
        until = ssl.cert_time_to_seconds(str(decoded["notAfter"]))
        since = ssl.cert_time_to_seconds(str(decoded["notBefore"]))
        digest = hashlib.sha256(encoded).hexdigest()
        return cls(tuple(subject), tuple(names), digest, until, since)

    def __str__(self) -> str:
        """Its subject as a log line shows it: printable ASCII, bounded."""
        text = ", ".join(f"{key}={_escaped(value)}" for key, value in self.subject)
        return _printable(text or "a certificate without a subject")


def is_wanted(wanted: CertificateIdentity, found: PeerCertificate | None) -> bool:
    """Whether a certificate is the one that the settings tie a peer to.

    Every key that the settings give must match.
    """
    if found is None:
        return False

    if wanted.subject is not None:
        held = {(key.upper(), value) for key, value in found.subject}
        if not set(attributes(wanted.subject)) <= held:
            return False
    if wanted.san is not None:
        names = {name.casefold() for name in found.names}
        if wanted.san.casefold() not in names:
            return False
    return wanted.fingerprint is None or plain_fingerprint(wanted.fingerprint) == found.fingerprint


def describe_wanted(wanted: CertificateIdentity) -> str:
    """The settings of a peer's `certificate` in words."""
    given = wanted.model_dump(exclude_none=True)
    return ", ".join(f"{key} '{value}'" for key, value in given.items())


def attributes(subject: str) -> list[tuple[str, str]]:
    """The attributes of `CN=XRAY1, O=Some\\, Hospital`, their names in upper case."""
    parts = re.split(r"(?<!\\),", subject)
    pairs = [part.partition("=") for part in parts]
    return [(key.strip().upper(), _unescaped(value.strip())) for key, _, value in pairs]


def plain_fingerprint(text: str) -> str:
    """Hexadecimal digits in lower case, without the colons that OpenSSL prints."""
    return text.replace(":", "").lower()


def _pairs(value: object) -> tuple[Any, ...]:
    """A part of getpeercert()'s result: nested tuples, or nothing."""
    return value if isinstance(value, tuple) else ()


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace(",", "\\,")


def _unescaped(value: str) -> str:
    return re.sub(r"\\(.)", r"\1", value)


def _printable(text: str) -> str:
    return "".join(c if " " <= c <= "~" else "?" for c in text[:_SHOWN_CHARACTERS])
