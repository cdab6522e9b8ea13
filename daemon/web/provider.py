"""The OpenID Connect provider: its metadata, and the person that a code stands for.

OpenID Connect Core 1.0, section 3.1 (authorization code flow), with PKCE (RFC 7636) and the issuer
in the answer (RFC 9207). PyJWT checks the ID token. A provider's answers are bounded in size, and
requests go only to addresses in its discovery document.
"""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
import threading
import time
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlencode, urlsplit

from daemon import installed, tls
from daemon.alerts.troubles import shown
from daemon.config import Oidc

_Answer = TypeVar("_Answer")

ANSWER_PATH = "/login/oidc/answer"

# Only signatures with a public key: with `none` anybody could sign, with HMAC every client.
_ALGORITHMS = (
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA",
)  # fmt: skip
# Seconds that the clocks of provider and page may differ.
_LEEWAY_S = 60
# Of a discovery document, a key set or a token.
_MOST_BYTES = 262_144
_MOST_OF_SECRET = 8192
_MOST_NAME = 64
# Of one request to the provider, from its connection to the last byte.
_PATIENCE_S = 10.0
# How long the discovery document holds.
_KEPT_S = 300.0
# RFC 6749 5.2: how a provider refuses a code that was stolen, used or invented. Errors such as
# invalid_client are faults of the configuration, not attempts to get in.
_WRONG_CODE = ("invalid_grant", "invalid_request")
# How many requests to the provider may run at a time. More would use up the threads that answer
# other pages.
_MOST_AT_ONCE = 4


class Refusal(StrEnum):
    """Why a login by the provider ends without a session. Each has a text `oidc_...`."""

    # The provider cannot be reached, or its answer cannot be used.
    PROVIDER = "provider"
    # Too many logins right now.
    BUSY = "busy"
    # This browser has no pending login, because it sent no cookie of one. Another site may have
    # sent it here.
    BROWSER = "browser"
    # The answer does not belong to a pending login of this browser.
    STATE = "state"
    # The answer, or the provider's document, is another issuer's.
    ISSUER = "issuer"
    # The provider refused the person.
    DENIED = "denied"
    # The code or the ID token does not belong to this login.
    TOKEN = "token"  # noqa: S105 - a name, not a secret
    # The person has no role here.
    ROLE = "role"


class RefusedError(Exception):
    """A login that ends without a session. The message is for the log: found, wanted, advice."""

    def __init__(self, refusal: Refusal, words: str, name: str = "") -> None:
        """`name`: the person's, if known."""
        super().__init__(words)
        self.refusal = refusal
        self.name = name


@dataclass(frozen=True)
class LoginRequest:
    """The parameters of one login: only the answer to this login completes it."""

    nonce: str
    # RFC 7636: the secret whose challenge the provider was given.
    verifier: str
    challenge: str


@dataclass(frozen=True)
class Person:
    """The person whom the provider vouches for."""

    name: str
    # look, act
    role: str


