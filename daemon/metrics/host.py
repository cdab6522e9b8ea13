"""Facts from files and the operating system: free disk space, and certificates' expiry."""

from __future__ import annotations

import datetime
import shutil
import ssl
from collections.abc import Iterator
from pathlib import Path

from daemon import tls
from daemon.config import Config
from daemon.spool import identity

UNSEEN_SPOOL = "the spool cannot be seen; is its disk mounted, and may this user read it?"

# ASN.1 tags (X.690): SEQUENCE, the version's explicit [0], UTCTime. The other time is
# GeneralizedTime.
_SEQUENCE, _VERSION, _UTC_TIME = 0x30, 0xA0, 0x17
# X.509's fields before the validity: serial number, signature, issuer (RFC 5280, 4.1).
_FIELDS_BEFORE = 3
_BEGIN = "-----BEGIN CERTIFICATE-----"
_END = "-----END CERTIFICATE-----"


def free_bytes(folder: Path, known: str | None) -> int | None:
    """The room beside the spool; None where this process cannot see the spool.

    `known`: its identity in the ledger. An empty mount point has no identity, and shows another
    disk's room.
    """
    try:
        if known is not None and identity(folder) != known:
            return None
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def certificates(config: Config) -> Iterator[tuple[str, float]]:
    """Each certificate that the settings name: its key, and when it ends (seconds since 1970).

    A file that cannot be read, or holds no certificate, is left out: tls.faults() tells why.
    """
    for key, path in tls.certificates(config).items():
        ends_at = valid_until(path)
        if ends_at is not None:
            yield key, ends_at


def valid_until(path: Path) -> float | None:
    """When the first certificate of a PEM file expires; None if the file has no certificate."""
    try:
        text = path.read_text(encoding="ascii", errors="replace")
        start = text.index(_BEGIN)
        pem = text[start : text.index(_END, start) + len(_END)]
        return _not_after(ssl.PEM_cert_to_DER_cert(pem))
    except (OSError, ValueError, IndexError):
        return None


def _not_after(der: bytes) -> float:
    """The end of validity of a certificate (RFC 5280, 4.1.2.5). Raises ValueError, IndexError."""
    certificate = _content(der, 0, _SEQUENCE)
    body = _content(certificate, 0, _SEQUENCE)
    place = 0
    if body[0] == _VERSION:
        place = _after(body, place)
    for _ in range(_FIELDS_BEFORE):
        place = _after(body, place)

    validity = _content(body, place, _SEQUENCE)
    place = _after(validity, 0)
    begin, end = _bounds(validity, place)
    text = validity[begin:end].decode("ascii")
    form = "%y%m%d%H%M%SZ" if validity[place] == _UTC_TIME else "%Y%m%d%H%M%SZ"
    return datetime.datetime.strptime(text, form).replace(tzinfo=datetime.UTC).timestamp()


def _content(der: bytes, place: int, tag: int) -> bytes:
    if der[place] != tag:
        raise ValueError("another ASN.1 type")
    begin, end = _bounds(der, place)
    return der[begin:end]


def _after(der: bytes, place: int) -> int:
    return _bounds(der, place)[1]


def _bounds(der: bytes, place: int) -> tuple[int, int]:
    """Begin and end of the content of the element at `place`."""
    length = der[place + 1]
    begin = place + 2
    if length & 0x80:
        size = length & 0x7F
        length = int.from_bytes(der[begin : begin + size], "big")
        begin += size
    return begin, begin + length
