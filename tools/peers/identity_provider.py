"""An OpenID Connect provider for tests, as a process over HTTPS.

    python -m tools.peers.identity_provider CERTIFICATE KEY

It prints its port. It accepts every person without a password, but checks strictly what a client
must do: redirect URI, PKCE, the client's secret, one use of a code. joserfc makes its tokens, not
the library with which the page checks them. POST /test/faults sets wrong answers (`Faults`).
"""

from __future__ import annotations

import base64
import hashlib
import secrets
import socket
import ssl
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlencode

import httpx
import uvicorn
from joserfc import jwt
from joserfc.jwk import ECKey, OctKey
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from tools.peers.certificates import Authority, Pair

CLIENT = "pleura"
SECRET = "a secret: with % and +"
REDIRECT = "http://127.0.0.1:8112/login/oidc/answer"


@dataclass
class Faults:
    """The wrong answers that the provider gives."""

    # Claims of the ID token; null removes a claim.
    claims: dict[str, Any] = field(default_factory=dict)
    # The key of the signature: own, foreign (with the name of the own key), secret (HMAC), none.
    signature: str = "own"
    # Values in the discovery document, and in the answer to the browser.
    document: dict[str, Any] = field(default_factory=dict)
    answer: dict[str, Any] = field(default_factory=dict)
    # The status of the token endpoint.
    token_status: int = 200


class IdentityProvider:
    """The provider's state and its endpoints."""

    def __init__(self, port: int) -> None:
        self.issuer = f"https://localhost:{port}/staff"
        self._origin = f"https://localhost:{port}"
        self._own = ECKey.generate_key("P-256", {"kid": "one", "use": "sig"})
        self._foreign = ECKey.generate_key("P-256", {"kid": "one", "use": "sig"})
        self._codes: dict[str, dict[str, str]] = {}
        self._faults = Faults()

    def app(self) -> Starlette:
        """The endpoints."""
        document = "/staff/.well-known/openid-configuration"
        return Starlette(
            routes=[
                Route(document, self._discovery),
                Route("/authorize", self._authorize),
                Route("/token", self._token, methods=["POST"]),
                Route("/keys", self._keys),
                Route("/test/faults", self._be_faulty, methods=["POST"]),
            ]
        )

    async def _be_faulty(self, request: Request) -> Response:
        self._faults = Faults(**await request.json())
        return Response()

    async def _discovery(self, _: Request) -> Response:
        document = {
            "issuer": self.issuer,
            "authorization_endpoint": f"{self._origin}/authorize",
            "token_endpoint": f"{self._origin}/token",
            "jwks_uri": f"{self._origin}/keys",
            "response_types_supported": ["code"],
            "id_token_signing_alg_values_supported": ["ES256"],
            "code_challenge_methods_supported": ["S256"],
            "token_endpoint_auth_methods_supported": ["client_secret_basic"],
            "authorization_response_iss_parameter_supported": True,
        }
        return JSONResponse(document | self._faults.document)

    async def _authorize(self, request: Request) -> Response:
        asked = dict(request.query_params)
        wanted = {
            "response_type": "code",
            "client_id": CLIENT,
            "redirect_uri": REDIRECT,
            "code_challenge_method": "S256",
        }
        wrong = [name for name, value in wanted.items() if asked.get(name) != value]
        if wrong or "openid" not in asked.get("scope", "").split():
            return Response(f"wrong: {wrong}", 400)

        code = secrets.token_urlsafe(16)
        self._codes[code] = asked
        answer = {"code": code, "state": asked["state"], "iss": self.issuer}
        told = {name: value for name, value in (answer | self._faults.answer).items() if value}
        return RedirectResponse(f"{REDIRECT}?{urlencode(told)}", 302)

    async def _token(self, request: Request) -> Response:
        if self._faults.token_status != 200:
            return JSONResponse({"error": "server_error"}, self._faults.token_status)

        basic = request.headers.get("authorization", "").removeprefix("Basic ")
        credentials = base64.b64decode(basic).decode().split(":")
        if [unquote(part) for part in credentials] != [CLIENT, SECRET]:
            return JSONResponse({"error": "invalid_client"}, 401)

        form = await request.form()
        asked = self._codes.pop(str(form.get("code")), None)
        digest = hashlib.sha256(str(form.get("code_verifier")).encode()).digest()
        challenge = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
        if asked is None or asked["code_challenge"] != challenge:
            return JSONResponse({"error": "invalid_grant"}, 400)

        return JSONResponse(
            {
                "access_token": secrets.token_urlsafe(16),
                "token_type": "Bearer",
                "id_token": self._signed(asked["nonce"]),
            }
        )

    async def _keys(self, _: Request) -> Response:
        return JSONResponse({"keys": [self._own.as_dict(private=False)]})

    def _signed(self, nonce: str) -> str:
        now = int(time.time())
        claims: dict[str, Any] = {
            "iss": self.issuer,
            "sub": "4711",
            "aud": CLIENT,
            "iat": now,
            "exp": now + 300,
            "nonce": nonce,
            "preferred_username": "ada",
            "roles": ["staff", "pleura-act"],
        }
        claims |= self._faults.claims
        claims = {name: value for name, value in claims.items() if value is not None}

        if self._faults.signature == "secret":
            header = {"alg": "HS256", "kid": "one"}
            return jwt.encode(header, claims, OctKey.import_key(SECRET), algorithms=["HS256"])
        if self._faults.signature == "none":
            return jwt.encode({"alg": "none"}, claims, OctKey.import_key("x"), algorithms=["none"])

        key = self._foreign if self._faults.signature == "foreign" else self._own
        return jwt.encode({"alg": "ES256", "kid": "one"}, claims, key)


class Running:
    """The provider in a separate process, as a context manager."""

    def __init__(self, authority: Authority, pair: Pair) -> None:
        self.ca = authority.certificate
        self._pair = pair

    def __enter__(self) -> Running:
        files = [str(self._pair.certificate), str(self._pair.key)]
        command = [sys.executable, "-P", "-m", "tools.peers.identity_provider", *files]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

        assert self._process.stdout is not None
        self.origin = f"https://localhost:{int(self._process.stdout.readline())}"
        self.issuer = f"{self.origin}/staff"
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(20)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def browser(self) -> httpx.Client:
        """A browser that trusts the provider's certificate."""
        return httpx.Client(verify=ssl.create_default_context(cafile=self.ca), timeout=20.0)

    def be_faulty(self, **faults: Any) -> None:
        """Set the provider's faults from now on; without arguments, remove them."""
        with self.browser() as browser:
            browser.post(f"{self.origin}/test/faults", json=faults).raise_for_status()


def main() -> None:
    """Serve until SIGTERM."""
    certificate, key = sys.argv[1:]
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = int(listening.getsockname()[1])
        config = uvicorn.Config(
            IdentityProvider(port).app(),
            log_level="error",
            lifespan="off",
            ssl_certfile=certificate,
            ssl_keyfile=key,
        )

        # The kernel queues connections from here on.
        sys.stdout.write(f"{port}\n")
        sys.stdout.flush()
        uvicorn.Server(config).run([listening])


if __name__ == "__main__":
    main()
