"""Settings of the audit trail (IHE ATNA; PS3.15 A.5)."""

from __future__ import annotations

import re
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from daemon.config.base import Settings
from daemon.config.values import File, Text

_REPOSITORY = "tls://host:port or udp://host:port"


def _repository(value: str) -> str:
    if not re.fullmatch(r"(tls|udp)://[^/@?#]+:[0-9]{1,5}", value):
        raise ValueError(_REPOSITORY)
    try:
        port = urlsplit(value).port
    except ValueError:
        port = None
    if not port:
        raise ValueError(f"{_REPOSITORY}, with a port from 1 to 65535")
    return value


class Audit(Settings):
    """The audit trail's destinations, and what it may say of patients."""

    repository: Annotated[Text, AfterValidator(_repository)] | None = Field(
        default=None,
        description="The audit repository: syslog (RFC 5424) over TLS (RFC 5425) or UDP "
        "(RFC 5426). 6514 is the registered port of syslog over TLS.",
        json_schema_extra={"allowed": f"{_REPOSITORY}, or `null`"},
    )
    file: File | None = Field(
        default=None,
        description="A file that also gets every message, one on each line. The node only appends "
        "to it; the deliver role's user must be able to write it.",
    )
    ca: File | None = Field(
        default=None,
        description="The certificates that the repository is verified against, in PEM; null: "
        "those that the system trusts.",
    )
    certificate: File | None = Field(
        default=None, description="The certificate that the repository sees, in PEM."
    )
    key: File | None = Field(default=None, description="The key of `certificate`.")
    key_passphrase_file: File | None = Field(
        default=None,
        description="The file that holds the passphrase of an encrypted `key`; null: none.",
    )
    enterprise_site_id: Text | None = Field(
        default=None, description="The site's name for itself (AuditEnterpriseSiteID)."
    )
    patients: Literal["none", "id"] = Field(
        default="none",
        description="`id`: the Patient ID where PS3.15 A.5 asks for the patient (transfers and "
        "exports). `none`: no patient; the study's UID identifies the study. A name is never sent.",
    )

    @model_validator(mode="after")
    def _goes_somewhere(self) -> Audit:
        if self.repository is None and self.file is None:
            raise ValueError("a `repository`, a `file`, or both")
        if (self.certificate is None) != (self.key is None):
            raise ValueError("`certificate` and `key` together, or neither")
        return self
