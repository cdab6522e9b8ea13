"""Settings of the alerts: which troubles are reported, and to whom."""

from __future__ import annotations

import re
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from daemon.config.base import Settings
from daemon.config.values import File, PeerTitle, Port, RemoteHost, Text

_ADDRESS = "a mail address, such as pacs-team@hospital.example"
_URL = "https://host/path or http://host/path, without a user name"


def _address(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[A-Za-z0-9.-]{1,253}", value):
        raise ValueError(_ADDRESS)
    return value


def web_address(value: str) -> str:
    """The address, if messages can be posted to it. Raises ValueError otherwise."""
    if not re.fullmatch(r"https?://[^\s/@?#]+(/[^\s]*)?", value):
        raise ValueError(_URL)
    try:
        port = urlsplit(value).port
    except ValueError:
        port = 0
    if port == 0:
        raise ValueError(f"{_URL}, with a port from 1 to 65535")
    return value


_Address = Annotated[Text, AfterValidator(_address)]
_Minutes = Annotated[float, Field(ge=0.05, le=525600, strict=True)]


class Mail(Settings):
    """A mail server that takes the messages."""

    host: RemoteHost = Field(description="The mail server (SMTP).")
    port: Port = Field(default=587, description="The server's port: 587 for STARTTLS, 465 for TLS.")
    security: Literal["starttls", "tls", "none"] = Field(
        default="starttls",
        description="How the connection is secured. `starttls` and `tls` verify the server's "
        "certificate, and never fall back to plain text.",
    )
    ca: File | None = Field(
        default=None,
        description="The certificates that the server is verified against, in PEM; null: those "
        "that the system trusts.",
    )
    user: Text | None = Field(
        default=None, description="The user name, if the server asks for a login."
    )
    password_file: File | None = Field(
        default=None, description="The file that holds the password of `user`."
    )
    sender: _Address = Field(
        description="The address that the messages come from.",
        json_schema_extra={"allowed": _ADDRESS},
    )
    recipients: tuple[_Address, ...] = Field(
        min_length=1,
        description="The addresses that get the messages.",
        json_schema_extra={"allowed": f"a list; of each entry: {_ADDRESS}"},
    )

    @model_validator(mode="after")
    def _passwords_are_kept(self) -> Mail:
        if (self.user is None) != (self.password_file is None):
            raise ValueError("`user` and `password_file` together, or neither")
        if self.user is not None and self.security == "none":
            raise ValueError("a `user` only with `security: starttls` or `tls`: the password")
        return self


class Webhook(Settings):
    """A web service that takes the messages as JSON, by POST."""

    url: Annotated[Text, AfterValidator(web_address)] | None = Field(
        default=None,
        description="Where the messages are posted.",
        json_schema_extra={"allowed": _URL},
    )
    url_file: File | None = Field(
        default=None,
        description="Instead of `url`: the file that holds the address. For services whose address "
        "is itself the secret, such as the incoming webhooks of chats.",
    )
    ca: File | None = Field(
        default=None,
        description="The certificates that the service is verified against, in PEM; null: those "
        "that the system trusts.",
    )
    token_file: File | None = Field(
        default=None,
        description="The file that holds a token, sent as `Authorization: Bearer TOKEN`.",
    )

    @model_validator(mode="after")
    def _one_address(self) -> Webhook:
        if (self.url is None) == (self.url_file is None):
            raise ValueError("`url` or `url_file`, one of them")
        return self


class SilenceLimit(Settings):
    """The longest silence of one sender."""

    ae_title: PeerTitle = Field(description="The calling AE title.")
    minutes: _Minutes = Field(description="Minutes without an image, at any hour.")


class Silence(Settings):
    """When the silence of a sender is a trouble."""

    learn: bool = Field(
        default=True,
        description="Learn from each sender's last weeks how many images it sends in each hour of "
        "the week. Its silence is reported once five images are missing (docs/monitor.md).",
    )
    limits: tuple[SilenceLimit, ...] = Field(
        default=(), description="Senders with a fixed limit, which overrides the learned limit."
    )


class Alerts(Settings):
    """The recipients of alerts, and the limits beyond which a trouble is reported."""

    mail: Mail | None = Field(default=None, description="Messages by mail. null: no mail.")
    webhook: Webhook | None = Field(
        default=None, description="Messages to a web service. null: no webhook."
    )
    outage_minutes: _Minutes = Field(
        default=10,
        description="A trouble begins when a destination is down, or stores nothing, for this many "
        "minutes.",
    )
    owed_minutes: _Minutes = Field(
        default=60,
        description="A trouble begins when a result is owed to a destination for this many "
        "minutes, whatever the destination answers.",
    )
    commitment_hours: Annotated[float, Field(ge=0.001, le=8760, strict=True)] = Field(
        default=24,
        description="A trouble begins when a destination with `commitment` has not committed to a "
        "stored result for this many hours.",
    )
    backlog_minutes: _Minutes = Field(
        default=15,
        description="A trouble begins when the oldest image waits for this many minutes.",
    )
    role_minutes: _Minutes = Field(
        default=3,
        description="A trouble begins when a role sends no heartbeat for this many minutes.",
    )
    certificate_days: Annotated[float, Field(ge=0, strict=True)] = Field(
        default=14,
        description="A trouble begins when a certificate expires within this many days.",
    )
    disk_free_mb: Annotated[int, Field(ge=0, strict=True)] = Field(
        default=1024,
        description="A trouble begins when less than this many megabytes are free beside the "
        "spool.",
    )
    silence: Silence = Field(
        default=Silence(), description="When a sender that sends nothing is a trouble."
    )

    @model_validator(mode="after")
    def _somebody_is_told(self) -> Alerts:
        if self.mail is None and self.webhook is None:
            raise ValueError(
                "limits and a route for the messages: add `mail` (`host`, `sender`, `recipients`), "
                "`webhook` (`url`), or both"
            )
        return self
