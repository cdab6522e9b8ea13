"""Settings of the operator's page: where it listens, and who may look or act."""

from __future__ import annotations

import ipaddress
import re
from string import Formatter
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from daemon.config.base import Settings
from daemon.config.oidc import Oidc
from daemon.config.values import File, Host, Name, Port, RemoteHost, Text, switched_on

_HASH = "a hash that `pleura web hash` prints, in quotes: $argon2id$..."
_CUT_HASH = "the hash is cut at its first comma: put the whole hash in quotes"
_VIEWER = (
    "https://viewer.hospital.example/viewer?StudyInstanceUIDs={study_instance_uid}; it may name "
    "{study_instance_uid} and {sop_instance_uid}"
)
_VIEWER_FIELDS = {"study_instance_uid", "sop_instance_uid"}


def _password_hash(value: str) -> str:
    if not re.fullmatch(r"\$argon2id\$v=19\$m=\d{1,7},t=\d{1,2},p=\d{1,2}\$\S{8,}\$\S{16,}", value):
        is_cut = re.fullmatch(r"\$argon2id\$v=19\$m=\d{1,7}", value)
        raise ValueError(_CUT_HASH if is_cut else _HASH)
    return value


def _viewer_url(value: str) -> str:
    try:
        fields = {name for _, name, _, _ in Formatter().parse(value) if name is not None}
    except ValueError:
        raise ValueError(_VIEWER) from None

    if not re.match(r"https?://[^/{}\s]+/", value) or not fields <= _VIEWER_FIELDS:
        raise ValueError(_VIEWER)
    return value


def is_loopback(host: str) -> bool:
    """Whether only programs on this machine can reach the address."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class WebUser(Settings):
    """A person who may use the page."""

    name: Name = Field(description="The name to log in with; it appears in the audit trail.")
    password_hash: Annotated[Text, AfterValidator(_password_hash)] = Field(
        repr=False,
        description="The argon2 hash of the password, as `pleura web hash` prints it.",
        json_schema_extra={"allowed": _HASH},
    )
    role: Literal["look", "act"] = Field(
        default="look",
        description="`look`: see every page and try files. `act`: also retry, send again and "
        "re-address.",
    )


class WebTls(Settings):
    """The page's own certificate."""

    certificate: File = Field(description="The page's certificate and its chain, in PEM.")
    key: File = Field(description="The key of the certificate, in PEM, with mode 0640 or stricter.")
    key_passphrase_file: File | None = Field(
        default=None,
        description="The file that holds the passphrase of an encrypted `key`; null: none.",
    )


class Web(Settings):
    """The operator's page (docs/page.md)."""

    host: Host = Field(
        default="127.0.0.1",
        description="The address that the page listens on; `0.0.0.0` and `::` as in the node's "
        "`host`. An address other than loopback needs `users` or `oidc`, and `tls` or `proxy`.",
    )
    port: Port = Field(default=8112, description="The TCP port of the page.")
    tls: WebTls | None = Field(
        default=None, description="HTTPS with this certificate. null: plain HTTP."
    )
    proxy: RemoteHost | None = Field(
        default=None,
        description="The address of the proxy that terminates TLS for the page. The proxy must set "
        "X-Forwarded-For and X-Forwarded-Proto. Requests that reached it without HTTPS are "
        "refused.",
    )
    users: tuple[WebUser, ...] = Field(
        default=(),
        description="The people who may log in with a password. Without a user and without `oidc`, "
        "every program on this machine sees counts, states and UIDs; pictures, objects and buttons "
        "need a login.",
    )
    oidc: Oidc | None = Field(
        default=None,
        description="The OpenID Connect provider that people log in with, beside `users`. null: "
        "none.",
    )
    metrics_token_file: File | None = Field(
        default=None,
        description="The file that holds the token that Prometheus sends for /metrics "
        "(`Authorization: Bearer`). null: /metrics answers only if the page asks for no login.",
    )
    language: Literal["auto", "en", "de"] = Field(
        default="auto", description="The page's language. `auto`: what the browser asks for."
    )
    viewer_url: Annotated[Text, AfterValidator(_viewer_url)] | None = Field(
        default=None,
        description="The address of a study in the site's viewer; null: no link.",
        json_schema_extra={"allowed": f"{_VIEWER}; or `null`"},
    )
    show_patients: bool = Field(
        default=False,
        description="Show the patient's name and ID on the page of an image, read from its file "
        "while retention keeps the file. They are not stored, and cannot be searched for.",
    )
    idle_minutes: Annotated[int, Field(ge=1, le=1440, strict=True)] = Field(
        default=30, description="A login ends after this many minutes without a click."
    )
    session_hours: Annotated[int, Field(ge=1, le=168, strict=True)] = Field(
        default=12, description="A login ends after this many hours in any case."
    )

    @property
    def asks_for_login(self) -> bool:
        """Whether the page shows nothing before a login."""
        return bool(self.users) or self.oidc is not None

    @model_validator(mode="after")
    def _each_user_has_their_own_name(self) -> Web:
        names = [user.name for user in self.users]
        if len(set(names)) < len(names):
            raise ValueError("users whose names differ")
        return self

    @model_validator(mode="after")
    def _others_log_in_over_tls(self) -> Web:
        if self.tls is not None and self.proxy is not None:
            raise ValueError("`tls` or `proxy`, not both: only one of them speaks TLS")

        if is_loopback(self.host) and self.proxy is None:
            return self
        if not self.asks_for_login:
            raise ValueError(
                "`users` or `oidc` where other machines reach the page; `pleura web hash` makes "
                "the hash of a password"
            )
        if self.tls is None and self.proxy is None:
            raise ValueError(
                f"with `host: {self.host}`, `tls` (a certificate and its key), or `proxy` (the "
                "address of a proxy that speaks TLS before the page): passwords never travel in "
                "the clear"
            )
        return self


MaybeWeb = Annotated[Web | None, BeforeValidator(switched_on)]
