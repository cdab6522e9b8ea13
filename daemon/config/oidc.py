"""Settings of a login by OpenID Connect: the provider, and which claim gives which role."""

from __future__ import annotations

import re
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator
from pydantic.config import JsonDict

from daemon.config.base import Settings
from daemon.config.values import File, Text

_ISSUER = "https://host/path, exactly as the provider's discovery document spells it"
_PAGE_URL = (
    "https://host or https://host:port, without a path (http:// only for 127.0.0.1, "
    "::1 and localhost)"
)
_CLAIM = "1 to 200 printable characters"
# The hosts that a browser trusts without TLS.
_THIS_MACHINE = ("127.0.0.1", "::1", "localhost")


def _issuer(value: str) -> str:
    # OpenID Connect Discovery 1.0, section 3: neither query nor fragment.
    if not re.fullmatch(r"https://[^\s/@?#]+(/[^\s?#]*)?", value) or not _has_port(value):
        raise ValueError(_ISSUER)
    return value


def _page_url(value: str) -> str:
    if not re.fullmatch(r"https?://[^\s/@?#]+/?", value) or not _has_port(value):
        raise ValueError(_PAGE_URL)
    parts = urlsplit(value)
    if parts.scheme == "http" and parts.hostname not in _THIS_MACHINE:
        raise ValueError(_PAGE_URL)
    return value.rstrip("/")


def _has_port(url: str) -> bool:
    """Whether the URL has a host and, if any, a possible port."""
    try:
        parts = urlsplit(url)
        return bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _claim(value: str) -> str:
    if not (0 < len(value) <= 200 and value.isprintable()):
        raise ValueError(_CLAIM)
    return value


_Claim = Annotated[Text, AfterValidator(_claim)]
_VALUES: JsonDict = {"allowed": f"a list; of each entry: {_CLAIM}"}


class Oidc(Settings):
    """An OpenID Connect provider that people log in with."""

    issuer: Annotated[Text, AfterValidator(_issuer)] = Field(
        description="The provider's issuer URL. Its discovery document is read from "
        "ISSUER/.well-known/openid-configuration.",
        json_schema_extra={"allowed": _ISSUER},
    )
    client_id: _Claim = Field(
        description="The name that the provider gave this page.",
        json_schema_extra={"allowed": _CLAIM},
    )
    client_secret_file: File | None = Field(
        default=None,
        description="The file that holds the client's secret, with mode 0640 or stricter; null: a "
        "public client, protected only by PKCE.",
    )
    page_url: Annotated[Text, AfterValidator(_page_url)] = Field(
        description="The page's address as browsers call it. Register PAGE_URL/login/oidc/answer "
        "at the provider as the redirect URI.",
        json_schema_extra={"allowed": _PAGE_URL},
    )
    ca: File | None = Field(
        default=None,
        description="The certificates that the provider is verified against, in PEM; null: those "
        "that the system trusts.",
    )
    scopes: tuple[_Claim, ...] = Field(
        default=("openid", "profile"),
        description="The scopes to ask for; `openid` is one of them.",
        json_schema_extra={"allowed": "a list that holds `openid`"},
    )
    name_claim: _Claim = Field(
        default="preferred_username",
        description="The claim of the ID token that holds the person's name for the audit trail. "
        "If it is absent, `sub` is used.",
        json_schema_extra={"allowed": _CLAIM},
    )
    role_claim: _Claim = Field(
        default="roles",
        description="The claim of the ID token that holds the person's roles: a text or a list of "
        "texts. Dots name a nested claim: `realm_access.roles`.",
        json_schema_extra={"allowed": _CLAIM},
    )
    look: tuple[_Claim, ...] = Field(
        default=("pleura-look",),
        description="The values of `role_claim` that give the role `look`.",
        json_schema_extra=_VALUES,
    )
    act: tuple[_Claim, ...] = Field(
        default=("pleura-act",),
        description="The values of `role_claim` that give the role `act`.",
        json_schema_extra=_VALUES,
    )

    @model_validator(mode="after")
    def _somebody_gets_in(self) -> Oidc:
        if "openid" not in self.scopes or any(" " in scope for scope in self.scopes):
            raise ValueError("`scopes` that hold `openid`, each without a blank")
        if not self.look and not self.act:
            raise ValueError("a value in `look` or `act`: otherwise nobody can log in")
        return self