class Provider:
    """The provider of the settings. Thread-safe."""

    def __init__(self, oidc: Oidc) -> None:
        """Raises TlsError: the library is not installed, or other users may read the secret."""
        if missing := installed.lacking("oidc"):
            raise tls.TlsError(f"web.oidc: {missing}")
        if oidc.client_secret_file is not None:
            tls.require_secret("web.oidc.client_secret_file", oidc.client_secret_file)

        self._oidc = oidc
        self._context = tls.provider_context(oidc)
        self._turns = threading.BoundedSemaphore(_MOST_AT_ONCE)
        self._lock = threading.Lock()
        self._metadata: dict[str, Any] = {}
        self._metadata_at = -_KEPT_S

    def login_url(self, state: str, request: LoginRequest) -> str:
        """The provider's address to which a browser goes to log in. Raises RefusedError."""
        with self._turn():
            metadata = self._provider_metadata()

        asked = {
            "response_type": "code",
            "client_id": self._oidc.client_id,
            "redirect_uri": self.redirect_uri,
            "scope": " ".join(self._oidc.scopes),
            "state": state,
            "nonce": request.nonce,
            "code_challenge": request.challenge,
            "code_challenge_method": "S256",
        }
        endpoint = str(metadata["authorization_endpoint"])
        return f"{endpoint}{'&' if '?' in endpoint else '?'}{urlencode(asked)}"

    @property
    def redirect_uri(self) -> str:
        """The address that the provider sends browsers back to."""
        return self._oidc.page_url + ANSWER_PATH

    def person(self, answer: Mapping[str, str], request: LoginRequest) -> Person:
        """The person for whom the provider gave the answer's code. Raises RefusedError."""
        with self._turn():
            metadata = self._provider_metadata()
            self._check_issuer(answer, metadata)
            code = _code(answer)
            token = self._token(code, request, metadata)
            claims = self._claims(token, metadata)

        name = self._name(claims)
        if claims.get("nonce") != request.nonce:
            raise RefusedError(
                Refusal.TOKEN,
                "the ID token's nonce is not that of this login; somebody may have put in an "
                "answer that was stolen elsewhere",
                name,
            )
        return Person(name, self._role(claims, name))

    # -- the steps, in their order -----------------------------------------------------------------

    @contextmanager
    def _turn(self) -> Iterator[None]:
        if not self._turns.acquire(blocking=False):
            raise RefusedError(
                Refusal.BUSY, f"{_MOST_AT_ONCE} other logins wait for the provider; try again"
            )
        try:
            yield
        finally:
            self._turns.release()

    def _provider_metadata(self) -> dict[str, Any]:
        """The provider's discovery document (OpenID Connect Discovery 1.0, section 4)."""
        with self._lock:
            if time.monotonic() - self._metadata_at < _KEPT_S:
                return self._metadata

        wanted = self._oidc.issuer
        url = wanted.rstrip("/") + "/.well-known/openid-configuration"
        metadata = self._request_json("GET", url)
        if metadata.get("issuer") != wanted:
            raise RefusedError(
                Refusal.ISSUER,
                f"{url}: found the issuer {_quoted(metadata.get('issuer'))}, wanted {wanted!r}; "
                "web.oidc.issuer must be spelled as there",
            )

        for name in ("authorization_endpoint", "token_endpoint", "jwks_uri"):
            if not _is_https(metadata.get(name)):
                raise _unusable(
                    url, f"{name} is {_quoted(metadata.get(name))}, wanted an https URL"
                )
        challenges = metadata.get("code_challenge_methods_supported", ["S256"])
        if not isinstance(challenges, list) or "S256" not in challenges:
            raise _unusable(
                url, "code_challenge_methods_supported lacks S256; switch PKCE on there"
            )

        with self._lock:
            self._metadata, self._metadata_at = metadata, time.monotonic()
        return metadata

    def _check_issuer(self, answer: Mapping[str, str], metadata: Mapping[str, Any]) -> None:
        """RFC 9207: refuse the answer of another provider (mix-up attack)."""
        found = answer.get("iss")
        is_promised = metadata.get("authorization_response_iss_parameter_supported") is True
        if found is None and not is_promised:
            return
        if found != self._oidc.issuer:
            raise RefusedError(
                Refusal.ISSUER,
                f"the answer's issuer (iss) is {_quoted(found)}, wanted {self._oidc.issuer!r}",
            )

    def _token(self, code: str, request: LoginRequest, metadata: Mapping[str, Any]) -> str:
        """The ID token for a code (OpenID Connect Core 1.0, 3.1.3)."""
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self.redirect_uri,
            "code_verifier": request.verifier,
        }
        url = str(metadata["token_endpoint"])
        headers = self._proof(form, metadata)
        found = self._request_json("POST", url, form, headers).get("id_token")
        if not isinstance(found, str):
            raise _unusable(url, "the answer has no id_token; is `openid` in web.oidc.scopes?")
        return found

    def _proof(self, form: dict[str, str], metadata: Mapping[str, Any]) -> dict[str, str]:
        """The client's authentication: headers, or fields that are added to `form`."""
        client, path = self._oidc.client_id, self._oidc.client_secret_file
        if path is None:
            form["client_id"] = client
            return {}

        secret = _secret(path)
        ways = metadata.get("token_endpoint_auth_methods_supported", ["client_secret_basic"])
        if isinstance(ways, list) and "client_secret_basic" in ways:
            # RFC 6749 2.3.1: both are form-encoded first.
            pair = f"{quote(client, safe='')}:{quote(secret, safe='')}"
            return {"authorization": "Basic " + base64.b64encode(pair.encode()).decode()}
        if isinstance(ways, list) and "client_secret_post" in ways:
            form |= {"client_id": client, "client_secret": secret}
            return {}
        raise _unusable(
            str(metadata["token_endpoint"]),
            f"token_endpoint_auth_methods_supported is {_quoted(ways)}, wanted client_secret_basic "
            "or client_secret_post",
        )

    def _claims(self, token: str, metadata: Mapping[str, Any]) -> dict[str, Any]:
        """The claims of an ID token whose signature, issuer, audience and dates are right."""
        import jwt

        try:
            key = self._key(token, self._request_json("GET", str(metadata["jwks_uri"])))
            claims: dict[str, Any] = jwt.decode(
                token,
                key,
                algorithms=list(_ALGORITHMS),
                audience=self._oidc.client_id,
                issuer=self._oidc.issuer,
                leeway=_LEEWAY_S,
                options={"require": ["iss", "sub", "aud", "exp", "iat"]},
            )
        except jwt.InvalidIssuerError as error:
            raise RefusedError(Refusal.ISSUER, f"the ID token: {_first_line(error)}") from error
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError) as error:
            # PyJWT's message names the claim and what is wrong with it.
            words = f"the ID token: {type(error).__name__}: {_first_line(error)}{_advice(error)}"
            raise RefusedError(Refusal.TOKEN, words) from error

        # OpenID Connect Core 1.0, 3.1.3.7, 4 and 5: a token for several audiences belongs to the
        # party that it names.
        party = claims.get("azp")
        is_for_several = isinstance(claims["aud"], list) and len(claims["aud"]) > 1
        if (party is not None or is_for_several) and party != self._oidc.client_id:
            raise RefusedError(
                Refusal.TOKEN,
                f"the ID token's authorized party (azp) is {_quoted(party)}, wanted "
                f"{self._oidc.client_id!r}",
            )
        return claims

    def _key(self, token: str, document: Mapping[str, Any]) -> Any:
        """The key that signed the token, by its `kid`; without one, the only key."""
        import jwt

        kid = jwt.get_unverified_header(token).get("kid")
        keys = [
            each
            for each in jwt.PyJWKSet.from_dict(dict(document)).keys
            if each.public_key_use in (None, "sig") and (kid is None or each.key_id == kid)
        ]
        if len(keys) != 1:
            raise RefusedError(
                Refusal.TOKEN,
                f"the ID token is signed with the key {_quoted(kid)}, of which the provider's key "
                f"set has {len(keys)}, wanted one",
            )
        return keys[0].key

    def _name(self, claims: Mapping[str, Any]) -> str:
        """The person's name, marked so that it differs from every local user's."""
        found = claims.get(self._oidc.name_claim)
        name = found if isinstance(found, str) and found.strip() else str(claims["sub"])
        return "oidc:" + shown(name.strip(), _MOST_NAME)

    def _role(self, claims: Mapping[str, Any], name: str) -> str:
        """The highest role that the claim's values give."""
        found = _inner(claims, self._oidc.role_claim)
        values = [found] if isinstance(found, str) else found
        has = {each for each in values if isinstance(each, str)} if isinstance(values, list) else ()
        for role, wanted in (("act", self._oidc.act), ("look", self._oidc.look)):
            if set(wanted) & set(has):
                return role

        wanted_all = ", ".join((*self._oidc.look, *self._oidc.act))
        what = f"is {_quoted(found)}" if found is not None else "is absent"
        raise RefusedError(
            Refusal.ROLE,
            f"{name}: the claim {self._oidc.role_claim!r} {what}, wanted one of {wanted_all}; "
            "assign the role at the provider, or correct web.oidc.role_claim, look, act",
            name,
        )

    # -- the wire ----------------------------------------------------------------------------------

    def _request_json(
        self,
        method: str,
        url: str,
        form: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """The JSON object that the provider answers. No redirect is followed."""
        # Only a page with a provider loads it.
        import httpx

        asks = {"accept": "application/json", **(headers or {})}
        try:
            status, body = _run(self._exchange(method, url, form, asks))
        except TimeoutError as error:
            raise _unusable(url, f"not whole within {_PATIENCE_S:g} s") from error
        except (httpx.HTTPError, OSError, tls.TlsError) as error:
            raise _unusable(url, _network_words(error)) from error

        try:
            found = json.loads(body)
        except (ValueError, RecursionError):
            found = None
        if status != 200:
            reason = found.get("error") if isinstance(found, dict) else None
            words = f", {_quoted(reason)}" if reason is not None else ""
            is_wrong_code = method == "POST" and reason in _WRONG_CODE
            refusal = Refusal.TOKEN if is_wrong_code else Refusal.PROVIDER
            raise _unusable(url, f"HTTP {status}{words}", refusal)
        if not isinstance(found, dict):
            raise _unusable(url, "not a JSON object")
        return found

    async def _exchange(
        self, method: str, url: str, form: Mapping[str, str] | None, headers: Mapping[str, str]
    ) -> tuple[int, bytes]:
        """The status and the body of one request. Raises TimeoutError.

        A coroutine, because it can be cancelled at any point. A socket's time-out starts again with
        each byte, so a peer that sends a header byte by byte would block a turn for hours.
        """
        import httpx

        body = bytearray()
        context = self._context.current()
        async with (
            asyncio.timeout(_PATIENCE_S),
            httpx.AsyncClient(verify=context, timeout=None, trust_env=False) as client,  # noqa: S113
            client.stream(method, url, data=form, headers=headers) as answer,
        ):
            async for part in answer.aiter_bytes():
                body += part
                if len(body) > _MOST_BYTES:
                    raise _unusable(url, f"more than {_MOST_BYTES} bytes")
        return answer.status_code, bytes(body)


def _run(exchange: Coroutine[Any, Any, _Answer]) -> _Answer:
    """asyncio.run(), but without its final wait for a name server that does not answer."""
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(exchange)
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        # A thread that still resolves a name is left running.
        loop.close()


def _code(answer: Mapping[str, str]) -> str:
    if "error" in answer:
        raise RefusedError(
            Refusal.DENIED, f"the provider answers {_quoted(answer['error'])} instead of a code"
        )
    if not answer.get("code"):
        raise RefusedError(Refusal.DENIED, "the provider's answer has no code")
    return answer["code"]


def _inner(claims: Mapping[str, Any], path: str) -> Any:
    """A claim by its name, or by the path of names that leads to it."""
    if path in claims:
        return claims[path]
    found: Any = claims
    for name in path.split("."):
        found = found.get(name) if isinstance(found, dict) else None
    return found


def _secret(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            secret = file.read(_MOST_OF_SECRET).strip()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "not UTF-8"
        raise RefusedError(
            Refusal.PROVIDER, f"web.oidc.client_secret_file: {path} cannot be read ({why})"
        ) from error

    if not secret:
        raise RefusedError(
            Refusal.PROVIDER,
            f"web.oidc.client_secret_file: {path} is empty; it holds the client's secret",
        )
    return secret


def _is_https(url: Any) -> bool:
    try:
        return isinstance(url, str) and urlsplit(url).scheme == "https"
    except ValueError:
        return False


def _unusable(url: str, words: str, refusal: Refusal = Refusal.PROVIDER) -> RefusedError:
    return RefusedError(refusal, f"{shown(url, 200)}: {words}")


def _network_words(error: Exception) -> str:
    """Why the provider was not reached. httpx's error hides a refused certificate in its cause."""
    if isinstance(error, tls.TlsError):
        return str(error)
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLError):
            return tls.in_words(cause, "web.oidc", "web.oidc.ca")
        cause = cause.__cause__ or cause.__context__
    return f"{type(error).__name__}: {_first_line(error)}"


def _advice(error: Exception) -> str:
    clock = type(error).__name__ in ("ExpiredSignatureError", "ImmatureSignatureError")
    return "; compare the clocks of page and provider" if clock else ""


def _first_line(error: Exception) -> str:
    return shown((str(error).splitlines() or [""])[0], 200)


def _quoted(found: Any) -> str:
    """A value from the provider, safe to log."""
    return repr(shown(found, 100)) if isinstance(found, str) else shown(repr(found), 100)
