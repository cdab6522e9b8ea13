"""Settings of DICOM TLS: the node's own certificate, a destination's, a peer's identity."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from daemon.config.base import Settings
from daemon.config.values import File, Port, RemoteHost, Text, switched_on

_PROFILE = (
    "The cipher suites of TLS 1.2. `non-downgrading` (PS3.15 B.10): authenticated encryption with "
    "forward secrecy. `bcp195` (PS3.15 B.9): for older peers also CBC with SHA-2. Neither "
    "accepts TLS 1.0 or 1.1, which RFC 8996 retired."
)
_OPENS_KEY = "The file that holds the passphrase of an encrypted `key`; null: none."
_FINGERPRINT = "64 hexadecimal digits, with or without colons"
_SUBJECT = "attributes such as CN=XRAY1, O=Hospital"


def _version(value: Any) -> Any:
    """YAML reads 1.2 as a number."""
    return str(value) if isinstance(value, float) else value


def _fingerprint(value: str) -> str:
    if not re.fullmatch(r"[0-9a-fA-F]{64}", value.replace(":", "")):
        raise ValueError(f"SHA-256 of the certificate: {_FINGERPRINT}")
    return value


def _subject(value: str) -> str:
    parts = re.split(r"(?<!\\),", value)
    if not all(re.fullmatch(r"\s*[A-Za-z][A-Za-z0-9.]*\s*=.*\S\s*", part) for part in parts):
        raise ValueError(f"{_SUBJECT}; a comma inside a value is written \\,")
    return value


_Version = Annotated[Literal["1.2", "1.3"], BeforeValidator(_version)]
_Profile = Literal["bcp195", "non-downgrading"]


class ServerTls(Settings):
    """DICOM TLS on a port of its own, beside the plain port or in its place."""

    certificate: File = Field(
        description="The node's certificate and its chain, in PEM. New associations use a renewed "
        "file without a restart."
    )
    key: File = Field(description="The key of the certificate, in PEM, with mode 0640 or stricter.")
    key_passphrase_file: File | None = Field(default=None, description=_OPENS_KEY)
    ca: File | None = Field(
        default=None,
        description="The certificates that peers are verified against, in PEM: issuers, or the "
        "peers' own. A peer without an entry here is refused; to revoke a certificate, remove it.",
    )
    client: Literal["required", "optional", "none"] = Field(
        default="required",
        description="Whether a peer must present a certificate. `optional`: a certificate that is "
        "presented must be trusted. `none`: peers are not asked.",
    )
    port: Port = Field(
        default=2762,
        description="The TCP port for DICOM over TLS. 2762 is registered for it (dicom-tls).",
    )
    profile: _Profile = Field(default="non-downgrading", description=_PROFILE)
    minimum_version: _Version = Field(
        default="1.2", description="The oldest version of TLS that is accepted."
    )

    @model_validator(mode="after")
    def _clients_are_verified_against_something(self) -> ServerTls:
        if self.client != "none" and self.ca is None:
            raise ValueError(
                f"with `client: {self.client}`, `ca`: the file of the certificates that peers are "
                "verified against; or `client: none`"
            )
        return self


class DestinationTls(Settings):
    """TLS toward one archive."""

    certificate: File | None = Field(
        default=None,
        description="The certificate that the archive sees, in PEM; null: the node's own "
        "(`tls.certificate`), or none without `tls`.",
    )
    key: File | None = Field(default=None, description="The key of `certificate`.")
    key_passphrase_file: File | None = Field(default=None, description=_OPENS_KEY)
    ca: File | None = Field(
        default=None,
        description="The certificates that the archive is verified against, in PEM; null: "
        "`tls.ca`, or without it the certificates that the system trusts.",
    )
    pinned_certificate: File | None = Field(
        default=None,
        description="The archive's own certificate, in PEM. No other is accepted then, and the "
        "name in it is not compared.",
    )
    name: RemoteHost | None = Field(
        default=None,
        description="The name that the archive's certificate must have; null: `host`. Also sent "
        "as the server name (SNI).",
    )
    profile: _Profile = Field(default="non-downgrading", description=_PROFILE)
    minimum_version: _Version = Field(
        default="1.2", description="The oldest version of TLS that is accepted."
    )

    @model_validator(mode="after")
    def _pairs_are_whole(self) -> DestinationTls:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("`certificate` and `key` together, or neither")
        if self.pinned_certificate is not None and self.ca is not None:
            raise ValueError("`ca` or `pinned_certificate`, not both")
        return self


MaybeTls = Annotated[DestinationTls | None, BeforeValidator(switched_on)]


class CertificateIdentity(Settings):
    """The identity that a peer's certificate must state. Every key that is given must match."""

    subject: Annotated[Text, AfterValidator(_subject)] | None = Field(
        default=None,
        description="Attributes that the subject must have, such as `CN=XRAY1, O=Hospital`.",
        json_schema_extra={"allowed": f"{_SUBJECT}, or `null`"},
    )
    san: Text | None = Field(
        default=None,
        description="A name among the subject alternative names, such as `xray1.hospital.example`.",
    )
    fingerprint: Annotated[Text, AfterValidator(_fingerprint)] | None = Field(
        default=None,
        description="SHA-256 of the certificate, as `openssl x509 -fingerprint -sha256` prints it.",
        json_schema_extra={"allowed": f"{_FINGERPRINT}, or `null`"},
    )

    @model_validator(mode="after")
    def _says_something(self) -> CertificateIdentity:
        if not self.model_dump(exclude_none=True):
            raise ValueError("at least one of `subject`, `san`, `fingerprint`")
        return self
